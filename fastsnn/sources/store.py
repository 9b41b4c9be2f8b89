"""Data sets as tensors: what is kept of each sample, where it lies, and how a batch is gathered from it."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fastsnn.encoding import direct_encode, latency_encode, poisson_encode
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.sources.base import SPLITS, Batch, check_split, check_steps

STREAMS = {"train": 0, "test": 1, "validation": 2}
"""Streams of random numbers, so that the same sample number of another split draws other spikes."""
_SHARE = 0.5
"""Share of a GPU's free memory that data may take; the rest is for training."""

Encoder = Callable[[Tensor, int, int, int, int, Tensor], Tensor | PackedSpikes]
Self = TypeVar("Self", bound="StoredSource")


def _poisson(images: Tensor, T: int, seed: int, epoch: int, stream: int, ids: Tensor) -> PackedSpikes:
    return PackedSpikes(poisson_encode(images, T, seed, epoch, stream, ids, packed=True), T)


def _latency(images: Tensor, T: int, seed: int, epoch: int, stream: int, ids: Tensor) -> PackedSpikes:
    return PackedSpikes(latency_encode(images, T, packed=True), T)


def _direct(images: Tensor, T: int, seed: int, epoch: int, stream: int, ids: Tensor) -> Tensor:
    return direct_encode(images, T)


ENCODERS: dict[str, Encoder] = {"poisson": _poisson, "latency": _latency, "direct": _direct}
"""What makes time steps of samples that have none: (images, T, seed, epoch, stream, ids) -> x of a batch."""


@dataclass(frozen=True)
class Part:
    """The D samples of one split."""

    x: Tensor
    """int32 [ceil(T / 32), D, *shape], spikes packed along time; numbers [T, D, *shape]; or images [D, *shape]."""
    y: Tensor
    """int64 [D]; or int16 [T, D], -1 for a step without a label."""
    lengths: Tensor | None = None
    """int64 [D], the steps that count. None if all do."""

    def __len__(self) -> int:
        return self.y.shape[-1]

    @property
    def nbytes(self) -> int:
        """Memory of the tensors, in bytes."""
        return sum(t.numel() * t.element_size() for t in (self.x, self.y, self.lengths) if t is not None)

    def to(self, device: torch.device) -> "Part":
        lengths = None if self.lengths is None else self.lengths.to(device)
        return Part(self.x.to(device), self.y.to(device), lengths)


