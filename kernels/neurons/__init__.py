"""Neurons as values: each is a frozen dataclass whose step is written once, in the small language of ``language.py``.

``neuron.py`` says what a neuron is; a file holds one family of them. ``program.py`` makes one ready for the compiled
kernels.
"""

from fastsnn.kernels.neurons.adaptive import ALIF, AdLIF, SEAdLIF
from fastsnn.kernels.neurons.cuba import CuBaLIF
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
from fastsnn.kernels.neurons.lif import IF, LI, LIF, PLIF
from fastsnn.kernels.neurons.neuron import Neuron
from fastsnn.kernels.neurons.surrogates import SURROGATES, Surrogate

NEURONS: dict[str, type[Neuron]] = {
    "if": IF,
    "lif": LIF,
    "plif": PLIF,
    "cuba": CuBaLIF,
    "adlif": AdLIF,
    "se-adlif": SEAdLIF,
    "alif": ALIF,
    "li": LI,
}
"""Name on the command line -> neuron. Adding a neuron is a file and a row here."""

__all__ = [
    "ALIF",
    "IF",
    "LI",
    "LIF",
    "NEURONS",
    "PLIF",
    "SURROGATES",
    "AdLIF",
    "CuBaLIF",
    "Neuron",
    "SEAdLIF",
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
