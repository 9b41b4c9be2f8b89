"""Still images as a source: Poisson coded, from ``fastsnn.data``."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastsnn.data import DataSet
from fastsnn.encoding import poisson_encode
from fastsnn.sources import Batch

TRAINING, EVALUATION = 0, 1
"""Streams of random numbers."""


@dataclass(frozen=True)
class ImageSource:
    """Images uint8 as Poisson spikes; a brightness of 255 spikes at every step."""

    data: DataSet
    per_step: bool = False
    T: int | None = None

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, classes: int | None = None) -> "ImageSource":
        """Images [D, ...], uint8 or floating point in [0, 1], with labels int64 [D]; they are training and test set."""
        count = classes or int(labels.max()) + 1
        flat = images.flatten(1)
        return cls(DataSet("images", flat, labels, flat, labels, tuple(images.shape[1:]), count))  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.data.image_shape
        return (1, *shape) if len(shape) == 2 else shape

    @property
    def classes(self) -> int:
        return self.data.classes

    def size(self, split: str) -> int:
        return 0 if split == "validation" else len(self.poisson_images(split)[1])

    def poisson_images(self, split: str) -> tuple[Tensor, Tensor]:
        """Images uint8 [D, P] and labels int64 [D], which the fused step encodes by itself."""
        if split == "train":
            return self.data.train_images, self.data.train_labels
        return self.data.test_images, self.data.test_labels

    def batch(self, split: str, ids: Tensor, T: int, *, seed: int = 0, epoch: int = 0) -> Batch:
        images, labels = self.poisson_images(split)
        stream = TRAINING if split == "train" else EVALUATION
        x = poisson_encode(images[ids], T, seed, epoch, stream, ids)
        return Batch(x.unflatten(-1, self.shape), labels[ids])

    def to(self, device: torch.device) -> "ImageSource":
        return ImageSource(self.data.to(device))
