"""CIFAR-10 through torchvision, which checks the MD5 of each of its files."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastsnn.errors import DataUnavailable
from fastsnn.sources import mnist
from fastsnn.sources.files import check_regular

_FOLDER = "cifar-10-batches-py"


def is_present(folder: Path) -> bool:
    """Whether ``folder`` holds the unpacked archive, whatever is in it."""
    return (folder / _FOLDER).is_dir()


def read(folder: Path, say: Callable[[str], None]) -> tuple[list[Tensor], list[Tensor]]:
    """Images uint8 [D, 3 * 32 * 32], channels first, and labels int64 [D], for training and for testing."""
    target = folder / _FOLDER
    if not is_present(folder):
        remedy = f"unpack cifar-10-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html) to {target}"
        mnist.download("CIFAR10", folder, target, remedy, say)
    dataset = mnist.torchvision_class("CIFAR10")
    remedy = "delete the folder to download it again, or name another folder with --data-dir"
    for name, _ in [*dataset.train_list, *dataset.test_list]:
        check_regular(target / name, remedy)
    images, labels = [], []
    for train in (True, False):
        try:
            with warnings.catch_warnings():
                # The files were pickled by a NumPy so old that newer ones warn.
                warnings.simplefilter("ignore")
                part = dataset(folder, train=train)
        except (RuntimeError, OSError) as error:
            raise DataUnavailable(f"{target} is damaged (a checksum is wrong): {remedy}") from error
        images.append(torch.from_numpy(part.data).permute(0, 3, 1, 2).reshape(len(part.data), -1))
        labels.append(torch.tensor(part.targets, dtype=torch.int64))
    return images, labels
