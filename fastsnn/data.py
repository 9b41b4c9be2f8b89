"""Data sets as uint8 tensors that live on the training device: no worker processes and no host work per batch."""

import hashlib
import io
import math
import os
import socket
import zlib
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastsnn.errors import DataUnavailable
from fastsnn.files import check_regular, missing, remove_empty

NAMES = ("mnist", "fashion-mnist", "digits")
_TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}

# The header of each uncompressed file of the MNIST family: type of its values, number of dimensions, sizes.
_HEADERS = {
    "train-images-idx3-ubyte": (0x803, 60_000, 28, 28),
    "train-labels-idx1-ubyte": (0x801, 60_000),
    "t10k-images-idx3-ubyte": (0x803, 10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (0x801, 10_000),
}
# MD5 of MNIST's uncompressed files (Y. LeCun, C. Cortes, C. Burges), and of Fashion-MNIST's as distributed, gzipped.
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_FASHION_ARCHIVE_MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
_DOWNLOAD_TIMEOUT = 20.0  # seconds without a byte


@dataclass(frozen=True)
class DataSet:
    """Images uint8 [D, P] (P pixels, flattened) and labels int64 [D] for training and for testing."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    image_shape: tuple[int, int]
    classes: int = 10
    note: str = ""
    """Why this set was chosen, where ``auto`` had to fall back; else empty."""

    def to(self, device: torch.device) -> "DataSet":
        return self._map(lambda tensor: tensor.to(device))

    def first(self, train_samples: int | None, test_samples: int | None) -> "DataSet":
        """The first samples of each part; None keeps all."""
        return replace(
            self,
            train_images=self.train_images[:train_samples],
            train_labels=self.train_labels[:train_samples],
            test_images=self.test_images[:test_samples],
            test_labels=self.test_labels[:test_samples],
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> "DataSet":
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: function(getattr(self, name)) for name in names})  # type: ignore[arg-type]


def default_folder() -> Path:
    """Where data sets are kept: $FASTSNN_DATA, else ~/.cache/fastsnn."""
    return Path(os.environ.get("FASTSNN_DATA") or Path.home() / ".cache" / "fastsnn").expanduser()


def is_present(name: str, folder: Path) -> bool:
    """Whether ``folder`` holds every file of the set, whatever is in them; digits always is."""
    return name == "digits" or all((_raw(name, folder) / file).exists() for file in _HEADERS)


def _raw(name: str, folder: Path) -> Path:
    return folder / _TORCHVISION_CLASSES[name] / "raw"


def load(name: str = "auto", folder: Path | None = None, say: Callable[[str], None] = lambda text: None) -> DataSet:
    """Load a data set on the CPU, downloading it into ``folder`` where needed, which ``say`` is told.

    ``auto`` is MNIST, or digits (with a ``note``) where MNIST is neither present nor downloadable. Raises
    DataUnavailable, naming the folder, the reason and the ways on.
    """
    folder = folder or default_folder()
    if name == "digits":
        return _digits()
    if name != "auto":
        return _mnist_family(name, folder, say)
    try:
        return _mnist_family("mnist", folder, say)
    except _Undownloadable as error:
        return replace(_digits(), note=f"MNIST could not be had ({error}): training on digits instead")


class _Undownloadable(DataUnavailable):
    """Absent and not downloadable; a damaged file is another matter and never falls back."""


def _digits() -> DataSet:
    """scikit-learn's bundled 8 x 8 digits: 1,437 to train on and 360, by other writers, to test on."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy((bunch.data * (255 / 16)).round()).to(torch.uint8)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    return DataSet("digits", images[:1437], labels[:1437], images[1437:], labels[1437:], (8, 8))


def _mnist_family(name: str, folder: Path, say: Callable[[str], None]) -> DataSet:
    raw = _raw(name, folder)
    if not is_present(name, folder):
        _download(_TORCHVISION_CLASSES[name], folder, say)
    parts = {file: _read(raw / file, name) for file in _HEADERS}
    images = [torch.from_numpy(parts[f"{part}-images-idx3-ubyte"]).reshape(-1, 28 * 28) for part in ("train", "t10k")]
    labels = [torch.from_numpy(parts[f"{part}-labels-idx1-ubyte"]).to(torch.int64) for part in ("train", "t10k")]
    return DataSet(name, images[0], labels[0], images[1], labels[1], image_shape=(28, 28))


def _torchvision(class_name: str):  # type: ignore[no-untyped-def] # a torchvision class, untyped there
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        # A torchvision built for another torch fails on import with "operator torchvision::nms does not exist".
        reason = str(error).splitlines()[0]
        raise _Undownloadable(
            f"torchvision does not work with torch {torch.__version__} ({reason}): install the pair together "
            "with `pip install --upgrade torch torchvision`, or train with --dataset digits"
        ) from error
    return getattr(datasets, class_name)


def _download(class_name: str, folder: Path, say: Callable[[str], None]) -> None:
    dataset = _torchvision(class_name)
    say(f"downloading {class_name} to {folder}")
    raw = folder / class_name / "raw"
    new_folders, known = missing(raw), set(raw.glob("*"))
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # a progress bar per file
            dataset(folder, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _Undownloadable(
            f"{class_name} is not in {folder} and could not be downloaded: {reason}; put the four raw files in "
            f"{raw}, or name another folder with --data-dir, or use --dataset digits"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
        _clear({path for path in raw.glob("*") if path not in known})
        remove_empty(new_folders)


def _clear(files: Iterable[Path]) -> None:
    """Remove what a download that failed left half done; whole raw files and their archives are kept."""
    for path in files:
        header, raw = _HEADERS.get(path.stem, (0,)), path.with_suffix("")
        whole = raw.is_file() and raw.stat().st_size == 4 * len(header) + math.prod(header[1:])
        if path.is_file() and not whole:
            with suppress(OSError):
                path.unlink()


def _read(path: Path, name: str) -> np.ndarray:
    """The values of a raw file, uint8, flat; raises DataUnavailable where it is not what was published.

    torchvision's reader would take a damaged file, and the ``processed`` folder of its early releases before this one.
    """
    remedy = "delete it to download it again, or name another folder with --data-dir"
    header = b"".join(number.to_bytes(4, "big") for number in _HEADERS[path.name])
    sizes = _HEADERS[path.name][1:]
    try:
        check_regular(path)
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataUnavailable(f"{path} can't be read ({error.strerror}): {remedy}") from error
    if len(content) != (expected := len(header) + math.prod(sizes)):
        raise DataUnavailable(f"{path} has {len(content)} bytes where {expected} are expected: {remedy}")
    values = content[len(header) :]
    sound = content[: len(header)].tobytes() == header and (len(sizes) > 1 or values.max() <= 9)
    if not (sound and _is_original(path, content.data, name)):
        raise DataUnavailable(f"{path} is damaged (its checksum is wrong): {remedy}")
    return values


def _is_original(path: Path, content: memoryview, name: str) -> bool:
    """Whether the content has its published hash; Fashion-MNIST's is known by its archive, where that was kept."""
    if name == "mnist":
        return hashlib.md5(content, usedforsecurity=False).hexdigest() == _MNIST_MD5[path.name]
    archive = path.with_name(path.name + ".gz")
    if not archive.is_file():
        return True
    packed = archive.read_bytes()
    if hashlib.md5(packed, usedforsecurity=False).hexdigest() != _FASHION_ARCHIVE_MD5[path.name]:
        return True
    # A gzip file ends with the CRC-32 and the size of what it holds.
    return zlib.crc32(content) == int.from_bytes(packed[-8:-4], "little")
