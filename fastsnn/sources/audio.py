"""SHD and SSC, spoken words as the spikes of 700 channels, from their official HDF5 files (read with h5py).

    spikes/times [D]  of each recording an array of seconds        spikes/units [D]  the channel of each, 0 to 699
    labels [D]        0 to 19 for SHD, 0 to 34 for SSC

Source: Cramer, Stradmann, Schemmel and Zenke 2020.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastsnn.errors import DataUnavailable
from fastsnn.sources.binning import Bins, check_options, time_steps
from fastsnn.sources.files import check_regular, find_folder
from fastsnn.sources.labels import check_classes
from fastsnn.sources.store import Part, StoredSource

UNITS = 700
_CLASSES = {"shd": 20, "ssc": 35}
_SECONDS = {"shd": 1.4, "ssc": 1.0}
"""Default duration: the longest recording of SHD takes 1.37 s, of SSC 1 s."""
_FILES = {
    "shd": {"train": "shd_train.h5", "test": "shd_test.h5"},
    "ssc": {"train": "ssc_train.h5", "validation": "ssc_valid.h5", "test": "ssc_test.h5"},
}
_CHUNK = 512
"""Recordings that are read at a time."""


def open_audio(
    name: str,
    folder: Path,
    T: int | None,
    encoder: str | None,
    say: Callable[[str], None],
    *,
    channels: int = UNITS,
    duration: float | None = None,
    values: str = "spikes",
) -> StoredSource:
    """SHD or SSC in T (default 100) equal time steps of ``duration`` seconds, [channels]; later spikes are dropped.

    With fewer ``channels`` than 700, unit u belongs to channel u * channels // 700.
    """
    T, duration = 100 if T is None else T, _SECONDS[name] if duration is None else duration
    if encoder is not None:
        raise ValueError(f"encoder is {encoder!r}; allowed for {name}: none, its spikes are given")
    check_options(T, "time", values, duration)
    if not isinstance(channels, int) or not 1 <= channels <= UNITS:
        raise ValueError(f"channels is {channels}; allowed: 1 to {UNITS}")
    paths = _find(name, folder)
    parts = {split: _read(path, _CLASSES[name], T, channels, duration, values) for split, path in paths.items()}
    try:
        check_classes({split: part.y.numpy() for split, part in parts.items()}, _CLASSES[name])
    except ValueError as error:
        raise DataUnavailable(f"{paths['train']}: {error}") from error
    return StoredSource(name, parts, (channels,), _CLASSES[name], T=T, packed=values == "spikes")


def _find(name: str, folder: Path) -> dict[str, Path]:
    """The file of each split, in ``folder`` or in its subfolder of the data set's name."""
    places = [folder]
    if own := find_folder(folder, (name, f"{name}_data")):
        places.append(own)
    where = (
        f"get {', '.join(f'{file}.gz' for file in _FILES[name].values())} from https://zenkelab.org/datasets/, "
        f"unpack them with gunzip to {folder}, or name another folder with --data-dir"
    )
    found: dict[str, Path] = {}
    for split, file in _FILES[name].items():
        path = next((place / file for place in places if (place / file).exists()), None)
        if path is None:
            packed = next((place / f"{file}.gz" for place in places if (place / f"{file}.gz").exists()), None)
            if packed is not None:
                raise DataUnavailable(f"{packed} is packed: unpack it with `gunzip {packed}`")
            raise DataUnavailable(f"{folder} has no {file}: {where}")
        found[split] = path
    return found


def _read(path: Path, classes: int, T: int, channels: int, duration: float, values: str) -> Part:
    """One file's recordings, binned."""
    remedy = "get it again, or name another folder with --data-dir"
    check_regular(path, remedy)
    h5py = _h5py(path)
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in ("spikes/times", "spikes/units", "labels") if key not in file]
            if missing:
                raise DataUnavailable(f"{path} has no {missing[0]}: {remedy}")
            times, units, labels = file["spikes/times"], file["spikes/units"], np.asarray(file["labels"])
            samples = len(labels)
            if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not samples:
                raise DataUnavailable(f"{path} has labels {labels.dtype} {list(labels.shape)}; allowed: integers [D]")
            if times.shape != labels.shape or units.shape != labels.shape:
                found = f"{samples} labels, times {list(times.shape)} and units {list(units.shape)}"
                raise DataUnavailable(f"{path} has {found}; allowed: as many of each: {remedy}")
            bins = Bins(samples, T, channels, values)
            for start in range(0, samples, _CHUNK):
                stop = min(start + _CHUNK, samples)
                t, unit, sample = _events(path, times[start:stop], units[start:stop], start)
                steps = time_steps(t, T, "time", duration)
                inside = steps < T
                bins.add(sample[inside], steps[inside], unit[inside] * channels // UNITS)
    except (OSError, KeyError, RuntimeError, AttributeError, TypeError, ValueError, MemoryError) as error:
        if isinstance(error, DataUnavailable):
            raise
        raise DataUnavailable(f"{path} can't be read ({' '.join(str(error).split())}): {remedy}") from error
    y = labels.astype(np.int64)
    if y.min() < 0 or y.max() >= classes:
        i = int(np.argmax((y < 0) | (y >= classes)))
        raise DataUnavailable(f"{path} has label {y[i]} at recording {i}; allowed: 0 to {classes - 1}")
    return Part(bins.tensor((channels,)), torch.from_numpy(y))


def _events(path: Path, times: Any, units: Any, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds float64, unit int64 and recording int64 of the spikes of some recordings, the first of number ``first``.

    The format promises no order of the spikes, and fixed time steps need none.
    """
    counts = np.array([len(t) for t in times])
    other = np.array([len(u) for u in units])
    if (counts != other).any():
        i = int(np.argmax(counts != other))
        raise DataUnavailable(f"{path} has {counts[i]} times and {other[i]} units at recording {first + i}")
    t = np.concatenate(times).astype(np.float64)
    unit = np.concatenate(units).astype(np.int64)
    sample = np.repeat(np.arange(first, first + len(counts)), counts)
    wrong = ~np.isfinite(t) | (t < 0)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise DataUnavailable(f"{path} has a time of {t[i]} s at recording {sample[i]}; allowed: 0 or more")
    wrong = (unit < 0) | (unit >= UNITS)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise DataUnavailable(f"{path} has unit {unit[i]} at recording {sample[i]}; allowed: 0 to {UNITS - 1}")
    return t, unit, sample


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DataUnavailable(f"reading {path} needs h5py: pip install 'fastsnn[events]'") from error
    return h5py
