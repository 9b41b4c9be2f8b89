"""DVS-Gesture and CIFAR10-DVS as SpikingJelly and tonic leave them on disk: frames or events in .npz and .npy files.

    frames_number_16_split_by_number/   SpikingJelly's frames: [train|test]/<class>/<name>.npz with frames [T, 2, H, W]
    events_np/                          SpikingJelly's events: [train|test]/<class>/<name>.npz with t, x, y, p
    ibmGestureTrain/, ibmGestureTest/   tonic's DVS-Gesture: <user>/<label>.npy, events [N, 4] of x, y, p and t in ms
    [train|test]/<class>/<name>.npy     frames [T, 2, H, W], as tonic's ToFrame makes them, saved with np.save

Sources: Amir et al. 2017 (DVS-Gesture); Li, Liu, Ji, Li and Shi 2017 (CIFAR10-DVS).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastsnn.errors import DataUnavailable
from fastsnn.sources.binning import Bins, check_options, time_steps
from fastsnn.sources.files import find_folder, read_arrays
from fastsnn.sources.labels import check_classes
from fastsnn.sources.polarity import channels_of, select_events, select_frames
from fastsnn.sources.store import Part, StoredSource

SIDE = 128
"""Height and width of the camera's image."""
_T = 16
"""Default number of time steps of events."""
_SPLITS = {"train": ("train", "ibmGestureTrain"), "test": ("test", "ibmGestureTest")}
_REMEDY = "make it again with SpikingJelly or tonic, or delete it"


@dataclass(frozen=True)
class _Kind:
    classes: int
    folders: tuple[str, ...]


_KINDS = {
    "dvs-gesture": _Kind(11, ("DVS128Gesture", "DVSGesture", "dvs-gesture")),
    "cifar10-dvs": _Kind(10, ("CIFAR10DVS", "cifar10-dvs")),
}
_Files = list[tuple[Path, int]]


def open_frames(
    name: str,
    folder: Path,
    T: int | None,
    encoder: str | None,
    say: Callable[[str], None],
    *,
    binning: str = "count",
    polarity: str = "both",
    values: str = "spikes",
    test_fraction: float = 0.1,
) -> StoredSource:
    """DVS-Gesture or CIFAR10-DVS, [channels, H, W]; see docs/data.md for the options.

    ``T`` (default: of the frames that are there; 16 for events) and ``binning`` choose among folders of frames. If
    there is no test folder, the last ``test_fraction`` of each class is the test set, by file name.
    """
    if encoder is not None:
        raise ValueError(f"encoder is {encoder!r}; allowed for {name}: none, its spikes are recorded")
    check_options(T or 1, binning, values, None)
    channels_of(polarity)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}; allowed: more than 0 and less than 1")
    kind = _KINDS[name]
    root = _root(find_folder(folder, kind.folders) or folder, T, binning)
    files = _splits(root, kind, folder, name, test_fraction)
    labels = {split: np.array([label for _, label in part], np.int64) for split, part in files.items()}
    try:
        check_classes(labels, kind.classes)
    except ValueError as error:
        raise DataUnavailable(f"{root}: {error}") from error
    reader = _Reader(T, binning, polarity, values)
    parts = {split: Part(reader.read(part), torch.from_numpy(labels[split])) for split, part in files.items()}
    return StoredSource(name, parts, reader.shape, kind.classes, T=reader.T, packed=values == "spikes")


def _root(base: Path, T: int | None, binning: str) -> Path:
    """The folder whose files are read: frames of ``T`` steps, else events, else ``base`` itself."""
    how = "number" if binning == "count" else "time"
    pattern = f"frames_number_{'*' if T is None else T}_split_by_{how}"
    frames = sorted(path for path in base.glob(pattern) if path.is_dir()) if base.is_dir() else []
    if len(frames) > 1:
        found = ", ".join(path.name for path in frames)
        raise ValueError(f"T is not given, and {base} has {found}; allowed: T, to choose among them")
    return frames[0] if frames else find_folder(base, ("events_np",)) or base


def _splits(root: Path, kind: _Kind, folder: Path, name: str, test_fraction: float) -> dict[str, _Files]:
    found = {split: find_folder(root, names) for split, names in _SPLITS.items()}
    if found["train"] and found["test"]:
        parts = {split: _labelled(path, kind) for split, path in found.items() if path}
        if not parts["test"]:
            raise DataUnavailable(f"{found['test']} holds no .npz or .npy file: {_REMEDY}")
        return parts
    if found["train"] or found["test"]:
        present, absent = ("train", "test") if found["train"] else ("test", "train")
        raise DataUnavailable(f"{root} has a folder {present} and no folder {absent}: {_REMEDY}")
    files = _labelled(root, kind) if root.is_dir() else []
    if not files:
        raise DataUnavailable(
            f"{folder} has no files of {name}: prepare it with SpikingJelly (its events_np or frames_number_... "
            f"folders) or tonic in {folder / kind.folders[0]}, or name another folder with --data-dir"
        )
    parts = {"train": [], "test": []}
    for label in sorted({label for _, label in files}):
        members = [file for file in files if file[1] == label]
        kept = len(members) - round(test_fraction * len(members))
        parts["train"] += members[:kept]
        parts["test"] += members[kept:]
    return {split: part for split, part in parts.items() if part}


def _labelled(split: Path, kind: _Kind) -> _Files:
    """Each file with its class, by class and then by name."""
    folders = {path: _arrays_in(path) for path in sorted(split.iterdir()) if path.is_dir()}
    folders = {path: inside for path, inside in folders.items() if inside}
    if split.name.startswith("ibmGesture"):
        # A folder for each user: the files are named by class.
        inside = [file for part in folders.values() for file in part]
        numbers = {file: _number(file.stem, file, kind) for file in inside}
    elif all(path.name.isdecimal() for path in folders):
        numbers = {file: _number(path.name, path, kind) for path, part in folders.items() for file in part}
    else:
        # Classes have names: they are numbered by the alphabet.
        numbers = {file: number for number, part in enumerate(folders.values()) for file in part}
    return sorted(numbers.items(), key=lambda file: (file[1], file[0]))


