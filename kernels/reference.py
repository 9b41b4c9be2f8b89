"""The equations of fastsnn in plain PyTorch: the oracle that every kernel is tested against.

A leaky integrate-and-fire (LIF) neuron of membrane potential ``v``, driven by a current ``x``, makes at each step

    charge   h = v + (x - (v - v_reset)) / tau            decay_input=True
             h = v - (v - v_reset) / tau + x              decay_input=False
    fire     s = 1 where h >= v_threshold, else 0
    reset    v = (1 - s) h + s v_reset                    hard (v_reset a number)
             v = h - s v_threshold                        soft (v_reset None)

with the rounding that section "Numerical contract" of docs/design.md fixes. The derivative of the spike with respect to
``h - v_threshold`` is a surrogate; ``detach_reset`` cuts the gradient that flows through ``s`` into the reset.

Shapes: time first, ``[T, ...]``. Any floating dtype, any device. Speed is not a goal here.
Source: SpikingJelly 0.0.0.0.14, ``activation_based.neuron.LIFNode`` and ``activation_based.surrogate``.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SURROGATES = {"atan": 2.0, "sigmoid": 4.0, "erf": 2.0, "piecewise_quadratic": 1.0, "soft_sign": 2.0, "rectangle": 1.0}
"""Name -> default alpha of every surrogate."""


def surrogate_derivative(x: Tensor, surrogate: str, alpha: float) -> Tensor:
    """d spike / d h at ``x = h - v_threshold``; positive at x = 0 for every surrogate."""
    match surrogate:
        case "atan":
            return alpha / 2 / (1 + (math.pi / 2 * alpha * x).square())
        case "sigmoid":
            s = torch.sigmoid(alpha * x)
            return alpha * s * (1 - s)
        case "erf":
            return alpha / math.sqrt(math.pi) * torch.exp(-(alpha * x).square())
        case "piecewise_quadratic":
            return (alpha - alpha**2 * x.abs()).clamp(min=0)
        case "soft_sign":
            return 1 / (2 * alpha * (1 / alpha + x.abs()).square())
        case "rectangle":
            return alpha * (x.abs() < 1 / (2 * alpha)).to(x.dtype)
    raise ValueError(f"surrogate is {surrogate!r}; allowed: {', '.join(SURROGATES)}")


def surrogate_primitive(x: Tensor, surrogate: str, alpha: float) -> Tensor:
    """The smooth step from 0 to 1 whose derivative is :func:`surrogate_derivative` (used to check gradients)."""
    match surrogate:
        case "atan":
            return torch.atan(math.pi / 2 * alpha * x) / math.pi + 0.5
        case "sigmoid":
            return torch.sigmoid(alpha * x)
        case "erf":
            return (1 + torch.erf(alpha * x)) / 2
        case "piecewise_quadratic":
            inside = alpha * x - alpha**2 / 2 * x * x.abs() + 0.5
            return torch.where(x.abs() > 1 / alpha, (x > 0).to(x.dtype), inside)
        case "soft_sign":
            return (alpha * x / (1 + (alpha * x).abs()) + 1) / 2
        case "rectangle":
            return (alpha * x + 0.5).clamp(0, 1)
    raise ValueError(f"surrogate is {surrogate!r}; allowed: {', '.join(SURROGATES)}")


class _Fire(torch.autograd.Function):
    """Heaviside step forward (1 at 0), surrogate derivative backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: str, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate, ctx.alpha = surrogate, alpha
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * surrogate_derivative(x, ctx.surrogate, ctx.alpha), None, None


def charge(x: Tensor, v: Tensor, tau: float, v_reset: float | None, decay_input: bool) -> Tensor:
    """Membrane potential before firing, ``h``, from current ``x`` and potential ``v`` (same shape).

    Each expression is the canonical one of the contract: dividing by a 0-dim tensor keeps the division IEEE on CUDA,
    where PyTorch turns a Python scalar into a multiplication by its reciprocal.
    """
    divisor = torch.tensor(tau, dtype=x.dtype, device=x.device)
    if decay_input:
        return v + (x - (v - v_reset)) / divisor if v_reset else v + (x - v) / divisor
    # Without a rest potential the leak is one factor, computed in double and rounded once.
    return v - (v - v_reset) / divisor + x if v_reset else v * (1 - 1 / tau) + x


def lif(
    current: Tensor,
    v_init: Tensor | None = None,
    *,
    tau: float = 2.0,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = False,
    surrogate: str = "atan",
    alpha: float = 2.0,
    smooth: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run LIF neurons over ``current`` [T, ...]; ``v_init`` [...] defaults to ``v_reset`` (0 for a soft reset).

    Returns spikes [T, ...], the final v [...] and the membrane potential before firing, h [T, ...].
    ``smooth`` replaces the Heaviside step by the surrogate's primitive: the forward is then what backward
    differentiates.
    """
    v = torch.full_like(current[0], v_reset or 0.0) if v_init is None else v_init
    spikes, membrane = [], []
    for x in current:
        h = charge(x, v, tau, v_reset, decay_input)
        distance = h - v_threshold
        s = surrogate_primitive(distance, surrogate, alpha) if smooth else _Fire.apply(distance, surrogate, alpha)
        reset = s.detach() if detach_reset else s
        v = h - reset * v_threshold if v_reset is None else (1 - reset) * h + reset * v_reset
        spikes.append(s)
        membrane.append(h)
    return torch.stack(spikes), v, torch.stack(membrane)


def linear_lif(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, v_init: Tensor | None = None, **neuron: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """LIF neurons driven by ``x @ weight.T + bias``: x [T, ..., K], weight [N, K], bias [N]; see :func:`lif`."""
    return lif(F.linear(x, weight, bias), v_init, **neuron)


def rate_loss(spikes: Tensor, labels: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Loss of a rate classifier and its number of correct answers.

    ``spikes`` [T, B, N], ``labels`` int64 [B]. The output is the mean firing rate over T; ``mse`` compares it with the
    one-hot label, ``ce`` is its cross-entropy; both average over the batch. A tie goes to the lowest class.
    """
    rate = spikes.mean(0)
    if loss == "mse":
        value = F.mse_loss(rate, F.one_hot(labels, rate.shape[-1]).to(rate.dtype))
    elif loss == "ce":
        value = F.cross_entropy(rate, labels)
    else:
        raise ValueError(f"loss is {loss!r}; allowed: mse, ce")
    return value, (rate.argmax(-1) == labels).sum()
