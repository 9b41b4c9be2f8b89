"""N-MNIST from its own files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from source_files import REAL, everything, needs_real, nmnist_bytes, opened, spikingjelly_frames, write_nmnist

from fastsnn.errors import DataUnavailable
from fastsnn.sources import open_source


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


@pytest.mark.parametrize("binning", ["time", "count"])
@pytest.mark.parametrize("events", [14, 23, 40])
def test_what_does_not_divide_belongs_to_the_last_step(tmp_path: Path, binning: str, events: int) -> None:
    write_nmnist(tmp_path)
    recording = [(i % 34, i // 34, i % 2, 100 + i) for i in range(events)]
    (tmp_path / "Train" / "0" / "00000.bin").write_bytes(nmnist_bytes(recording))
    counts = everything(opened("nmnist", tmp_path, T=5, binning=binning, values="counts"))[:, 0]
    np.testing.assert_array_equal(counts.numpy(), spikingjelly_frames(recording, 5, binning, 34))


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
    with pytest.raises(DataUnavailable, match=r"zzz.bin can't be read \(it is a pipe, not a file\)"):
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
