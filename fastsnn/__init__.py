"""fastsnn: train spiking neural networks at the speed of the machine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsnn.config import Config
    from fastsnn.conversion import Replacement, accelerate
    from fastsnn.encoding import poisson_encode
    from fastsnn.errors import FastSNNError
    from fastsnn.functional import linear, scan
    from fastsnn.kernels.neurons import ALIF, IF, LI, LIF, PLIF, AdLIF, CuBaLIF, Neuron, SEAdLIF
    from fastsnn.kernels.packed import PackedSpikes
    from fastsnn.monitor import Monitor
    from fastsnn.nn import LinearLIF, Spiking
    from fastsnn.training import History, evaluate, train

__version__ = "0.1.0"
__all__ = [
    "ALIF",
    "IF",
    "LI",
    "LIF",
    "PLIF",
    "AdLIF",
    "Config",
    "CuBaLIF",
    "FastSNNError",
    "History",
    "LinearLIF",
    "Monitor",
    "Neuron",
    "PackedSpikes",
    "Replacement",
    "SEAdLIF",
    "Spiking",
    "accelerate",
    "evaluate",
    "linear",
    "poisson_encode",
    "scan",
    "train",
]

_MODULES = {
    "config": ("Config",),
    "conversion": ("Replacement", "accelerate"),
    "encoding": ("poisson_encode",),
    "errors": ("FastSNNError",),
    "kernels.packed": ("PackedSpikes",),
    "functional": ("linear", "scan"),
    "kernels.neurons": ("ALIF", "AdLIF", "CuBaLIF", "IF", "LI", "LIF", "Neuron", "PLIF", "SEAdLIF"),
    "monitor": ("Monitor",),
    "nn": ("LinearLIF", "Spiking"),
    "training": ("History", "evaluate", "train"),
}


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds: `fastsnn --help` and a mistyped option must not wait for it.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"fastsnn.{module}"), name)
    raise AttributeError(f"module 'fastsnn' has no attribute {name!r}")
