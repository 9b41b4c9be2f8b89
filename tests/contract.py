"""The numerical contract as checks that tests share: C3 for spikes, C4 for gradients (docs/design.md)."""

from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels.reference import charge, surrogate_primitive

EPS = torch.finfo(torch.float32).eps


def replay(
    current: Tensor,
    v_init: Tensor | None,
    spikes: Tensor,
    *,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """LIF neurons in float64 that fire as ``spikes`` says, whatever their membrane: spikes, final v, h.

    Backward is the surrogate's at that membrane: gradients of two precisions compare without a flipped spike.
    """
    v = torch.full_like(current[0], v_reset or 0.0) if v_init is None else v_init
    fired, membrane = [], []
    for x, recorded in zip(current, spikes.double(), strict=True):
        h = charge(x, v, tau, v_reset, decay_input)
        step = surrogate_primitive(h - v_threshold, surrogate, alpha)
        s = recorded + step - step.detach()
        reset = recorded if detach_reset else s
        v = h - reset * v_threshold if v_reset is None else (1 - reset) * h + reset * v_reset
        fired.append(s)
        membrane.append(h)
    return torch.stack(fired), v, torch.stack(membrane)


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Norm-wise error of ``value``; 0 where both are 0."""
    error, scale = (value.double() - exact).norm(), exact.norm()
    return float(error / scale) if scale else float(error)


def assert_c4(gradients: dict[str, Tensor], exact: dict[str, Tensor], eager: dict[str, Tensor]) -> None:
    """Each gradient is within max(1e-5, twice the error of eager fp32 torch) of the float64 replay's."""
    for name, gradient in gradients.items():
        error, allowed = relative_error(gradient, exact[name]), max(1e-5, 2 * relative_error(eager[name], exact[name]))
        assert error <= allowed, f"gradient of {name}: relative error {error:.2e}, allowed {allowed:.2e}"


def assert_c3(spikes: Tensor, other: Tensor, current: Tensor, **neuron: Any) -> None:
    """The first difference of each neuron between two fp32 spike trains is a membrane at the threshold.

    Both were driven by the same currents, so the error that a membrane may have is that of its own arithmetic: 4 eps of
    its size at each step, less the leak.
    """
    _, _, membrane = replay(current.double(), None, spikes, **neuron)
    tolerance, settled = torch.zeros_like(membrane[0]), torch.zeros_like(membrane[0], dtype=torch.bool)
    for t, h in enumerate(membrane):
        tolerance = tolerance * (1 - 1 / neuron["tau"]) + 4 * EPS * h.abs()
        differs = (spikes[t] != other[t]) & ~settled
        unexplained = differs & ((h - neuron["v_threshold"]).abs() > tolerance)
        assert not unexplained.any(), (
            f"t={t}, neuron {unexplained.nonzero()[0].tolist()}: h={h[unexplained][0].item()!r} is "
            f"{tolerance[unexplained][0]:.1e} from no threshold, yet the spikes differ"
        )
        settled |= differs
