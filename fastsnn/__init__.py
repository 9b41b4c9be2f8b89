"""fastsnn: train spiking neural networks of LIF neurons at the speed of the machine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsnn.config import Config, FitConfig
    from fastsnn.conversion import Replacement, accelerate
    from fastsnn.encoding import direct_encode, latency_encode, poisson_encode
    from fastsnn.errors import FastSNNError
    from fastsnn.kernels.packed import PackedSpikes
    from fastsnn.layers import LIF, LinearLIF, lif, linear_lif
    from fastsnn.monitor import Monitor
    from fastsnn.networks import LeakyIntegrator, TimeDistributed
    from fastsnn.neuron import LIFParameters
    from fastsnn.training import History, Predictions, evaluate, fit, load, predict, train

__version__ = "0.1.0"
__all__ = [
    "LIF",
    "Config",
    "FastSNNError",
    "FitConfig",
    "History",
    "LIFParameters",
    "LeakyIntegrator",
    "LinearLIF",
    "Monitor",
    "PackedSpikes",
    "Predictions",
    "Replacement",
    "TimeDistributed",
    "accelerate",
    "direct_encode",
    "evaluate",
    "fit",
    "latency_encode",
    "lif",
    "linear_lif",
    "load",
    "poisson_encode",
    "predict",
    "train",
]

_MODULES = {
    "config": ("Config", "FitConfig"),
    "conversion": ("Replacement", "accelerate"),
    "encoding": ("direct_encode", "latency_encode", "poisson_encode"),
    "errors": ("FastSNNError",),
    "kernels.packed": ("PackedSpikes",),
    "layers": ("LIF", "LinearLIF", "lif", "linear_lif"),
    "monitor": ("Monitor",),
    "networks": ("LeakyIntegrator", "TimeDistributed"),
    "neuron": ("LIFParameters",),
    "training": ("History", "Predictions", "evaluate", "fit", "load", "predict", "train"),
}


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds: `fastsnn --help` and a mistyped option must not wait for it.
    if name == "sources":
        return import_module("fastsnn.sources")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"fastsnn.{module}"), name)
    raise AttributeError(f"module 'fastsnn' has no attribute {name!r}")