def _arrays_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".npz", ".npy")]


def _number(text: str, path: Path, kind: _Kind) -> int:
    if not text.isdecimal() or int(text) >= kind.classes:
        raise DataUnavailable(f"{path} is no class; allowed: 0 to {kind.classes - 1}")
    return int(text)


class _Reader:
    """Reads files that must all have as many steps and pixels as the first."""

    def __init__(self, T: int | None, binning: str, polarity: str, values: str) -> None:
        self.T, self.binning, self.polarity, self.values = T, binning, polarity, values
        self.shape: tuple[int, ...] = ()

    def read(self, files: _Files) -> torch.Tensor:
        """All files of a split as the x of a ``Part``."""
        bins: Bins | None = None
        for sample, (path, _) in enumerate(files):
            arrays = read_arrays(path, _REMEDY)
            x = arrays.get("frames", arrays.get(""))
            if x is not None and x.ndim == 4:
                steps, places = self._of_frames(path, x)
            else:
                steps, places = self._of_events(path, _events(path, arrays))
            if bins is None:
                assert self.T is not None
                bins = Bins(len(files), self.T, int(np.prod(self.shape)), self.values)
            bins.add(sample, steps, places)
        assert bins is not None
        return bins.tensor(self.shape)

    def _of_frames(self, path: Path, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Time step and pixel of each event of frames [T, 2, H, W]."""
        if frames.shape[1] != 2 or not frames.size or frames.dtype.kind not in "biuf":
            raise DataUnavailable(
                f"{path} has frames {frames.dtype} {list(frames.shape)}; allowed: numbers [T, 2, H, W]"
            )
        self.T = len(frames) if self.T is None else self.T
        self._check_shape(path, len(frames), frames.shape[2:])
        if not (np.isfinite(frames).all() and frames.min() >= 0 and (frames == np.floor(frames)).all()):
            raise DataUnavailable(f"{path} has frames that are no counts; allowed: 0, 1, 2, ...: {_REMEDY}")
        kept = np.minimum(select_frames(frames.astype(np.float32), self.polarity), 255).astype(np.int64)
        counts = kept.reshape(len(frames), -1)
        steps, places = counts.nonzero()
        repeats = counts[steps, places]
        return np.repeat(steps, repeats), np.repeat(places, repeats)

    def _of_events(self, path: Path, events: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Time step and pixel of each event of the camera."""
        t, x, y, p = events
        self.T = _T if self.T is None else self.T
        self._check_shape(path, self.T, (SIDE, SIDE))
        steps = time_steps(t, self.T, self.binning, None)
        kept, channel = select_events(p, self.polarity)
        return steps[kept], (channel * SIDE + y[kept]) * SIDE + x[kept]

    def _check_shape(self, path: Path, T: int, size: tuple[int, ...]) -> None:
        self.shape = self.shape or (channels_of(self.polarity), *size)
        if self.T != T or self.shape[1:] != tuple(size):
            raise DataUnavailable(
                f"{path} has {T} frames of {list(size)}; allowed: {self.T} of {list(self.shape[1:])}, as asked for or "
                f"as in the first file: {_REMEDY}"
            )


def _events(path: Path, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """t, x, y, p int64 of the events in a file's arrays."""
    plain = arrays.get("")
    if all(key in arrays for key in "txyp"):
        columns = [arrays[key] for key in "txyp"]
    elif plain is not None and plain.dtype.names and set("txyp") <= set(plain.dtype.names):
        columns = [plain[key] for key in "txyp"]
    elif plain is not None and plain.ndim == 2 and plain.shape[1] == 4 and plain.dtype.kind in "iuf":
        # tonic's DVS-Gesture: milliseconds.
        columns = [plain[:, 3] * 1000, plain[:, 0], plain[:, 1], plain[:, 2]]
    else:
        found = ", ".join(f"{key or 'an array'} {list(array.shape)}" for key, array in arrays.items()) or "nothing"
        raise DataUnavailable(
            f"{path} holds {found}; allowed: frames [T, 2, H, W], events t, x, y, p, or [N, 4] of x, y, p, t: {_REMEDY}"
        )
    if any(column.ndim != 1 or column.dtype.kind not in "biuf" for column in columns):
        raise DataUnavailable(f"{path} has events that are no numbers [N]: {_REMEDY}")
    if len({len(column) for column in columns}) > 1 or not len(columns[0]):
        lengths = ", ".join(str(len(column)) for column in columns)
        raise DataUnavailable(f"{path} has {lengths} values of t, x, y and p; allowed: as many of each, 1 or more")
    if not all(np.isfinite(column).all() for column in columns):
        raise DataUnavailable(f"{path} has events that are NaN or infinite: {_REMEDY}")
    t, x, y, p = (np.round(column).astype(np.int64) for column in columns)
    outside = (x < 0) | (x >= SIDE) | (y < 0) | (y >= SIDE) | (p < 0) | (p > 1)
    if outside.any():
        i = int(np.argmax(outside))
        raise DataUnavailable(f"{path} has event {i} at pixel {x[i]}, {y[i]} of 128 x 128, polarity {p[i]}: {_REMEDY}")
    backwards = t[1:] < t[:-1]
    if backwards.any():
        raise DataUnavailable(
            f"{path} has times that run backwards at event {int(np.argmax(backwards)) + 1}: {_REMEDY}"
        )
    return t, x, y, p
