"""fastsnn: train spiking neural networks of LIF neurons at the speed of the machine."""

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
    "evaluate",
    "lif",
    "linear_lif",
    "poisson_encode",
    "train",
]
