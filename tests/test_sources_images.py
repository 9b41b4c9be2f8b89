"""Image sets as sources: MNIST as people have it, sequential MNIST, CIFAR-10."""

import gzip
import hashlib
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sources import spikes

from fastsnn.errors import DataUnavailable
from fastsnn.sources import Images, images, open_source
from fastsnn.sources import mnist as mnist_files
from fastsnn.sources.images import default_folder


@pytest.mark.mnist
@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "raw", "."])
@pytest.mark.parametrize("spelling", ["{}", "{}.gz", "dotted", "dotted.gz"])
def test_mnist_is_found_as_people_have_it(tmp_path: Path, place: str, spelling: str) -> None:
    raw = default_folder() / "MNIST" / "raw"
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for file in mnist_files.HEADERS:
        name = file.replace("-idx", ".idx") if "dotted" in spelling else file
        name += ".gz" if spelling.endswith(".gz") else ""
        if name.endswith(".gz"):
            (tmp_path / place / name).write_bytes(gzip.compress((raw / file).read_bytes(), 1) if place == "." else b"")
        else:
            (tmp_path / place / name).symlink_to(raw / file)
    found = mnist_files.find("mnist", tmp_path)
    assert found is not None
    assert {path.parent for path in found.values()} == {tmp_path / place}
    if place == ".":
        source = open_source("MNIST", tmp_path)
        assert (source.size("train"), source.shape) == (60_000, (1, 28, 28))
        assert source.batch("test", torch.arange(5), 1).y.tolist() == [7, 2, 1, 0, 4]


@pytest.mark.mnist
def test_loose_files_are_checked_by_content(tmp_path: Path) -> None:
    raw = default_folder() / "MNIST" / "raw"
    for file in mnist_files.HEADERS:
        shutil.copyfile(raw / file, tmp_path / file)
    with pytest.raises(
        DataUnavailable, match=r"train-images-idx3-ubyte is damaged, or not FashionMNIST's .*replace it"
    ):
        open_source("fashion-mnist", tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\1")
    with pytest.raises(DataUnavailable, match=r"t10k-labels-idx1-ubyte is damaged, or not MNIST's"):
        open_source("mnist", tmp_path)
    labels.rename(tmp_path / "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(DataUnavailable, match=r"t10k-labels-idx1-ubyte.gz can't be read \(Not a gzipped file"):
        open_source("mnist", tmp_path)


def test_a_failed_download_names_the_files_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("there is no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    for name in ("mnist", "fashion-mnist", "cifar10"):
        folder = tmp_path / "not" / "there"
        with pytest.raises(DataUnavailable) as refusal:
            open_source(name, folder)
        files = ["cifar-10-python.tar.gz"] if name == "cifar10" else list(mnist_files.HEADERS)
        assert all(file in str(refusal.value) for file in [*files, str(folder), "--data-dir"])
        assert "\n" not in str(refusal.value)
        assert not (tmp_path / "not").exists()


@pytest.mark.mnist
def test_sequential_mnist() -> None:
    images = open_source("mnist")
    assert isinstance(images, Images)
    pixels = images.parts["train"].x[:3].reshape(3, 784)
    source = open_source("sMNIST")
    assert (source.T, source.shape, source.size("test")) == (784, (1,), 10_000)
    batch = source.batch("train", torch.arange(3), 784)
    assert torch.equal(spikes(batch), (pixels.T.float() * (1 / 255))[:, :, None])
    assert batch.y.tolist() == [5, 0, 4]
    rows = open_source("smnist", pixels_per_step=28)
    assert torch.equal(spikes(rows.batch("train", torch.arange(3), 28))[9], pixels[:, 252:280].float() * (1 / 255))
    permuted = [open_source("psmnist", permutation_seed=seed) for seed in (0, 0, 1)]
    x = [spikes(source.batch("train", torch.arange(3), 784)) for source in permuted]
    assert torch.equal(x[0], x[1])
    assert not torch.equal(x[0], x[2])
    assert torch.equal(x[0].sort(0).values, spikes(batch).sort(0).values), "the same pixels in another order"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pixels_per_step": 3}, "pixels_per_step is 3; allowed: 1, 2, 4, 7, 8, 14"),
        ({"pixels_per_step": 0}, "pixels_per_step is 0; allowed: 1, 2, 4"),
        ({"T": 100}, r"T is 100, and smnist has 784 steps of 1 pixel\(s\); allowed: 784, or leave T out"),
        ({"encoder": "poisson"}, "encoder is 'poisson'; allowed for smnist: direct"),
    ],
)
def test_sequences_that_are_not_allowed(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source("smnist", **given)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a CIFAR-10 of noise, of torchvision's format, whose hashes torchvision is told."""
    datasets = pytest.importorskip("torchvision", reason="torchvision is not installed").datasets
    root, rng = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    root.mkdir()
    hashes = {}
    for name in [*(name for name, _ in datasets.CIFAR10.train_list), "test_batch"]:
        data = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        (root / name).write_bytes(pickle.dumps({"data": data, "labels": [i % 10 for i in range(20)]}))
        hashes[name] = hashlib.md5((root / name).read_bytes()).hexdigest()
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[n, h] for n, h in hashes.items() if n != "test_batch"])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", hashes["test_batch"]]])
    meta = {**datasets.CIFAR10.meta, "md5": hashlib.md5((root / "batches.meta").read_bytes()).hexdigest()}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path


def test_cifar10(cifar: Path) -> None:
    source = open_source("CIFAR-10", cifar, encoder="direct")
    assert (source.size("train"), source.size("test"), source.shape, source.classes) == (100, 20, (3, 32, 32), 10)
    raw = pickle.loads((cifar / "cifar-10-batches-py" / "data_batch_2").read_bytes())["data"][3]
    x = spikes(source.batch("train", torch.tensor([23]), 2))
    assert torch.equal(x[1, 0], torch.from_numpy(raw).reshape(3, 32, 32).float() / 255), "channels first"


def test_a_damaged_cifar10_is_named_before_it_is_unpickled(cifar: Path) -> None:
    path = cifar / "cifar-10-batches-py" / "data_batch_4"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (cifar / "ran",)

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataUnavailable, match=r"cifar-10-batches-py is damaged .*delete the folder"):
        open_source("cifar10", cifar)
    assert not (cifar / "ran").exists()
    path.unlink()
    with pytest.raises(DataUnavailable, match=r"data_batch_4 can't be read \(No such file"):
        open_source("cifar10", cifar)


def test_digits_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    bunch, source = load_digits(), images.load("digits")
    pixels = torch.cat([source.train_images, source.test_images])
    assert torch.equal(pixels, torch.from_numpy((bunch.data * (255 / 16)).round()).to(torch.uint8))
    assert torch.cat([source.train_labels, source.test_labels]).tolist() == bunch.target.tolist()
    monkeypatch.setattr(images, "find_spec", lambda name: None)  # their file lies elsewhere
    assert torch.equal(images.load("digits").train_images, source.train_images)
