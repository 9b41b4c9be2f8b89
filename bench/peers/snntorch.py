"""snnTorch: its neurons without its delay of the reset, called once per time step behind a layer over all of them.

They fire above the threshold, the reference at or above it. They add currents undivided: one of a LIF neuron is scaled.
"""

import importlib.metadata
from typing import Any

import snntorch
import torch
from snntorch import spikegen, surrogate
from torch import Tensor, nn

from bench.cases import KEPT
from bench.tasks import Peer, Stepwise


class _Neurons(Stepwise):
    """Neurons that take ``share`` of their current."""

    def __init__(self, cell: Any, share: float = 1.0, learns: bool = False) -> None:
        states = 2 if isinstance(cell, snntorch.Synaptic) else 1
        super().__init__(cell, lambda x: tuple(torch.zeros_like(x) for _ in range(states)))
        self.share = share
        if learns:
            self.kept = lambda: cell.beta

    def forward(self, current: Tensor) -> Tensor:
        share = 1 - self.kept() if hasattr(self, "kept") else self.share
        return super().forward(current if isinstance(share, float) and share == 1 else share * current)


class SnnTorch(Peer):
    """Leaky, and Synaptic for a current-based neuron."""

    name = "snntorch"
    kinds = ("lif", "if", "leaky", "li", "cuba")

    def label(self) -> str:
        return f"snnTorch {importlib.metadata.version('snntorch')}"

    def neurons(self, kind: str, size: int) -> nn.Module:
        options: dict[str, Any] = {"reset_delay": False, "spike_grad": surrogate.atan(2.0)}
        if kind == "cuba":
            return _Neurons(snntorch.Synaptic(0.8, 0.9, reset_mechanism="subtract", **options))
        if kind in ("lif", "if"):
            beta = {"lif": 0.5, "if": 1.0}[kind]
            return _Neurons(snntorch.Leaky(beta, reset_mechanism="zero", **options), beta)
        options |= {"learn_beta": True, "reset_mechanism": {"leaky": "subtract", "li": "none"}[kind]}
        cell = snntorch.Leaky(torch.full((size,), KEPT), **options)
        return _Readout(cell, learns=True) if kind == "li" else _Neurons(cell, learns=True)

    def encode(self, pixels: Tensor, T: int) -> Tensor:
        return spikegen.rate(pixels, num_steps=T)


class _Readout(_Neurons):
    """The potential of neurons that have no reset."""

    def forward(self, current: Tensor) -> Tensor:
        cell, (potential,), potentials = self.step, self.start(current[0]), []
        for x in (1 - self.kept()) * current:
            _, potential = cell(x, potential)
            potentials.append(potential)
        return torch.stack(potentials)


PEERS = {SnnTorch.name: SnnTorch}
