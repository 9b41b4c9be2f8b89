"""Data sets that are published as arrays: an ECG with a label at each step, and Braille letters."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastsnn.errors import DataUnavailable
from fastsnn.sources.arrays import Arrays, chosen_for_test, open_arrays
from fastsnn.sources.files import find_folder, read_arrays

_QTDB_WHERE = (
    "save the arrays x [D, 1301, 4] and y [D, 1301, 6] of QTDB_train.mat and QTDB_test.mat of "
    "https://github.com/byin-cwi/Efficient-spiking-networks as train.npz and test.npz there, or name another folder "
    "with --data-dir"
)
_BRAILLE_WHERE = (
    "save the recordings of https://github.com/event-driven-robotics/tactile_braille_reading as arrays x uint8 "
    "[D, 76, 12] and y [D] of braille.npz "
    "there, or name another folder with --data-dir"
)


def open_qtdb(name: str, folder: Path, T: int | None, encoder: str | None, say: Callable[[str], None]) -> Arrays:
    """ECG of the QT Database, level-crossing coded: 618 and 141 series of 1301 steps, 4 channels of -1, 0 and 1.

    Each step has one of six labels (P, PQ, QR, RS, ST, TP) or none. Source: PhysioNet's QT Database in the coding of
    Yin, Corradi and Bohte 2021.
    """
    _no_encoder(name, encoder)
    place = find_folder(folder, ("qtdb",)) or folder
    if not (place / "train.npz").exists():
        raise DataUnavailable(f"{place} has no train.npz of the QT Database: {_QTDB_WHERE}")
    source = open_arrays(str(place), folder, T, None, say)
    source.name = name
    return source


def open_braille(
    name: str,
    folder: Path,
    T: int | None,
    encoder: str | None,
    say: Callable[[str], None],
    *,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Arrays:
    """Braille letters as 12 pressure sensors feel them: 27 classes (A to Z and space), 50 each, in T steps.

    The recordings have 76 steps; with a T of 152 or more each value lasts T / 76 steps. A sensor's values are shifted
    and scaled to mean 0 and variance 1 over the training set. ``test_fraction`` of each class is the test set,
    chosen by ``split_seed``. Source: Müller-Cleve et al. 2022.
    """
    _no_encoder(name, encoder)
    path = (find_folder(folder, ("braille",)) or folder) / "braille.npz"
    arrays = read_arrays(path, _BRAILLE_WHERE)
    x, y = arrays.get("x"), arrays.get("y")
    if x is None or y is None or x.ndim != 3 or x.shape[2] != 12 or not len(x):
        found = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items())
        raise DataUnavailable(f"{path} holds {found or 'nothing'}: {_BRAILLE_WHERE}")
    steps = x.shape[1]
    T = steps if T is None else T
    if T % steps:
        raise ValueError(f"T is {T}, and {name} has {steps} time steps; allowed: a multiple of {steps}")
    y = y.astype(np.int64)
    is_test = chosen_for_test(y, test_fraction, split_seed)
    training = x[~is_test].astype(np.float64)
    x = ((x - training.mean((0, 1))) / (training.std((0, 1)) + 1e-6)).astype(np.float32)
    x = np.repeat(x, T // steps, 1)
    return Arrays(x[~is_test], y[~is_test], x_test=x[is_test], y_test=y[is_test], name=name)


def _no_encoder(name: str, encoder: str | None) -> None:
    if encoder is not None:
        raise ValueError(f"encoder is {encoder!r}; allowed for {name}: none, its values are the currents of its steps")
