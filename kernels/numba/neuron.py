"""One LIF time step and its derivatives as Numba functions: the pieces that every CPU kernel is made of.

The equations are those of ``kernels/reference.py``, the oracle, bit for bit: IEEE division, no fast-math, and every
constant float32 (a Python literal would make the whole expression double).
"""

import math
from typing import NamedTuple

import numpy as np

from fastsnn.kernels.numba import jit

ATAN, SIGMOID, ERF, PIECEWISE_QUADRATIC, SOFT_SIGN, RECTANGLE = range(6)


class Neuron(NamedTuple):
    """A neuron's options as a kernel takes them; the floats are np.float32, rounded once from double."""

    tau: np.float32
    inverse_tau: np.float32
    leak: np.float32
    """1 - 1/tau"""
    v_threshold: np.float32
    v_reset: np.float32
    """0 for a soft reset"""
    decay_input: bool
    resting: bool
    """v_reset is neither None nor 0"""
    power_of_two: bool
    """tau is one, so that a product with inverse_tau is the same bits as the quotient"""
    hard_reset: bool
    detach_reset: bool
    surrogate: int
    peak: np.float32
    slope: np.float32
    """The surrogate's height and the scale of its argument: see ``surrogate``"""


def neuron_arguments(
    *,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
) -> Neuron:
    """The neuron's options for a kernel."""
    kind, peak, slope = {
        "atan": (ATAN, alpha / 2, math.pi / 2 * alpha),
        "sigmoid": (SIGMOID, alpha, alpha),
        "erf": (ERF, alpha / math.sqrt(math.pi), alpha),
        "piecewise_quadratic": (PIECEWISE_QUADRATIC, alpha, alpha),
        "soft_sign": (SOFT_SIGN, alpha / 2, alpha),
        "rectangle": (RECTANGLE, alpha, 1 / (2 * alpha)),
    }[surrogate]
    return Neuron(
        tau=np.float32(tau),
        inverse_tau=np.float32(1 / tau),
        leak=np.float32(1 - 1 / tau),
        v_threshold=np.float32(v_threshold),
        v_reset=np.float32(v_reset or 0.0),
        decay_input=decay_input,
        resting=bool(v_reset),
        power_of_two=math.frexp(tau)[0] == 0.5,
        hard_reset=v_reset is not None,
        detach_reset=detach_reset,
        surrogate=kind,
        peak=np.float32(peak),
        slope=np.float32(slope),
    )


@jit(inline="always")
def charge(x, v, neuron):
    """Membrane potential before firing."""
    if neuron.decay_input:
        # Without a rest potential v_reset is 0, and v - 0 is v bit for bit.
        distance = x - (v - neuron.v_reset)
        return v + (distance * neuron.inverse_tau if neuron.power_of_two else distance / neuron.tau)
    if not neuron.resting:
        return v * neuron.leak + x
    distance = v - neuron.v_reset
    return v - (distance * neuron.inverse_tau if neuron.power_of_two else distance / neuron.tau) + x


@jit(inline="always")
def reset(h, neuron):
    """Membrane potential after the reset; a neuron fires where h >= v_threshold."""
    fired = neuron.v_reset if neuron.hard_reset else h - neuron.v_threshold
    return fired if h >= neuron.v_threshold else h


@jit
def surrogate(h, n, neuron, out):
    """out[:n] = derivative of the spike with respect to h at h[:n]."""
    one = np.float32(1)
    threshold, peak, slope = neuron.v_threshold, neuron.peak, neuron.slope
    if neuron.surrogate == ATAN:
        for i in range(n):
            x = slope * (h[i] - threshold)
            out[i] = peak / (one + x * x)
    elif neuron.surrogate == SIGMOID:
        for i in range(n):
            s = one / (one + np.exp(-slope * (h[i] - threshold)))
            out[i] = peak * s * (one - s)
    elif neuron.surrogate == ERF:
        for i in range(n):
            x = slope * (h[i] - threshold)
            out[i] = peak * np.exp(-x * x)
    elif neuron.surrogate == PIECEWISE_QUADRATIC:
        for i in range(n):
            out[i] = peak * max(one - slope * abs(h[i] - threshold), np.float32(0))
    elif neuron.surrogate == SOFT_SIGN:
        for i in range(n):
            x = one + slope * abs(h[i] - threshold)
            out[i] = peak / (x * x)
    else:
        for i in range(n):
            out[i] = peak if abs(h[i] - threshold) < slope else np.float32(0)


@jit(inline="always")
def slopes(h, derivative, neuron):
    """What a gradient of the spike, and one of v after the reset, are multiplied by on their way to h.

    ``derivative`` is the surrogate's at h.
    """
    fired = h >= neuron.v_threshold
    kept = np.float32(0) if fired and neuron.hard_reset else np.float32(1)
    jump = neuron.v_reset - h if neuron.hard_reset else -neuron.v_threshold
    return derivative, kept if neuron.detach_reset else kept + jump * derivative
