"""What NIR has and fastsnn's layers don't: a scaling of the input, and a threshold without a state."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastsnn.kernels.neurons import Neuron
from fastsnn.kernels.neurons.language import Value


class Scale(nn.Module):
    """The input times ``scale``, a tensor that broadcasts to a sample's shape: [T, B, ...] -> [T, B, ...]."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@dataclass(frozen=True)
class Threshold(Neuron):
    """Fires if its input is at or above ``v_threshold``, whatever came before; its state is unused."""

    v_threshold: float = 1.0
    """The neuron fires at inputs at or above this."""

    def step(self, x: Value, v: Value) -> tuple[Value, Value]:  # type: ignore[override]
        return self.spike(x - self.v_threshold), v


def import_nir() -> None:
    """Raise ImportError with the line to run unless the package nir is there."""
    try:
        import nir  # noqa: F401
    except ImportError as error:
        raise ImportError('the package nir is not installed; run: pip install "fastsnn[nir]"') from error


def check_dt(dt: object) -> float:
    """``dt`` as a number of seconds; raises ValueError for anything else."""
    if isinstance(dt, bool) or not isinstance(dt, (int, float)) or not 0 < dt < torch.inf:
        raise ValueError(f"dt is {dt!r}; allowed: a number of seconds above 0")
    return float(dt)