class StoredSource:
    """A ``Source`` of tensors: see :class:`fastsnn.sources.Source` for its methods.

    Args:
        name: of the data set.
        parts: the samples of each split, all on one device; a split may be absent.
        shape: of one sample at one time step.
        classes: number of classes.
        T: time steps of ``x``; None for images, whose ``encoder`` makes them.
        packed: ``x`` is spikes packed along time.
        scale: numbers are multiplied by this.
        encoder: one of ``ENCODERS`` for images, else None.
    """

    def __init__(
        self,
        name: str,
        parts: dict[str, Part],
        shape: tuple[int, ...],
        classes: int,
        *,
        T: int | None = None,
        packed: bool = False,
        scale: float = 1.0,
        encoder: str | None = None,
    ) -> None:
        self.name, self.parts, self.shape, self.classes = name, parts, tuple(shape), classes
        self.T, self.packed, self.scale, self.encoder = T, packed, scale, encoder
        self.device = next((part.x.device for part in parts.values()), torch.device("cpu"))
        self.per_step = any(part.y.dim() > 1 for part in parts.values())

    def __repr__(self) -> str:
        sizes = ", ".join(f"{self.size(split)} {split}" for split in SPLITS if self.size(split))
        steps = self.encoder if self.T is None else f"T={self.T}"
        return f"<{self.name}: {sizes}; shape {list(self.shape)}, {steps}, {self.classes} classes, on {self.device}>"

    def size(self, split: str) -> int:
        """Samples of a split."""
        check_split(split)
        return len(self.parts[split]) if split in self.parts else 0

    def nbytes(self, split: str) -> int:
        """Memory that a split's samples take, in bytes."""
        check_split(split)
        return self.parts[split].nbytes if split in self.parts else 0

    def on_host(self, split: str) -> bool:
        """Whether a split stayed in the host's memory and is copied to the device batch by batch."""
        check_split(split)
        return split in self.parts and self.parts[split].x.device.type != self.device.type

    def to(self: Self, device: torch.device | str) -> Self:
        """The same data on ``device``.

        On a GPU the parts that don't fit in half of its free memory stay on the host; so does the test part of data
        with a validation part, since it is read once.
        """
        moved = copy(self)
        moved.device = torch.device(device)
        room = memory_for_data(moved.device)
        moved.parts = {}
        for split in (split for split in SPLITS if split in self.parts):
            part = self.parts[split]
            rarely_read = split == "test" and "validation" in self.parts
            if room is None or (part.nbytes <= room and not rarely_read):
                moved.parts[split] = part.to(moved.device)
                room = None if room is None else room - part.nbytes
            else:
                moved.parts[split] = part.to(torch.device("cpu"))
        return moved

    def batch(self, split: str, ids: Tensor, T: int, *, seed: int = 0, epoch: int = 0) -> Batch:
        """The samples ``ids`` int64 [B]; see :meth:`fastsnn.sources.Source.batch`."""
        check_split(split)
        check_steps(self.name, T, self.T)
        if split not in self.parts:
            raise ValueError(f"{self.name} has no {split} samples; it has: {', '.join(self.parts)}")
        part = self.parts[split]
        ids = _checked(ids, len(part), self.name, split).to(part.x.device)
        y = self._gathered(part.y, ids, part.y.dim() - 1).to(torch.int64)
        lengths = None if part.lengths is None else self._gathered(part.lengths, ids, 0)
        if self.encoder is not None:
            images = self._gathered(part.x, ids, 0)
            encode = ENCODERS[self.encoder]
            return Batch(encode(images, T, seed, epoch, STREAMS[split], ids.to(self.device)), y, lengths)
        x = self._gathered(part.x, ids, 1)
        if self.packed:
            return Batch(PackedSpikes(x, T), y, lengths)
        return Batch(x.float() if self.scale == 1 else x.float() * self.scale, y, lengths)

    def _gathered(self, tensor: Tensor, ids: Tensor, axis: int) -> Tensor:
        """``tensor`` at ``ids`` along ``axis``, on the device; from the host through pinned memory, not waited for."""
        if tensor.device.type != "cpu" or self.device.type != "cuda":
            return tensor.index_select(axis, ids).to(self.device)
        shape = (*tensor.shape[:axis], len(ids), *tensor.shape[axis + 1 :])
        pinned = torch.empty(shape, dtype=tensor.dtype, pin_memory=True)
        torch.index_select(tensor, axis, ids, out=pinned)
        return pinned.to(self.device, non_blocking=True)


def memory_for_data(device: torch.device) -> int | None:
    """Bytes of the device's memory that data may take; None if they lie in that memory anyway."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.mem_get_info(device)[0] * _SHARE)


def _checked(ids: Tensor, samples: int, name: str, split: str) -> Tensor:
    if not isinstance(ids, Tensor):
        raise TypeError(f"ids is {type(ids).__name__}; allowed: a tensor, torch.int64 [B]")
    if ids.dtype != torch.int64 or ids.dim() != 1:
        raise ValueError(f"ids is {ids.dtype} {list(ids.shape)}; allowed: torch.int64 [B]")
    # On a GPU a look at the values would wait for it at every batch.
    if ids.device.type == "cpu" and len(ids) and not 0 <= ids.min() <= ids.max() < samples:
        raise ValueError(
            f"ids holds {ids.min()} to {ids.max()}; allowed: 0 to {samples - 1}, the {split} samples of {name}"
        )
    return ids
