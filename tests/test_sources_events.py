"""Event cameras: N-MNIST's own files, and DVS-Gesture and CIFAR10-DVS as SpikingJelly and tonic leave them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from source_files import REAL, needs_real, nmnist_bytes, random_events, write_nmnist
from torch import Tensor

from fastsnn import PackedSpikes
from fastsnn.errors import DataUnavailable
from fastsnn.sources import StoredSource, open_source

Events = list[tuple[int, int, int, int]]


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


@pytest.mark.parametrize("binning", ["time", "count"])
def test_nmnist_is_binned_as_spikingjelly_does(tmp_path: Path, binning: str) -> None:
    written = write_nmnist(tmp_path / "NMNIST", train=1)
    source = opened("N-MNIST", tmp_path, T=7, binning=binning, values="counts")
    assert (source.shape, source.classes, source.T) == ((2, 34, 34), 10, 7)
    expected = np.stack(
        [spikingjelly_frames(events, 7, binning, 34) for p, events in written.items() if "Train" in p.parts]
    )
    counts = everything(source)
    np.testing.assert_array_equal(counts.transpose(0, 1).numpy(), expected)
    spikes = everything(opened("nmnist", tmp_path, T=7, binning=binning))
    assert torch.equal(spikes, (counts > 0).float())
    assert source.batch("train", torch.arange(10), 7).y.tolist() == list(range(10))


def test_a_fixed_duration_drops_later_events(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    path = tmp_path / "Train" / "0" / "00000.bin"
    path.write_bytes(
        nmnist_bytes([(1, 2, 1, 0), (1, 2, 1, 9_999), (3, 4, 0, 10_000), (5, 6, 1, 299_999), (7, 8, 1, 300_000)])
    )
    counts = everything(opened("nmnist", tmp_path, T=30, duration=0.3, values="counts"))[:, 0]
    found = {tuple(place.tolist()): int(counts[tuple(place)]) for place in counts.nonzero()}
    assert found == {(0, 1, 2, 1): 2, (1, 0, 4, 3): 1, (29, 1, 6, 5): 1}


def test_polarity_channels(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    kept = {
        polarity: everything(opened("nmnist", tmp_path, T=5, polarity=polarity, values="counts"))
        for polarity in ("both", "summed", "on", "off")
    }
    assert kept["both"].shape == (5, 20, 2, 34, 34)
    assert torch.equal(kept["off"], kept["both"][:, :, :1])
    assert torch.equal(kept["on"], kept["both"][:, :, 1:])
    assert torch.equal(kept["summed"], kept["both"].sum(2, keepdim=True))


def test_counts_end_at_255(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    (tmp_path / "Train" / "0" / "00000.bin").write_bytes(nmnist_bytes([(1, 1, 0, t) for t in range(300)]))
    assert everything(opened("nmnist", tmp_path, T=1, values="counts"))[0, 0].max() == 255


def test_an_overflow_of_the_counter_moves_later_events(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    events = [(1, 1, 0, 8_000), (0, 240, 0, 0), (2, 2, 0, 100), (0, 240, 0, 0), (3, 3, 0, 0)]
    (tmp_path / "Train" / "0" / "00000.bin").write_bytes(nmnist_bytes(events))
    x = everything(opened("nmnist", tmp_path, T=3, duration=3 * 0.008192, polarity="summed"))[:, 0, 0]
    assert x.nonzero().tolist() == [[0, 1, 1], [1, 2, 2], [2, 3, 3]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (bytes(12), "is truncated: it has 12 bytes"),
        (nmnist_bytes([(33, 33, 1, 5), (34, 0, 1, 6)]), "has event 1 at pixel 34, 0"),
        (nmnist_bytes([(0, 0, 1, 5), (0, 0, 1, 4)]), "has times that run backwards: event 1 is at 4 us"),
        (nmnist_bytes([(0, 240, 1, 5)]), "holds no event"),
    ],
)
def test_a_bad_recording_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    write_nmnist(tmp_path)
    path = tmp_path / "Test" / "3" / "00003.bin"
    path.write_bytes(content)
    with pytest.raises(DataUnavailable) as refusal:
        open_source("nmnist", tmp_path)
    assert f"{path} {message}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_fifo_is_not_read(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    os.mkfifo(tmp_path / "Train" / "9" / "zzz.bin")
    with pytest.raises(DataUnavailable, match=r"zzz.bin can't be read \(it is a FIFO, not a regular file\)"):
        open_source("nmnist", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "Train" / "4").rename(root / "Train" / "four"),
            "four is no class; allowed: folders 0 to 9",
        ),
        (lambda root: [p.unlink() for p in (root / "Train" / "4").iterdir()], "4 holds no .bin file, and every class"),
        (lambda root: (root / "Train" / "4").rename(root / "away"), "has no folder 4, and every class needs one"),
        (
            lambda root: (root / "Train").rename(root / "Trian"),
            "has no folder Train of N-MNIST: get N-MNIST's Train.zip",
        ),
        (lambda root: (root / "Test").rename(root / "Tset"), "has no folder Test of N-MNIST"),
    ],
)
def test_folders_that_are_not_nmnists(tmp_path: Path, change: Any, message: str) -> None:
    write_nmnist(tmp_path)
    change(tmp_path)
    with pytest.raises(DataUnavailable, match=message):
        open_source("nmnist", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"T": 0}, "T is 0; allowed: 1 or more"),
        ({"binning": "events"}, "binning is 'events'; allowed: time, count"),
        ({"values": "floats"}, "values is 'floats'; allowed: spikes, counts"),
        ({"polarity": "up"}, "polarity is 'up'; allowed: both, summed, on, off"),
        ({"duration": 0.0}, "duration is 0.0; allowed: seconds, more than 0"),
        ({"duration": 0.1, "binning": "count"}, "allowed: a duration with binning time"),
        ({"encoder": "poisson"}, "encoder is 'poisson'; allowed for nmnist: none"),
        ({"polarty": "on"}, r"nmnist has no option polarty \(did you mean polarity\?\); allowed: binning, duration"),
    ],
)
def test_options_that_are_not_allowed(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_nmnist(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_source("nmnist", tmp_path, **options)


@needs_real("NMNIST")
def test_real_nmnist() -> None:
    source = opened("nmnist", REAL, T=30)
    assert (source.size("train"), source.size("test")) == (1000, 100)
    assert source.nbytes("train") == 1000 * (2 * 34 * 34 * 4 + 8), "a word of 32 steps for each pixel, and a label"
    counts = opened("nmnist", REAL, T=30, values="counts")
    files = sorted((REAL / "NMNIST" / "Test").glob("*/*.bin"))
    assert [int(path.parent.name) for path in files] == counts.batch("test", torch.arange(100), 30).y.tolist()
    sizes = [path.stat().st_size // 5 for path in files]
    assert everything(counts, "test").sum((0, 2, 3, 4)).int().tolist() == sizes, "every event is counted once"


def write_events_np(root: Path, labels: list[str], each: int, seed: int = 0) -> dict[Path, Events]:
    """SpikingJelly's events of 128 x 128 pixels."""
    rng, written = np.random.default_rng(seed), {}
    for label in labels:
        (root / label).mkdir(parents=True)
        for i in range(each):
            path = root / label / f"user{i:02}_{label}.npz"
            written[path] = random_events(rng, 400, 128)
            x, y, p, t = np.array(written[path]).T
            np.savez(path, t=t, x=x, y=y, p=p)
    return written


