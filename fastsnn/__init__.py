"""fastsnn: train spiking neural networks at the speed of the machine."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsnn.config import Config, FitConfig
    from fastsnn.conversion import Replacement, accelerate
    from fastsnn.encoding import direct_encode, latency_encode, poisson_encode
    from fastsnn.errors import FastSNNError
    from fastsnn.functional import linear, recurrent, scan
    from fastsnn.kernels.neurons import ALIF, IF, LI, LIF, PLIF, AdLIF, CuBaLIF, Neuron, SEAdLIF
    from fastsnn.kernels.packed import PackedSpikes
    from fastsnn.monitor import Monitor
    from fastsnn.networks import TimeDistributed
    from fastsnn.nir import from_nir, to_nir
    from fastsnn.nn import LinearLIF, Recurrent, Spiking
    from fastsnn.snntorch import from_snntorch
    from fastsnn.training import History, Predictions, evaluate, fit, load, predict, train

if sys.version_info < (3, 10):  # noqa: UP036 - a checkout is also run without having been installed
    sys.exit(f"fastsnn needs Python 3.10 or newer, and this is {sys.version.split()[0]}: make a venv with a newer one")

__version__ = "0.1.0"
if not Path(__file__).with_name("kernels").is_dir():
    # A checkout on Windows has a file in place of the link to the folder kernels/ beside this package.
    __path__.append(str(Path(__file__).parents[1]))
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
    "FitConfig",
    "History",
    "LinearLIF",
    "Monitor",
    "Neuron",
    "PackedSpikes",
    "Predictions",
    "Recurrent",
    "Replacement",
    "SEAdLIF",
    "Spiking",
    "TimeDistributed",
    "accelerate",
    "direct_encode",
    "evaluate",
    "fit",
    "from_nir",
    "from_snntorch",
    "latency_encode",
    "linear",
    "load",
    "poisson_encode",
    "predict",
    "recurrent",
    "scan",
    "to_nir",
    "train",
]

_MODULES = {
    "config": ("Config", "FitConfig"),
    "conversion": ("Replacement", "accelerate"),
    "encoding": ("direct_encode", "latency_encode", "poisson_encode"),
    "errors": ("FastSNNError",),
    "kernels.packed": ("PackedSpikes",),
    "functional": ("linear", "recurrent", "scan"),
    "kernels.neurons": ("ALIF", "AdLIF", "CuBaLIF", "IF", "LI", "LIF", "Neuron", "PLIF", "SEAdLIF"),
    "monitor": ("Monitor",),
    "nn": ("LinearLIF", "Recurrent", "Spiking"),
    "networks": ("TimeDistributed",),
    "nir": ("from_nir", "to_nir"),
    "snntorch": ("from_snntorch",),
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
