"""The surrogates: what stands in for the derivative of a spike. Adding one is adding a row to :data:`SURROGATES`.

A row holds everything about it; the command line's help, ``fastsnn verify``, the benchmarks and the tests take their
lists from here. Source: SpikingJelly 0.0.0.0.14, ``activation_based.surrogate``, except where a row says otherwise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsnn.kernels.neurons.language import (
    Operand,
    Value,
    absolute,
    exp,
    maximum,
    reciprocal,
    where,
)


@dataclass(frozen=True)
class Surrogate:
    """A surrogate derivative d spike / d x at ``x = potential - v_threshold``, with a sharpness ``alpha``."""

    name: str
    derivative: Callable[[Operand, Operand], Value]
    """derivative(x, alpha), in the small language; positive at x = 0, and finite at infinite x."""
    primitive: Callable[[Tensor, float], Tensor]
    """primitive(x, alpha): the smooth step that it is the derivative of, in torch."""
    alpha: float
    """Default sharpness."""
    spikingjelly: str | None = None
    """SpikingJelly's class, which calls its sharpness alpha too."""


def _atan(x: Operand, alpha: Operand) -> Value:
    y = x * (math.pi / 2 * alpha)
    return alpha / 2 * reciprocal(1 + y * y)


def _sigmoid(x: Operand, alpha: Operand) -> Value:
    e = exp(-absolute(x * alpha))  # in a form that doesn't overflow
    return alpha * e * reciprocal((1 + e) * (1 + e))


def _erf(x: Operand, alpha: Operand) -> Value:
    y = x * alpha
    return alpha / math.sqrt(math.pi) * exp(-(y * y))


def _piecewise_quadratic(x: Operand, alpha: Operand) -> Value:
    return maximum(alpha - absolute(x) * (alpha * alpha), 0.0)


def _soft_sign(x: Operand, alpha: Operand) -> Value:
    y = 1 + absolute(x) * alpha
    return alpha / 2 * reciprocal(y * y)


def _rectangle(x: Operand, alpha: Operand) -> Value:
    return where(absolute(x) < 0.5 / alpha, alpha, 0.0)


def _fast_sigmoid(x: Operand, alpha: Operand) -> Value:
    y = 1 + absolute(x) * alpha
    return reciprocal(y * y)


def _piecewise_quadratic_primitive(x: Tensor, alpha: float) -> Tensor:
    y = (alpha * x).clamp(-1, 1)
    return 0.5 + y - y * y.abs() / 2


SURROGATES = {
    row.name: row
    for row in (
        Surrogate("atan", _atan, lambda x, a: torch.atan(math.pi / 2 * a * x) / math.pi + 0.5, 2.0, "ATan"),
        Surrogate("sigmoid", _sigmoid, lambda x, a: torch.sigmoid(a * x), 4.0, "Sigmoid"),
        Surrogate("erf", _erf, lambda x, a: torch.erfc(-a * x) / 2, 2.0, "Erf"),
        Surrogate(
            "piecewise_quadratic", _piecewise_quadratic, _piecewise_quadratic_primitive, 1.0, "PiecewiseQuadratic"
        ),
        Surrogate("soft_sign", _soft_sign, lambda x, a: (a * x / (1 + (a * x).abs()) + 1) / 2, 2.0, "SoftSign"),
        Surrogate("rectangle", _rectangle, lambda x, a: (a * x + 0.5).clamp(0, 1), 1.0),
        # snnTorch's fast_sigmoid(slope=25): soft_sign's shape, with a height of 1 whatever alpha (its slope) is.
        Surrogate("fast_sigmoid", _fast_sigmoid, lambda x, a: x / (1 + a * x.abs()) + 0.5, 25.0),
    )
}
"""Name -> surrogate."""

ALIASES = {"triangle": "piecewise_quadratic"}
"""Other names for a row."""