GESTURES = [str(label) for label in range(11)]


@pytest.mark.parametrize("binning", ["time", "count"])
def test_dvs_gesture_events_of_spikingjelly(tmp_path: Path, binning: str) -> None:
    root = tmp_path / "DVS128Gesture" / "events_np"
    written = write_events_np(root / "train", GESTURES, 1)
    write_events_np(root / "test", GESTURES, 1, seed=1)
    source = opened("DVS-Gesture", tmp_path, T=4, binning=binning, values="counts")
    assert source.batch("train", torch.arange(11), 4).y.tolist() == list(range(11)), "10 comes after 9, not after 1"
    expected = np.stack([spikingjelly_frames(events, 4, binning, 128) for events in written.values()])
    np.testing.assert_array_equal(everything(source).transpose(0, 1).numpy(), expected)


def test_dvs_gesture_frames_of_spikingjelly_are_the_same(tmp_path: Path) -> None:
    root = tmp_path / "DVS128Gesture"
    for split in ("train", "test"):
        written = write_events_np(root / "events_np" / split, GESTURES, 1)
        for path, events in written.items():
            target = root / "frames_number_4_split_by_number" / path.relative_to(root / "events_np")
            target.parent.mkdir(parents=True)
            np.savez_compressed(target, frames=spikingjelly_frames(events, 4, "count", 128))
    for values in ("spikes", "counts"):
        for polarity in ("both", "summed", "on"):
            options: dict[str, Any] = {"values": values, "polarity": polarity}
            frames = opened("dvs-gesture", tmp_path, **options)
            assert frames.T == 4
            (root / "frames_number_4_split_by_number").rename(root / "away")
            assert torch.equal(everything(frames), everything(opened("dvs-gesture", tmp_path, T=4, **options)))
            (root / "away").rename(root / "frames_number_4_split_by_number")


def test_dvs_gesture_of_tonic(tmp_path: Path) -> None:
    events = [(3, 4, 1, 0), (5, 6, 0, 7), (127, 127, 1, 15)]  # milliseconds
    for split in ("ibmGestureTrain", "ibmGestureTest"):
        for user in ("user01_fluorescent", "user02_led"):
            (tmp_path / "DVSGesture" / split / user).mkdir(parents=True)
            for label in range(11):
                np.save(tmp_path / "DVSGesture" / split / user / f"{label}.npy", np.array(events, np.float64))
    source = opened("dvs_gesture", tmp_path, T=2, binning="time")
    assert source.batch("train", torch.arange(22), 2).y.tolist() == [label for label in range(11) for _ in range(2)]
    expected = [[0, 0, 6, 5], [0, 1, 4, 3], [1, 1, 127, 127]]
    assert everything(source)[:, 21].nonzero().tolist() == expected


CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_cifar10_dvs_frames_are_divided_by_class(tmp_path: Path) -> None:
    root = tmp_path / "CIFAR10DVS" / "frames_number_2_split_by_number"
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(4):
            np.savez(
                root / name / f"cifar10_{name}_{i}.npz", frames=rng.integers(0, 3, (2, 2, 8, 8)).astype(np.float64)
            )
    source = opened("CIFAR10-DVS", tmp_path, test_fraction=0.25, values="counts")
    assert (source.size("train"), source.size("test"), source.shape) == (30, 10, (2, 8, 8))
    assert source.batch("test", torch.arange(10), 2).y.tolist() == list(range(10))
    last = np.load(root / "bird" / "cifar10_bird_3.npz")["frames"]
    np.testing.assert_array_equal(everything(source, "test")[:, 2].numpy(), last)


def write_frames(path: Path, frames: np.ndarray) -> None:
    path.unlink()
    np.savez(path, frames=frames)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: write_frames(p, np.zeros((2, 3, 8, 8))), r"has frames float64 \[2, 3, 8, 8\]; allowed"),
        (lambda p: write_frames(p, np.zeros((3, 2, 8, 8))), r"has 3 frames of \[8, 8\]; allowed: 2 of \[8, 8\]"),
        (lambda p: write_frames(p, np.zeros((2, 2, 4, 8))), r"has 2 frames of \[4, 8\]; allowed: 2 of \[8, 8\]"),
        (lambda p: write_frames(p, np.full((2, 2, 8, 8), 0.5)), "has frames that are no counts"),
        (lambda p: write_frames(p, np.full((2, 2, 8, 8), -1)), "has frames that are no counts"),
        (lambda p: write_frames(p, np.full((2, 2, 8, 8), np.nan)), "has frames that are no counts"),
        (lambda p: write_frames(p, np.zeros((0, 2, 8, 8))), "has frames float64"),
        (lambda p: p.write_bytes(p.read_bytes()[:100]), "can't be read"),
        (lambda p: p.write_bytes(b""), "can't be read"),
        (lambda p: np.savez(p, other=np.zeros(3)), r"holds other \[3\]; allowed: frames"),
        (lambda p: np.savez(p, frames=np.array([{}])), r"can't be read \(it is no file of plain arrays\)"),
        (lambda p: np.savez(p, t=[1, 0], x=[0, 0], y=[0, 0], p=[0, 0]), "has times that run backwards at event 1"),
        (lambda p: np.savez(p, t=[0, 1], x=[0, 128], y=[0, 0], p=[0, 0]), "has event 1 at pixel 128, 0"),
        (lambda p: np.savez(p, t=[0], x=[0, 1], y=[0, 0], p=[0, 0]), "has 1, 2, 2, 2 values of t, x, y and p"),
        (lambda p: np.savez(p, t=[], x=[], y=[], p=[]), "has 0, 0, 0, 0 values"),
    ],
)
def test_a_bad_file_of_frames_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    for split in ("train", "test"):
        for label in GESTURES:
            (tmp_path / split / label).mkdir(parents=True)
            np.savez(tmp_path / split / label / "a.npz", frames=np.ones((2, 2, 8, 8), np.float32))
    path = tmp_path / "train" / "10" / "a.npz"
    damage(path)
    with pytest.raises(DataUnavailable, match=message) as refusal:
        open_source("dvs-gesture", tmp_path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_folders_of_frames_that_do_not_do(tmp_path: Path) -> None:
    with pytest.raises(
        DataUnavailable, match=r"has no files of dvs-gesture: prepare it with SpikingJelly .*--data-dir"
    ):
        open_source("dvs-gesture", tmp_path)
    with pytest.raises(DataUnavailable, match="has no files of cifar10-dvs"):
        open_source("cifar10-dvs", tmp_path / "nowhere")
    (tmp_path / "train" / "11").mkdir(parents=True)
    np.savez(tmp_path / "train" / "11" / "a.npz", frames=np.ones((2, 2, 8, 8)))
    with pytest.raises(DataUnavailable, match="has a folder train and no folder test"):
        open_source("dvs-gesture", tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataUnavailable, match="11 is no class; allowed: 0 to 10"):
        open_source("dvs-gesture", tmp_path)
    (tmp_path / "train" / "11").rename(tmp_path / "train" / "10")
    with pytest.raises(DataUnavailable, match=r"test holds no \.npz or \.npy file"):
        open_source("dvs-gesture", tmp_path)
    (tmp_path / "train" / "10").rename(tmp_path / "test" / "10")
    with pytest.raises(DataUnavailable, match="class 0 of 0 to 10 has no training sample"):
        open_source("dvs-gesture", tmp_path)
    for T in (2, 4):
        (tmp_path / f"frames_number_{T}_split_by_number").mkdir()
    with pytest.raises(
        ValueError, match=r"T is not given, and .* has frames_number_2_split_by_number, frames_number_4"
    ):
        open_source("dvs-gesture", tmp_path)
