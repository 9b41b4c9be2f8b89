"""fastsnn: train spiking neural networks of LIF neurons at the speed of the machine."""

from fastsnn.neuron import LIFParameters

__version__ = "0.1.0"
__all__ = ["LIFParameters"]
