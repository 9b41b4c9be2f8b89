"""What a backend is: the methods that an implementation of the operations has."""

from collections.abc import Mapping
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from fastsnn.kernels.neurons import Neuron
from fastsnn.kernels.packed import PackedSpikes

Parameters = Mapping[str, Tensor]


class Backend(Protocol):
    """An implementation of the operations. States are stacked, [S, ...]; parameters are those that learn, by name.

    The three operations of one with the attribute ``recomputes = True`` take ``recompute`` too, a keyword; see
    ``fastsnn.scan``.
    """

    name: str
    paths: tuple[str, ...]
    """Ways to compute ``linear``, of which it takes more than one by name."""

    def refusal(self, device: torch.device) -> str | None:
        """Why it can't run on ``device``, in one line with what to do next, as far as that is known without a try."""

    def neuron_refusal(
        self, neuron: Neuron, dtype: torch.dtype, learns: bool, operation: str, size: int = 0
    ) -> str | None:
        """Why it can't compute this operation (scan, linear or recurrent) of these neurons, in one sentence.

        ``size`` is the number of neurons that all come back to each other, of a recurrent layer with a full weight.
        """

    def scan(
        self, current: Tensor, neuron: Neuron, state: Tensor | None, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        """See ``fastsnn.scan``."""

    def linear(
        self, x: Tensor | PackedSpikes, weight: Tensor, bias: Tensor | None, neuron: Neuron, state: Tensor | None,
        parameters: Parameters, packed: bool, path: str,
    ) -> tuple[Tensor | PackedSpikes, Tensor]:  # fmt: skip
        """See ``fastsnn.linear``."""

    def recurrent(
        self, x: Tensor | PackedSpikes, weight: Tensor, recurrent_weight: Tensor, bias: Tensor | None, neuron: Neuron,
        state: Tensor | None, initial: Tensor | None, parameters: Parameters, packed: bool,
    ) -> tuple[Tensor | PackedSpikes, Tensor]:  # fmt: skip
        """See ``fastsnn.recurrent``; initial is the output before the first step."""

    def rate_classifier(self) -> ModuleType | None:
        """Its module of the fused whole training step; None without one."""
