"""Data files in their official formats, made small for tests, and the folder of real ones."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastsnn import PackedSpikes
from fastsnn.sources import StoredSource, open_source

Events = list[tuple[int, int, int, int]]
"""x, y, polarity and microseconds."""

REAL = Path(os.environ.get("FASTSNN_EVENTS") or "/nowhere")
"""Folder with real recordings: NMNIST/, fsdd/, qtdb/, braille/, JapaneseVowels/."""


def needs_real(name: str) -> Any:
    """Skip a test unless the folder of real recordings has ``name``."""
    reason = f"needs {name}/ in $FASTSNN_EVENTS, the folder of real recordings"
    return pytest.mark.skipif(not (REAL / name).is_dir(), reason=reason)


def nmnist_bytes(events: Events) -> bytes:
    """Events (x, y, polarity, microseconds) as N-MNIST has them: 5 bytes each."""
    return b"".join(bytes([x, y]) + (p << 23 | t).to_bytes(3, "big") for x, y, p, t in events)


def random_events(rng: np.random.Generator, n: int, side: int = 34, last: int = 300_000) -> Events:
    t = np.sort(rng.integers(0, last, n))
    columns = (rng.integers(0, side, n), rng.integers(0, side, n), rng.integers(0, 2, n), t)
    return [(int(x), int(y), int(p), int(at)) for x, y, p, at in zip(*columns, strict=True)]


def write_nmnist(root: Path, train: int = 2, test: int = 1, events: int = 200) -> dict[Path, Events]:
    """Recordings of each class in root/Train and root/Test; returns the events of each file."""
    rng, written = np.random.default_rng(0), {}
    for split, count in (("Train", train), ("Test", test)):
        for label in range(10):
            (root / split / str(label)).mkdir(parents=True)
            for i in range(count):
                path = root / split / str(label) / f"{label * count + i:05}.bin"
                written[path] = random_events(rng, events)
                path.write_bytes(nmnist_bytes(written[path]))
    return written


def write_hdf5(path: Path, recordings: list[tuple[Any, Any]], labels: Any) -> None:
    """A file of SHD or SSC: (seconds, units) and the label of each recording."""
    import h5py

    with h5py.File(path, "w") as file:
        times = file.create_dataset("spikes/times", (len(recordings),), h5py.vlen_dtype(np.float16))
        units = file.create_dataset("spikes/units", (len(recordings),), h5py.vlen_dtype(np.uint16))
        for i, (seconds, numbers) in enumerate(recordings):
            times[i], units[i] = np.asarray(seconds, np.float16), np.asarray(numbers, np.uint16)
        file["labels"] = np.asarray(labels)


def random_words(
    classes: int, each: int, seed: int, seconds: float = 1.0, spikes: int = 300
) -> tuple[list[Any], np.ndarray]:
    """Recordings of every class, and their labels."""
    rng = np.random.default_rng(seed)
    recordings = []
    for _ in range(classes * each):
        n = int(rng.integers(1, spikes))
        recordings.append((np.sort(rng.random(n) * seconds).astype(np.float16), rng.integers(0, 700, n)))
    return recordings, (np.arange(classes * each) % classes).astype(np.uint16)


def opened(name: str, folder: Path, **options: Any) -> StoredSource:
    source = open_source(name, folder, **options)
    assert isinstance(source, StoredSource)
    return source


def everything(source: StoredSource, split: str = "train") -> Tensor:
    """x [T, D, *shape] as numbers."""
    assert source.T is not None
    x = source.batch(split, torch.arange(source.size(split)), source.T).x
    assert isinstance(x, PackedSpikes) == source.packed
    return x.unpack() if isinstance(x, PackedSpikes) else x


def spikingjelly_frames(events: Events, T: int, binning: str, side: int) -> np.ndarray:
    """Counts [T, 2, side, side] by SpikingJelly 0.0.0.0.14."""
    from spikingjelly.datasets import integrate_events_by_fixed_frames_number

    x, y, p, t = np.array(events).T
    how = "number" if binning == "count" else "time"
    return np.asarray(integrate_events_by_fixed_frames_number({"t": t, "x": x, "y": y, "p": p}, how, T, side, side))
