"""fastsnn.sources.images: what is had, what is refused, and what `auto` falls back to."""

import gzip
import hashlib
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from fastsnn.errors import DataUnavailable
from fastsnn.sources import images as data
from fastsnn.sources import mnist as mnist_files

LABELS = "t10k-labels-idx1-ubyte"
needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("there is no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """A folder with a Fashion-MNIST of noise; its archives were not kept."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (magic, *sizes) in mnist_files.HEADERS.items():
        values = rng.integers(0, 256 if len(sizes) > 1 else 10, np.prod(sizes), dtype=np.uint8)
        header = b"".join(number.to_bytes(4, "big") for number in (magic, *sizes))
        (raw / name).write_bytes(header + values.tobytes())
    return tmp_path


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder with a copy of MNIST that a test may damage."""
    raw = data.default_folder() / "MNIST" / "raw"
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for name in mnist_files.HEADERS:
        shutil.copyfile(raw / name, tmp_path / "MNIST" / "raw" / name)
    return tmp_path


def flip(path: Path, position: int, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def test_digits_need_no_network(no_network: None) -> None:
    digits = data.load("digits", Path("/nowhere"))
    assert (digits.name, digits.image_shape, digits.classes, digits.note) == ("digits", (8, 8), 10, "")
    assert (digits.train_images.shape, digits.test_images.shape) == ((1437, 64), (360, 64))
    for images, labels in ((digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels)):
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert (images.max(), labels.min(), labels.max()) == (255, 0, 9)
    content = hashlib.sha256(digits.train_images.numpy().tobytes() + digits.test_labels.numpy().tobytes()).hexdigest()
    assert content[:16] == "1b982ebfd0b43cda", "another split, scale or order would change every recorded run"


def test_first_samples() -> None:
    digits = data.load("digits")
    few = digits.first(30, None)
    assert torch.equal(few.train_images, digits.train_images[:30])
    assert torch.equal(few.train_labels, digits.train_labels[:30])
    assert len(few.test_images) == len(few.test_labels) == 360


def test_auto_falls_back_to_digits_and_says_why(no_network: None, tmp_path: Path) -> None:
    found = data.load("auto", tmp_path)
    assert found.name == "digits"
    assert "MNIST could not be had" in found.note
    assert "training on digits instead" in found.note
    assert str(tmp_path) in found.note or "torchvision" in found.note


@needs_torchvision
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_named_set_that_cannot_be_had_names_folder_reason_and_ways_on(
    no_network: None, tmp_path: Path, name: str
) -> None:
    with pytest.raises(DataUnavailable) as refusal:
        data.load(name, tmp_path)
    text = str(refusal.value)
    for part in (str(tmp_path), "there is no network", "--data-dir", "--dataset digits", "raw"):
        assert part in text
    assert "\n" not in text


def test_a_folder_that_cannot_be_made_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataUnavailable, match=r"--data-dir|torchvision"):
        data.load("mnist", tmp_path / "file")
    assert data.load("auto", tmp_path / "file").name == "digits"


@pytest.mark.parametrize(
    "error", [ImportError("No module"), RuntimeError("operator torchvision::nms does not exist\n")]
)
def test_a_torchvision_of_another_torch_is_explained(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> None:
            raise error

    monkeypatch.setitem(sys.modules, "torchvision", Broken("torchvision"))
    with pytest.raises(DataUnavailable, match=r"pip install --upgrade torch torchvision.*--dataset digits"):
        data.load("fashion-mnist", tmp_path)
    assert "torchvision does not work" in data.load("auto", tmp_path).note


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSNN_DATA", "~/sets")
    assert data.default_folder() == Path.home() / "sets"
    monkeypatch.setenv("FASTSNN_DATA", "")
    assert data.default_folder() == Path.home() / ".cache" / "fastsnn"


def test_raw_files_are_read_whole(fashion: Path) -> None:
    found = data.load("fashion-mnist", fashion)
    assert (found.train_images.shape, found.test_images.shape) == ((60_000, 784), (10_000, 784))
    raw = fashion / "FashionMNIST" / "raw"
    assert found.test_images.numpy().tobytes() == (raw / "t10k-images-idx3-ubyte").read_bytes()[16:]
    assert found.train_labels.tolist() == list((raw / "train-labels-idx1-ubyte").read_bytes()[8:])
    assert data.is_present("fashion-mnist", fashion)
    assert not data.is_present("mnist", fashion)


@pytest.mark.parametrize("position", [0, 2, 3, 7, 8])
def test_a_damaged_header_or_label_is_found_without_a_hash(fashion: Path, position: int) -> None:
    path = fashion / "FashionMNIST" / "raw" / LABELS
    flip(path, position, 0x80)
    with pytest.raises(DataUnavailable, match=f"{LABELS} is damaged"):
        mnist_files.read(path, "fashion-mnist")


@pytest.mark.parametrize("size", [0, 7, 8, 10_007, 10_009])
def test_a_wrong_size_is_named(fashion: Path, size: int) -> None:
    path = fashion / "FashionMNIST" / "raw" / LABELS
    path.write_bytes((path.read_bytes() + b"\0")[:size])
    with pytest.raises(DataUnavailable, match=f"{LABELS} has {size} bytes where 10008 are expected"):
        data.load("fashion-mnist", fashion)


def test_a_folder_in_place_of_a_file(fashion: Path) -> None:
    path = fashion / "FashionMNIST" / "raw" / LABELS
    path.unlink()
    path.mkdir()
    with pytest.raises(DataUnavailable, match=f"{LABELS} can't be read"):
        data.load("fashion-mnist", fashion)


def test_the_archive_vouches_for_what_came_in_it(fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fashion / "FashionMNIST" / "raw" / LABELS
    archive = path.with_name(path.name + ".gz")
    archive.write_bytes(gzip.compress(path.read_bytes(), 1))
    monkeypatch.setitem(mnist_files.FASHION_ARCHIVE_MD5, LABELS, hashlib.md5(archive.read_bytes()).hexdigest())
    mnist_files.read(path, "fashion-mnist")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([(content[-1] + 1) % 10]))  # another valid label
    with pytest.raises(DataUnavailable, match="is damaged"):
        mnist_files.read(path, "fashion-mnist")
    flip(archive, 20)  # a damaged archive vouches for nothing
    mnist_files.read(path, "fashion-mnist")


@pytest.mark.mnist
def test_mnist() -> None:
    found = data.load("auto")
    assert (found.name, found.image_shape, found.note) == ("mnist", (28, 28), "")
    assert found.train_images.shape == (60_000, 784)
    assert found.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert found.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert int((found.train_images == 0).sum()) == 38_045_844
    assert torch.bincount(found.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.mnist
@pytest.mark.parametrize("position", [0, 16, 5_000_000, -1])
def test_a_damaged_mnist_is_an_error_for_auto_too(mnist: Path, position: int) -> None:
    path = mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    flip(path, position)
    for name in ("mnist", "auto"):
        with pytest.raises(DataUnavailable, match=r"t10k-images-idx3-ubyte is damaged .*delete it .*--data-dir"):
            data.load(name, mnist)


@pytest.mark.mnist
def test_a_legacy_processed_folder_is_not_read(mnist: Path) -> None:
    processed = mnist / "MNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28), torch.zeros(3)), processed / name)
    assert len(data.load("mnist", mnist).train_images) == 60_000


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """A mirror of MNIST on this machine; it hangs up in the middle of the files that its set names."""
    from torchvision.datasets import MNIST

    raw = data.default_folder() / "MNIST" / "raw"
    archives = {f"/{name}.gz": gzip.compress((raw / name).read_bytes(), 1) for name in mnist_files.HEADERS}
    broken: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = archives[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(content[: len(content) // 2] if self.path in broken else content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        sums = [(path[1:], hashlib.md5(content).hexdigest()) for path, content in archives.items()]
        monkeypatch.setattr(MNIST, "resources", sums)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield broken
        server.shutdown()


@needs_torchvision
@pytest.mark.mnist
def test_a_download_that_breaks_off_can_be_repeated(
    mirror: set[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mirror.add("/train-labels-idx1-ubyte.gz")
    with pytest.raises(DataUnavailable, match=r"could not be downloaded: .*--data-dir"):
        data.load("mnist", tmp_path)
    assert data.load("auto", tmp_path).name == "digits"
    mirror.clear()
    said: list[str] = []
    again = data.load("auto", tmp_path, said.append)
    assert (again.name, again.note) == ("mnist", "")
    assert torch.equal(again.train_images, data.load("mnist").train_images)
    assert said == [f"downloading MNIST to {tmp_path}"]
    assert capfd.readouterr() == ("", "")


def test_the_environment_is_left_alone(tmp_path: Path, no_network: None) -> None:
    before = socket.getdefaulttimeout(), dict(os.environ)
    data.load("auto", tmp_path)
    assert (socket.getdefaulttimeout(), dict(os.environ)) == before
