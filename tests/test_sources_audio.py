"""SHD and SSC from files of their official HDF5 format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from source_files import opened, random_words, write_hdf5

from fastsnn import PackedSpikes
from fastsnn.errors import DataUnavailable
from fastsnn.sources import open_source

h5py = pytest.importorskip("h5py", reason="h5py is not installed (the extra events)")


@pytest.fixture
def shd(tmp_path: Path) -> Path:
    """A folder with a small SHD."""
    write_hdf5(tmp_path / "shd_train.h5", *random_words(20, 2, 0, 1.3))
    write_hdf5(tmp_path / "shd_test.h5", *random_words(20, 1, 1, 1.3))
    return tmp_path


@pytest.fixture
def ssc(tmp_path: Path) -> Path:
    """A folder with a small SSC."""
    for i, (split, each) in enumerate((("train", 3), ("valid", 2), ("test", 1))):
        write_hdf5(tmp_path / f"ssc_{split}.h5", *random_words(35, each, i))
    return tmp_path


@pytest.mark.parametrize(("channels", "duration"), [(700, None), (140, 1.0), (128, 0.5), (1, None)])
def test_units_and_times_become_channels_and_steps(shd: Path, channels: int, duration: float | None) -> None:
    recordings, labels = random_words(20, 2, 0, 1.3)
    T, expected = 100, torch.zeros(100, 40, channels)
    for i, (times, units) in enumerate(recordings):
        for seconds, unit in zip(times.astype(float), units, strict=True):
            step = int(seconds / (duration or 1.4) * T + 1e-12)
            if step < T:
                expected[step, i, unit * channels // 700] += 1
    options: dict[str, Any] = {"channels": channels} | ({"duration": duration} if duration else {})
    counts = opened("SHD", shd, T=T, values="counts", **options)
    batch = counts.batch("train", torch.arange(40), T)
    assert isinstance(batch.x, torch.Tensor)
    assert torch.equal(batch.x, expected.clamp(max=255))
    assert batch.y.tolist() == labels.tolist()
    spikes = opened("shd", shd, T=T, **options).batch("train", torch.arange(40), T).x
    assert isinstance(spikes, PackedSpikes)
    assert torch.equal(spikes.unpack(), (expected > 0).float())


def test_ssc_has_a_validation_set(ssc: Path) -> None:
    source = opened("ssc", ssc)
    assert [source.size(split) for split in ("train", "validation", "test")] == [105, 70, 35]
    assert (source.classes, source.T, source.shape) == (35, 100, (700,))


def test_ssc_fits_in_400_megabytes(ssc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the memory of a sample, measured, and the numbers of samples of the real set."""
    source = opened("ssc", ssc, T=250, channels=140)
    sizes = {"train": 75_466, "validation": 9_981, "test": 20_382}
    total = {split: source.nbytes(split) / source.size(split) * size for split, size in sizes.items()}
    # On a GPU the test set of data with a validation set stays on the host.
    monkeypatch.setattr("fastsnn.sources.store.memory_for_data", lambda device: 400_000_000)
    moved = source.to("meta")
    assert [moved.on_host(split) for split in sizes] == [False, False, True]
    assert total["train"] + total["validation"] < 0.4e9


def test_shd_in_a_folder_of_its_own_name(shd: Path) -> None:
    (shd / "SHD").mkdir()
    for name in ("shd_train.h5", "shd_test.h5"):
        (shd / name).rename(shd / "SHD" / name)
    assert opened("shd", shd).size("train") == 40


def test_missing_and_packed_files_are_named(shd: Path) -> None:
    (shd / "shd_test.h5").rename(shd / "shd_test.h5.gz")
    with pytest.raises(DataUnavailable, match=r"shd_test.h5.gz is packed: unpack it with `gunzip .*shd_test.h5.gz`"):
        open_source("shd", shd)
    (shd / "shd_test.h5.gz").unlink()
    with pytest.raises(DataUnavailable, match=r"has no shd_test.h5: get shd_train.h5.gz, .* from https://zenkelab.org"):
        open_source("shd", shd)


def rewritten(path: Path, **changes: Any) -> None:
    recordings, labels = random_words(20, 2, 0)
    recordings[7] = changes.get("recording", recordings[7])
    write_hdf5(path, recordings, changes.get("labels", labels))
    with h5py.File(path, "a") as file:
        for key in changes.get("without", ()):
            del file[key]


LABELS = np.arange(40) % 20


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(b""), "can't be read"),
        (lambda p: p.write_bytes(p.read_bytes()[:5000]), "can't be read"),
        (lambda p: rewritten(p, without=["spikes/units"]), "has no spikes/units"),
        (lambda p: rewritten(p, without=["labels"]), "has no labels"),
        (lambda p: rewritten(p, labels=LABELS[:39]), r"has 39 labels, times \[40\] and units \[40\]"),
        (lambda p: rewritten(p, labels=LABELS + 1), "has label 20 at recording 19; allowed: 0 to 19"),
        (lambda p: rewritten(p, labels=LABELS * 1.0), r"has labels float64 \[40\]; allowed: integers"),
        (lambda p: rewritten(p, labels=np.minimum(LABELS, 18)), "class 19 of 0 to 19 has no training sample"),
        (lambda p: rewritten(p, recording=([0.1], [700])), "has unit 700 at recording 7; allowed: 0 to 699"),
        (lambda p: rewritten(p, recording=([-0.5], [0])), "has a time of -0.5 s at recording 7"),
        (lambda p: rewritten(p, recording=([np.nan], [0])), "has a time of nan s at recording 7"),
        (lambda p: rewritten(p, recording=([0.1, 0.2], [0])), "has 2 times and 1 units at recording 7"),
    ],
)
def test_a_bad_file_is_named(shd: Path, damage: Any, message: str) -> None:
    path = shd / "shd_train.h5"
    damage(path)
    with pytest.raises(DataUnavailable, match=message) as refusal:
        open_source("shd", shd)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_recording_without_spikes_is_silent(shd: Path) -> None:
    rewritten(shd / "shd_train.h5", recording=([], []))
    x = opened("shd", shd).batch("train", torch.tensor([7, 8]), 100).x
    assert isinstance(x, PackedSpikes)
    assert x.unpack().sum((0, 2)).bool().tolist() == [False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels is 0; allowed: 1 to 700"),
        ({"channels": 701}, "channels is 701; allowed: 1 to 700"),
        ({"duration": -1.0}, "duration is -1.0; allowed: seconds"),
        ({"encoder": "direct"}, "encoder is 'direct'; allowed for shd: none"),
        ({"T": 0}, "T is 0; allowed: 1 or more"),
        ({"polarity": "on"}, "shd has no option polarity; allowed: channels, duration, values"),
    ],
)
def test_options_that_are_not_allowed(shd: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source("shd", shd, **options)


def test_without_h5py_the_extra_is_named(shd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(DataUnavailable, match=r"shd_train.h5 needs h5py: pip install 'fastsnn\[events\]'"):
        open_source("shd", shd)
