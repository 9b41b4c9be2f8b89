"""DVS-Gesture and CIFAR10-DVS as SpikingJelly and tonic leave them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from source_files import Events, everything, opened, random_events, spikingjelly_frames

from fastsnn.errors import DataUnavailable
from fastsnn.sources import open_source


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
    files = [root / name / f"cifar10_{name}_{i}.npz" for name in CLASSES for i in range(4)]
    frames = np.stack([np.load(path)["frames"] for path in files], 1)
    is_last = np.arange(40) % 4 == 3
    np.testing.assert_array_equal(everything(source, "test").numpy(), frames[:, is_last])
    np.testing.assert_array_equal(everything(source, "train").numpy(), frames[:, ~is_last])


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
