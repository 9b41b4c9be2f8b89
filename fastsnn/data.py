"""Data sets as uint8 tensors that live on the training device: no worker processes and no host work per batch."""

import hashlib
import os
import socket
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fastsnn.errors import DataUnavailable

NAMES = ("mnist", "fashion-mnist", "digits")
_TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}

# Number of bytes of each uncompressed file of the MNIST family, header included.
_SIZES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}
# MD5 of MNIST's uncompressed files (Y. LeCun, C. Cortes, C. Burges).
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
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
    return name == "digits" or all((_raw(name, folder) / file).exists() for file in _SIZES)


def _raw(name: str, folder: Path) -> Path:
    return folder / _TORCHVISION_CLASSES[name] / "raw"


def load(name: str = "auto", folder: Path | None = None) -> DataSet:
    """Load a data set on the CPU, downloading it into ``folder`` where needed.

    ``auto`` is MNIST, or digits (with a ``note``) where MNIST is neither present nor downloadable. Raises
    DataUnavailable, naming the folder, the reason and the ways on.
    """
    folder = folder or default_folder()
    if name == "digits":
        return _digits()
    if name != "auto":
        return _mnist_family(name, folder)
    try:
        return _mnist_family("mnist", folder)
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


def _mnist_family(name: str, folder: Path) -> DataSet:
    class_name, raw = _TORCHVISION_CLASSES[name], _raw(name, folder)
    if not is_present(name, folder):
        _download(class_name, folder)
    archives = {Path(file).stem: md5 for file, md5 in _torchvision(class_name).resources}
    for file in _SIZES:
        _check(raw / file, _MNIST_MD5.get(file) if name == "mnist" else None, archives[file])
    parts = [_torchvision(class_name)(folder, train=train) for train in (True, False)]
    train, test = [(part.data.reshape(len(part), -1), part.targets) for part in parts]
    return DataSet(name, *train, *test, image_shape=(28, 28))


def _torchvision(class_name: str):  # type: ignore[no-untyped-def] # a torchvision class, untyped there
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        # A torchvision built for another torch fails on import with "operator torchvision::nms does not exist".
        reason = str(error).splitlines()[0]
        raise DataUnavailable(
            f"torchvision does not work with torch {torch.__version__} ({reason}): install the pair together "
            "with `pip install --upgrade torch torchvision`, or train with --dataset digits"
        ) from error
    return getattr(datasets, class_name)


def _download(class_name: str, folder: Path) -> None:
    dataset = _torchvision(class_name)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        dataset(folder, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _Undownloadable(
            f"{class_name} is not in {folder} and could not be downloaded: {reason}; put the four raw files in "
            f"{folder / class_name / 'raw'}, or name another folder with --data-dir, or use --dataset digits"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _check(path: Path, md5: str | None, archive_md5: str) -> None:
    """Raise DataUnavailable where a raw file is not what it should be; torchvision only looks whether it exists.

    Without a known hash the content is held against the CRC-32 of the archive that it came in, if that is there.
    """
    size = path.stat().st_size
    remedy = "delete it to download it again, or name another folder with --data-dir"
    if size != _SIZES[path.name]:
        raise DataUnavailable(f"{path} has {size} bytes where {_SIZES[path.name]} are expected: {remedy}")
    content = path.read_bytes()
    archive = path.with_name(path.name + ".gz")
    if md5:
        intact = hashlib.md5(content, usedforsecurity=False).hexdigest() == md5
    elif (
        archive.exists()
        and hashlib.md5(packed := archive.read_bytes(), usedforsecurity=False).hexdigest() == archive_md5
    ):
        # A gzip file ends with the CRC-32 and the size of what it holds.
        intact = zlib.crc32(content) == int.from_bytes(packed[-8:-4], "little")
    else:
        intact = content[:2] == b"\0\0"
    if not intact:
        raise DataUnavailable(f"{path} is damaged (its checksum is wrong): {remedy}")
