"""Arrays of one's own: from Python, .npz files and folders of them, with lengths and labels per step."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from source_files import REAL, needs_real

from fastsnn import PackedSpikes, poisson_encode
from fastsnn.errors import DataUnavailable
from fastsnn.sources import Arrays, Source, open_source

D, T, K, C = 12, 40, 5, 3
RNG = np.random.default_rng(0)
SPIKES = RNG.integers(0, 2, (D, T, K)).astype(np.uint8)
CURRENTS = RNG.normal(size=(D, T, K))
LABELS = np.arange(D) % C
STEPS = RNG.integers(-1, C, (D, T))
IMAGES = RNG.integers(0, 256, (D, 4, 4)).astype(np.uint8)


def all_of(source: Source, split: str = "train", **options: Any) -> Any:
    return source.batch(split, torch.arange(source.size(split)), source.T or 7, **options)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float64])
def test_zeros_and_ones_are_packed_spikes(dtype: Any) -> None:
    source = Arrays(SPIKES.astype(dtype), LABELS)
    assert (source.shape, source.classes, source.T, source.per_step) == ((K,), C, T, False)
    batch = all_of(source)
    assert isinstance(batch.x, PackedSpikes)
    np.testing.assert_array_equal(batch.x.unpack().numpy(), SPIKES.swapaxes(0, 1))
    assert batch.y.tolist() == LABELS.tolist()
    assert batch.lengths is None
    assert source.nbytes("train") == 2 * D * K * 4 + D * 8, "two words of 32 steps for 40"


@pytest.mark.parametrize(
    ("x", "kept", "per_number"),
    [
        (CURRENTS, CURRENTS.astype(np.float32), 4),
        (CURRENTS.astype(np.float16), CURRENTS.astype(np.float16), 2),
        ((CURRENTS * 10).astype(np.int64), (CURRENTS * 10).astype(np.int64), 1),
        ((CURRENTS * 1000).astype(np.int64), (CURRENTS * 1000).astype(np.int64), 2),
        (torch.from_numpy(CURRENTS), CURRENTS.astype(np.float32), 4),
    ],
)
def test_other_numbers_are_currents_in_little_memory(x: Any, kept: np.ndarray, per_number: int) -> None:
    source = Arrays(x, torch.from_numpy(LABELS), scale=0.5)
    batch = all_of(source)
    assert batch.x.dtype == torch.float32
    np.testing.assert_array_equal(batch.x.numpy(), kept.swapaxes(0, 1).astype(np.float32) * 0.5)
    assert source.nbytes("train") == D * T * K * per_number + D * 8


def test_batches_follow_the_ids() -> None:
    source = Arrays(CURRENTS, STEPS, np.full(D, T))
    whole, ids = all_of(source), torch.tensor([7, 0, 7, 3])
    some = source.batch("train", ids, T)
    assert torch.equal(some.x, whole.x[:, ids])
    assert torch.equal(some.y, whole.y[:, ids])
    assert some.lengths is not None
    assert torch.equal(some.lengths, whole.lengths[ids])
    for wrong, error in ((torch.tensor([D]), ValueError), (torch.tensor([0.0]), ValueError), ([0], TypeError)):
        with pytest.raises(error, match="ids"):
            source.batch("train", wrong, T)  # type: ignore[arg-type]


def test_labels_per_step_end_at_the_length() -> None:
    lengths = RNG.integers(1, T + 1, D)
    source = Arrays(CURRENTS, STEPS, lengths)
    batch = all_of(source)
    assert source.per_step
    expected = np.where(np.arange(T)[:, None] < lengths, STEPS.T, -1)
    np.testing.assert_array_equal(batch.y.numpy(), expected)
    assert batch.lengths.tolist() == lengths.tolist()


def test_one_hot_labels_with_steps_of_none() -> None:
    one_hot = np.zeros((D, T, C), np.uint8)
    for c in range(C):
        one_hot[:, :, c] = c == STEPS
    batch = all_of(Arrays(CURRENTS, one_hot))
    np.testing.assert_array_equal(batch.y.numpy(), STEPS.T)


@pytest.mark.parametrize("encoder", ["poisson", "latency", "direct"])
def test_arrays_without_time_steps_are_encoded(encoder: str) -> None:
    source = Arrays(IMAGES, LABELS, encoder=encoder)
    assert (source.T, source.shape) == (None, (4, 4))
    batch = source.batch("train", torch.tensor([3, 1]), 9, seed=2, epoch=4)
    x = batch.x.unpack() if isinstance(batch.x, PackedSpikes) else batch.x
    assert x.shape == (9, 2, 4, 4)
    if encoder == "poisson":
        pair = torch.from_numpy(IMAGES[[3, 1]])
        assert torch.equal(x, poisson_encode(pair, 9, 2, 4, 0, torch.tensor([3, 1])))
    elif encoder == "direct":
        assert torch.equal(x[5], torch.from_numpy(IMAGES[[3, 1]]).float() / 255)


def test_a_channel_axis_may_be_left_out() -> None:
    assert Arrays(CURRENTS[:, :, 0], LABELS).shape == (1,)


def test_parts_are_kept_apart() -> None:
    source = Arrays(
        CURRENTS, LABELS, x_validation=CURRENTS[:4], y_validation=LABELS[:4], x_test=CURRENTS[:2] + 1, y_test=LABELS[:2]
    )
    assert [source.size(split) for split in ("train", "validation", "test")] == [D, 4, 2]
    np.testing.assert_array_equal(all_of(source, "test").x[:, 0].numpy(), (CURRENTS[0] + 1).astype(np.float32))
    assert "12 train, 4 validation, 2 test" in repr(source)
    with pytest.raises(ValueError, match="arrays has no test samples; it has: train"):
        Arrays(CURRENTS, LABELS).batch("test", torch.arange(1), T)


def test_a_test_fraction_takes_that_part_of_each_class() -> None:
    marked = np.arange(60)[:, None, None] * np.ones((1, T, 1))
    y = np.repeat([0, 1, 2], [10, 20, 30])
    parts = [all_of(Arrays(marked, y, test_fraction=0.1), split) for split in ("train", "test")]
    assert [torch.bincount(part.y).tolist() for part in parts] == [[9, 18, 27], [1, 2, 3]]
    chosen = [part.x[0, :, 0].int().tolist() for part in parts]
    assert sorted(chosen[0] + chosen[1]) == list(range(60))
    assert [y[i] for i in chosen[1]] == parts[1].y.tolist()
    again, other = (all_of(Arrays(marked, y, test_fraction=0.1, split_seed=s), "test").x for s in (0, 1))
    assert torch.equal(again, parts[1].x)
    assert not torch.equal(other, parts[1].x)


NAN = CURRENTS.copy()
NAN[5, 2, 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": SPIKES[0, 0]}, r"x has shape \[5\]; allowed: \[D, T, ...\]"),
        ({"x": SPIKES[:, :0]}, r"x has shape \[12, 0, 5\], which holds nothing"),
        ({"x": SPIKES[:0], "y": LABELS[:0]}, r"x has shape \[0, 40, 5\], which holds nothing"),
        ({"x": NAN}, "x holds NaN or infinity at sample 5; allowed: finite numbers"),
        ({"x": SPIKES.astype(str)}, r"x holds <U\d; allowed: numbers"),
        ({"y": LABELS[:11]}, r"y has shape \[11\]; allowed: integers \[12\], \[12, 40\] or one-hot \[12, 40, C\]"),
        ({"y": STEPS[:, :39]}, r"y has shape \[12, 39\]; allowed"),
        ({"y": LABELS * 1.0}, "y is float64; allowed: integers"),
        ({"y": LABELS - 1}, "the label of train sample 0 is -1; allowed: 0 to 1"),
        ({"y": STEPS - 1}, "the label of train sample .*, step .* is -2; allowed: 0 to 1, or -1 for a step without"),
        ({"y": LABELS + 1}, "class 0 of 0 to 3 has no training sample"),
        ({"y": LABELS * 2}, "class 1 of 0 to 4 has no training sample"),
        ({"classes": 2}, "the label of train sample 2 is 2; allowed: 0 to 1"),
        ({"classes": 4}, "class 3 of 0 to 3 has no training sample"),
        ({"classes": 0}, "classes is 0; allowed: an integer, 1 or more"),
        ({"y": np.full((D, T), -1), "classes": 2}, "no step of the train samples has a label"),
        ({"y": np.ones((D, T, C), int)}, r"y is \[D, T, C\] and not one-hot"),
        ({"lengths": np.zeros(D, int)}, "lengths is 0 at sample 0; allowed: 1 to 40"),
        ({"lengths": np.full(D, T + 1)}, "lengths is 41 at sample 0; allowed: 1 to 40"),
        ({"lengths": np.ones(D)}, r"lengths is float64 \[12\]; allowed: integers \[12\]"),
        ({"x_test": SPIKES}, "y_test is missing; allowed: both x_test and y_test"),
        ({"y_test": LABELS}, "x_test is missing"),
        ({"x_test": SPIKES[:, :9], "y_test": LABELS}, r"x_test has samples of shape \[9, 5\], and x of \[40, 5\]"),
        ({"x_test": SPIKES, "y_test": STEPS}, "y_test is per step, and y per sample"),
        ({"x_test": SPIKES, "y_test": LABELS + 3, "classes": 3}, "the label of test sample 0 is 3; allowed: 0 to 2"),
        ({"x_test": SPIKES, "y_test": LABELS, "test_fraction": 0.5}, "test_fraction is given and so is x_test"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0; allowed: more than 0 and less than 1"),
        ({"test_fraction": 0.01}, "test_fraction is 0.01, which is no sample of any class"),
        ({"encoder": "rate"}, "encoder is 'rate'; allowed: poisson, latency, direct"),
        ({"encoder": "poisson", "x": CURRENTS}, "x holds .* allowed with encoder poisson: uint8, or 0 to 1"),
        ({"encoder": "poisson", "x": SPIKES.astype(int)}, "x is int64; allowed with an encoder: uint8, or floats"),
        ({"encoder": "poisson", "lengths": np.ones(D, int)}, "lengths is given and x has no time steps"),
        ({"encoder": "poisson", "y": STEPS}, r"y has shape \[12, 40\]; allowed: integers \[12\]"),
    ],
)
def test_what_does_not_fit_is_named(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as refusal:
        Arrays(**({"x": SPIKES, "y": LABELS} | arrays))
    assert "\n" not in str(refusal.value)


def test_a_file_is_the_same_as_its_arrays(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, x=SPIKES, y=STEPS, lengths=np.full(D, 9), x_test=SPIKES[:3], y_test=STEPS[:3], note="anything")
    for source in (open_source(path), open_source(str(path), T=T)):
        assert (source.name, source.size("train"), source.size("test"), source.T) == ("mine.npz", D, 3, T)
        expected = all_of(Arrays(SPIKES, STEPS, np.full(D, 9)))
        batch = all_of(source)
        assert torch.equal(batch.x.words, expected.x.words)
        assert torch.equal(batch.y, expected.y)
        assert torch.equal(batch.lengths, expected.lengths)
    np.savez(path, x=IMAGES, y=LABELS)
    assert open_source(path, encoder="latency", test_fraction=0.25).T is None


def test_a_folder_of_files(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"train.npz can't be read \(No such file .*put train.npz, and test.npz"):
        open_source(f"{tmp_path}/")
    for split, count in (("train", D), ("validation", 6), ("test", 3)):
        np.savez(tmp_path / f"{split}.npz", x=CURRENTS[:count], y=LABELS[:count])
    source = open_source(tmp_path)
    assert [source.size(split) for split in ("train", "validation", "test")] == [D, 6, 3]
    assert source.name == tmp_path.name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read"),
        (b"no arrays", "can't be read"),
        ({"y": LABELS}, "has no array x, it holds y: save it with np.savez"),
        ({"x": SPIKES}, "has no array y, it holds x: save it with np.savez"),
        ({"x": SPIKES, "y": LABELS, "y_tset": LABELS}, "has the array y_tset; allowed: x, y, lengths, x_validation"),
        ({"x": np.array([None]), "y": LABELS}, r"can't be read \(it is no file of plain arrays\)"),
        ({"x": SPIKES, "y": LABELS[:3]}, r": y has shape \[3\]; allowed"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "mine.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(DataUnavailable, match=message) as refusal:
        open_source(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, x=CURRENTS, y=LABELS)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataUnavailable, match=r"mine.npz can't be read \(.*np.savez"):
        open_source(path)


def test_a_flipped_byte_is_named_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, x=CURRENTS, y=LABELS)
    content, expected = path.read_bytes(), all_of(open_source(path))
    refusals = []
    for position in range(0, len(content), 211):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        try:
            batch = all_of(open_source(path))
        except DataUnavailable as error:
            refusals.append(str(error))
        else:
            assert torch.equal(batch.x, expected.x), position
    assert len(refusals) > 40
    assert all("mine.npz" in refusal for refusal in refusals)


def test_a_fifo_a_device_and_a_missing_file_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    for path, what in ((tmp_path / "pipe.npz", "it is a pipe"), ("/dev/zero", "it is a device")):
        with pytest.raises(DataUnavailable, match=what):
            open_source(path)
    with pytest.raises(DataUnavailable, match=r"none.npz can't be read \(No such file or directory\)"):
        open_source(tmp_path / "none.npz")


def test_another_number_of_time_steps_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=SPIKES, y=LABELS)
    with pytest.raises(ValueError, match=r"T is 100, and .*mine.npz has 40 time steps; allowed: 40, or leave T out"):
        open_source(tmp_path / "mine.npz", T=100)
    source = open_source(tmp_path / "mine.npz")
    with pytest.raises(ValueError, match=r"T is 39; allowed: 40, the time steps of mine\.npz"):
        source.batch("train", torch.arange(2), 39)


@needs_real("qtdb")
def test_real_ecg_with_labels_per_step() -> None:
    source = open_source(REAL / "qtdb")
    assert (source.size("train"), source.size("test"), source.T, source.shape) == (618, 141, 1301, (4,))
    assert (source.classes, source.per_step) == (6, True)
    batch = all_of(source, "test")
    raw = np.load(REAL / "qtdb" / "test.npz")
    np.testing.assert_array_equal(batch.x.numpy(), raw["x"].swapaxes(0, 1))
    none = raw["y"].sum(2) == 0
    assert none.any()
    np.testing.assert_array_equal(batch.y.numpy() == -1, none.T)
    np.testing.assert_array_equal(batch.y.numpy()[~none.T], raw["y"].argmax(2).T[~none.T])


@needs_real("braille")
def test_real_braille() -> None:
    source = open_source(REAL / "braille" / "braille.npz", test_fraction=0.2, scale=1 / 255)
    assert (source.size("train"), source.size("test"), source.classes, source.T) == (1080, 270, 27, 76)
    assert torch.bincount(all_of(source, "test").y).tolist() == [10] * 27
