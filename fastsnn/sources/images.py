"""Still images: MNIST, Fashion-MNIST, digits, CIFAR-10 and tensors of one's own, as uint8 on the device.

An encoder makes time steps of them, batch by batch.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastsnn.sources import cifar, mnist
from fastsnn.sources.mnist import Undownloadable
from fastsnn.sources.store import ENCODERS, Part, StoredSource

NAMES = ("mnist", "fashion-mnist", "digits", "cifar10")


@dataclass(frozen=True)
class DataSet:
    """Images uint8 [D, P] (P pixels, flattened) and labels int64 [D] for training and for testing."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    image_shape: tuple[int, ...]
    """Height and width, after the channels if there are several."""
    classes: int = 10
    note: str = ""
    """Why this set was chosen, if ``auto`` had to fall back; else empty."""

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


class Images(StoredSource):
    """A ``Source`` of still images.

    Args:
        data: images and labels; ``DataSet("mine", ...)`` for tensors of one's own.
        encoder: poisson, latency or direct.
    """

    def __init__(self, data: DataSet, encoder: str = "poisson") -> None:
        if encoder not in ENCODERS:
            raise ValueError(f"encoder is {encoder!r}; allowed for images: {', '.join(ENCODERS)}")
        size = data.image_shape
        shape = size if len(size) > 2 else (1, *size)
        parts = {
            split: Part(images.reshape(-1, *shape), labels)
            for split, images, labels in (
                ("train", data.train_images, data.train_labels),
                ("test", data.test_images, data.test_labels),
            )
            if len(labels)
        }
        super().__init__(data.name, parts, shape, data.classes, encoder=encoder)
        self.note = data.note


def default_folder() -> Path:
    """Where data sets are kept: $FASTSNN_DATA, else ~/.cache/fastsnn."""
    return Path(os.environ.get("FASTSNN_DATA") or Path.home() / ".cache" / "fastsnn").expanduser()


def is_present(name: str, folder: Path) -> bool:
    """Whether ``folder`` holds every file of the set, whatever is in them; digits always is."""
    if name == "cifar10":
        return cifar.is_present(folder)
    return name == "digits" or mnist.find(name, folder) is not None


def load(name: str = "auto", folder: Path | None = None, say: Callable[[str], None] = lambda text: None) -> DataSet:
    """Load a data set on the CPU; download it into ``folder`` if it is absent, reporting through ``say``.

    ``auto`` is MNIST, or digits (with a ``note``) if MNIST is neither present nor downloadable. Raises
    DataUnavailable, naming the folder, the reason and the ways on.
    """
    folder = folder or default_folder()
    if name == "digits":
        return _digits()
    if name == "cifar10":
        images, labels = cifar.read(folder, say)
        return DataSet(name, images[0], labels[0], images[1], labels[1], image_shape=(3, 32, 32))
    if name != "auto":
        return _mnist_family(name, folder, say)
    try:
        return _mnist_family("mnist", folder, say)
    except Undownloadable as error:
        return replace(_digits(), note=f"MNIST could not be had ({error}): training on digits instead")


def _digits() -> DataSet:
    """scikit-learn's bundled 8 x 8 digits: 1,437 to train on and 360, by other writers, to test on."""
    # The file alone: importing scikit-learn takes as long as everything else that a first run imports but torch.
    package = find_spec("sklearn")
    place = Path(package.submodule_search_locations[0]) if package and package.submodule_search_locations else Path()
    file = place / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        table = np.loadtxt(file, np.float32, delimiter=",")
    else:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        table = np.column_stack([bunch.data, bunch.target])
    images = torch.from_numpy((table[:, :-1] * (255 / 16)).round()).to(torch.uint8)
    labels = torch.from_numpy(table[:, -1]).to(torch.int64)
    return DataSet("digits", images[:1437], labels[:1437], images[1437:], labels[1437:], (8, 8))


def _mnist_family(name: str, folder: Path, say: Callable[[str], None]) -> DataSet:
    files = mnist.read_all(name, folder, say)
    images = [torch.from_numpy(files[f"{part}-images-idx3-ubyte"]).reshape(-1, 28 * 28) for part in ("train", "t10k")]
    labels = [torch.from_numpy(files[f"{part}-labels-idx1-ubyte"]).to(torch.int64) for part in ("train", "t10k")]
    return DataSet(name, images[0], labels[0], images[1], labels[1], image_shape=(28, 28))


def open_images(
    name: str, folder: Path, T: int | None, encoder: str | None, say: Callable[[str], None] = lambda text: None
) -> Images:
    """An image set by name, Poisson coded unless ``encoder`` says otherwise."""
    return Images(load(name, folder, say), encoder or "poisson")
