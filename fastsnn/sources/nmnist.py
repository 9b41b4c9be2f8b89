"""N-MNIST from its own files: Train/<label>/<id>.bin and Test/<label>/<id>.bin, 34 x 34 pixels of two polarities.

A file is a row of events of 5 bytes: x, y, then 1 bit of polarity (1 is on) and 23 bits of time in microseconds, most
significant byte first. An event at y = 240 marks an overflow of the camera's counter: later times are 8,192 us on.

Source: Orchard, Jayawant, Cohen and Thakor 2015.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fastsnn.errors import DataUnavailable
from fastsnn.sources.binning import Bins, check_options, time_steps
from fastsnn.sources.files import check_regular, find_folder
from fastsnn.sources.polarity import channels_of, select_events
from fastsnn.sources.store import Part, StoredSource

SIDE = 34
CLASSES = 10
_OVERFLOW_ROW, _OVERFLOW_US = 240, 8192
_WHERE = (
    "get N-MNIST's Train.zip and Test.zip from https://www.garrickorchard.com/datasets/n-mnist, unpack both there, "
    "or name another folder with --data-dir"
)


def open_nmnist(
    name: str,
    folder: Path,
    T: int | None,
    encoder: str | None,
    say: Callable[[str], None],
    *,
    binning: str = "time",
    duration: float | None = None,
    polarity: str = "both",
    values: str = "spikes",
) -> StoredSource:
    """N-MNIST in T (default 30) time steps, [channels, 34, 34]; see docs/data.md for the options."""
    T = 30 if T is None else T
    if encoder is not None:
        raise ValueError(f"encoder is {encoder!r}; allowed for nmnist: none, its spikes are recorded")
    check_options(T, binning, values, duration)
    channels = channels_of(polarity)
    parts = {}
    for split, names in (("train", ("Train", "training")), ("test", ("Test", "testing"))):
        files = _files(folder, names, split == "train")
        bins = Bins(len(files), T, channels * SIDE * SIDE, values)
        for sample, (path, _) in enumerate(files):
            x, y, p, t = read_events(path)
            steps = time_steps(t, T, binning, None if duration is None else duration * 1e6)
            kept, channel = select_events(p, polarity)
            x, y, steps = x[kept], y[kept], steps[kept]
            place = (channel * SIDE + y) * SIDE + x
            inside = steps < T
            bins.add(sample, steps[inside], place[inside])
        labels = torch.tensor([label for _, label in files], dtype=torch.int64)
        parts[split] = Part(bins.tensor((channels, SIDE, SIDE)), labels)
    return StoredSource(name, parts, (channels, SIDE, SIDE), CLASSES, T=T, packed=values == "spikes")


def _files(folder: Path, names: tuple[str, ...], training: bool) -> list[tuple[Path, int]]:
    """Each recording with its label, by label and then by file name."""
    places = [folder, *(found for n in ("NMNIST", "N-MNIST", "nmnist-py") if (found := find_folder(folder, (n,))))]
    root = next((found for place in places if (found := find_folder(place, names))), None)
    if root is None:
        raise DataUnavailable(f"{folder} has no folder {names[0]} of N-MNIST: {_WHERE}")
    files = []
    for label in sorted(path for path in root.iterdir() if path.is_dir()):
        if label.name not in map(str, range(CLASSES)):
            raise DataUnavailable(f"{label} is no class; allowed: folders 0 to {CLASSES - 1} in {root}")
        recordings = sorted(path for path in label.iterdir() if path.suffix == ".bin")
        if training and not recordings:
            raise DataUnavailable(f"{label} holds no .bin file, and every class needs one to train on: {_WHERE}")
        files += [(path, int(label.name)) for path in recordings]
    present = {label for _, label in files}
    if training and len(present) < CLASSES:
        missing = min(set(range(CLASSES)) - present)
        raise DataUnavailable(f"{root} has no folder {missing}, and every class needs one to train on: {_WHERE}")
    if not files:
        raise DataUnavailable(f"{root} holds no .bin file: {_WHERE}")
    return files


def read_events(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y, polarity and time in microseconds of a recording's events, each int64 [N], in the order of time."""
    remedy = "unpack N-MNIST again, or delete the file"
    check_regular(path, remedy)
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataUnavailable(f"{path} can't be read ({error.strerror}): {remedy}") from error
    if not len(content):
        raise DataUnavailable(f"{path} is empty: {remedy}")
    if len(content) % 5:
        raise DataUnavailable(f"{path} is truncated: it has {len(content)} bytes, no multiple of 5: {remedy}")
    x, y, high, middle, low = content.reshape(-1, 5).astype(np.int64).T
    t = (high & 127) << 16 | middle << 8 | low
    overflows = y == _OVERFLOW_ROW
    if overflows.any():
        t += np.cumsum(overflows) * _OVERFLOW_US
        x, y, high, t = (values[~overflows] for values in (x, y, high, t))
        if not len(t):
            raise DataUnavailable(f"{path} holds no event: {remedy}")
    if x.max() >= SIDE or y.max() >= SIDE:
        event = int(np.argmax((x >= SIDE) | (y >= SIDE)))
        raise DataUnavailable(f"{path} has event {event} at pixel {x[event]}, {y[event]} of 34 x 34: {remedy}")
    backwards = t[1:] < t[:-1]
    if backwards.any():
        event = int(np.argmax(backwards)) + 1
        raise DataUnavailable(f"{path} has times that run backwards: event {event} is at {t[event]} us: {remedy}")
    return x, y, high >> 7, t
