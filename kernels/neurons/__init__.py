"""Neurons as values: each is a frozen dataclass whose step is written once, in the small language of ``language.py``.

``neuron.py`` says what a neuron is; a file holds one family of them. ``program.py`` makes one ready for the compiled
kernels.
"""

from fastsnn.kernels.neurons.language import (
    StepError,
    absolute,
    detach,
    exp,
    maximum,
    minimum,
    reciprocal,
    select,
    sigmoid,
    sqrt,
    where,
)
from fastsnn.kernels.neurons.lif import LIF, PLIF
from fastsnn.kernels.neurons.neuron import Neuron
from fastsnn.kernels.neurons.surrogates import SURROGATES, Surrogate

__all__ = [
    "LIF",
    "PLIF",
    "SURROGATES",
    "Neuron",
    "StepError",
    "Surrogate",
    "absolute",
    "detach",
    "exp",
    "maximum",
    "minimum",
    "reciprocal",
    "select",
    "sigmoid",
    "sqrt",
    "where",
]
