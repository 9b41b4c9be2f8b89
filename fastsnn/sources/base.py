"""What a trainer sees of any data set: a ``Source`` that gives a ``Batch`` for a list of sample numbers."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from fastsnn.kernels.packed import PackedSpikes

SPLITS = ("train", "validation", "test")
"""Names of the parts of a data set."""


class Batch(NamedTuple):
    """B samples over T time steps, on the source's device."""

    x: Tensor | PackedSpikes
    """[T, B, *shape]: spikes packed along time, or currents fp32."""
    y: Tensor
    """int64: a class per sample [B]; or per time step [T, B], with -1 for a step without a label."""
    lengths: Tensor | None = None
    """int64 [B]: the first ``lengths[b]`` steps of sample b count. None if all T do."""


@runtime_checkable
class Source(Protocol):
    """A data set. What a batch holds depends on the arguments of :meth:`batch` alone: not on the order of calls, the
    other samples of the batch or the device.
    """

    @property
    def name(self) -> str:
        """What the data set is called, as in ``--dataset``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample at one time step: (1, 28, 28), channels first, for images; (700,) for channels."""

    @property
    def classes(self) -> int:
        """Labels are 0 to ``classes - 1``."""

    @property
    def per_step(self) -> bool:
        """Whether labels are [T, B]."""

    @property
    def T(self) -> int | None:
        """Time steps of the data; None if an encoder makes as many as are asked for."""

    def size(self, split: str) -> int:
        """Samples of "train", "validation" or "test"; 0 if there are none."""

    def batch(self, split: str, ids: Tensor, T: int, *, seed: int = 0, epoch: int = 0) -> Batch:
        """The samples ``ids``, int64 [B] on any device, each 0 to ``size(split) - 1``.

        Random numbers of an encoder depend on (seed, epoch, split, sample number) alone. ``T`` must be ``self.T``
        unless that is None.
        """

    def to(self, device: torch.device) -> "Source":
        """The same data, whose batches are on ``device``."""


def check_split(split: str) -> None:
    """Raise ValueError unless ``split`` is the name of a part."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed: {', '.join(SPLITS)}")


def check_steps(name: str, T: int, own: int | None = None) -> None:
    """Raise an error unless ``T`` is a number of time steps, and the data's ``own`` one if it has one."""
    if not isinstance(T, int) or isinstance(T, bool):
        raise TypeError(f"T is {T!r}; allowed: an integer, the number of time steps")
    if T < 1:
        raise ValueError(f"T is {T}; allowed: 1 or more time steps")
    if own is not None and own != T:
        raise ValueError(f"T is {T}; allowed: {own}, the time steps of {name} as it was opened")
