"""fastsnn.sources: names, encoders, random numbers, and where data lie."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastsnn
from fastsnn import PackedSpikes, encoding
from fastsnn.sources import Arrays, Batch, DataSet, Images, Source, batches, names, open_source, options, register

DIGITS = open_source("digits")


def spikes(batch: Batch) -> Tensor:
    return batch.x.unpack() if isinstance(batch.x, PackedSpikes) else batch.x


@pytest.mark.parametrize("name", ["digits", "Digits", "DIGITS", "dig-its", "DIG ITS"])
def test_names_are_read_as_people_write_them(name: str) -> None:
    assert open_source(name).name == "digits"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", r"dataset is 'mnits' \(did you mean mnist\?\); allowed: auto, mnist, fashion-mnist, .* a .npz file"),
        ("FashonMNIST", r"did you mean fashion-mnist\?"),
        ("xyz", r"dataset is 'xyz'; allowed: auto"),
    ],
)
def test_an_unknown_name_is_helped(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(name)


def test_a_data_set_of_ones_own_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsnn.sources.registry._OPENERS", {"digits": "images:open_images"})

    def open_mine(
        name: str, folder: Path, T: int | None, encoder: str | None, say: Callable[[str], None], *, size: int = 4
    ) -> Source:
        say(f"opening {name} in {folder}")
        return Arrays(np.zeros((2, T or 3, size)), [0, 1], name=name)

    register("My-Set", open_mine)
    assert names() == ("digits", "My-Set")
    assert options("myset") == {"size": 4}
    said: list[str] = []
    source = open_source("my_set", "/data", T=5, say=said.append, size=6)
    assert (source.name, source.T, source.shape, said) == ("My-Set", 5, (6,), ["opening My-Set in /data"])
    with pytest.raises(ValueError, match=r"My-Set has no option sise \(did you mean size\?\); allowed: size"):
        open_source("my_set", sise=3)
    with pytest.raises(ValueError, match="a data set named mySet is there already; allowed: another name"):
        register("mySet", open_mine)


def test_all_sources_have_the_protocol() -> None:
    for source in (DIGITS, Arrays(np.zeros((2, 3, 4)), [0, 1])):
        assert isinstance(source, Source)
        assert source.size("validation") == 0
        with pytest.raises(ValueError, match="split is 'valid'; allowed: train, validation, test"):
            source.size("valid")


@pytest.mark.parametrize("encoder", ["poisson", "latency", "direct"])
def test_a_batch_depends_on_its_arguments_alone(encoder: str) -> None:
    source = open_source("digits", encoder=encoder)
    ids = torch.tensor([5, 1436, 0, 77])
    whole = source.batch("train", ids, 33, seed=7, epoch=2)
    assert spikes(whole).shape == (33, 4, 1, 8, 8)
    assert whole.y.dtype == torch.int64
    source.batch("test", torch.arange(9), 3)
    for i, number in enumerate(ids.tolist()):
        alone = source.batch("train", torch.tensor([number]), 33, seed=7, epoch=2)
        assert torch.equal(spikes(alone)[:, 0], spikes(whole)[:, i])
        assert alone.y.tolist() == [int(whole.y[i])]


def test_poisson_spikes_are_those_of_poisson_encode() -> None:
    assert isinstance(DIGITS, Images)
    ids = torch.tensor([3, 200])
    for split, stream in (("train", 0), ("test", 1)):
        images = DIGITS.parts[split].x[ids]
        expected = fastsnn.poisson_encode(images, 50, 11, 4, stream, ids)
        assert torch.equal(spikes(DIGITS.batch(split, ids, 50, seed=11, epoch=4)), expected)
    assert not torch.equal(spikes(DIGITS.batch("train", ids, 50, epoch=1)), spikes(DIGITS.batch("train", ids, 50)))


@pytest.mark.parametrize("T", [1, 2, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_latency_is_one_spike_the_brighter_the_earlier(T: int, dtype: torch.dtype) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(2, 128)
    images = pixels if dtype == torch.uint8 else pixels / 255
    x = encoding.latency_encode(images, T)
    assert torch.equal(x, PackedSpikes(encoding.latency_encode(images, T, packed=True), T).unpack())
    assert torch.equal(x.sum(0), (pixels > 0).float())
    first = x.flatten(1).argmax(0)[1:]
    assert (first.diff() <= 0).all()
    assert (int(first[-1]), int(first[0])) == (0, round((1 - 1 / 255) * (T - 1)))


def test_latency_is_spikingjellys() -> None:
    from spikingjelly.activation_based.encoding import LatencyEncoder

    images = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) * 0.99 + 0.005
    encoder = LatencyEncoder(20, "linear")
    expected = torch.stack([encoder(images) for _ in range(20)])
    assert torch.equal(encoding.latency_encode(images, 20), expected)


def test_direct_is_the_value_at_each_step() -> None:
    x = encoding.direct_encode(torch.tensor([[0, 51, 255]], dtype=torch.uint8), 4)
    assert torch.equal(x, torch.tensor([0, 0.2, 1]).expand(4, 1, 3))
    assert torch.equal(encoding.direct_encode(torch.tensor([[-3.5]]), 2), torch.full((2, 1, 1), -3.5))


@pytest.mark.parametrize("encode", [encoding.latency_encode, encoding.direct_encode])
@pytest.mark.parametrize(
    ("images", "T", "message"),
    [
        (torch.zeros(2, 2), 0, "T is 0; allowed: 1 or more"),
        (torch.zeros(2, 2), 1.5, "T is 1.5; allowed: an integer"),
        (torch.zeros(()), 3, r"images has shape \[\]; allowed"),
        (torch.zeros(2, 2, dtype=torch.int64), 3, "images has dtype torch.int64; allowed: torch.uint8"),
        ([0.5], 3, "images is list; allowed: a tensor"),
    ],
)
def test_what_cannot_be_encoded(encode: Any, images: Any, T: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        encode(images, T)


def test_latency_needs_intensities() -> None:
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="images has a pixel outside"):
            encoding.latency_encode(torch.tensor([[value]]), 3)


def test_images_of_ones_own() -> None:
    pixels = torch.randint(0, 256, (6, 3 * 4 * 5), dtype=torch.uint8)
    source = Images(DataSet("mine", pixels[:4], torch.tensor([0, 1, 0, 1]), pixels[4:], torch.arange(2), (3, 4, 5), 2))
    assert (source.name, source.shape, source.size("test")) == ("mine", (3, 4, 5), 2)
    with pytest.raises(ValueError, match="encoder is 'rate'; allowed for images: poisson, latency, direct"):
        Images(source_data(), "rate")
    with pytest.raises(ValueError, match="T is 0; allowed: 1 or more"):
        source.batch("train", torch.arange(2), 0)
    with pytest.raises(TypeError, match=r"T is 2\.0; allowed: an integer"):
        source.batch("train", torch.arange(2), 2.0)  # type: ignore[arg-type]


def source_data() -> DataSet:
    empty = torch.zeros(1, 4, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    return DataSet("one", *empty, *empty, (2, 2), 1)


def three_parts() -> Arrays:
    x, y = np.random.default_rng(0).normal(size=(10, 6, 4)), np.arange(10) % 2
    return Arrays(x, y, np.arange(10) % 6 + 1, x_validation=x[:4], y_validation=y[:4], x_test=x[:2], y_test=y[:2])


@pytest.mark.parametrize(
    ("room", "on_host"),
    [(10**6, (False, False, True)), (1200, (False, True, True)), (500, (True, False, True)), (0, (True, True, True))],
)
def test_what_does_not_fit_stays_on_the_host(
    monkeypatch: pytest.MonkeyPatch, room: int, on_host: tuple[bool, ...]
) -> None:
    monkeypatch.setattr("fastsnn.sources.store.memory_for_data", lambda device: room)
    source = three_parts()
    assert [source.nbytes(split) for split in ("train", "validation", "test")] == [1120, 416, 208]
    moved = source.to("meta")
    assert tuple(moved.on_host(split) for split in ("train", "validation", "test")) == on_host
    assert source.device.type == "cpu", "the source itself stays where it is"
    assert not any(source.on_host(split) for split in ("train", "validation", "test"))


def test_batches_one_after_the_other_and_ahead() -> None:
    source = three_parts()
    ids = list(torch.randperm(10, generator=torch.Generator().manual_seed(1)).split(3))
    expected = [source.batch("train", part, 6) for part in ids]
    threads: list[str] = []

    class Watched(Arrays):
        def on_host(self, split: str) -> bool:
            return True

        def batch(self, *arguments: Any, **more: Any) -> Batch:
            threads.append(threading.current_thread().name)
            return super().batch(*arguments, **more)

    watched = three_parts()
    for ahead in (False, True):
        if ahead:
            watched.__class__ = Watched
        found = list(batches(watched, "train", ids, 6))
        assert len(found) == len(expected)
        for batch, other in zip(found, expected, strict=True):
            assert torch.equal(spikes(batch), spikes(other))
            assert torch.equal(batch.y, other.y)
    assert len(threads) == len(ids)
    assert all(name.startswith("fastsnn-feed") for name in threads)
    with pytest.raises(ValueError, match="ids holds 99"):
        list(batches(watched, "train", [torch.tensor([99])], 6))
    assert not [t for t in threading.enumerate() if t.name.startswith("fastsnn-feed")]


@pytest.mark.gpu
def test_on_a_gpu_the_same_batches_from_its_memory_and_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [part.cuda() for part in torch.randperm(10).split(3)]
    expected = [three_parts().batch("train", part.cpu(), 6) for part in ids]
    for room in (10**6, 0):
        monkeypatch.setattr("fastsnn.sources.store.memory_for_data", lambda device, room=room: room)
        source = three_parts().to("cuda")
        assert source.on_host("train") == (room == 0)
        for batch, other in zip(batches(source, "train", ids, 6), expected, strict=True):
            assert batch.y.device.type == "cuda"
            assert torch.equal(spikes(batch).cpu(), spikes(other))
            assert torch.equal(batch.y.cpu(), other.y)
            assert batch.lengths is not None
            assert torch.equal(batch.lengths.cpu(), other.lengths)
