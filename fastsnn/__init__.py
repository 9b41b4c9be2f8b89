"""fastsnn: train spiking neural networks of LIF neurons at the speed of the machine."""

from typing import Any

from fastsnn.config import Config
from fastsnn.encoding import poisson_encode
from fastsnn.errors import FastSNNError
from fastsnn.layers import LIF, LinearLIF, lif, linear_lif
from fastsnn.neuron import LIFParameters
from fastsnn.training import History, Monitor, evaluate, train

__version__ = "0.1.0"
__all__ = [
    "LIF",
    "Config",
    "FastSNNError",
    "History",
    "LIFParameters",
    "LinearLIF",
    "Monitor",
    "Replacement",
    "accelerate",
    "evaluate",
    "lif",
    "linear_lif",
    "poisson_encode",
    "train",
]


def __getattr__(name: str) -> Any:
    # Conversion imports SpikingJelly, which only its users pay for.
    if name in ("Replacement", "accelerate"):
        from fastsnn import conversion

        return getattr(conversion, name)
    raise AttributeError(f"module 'fastsnn' has no attribute {name!r}")
