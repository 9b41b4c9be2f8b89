"""One LIF time step and its derivatives as Triton device functions: the pieces that every Triton kernel is made of.

The equations are those of ``kernels/reference.py``, the oracle; ``charge`` keeps its rounding bit for bit (IEEE
division, and no fma contraction where the launch passes ``enable_fp_fusion=False``, as each must). All values are fp32.

A kernel takes the neuron as six scalars and six constants, made by :func:`neuron_arguments` from the neuron's options:

    tau, inv_tau, leak (= 1 - 1/tau), v_threshold, v_reset (0 for a soft reset), alpha
    DECAY_INPUT, RESTING (v_reset is neither None nor 0), POWER_OF_TWO (tau is one), HARD_RESET, DETACH_RESET, SURROGATE

    h = charge(x, v, tau, inv_tau, leak, v_reset, DECAY_INPUT, RESTING, POWER_OF_TWO)
    v = reset(h, h >= v_threshold, v_threshold, v_reset, HARD_RESET)
    spike_slope, reset_slope = slopes(h, v_threshold, v_reset, alpha, HARD_RESET, DETACH_RESET, SURROGATE)

With those slopes a backward step is ``gh = gs * spike_slope + gv * reset_slope``; then ``gv = gh * leak`` is the
gradient of the previous step's v, and ``gh * inv_tau`` (``gh`` without decay_input) that of the current.
Tests: ``tests/test_surrogates.py``.
"""

import math
from typing import Any

from fastsnn.kernels.triton import tl, triton

SURROGATE_IDS = {"atan": 0, "sigmoid": 1, "erf": 2, "piecewise_quadratic": 3, "soft_sign": 4, "rectangle": 5}
"""Name -> the constant SURROGATE of the kernels."""

SCHEMA = (
    "*, float tau, float v_threshold, float? v_reset, bool decay_input, bool detach_reset, str surrogate, float alpha"
)
"""The neuron's options in the schema of an operator."""

HALF_PI = tl.constexpr(math.pi / 2)
INV_SQRT_PI = tl.constexpr(1 / math.sqrt(math.pi))


def neuron_arguments(
    *,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
) -> dict[str, Any]:
    """A neuron's options as a kernel's keyword arguments (see above); quotients are made in double and rounded once."""
    return {
        "tau": tau,
        "inv_tau": 1 / tau,
        "leak": 1 - 1 / tau,
        "v_threshold": v_threshold,
        "v_reset": v_reset or 0.0,
        "alpha": alpha,
        "DECAY_INPUT": decay_input,
        "RESTING": bool(v_reset),
        "POWER_OF_TWO": math.frexp(tau)[0] == 0.5,
        "HARD_RESET": v_reset is not None,
        "DETACH_RESET": detach_reset,
        "SURROGATE": SURROGATE_IDS[surrogate],
    }


def forward_arguments(**neuron: Any) -> dict[str, Any]:
    """What a forward kernel takes of :func:`neuron_arguments`."""
    return _subset("tau inv_tau leak v_threshold v_reset DECAY_INPUT RESTING POWER_OF_TWO HARD_RESET", neuron)


def backward_arguments(**neuron: Any) -> dict[str, Any]:
    """What a backward kernel takes of :func:`neuron_arguments`."""
    return _subset("inv_tau leak v_threshold v_reset alpha DECAY_INPUT HARD_RESET DETACH_RESET SURROGATE", neuron)


def _subset(names: str, neuron: dict[str, Any]) -> dict[str, Any]:
    arguments = neuron_arguments(**neuron)
    return {name: arguments[name] for name in names.split()}


@triton.jit
def _inverse(y):
    """1 / y of y >= 1 within 4e-7, a tenth of the work of an IEEE division: good enough for a gradient."""
    root = tl.rsqrt(y)
    return root * root


@triton.jit
def surrogate_derivative(x, alpha, SURROGATE: tl.constexpr):
    """d spike / d h at ``x = h - v_threshold``; sigmoid and soft_sign in forms that neither overflow nor cancel."""
    if SURROGATE == 0:  # atan: a / 2 / (1 + (pi/2 a x)^2)
        y = HALF_PI * alpha * x
        slope = alpha * 0.5 * _inverse(1.0 + y * y)
    elif SURROGATE == 1:  # sigmoid: a s (1 - s), s = sigmoid(a x)
        e = tl.exp(-tl.abs(alpha * x))
        slope = alpha * e * _inverse((1.0 + e) * (1.0 + e))
    elif SURROGATE == 2:  # erf: a / sqrt(pi) exp(-(a x)^2)
        y = alpha * x
        slope = alpha * INV_SQRT_PI * tl.exp(-y * y)
    elif SURROGATE == 3:  # piecewise_quadratic: max(0, a - a^2 |x|)
        slope = tl.maximum(alpha - alpha * alpha * tl.abs(x), 0.0)
    elif SURROGATE == 4:  # soft_sign: 1 / (2 a (1/a + |x|)^2)
        y = 1.0 + alpha * tl.abs(x)
        slope = alpha * 0.5 * _inverse(y * y)
    else:  # rectangle: a where |x| < 1 / (2 a)
        tl.static_assert(SURROGATE == 5)
        slope = tl.where(tl.abs(x) < tl.div_rn(0.5, alpha), alpha, 0.0)
    return slope


@triton.jit
def charge(
    x, v, tau, inv_tau, leak, v_reset, DECAY_INPUT: tl.constexpr, RESTING: tl.constexpr, POWER_OF_TWO: tl.constexpr
):
    """Membrane potential before firing, from the current and the potential after the previous step's reset."""
    distance = v
    if RESTING:
        distance = v - v_reset
    if DECAY_INPUT:
        distance = x - distance
    # A power of two has an exact reciprocal: the same bits for a fraction of the work.
    step = distance * inv_tau if POWER_OF_TWO else tl.div_rn(distance, tau)
    if DECAY_INPUT:
        h = v + step
    elif RESTING:
        h = v - step + x
    else:
        h = v * leak + x
    return h


@triton.jit
def reset(h, fired, v_threshold, v_reset, HARD_RESET: tl.constexpr):
    """Potential after firing."""
    return tl.where(fired, v_reset if HARD_RESET else h - v_threshold, h)


@triton.jit
def slopes(
    h, v_threshold, v_reset, alpha, HARD_RESET: tl.constexpr, DETACH_RESET: tl.constexpr, SURROGATE: tl.constexpr
):
    """(d spike / d h, d v / d h) of one time step, v after the reset."""
    spike_slope = surrogate_derivative(h - v_threshold, alpha, SURROGATE)
    if HARD_RESET:
        kept = tl.where(h >= v_threshold, 0.0, 1.0)
        jump = v_reset - h
    else:
        kept = tl.full(h.shape, 1.0, tl.float32)
        jump = tl.full(h.shape, 0.0, tl.float32) - v_threshold
    reset_slope = kept
    if not DETACH_RESET:
        reset_slope = kept + jump * spike_slope
    return spike_slope, reset_slope
