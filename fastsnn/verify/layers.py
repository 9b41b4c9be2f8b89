"""Checks of LIF and linear+LIF: bits, spikes, potentials and gradients against the reference (C1 to C4, C6)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastsnn.backends import Backend
from fastsnn.kernels import contract, reference
from fastsnn.kernels.contract import Measurement
from fastsnn.kernels.triton.linear_lif import full_precision
from fastsnn.verify.cases import Case, Inputs, draw


@dataclass(frozen=True)
class Target:
    """A backend on a device; ``mode`` is cpu, gpu or interpreter."""

    backend: Backend
    device: torch.device
    mode: str


class Outcome(NamedTuple):
    """What an operator made of a case, on the CPU."""

    spikes: Tensor
    v: Tensor
    gradients: Mapping[str, Tensor | None]


def layer(case: Case, target: Target) -> list[Measurement]:
    """One forward and backward pass, against the reference's bits where currents are exact, and against float64."""
    inputs, neuron = draw(case), case.neuron.options()
    outcome, found = run(case, target, inputs), []
    if (case.dyadic or not case.K) and promises_bits(target):
        with torch.no_grad():
            silent = _operator(case, target.backend)(*_inputs_on(target.device, case, inputs), **neuron)
        x, weight, bias = (None if tensor is None else tensor.float() for tensor in inputs[:3])
        assert x is not None
        current = x if weight is None else F.linear(x, weight, bias)
        spikes, v, _ = reference.lif(current, inputs.v_init, **neuron)
        found += [
            contract.same_bits("spikes", outcome.spikes, spikes.to(case.dtype)),
            contract.same_bits("v", outcome.v, v),
            contract.same_bits("spikes of inference", silent[0], outcome.spikes),
            contract.same_bits("v of inference", silent[1], outcome.v),
        ]
    return found + against_float64(case, target, inputs, outcome)


def against_float64(case: Case, target: Target, inputs: Inputs, outcome: Outcome) -> list[Measurement]:
    """C3 and C4: the reference in float64, driven by the recorded spikes."""
    neuron = case.neuron.options()
    spikes = outcome.spikes.double()
    if spikes.shape != inputs.grad_spikes.shape:
        return [contract.close("spikes", spikes, inputs.grad_spikes.double(), 0.0, "C3")]
    exact, membrane = _replay(case, inputs, spikes, torch.float64)
    magnitude, eps = None, contract.EPS
    if inputs.weight is not None:
        magnitude, eps = contract.product_magnitude(*inputs[:3]), torch.finfo(case.dtype).eps
    bound = contract.membrane_bound(membrane, magnitude, eps, **neuron)
    scale = case.neuron.v_threshold
    found = [
        contract.spikes_at_threshold(spikes, membrane, bound, case.neuron.v_threshold),
        # Where charge and leak cancel, a potential is rounded on the scale of what it is made of.
        contract.close("v", outcome.v, exact.v, bound[-1] + contract.C3_MEMBRANE * contract.EPS * scale, "C3"),
    ]
    # Torch's own gradients have nothing to be measured by but the floor.
    eager = {} if target.backend.name == "torch" else _replay(case, inputs, spikes, torch.float32)[0].gradients
    for name, gradient in exact.gradients.items():
        assert gradient is not None
        found.append(contract.gradient_error(name, outcome.gradients[name], gradient, eager.get(name)))
    return found


def threshold(case: Case, target: Target) -> list[Measurement]:
    """Potentials exactly at the threshold fire, and every surrogate has its full slope there."""
    current = torch.full((case.T, case.B, case.N), case.neuron.v_threshold * case.neuron.tau)
    ones = torch.ones_like(current)
    inputs = Inputs(current, None, None, None, ones, torch.zeros_like(ones[0]))
    outcome = run(case, target, inputs)
    return [
        contract.same_bits("spikes", outcome.spikes, ones),
        *against_float64(case, target, inputs, outcome),
    ]


def currents(case: Case, target: Target) -> list[Measurement]:
    """C2, through neurons that only add: one time step of each sample has input, and its current is the final v."""
    x, weight, *_ = draw(case)
    assert weight is not None
    samples = torch.arange(case.B)
    driven = torch.zeros_like(x)
    driven[samples % case.T, samples] = x[samples % case.T, samples]
    with torch.no_grad():
        device = target.device
        _, v = target.backend.linear_lif(driven.to(device), weight.to(device), **case.neuron.options())
    rows, library = driven.sum(0, dtype=weight.dtype), None
    if device.type == "cuda":
        with full_precision(device):
            library = rows.to(device) @ weight.to(device).T
    return [contract.current_error(v, rows.double() @ weight.double().T, rows @ weight.T, library)]


def repeat(case: Case, target: Target) -> list[Measurement]:
    """C6: the same call gives the same bits, gradients included."""
    inputs = draw(case)
    first, second = run(case, target, inputs), run(case, target, inputs)
    found = [
        contract.same_bits("spikes", second.spikes, first.spikes, "C6"),
        contract.same_bits("v", second.v, first.v, "C6"),
    ]
    for name, gradient in first.gradients.items():
        if gradient is not None and (again := second.gradients[name]) is not None:
            found.append(contract.same_bits(f"gradient of {name}", again, gradient, "C6"))
    return found


def promises_bits(target: Target) -> bool:
    """Whether C1 covers the backend: SpikingJelly's kernels contract to fma and are held to C3."""
    return target.backend.name != "cupy"


def run(case: Case, target: Target, inputs: Inputs) -> Outcome:
    """Forward and backward on the target; a gradient that doesn't come is None."""
    arguments = _inputs_on(target.device, case, inputs)
    leaves = _leaves(case, arguments)
    outputs = _operator(case, target.backend)(*arguments, **case.neuron.options())
    upstream = [grad.to(target.device) for grad in (inputs.grad_spikes, inputs.grad_v)]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), upstream, allow_unused=True)
    found = {name: None if g is None else g.cpu() for name, g in zip(leaves, gradients, strict=True)}
    return Outcome(outputs[0].detach().cpu(), outputs[1].detach().cpu(), found)


def _replay(case: Case, inputs: Inputs, spikes: Tensor, state: torch.dtype) -> tuple[Outcome, Tensor]:
    """The reference with the recorded spikes, all in float64 or as eager torch computes it, and its h."""
    arguments = _inputs_on(torch.device("cpu"), case, inputs)
    if state == torch.float64:
        arguments = [t.double() if t is not None and t.is_floating_point() else t for t in arguments]
    leaves = _leaves(case, arguments)
    if case.K:
        x, weight, bias, v_init = arguments
        assert x is not None
        assert weight is not None
        current = F.linear(x.to(weight.dtype), weight, bias)
    else:
        current, v_init = arguments  # type: ignore[assignment]
    fired, v, membrane = contract.replay(current.to(state), v_init, spikes, **case.neuron.options())
    upstream = [inputs.grad_spikes.to(state), inputs.grad_v.to(state)]
    gradients = torch.autograd.grad((fired, v), list(leaves.values()), upstream)
    return Outcome(fired.detach(), v.detach(), dict(zip(leaves, gradients, strict=True))), membrane.detach()


def _operator(case: Case, backend: Backend) -> Callable[..., Any]:
    return backend.linear_lif if case.K else backend.lif


def _inputs_on(device: torch.device, case: Case, inputs: Inputs) -> list[Tensor | None]:
    """The operator's positional arguments, as new leaves; a strided input stays one."""
    tensors = inputs[:4] if case.K else (inputs.x, inputs.v_init)
    return [None if t is None else t.to(device, copy=True).detach() for t in tensors]


def _leaves(case: Case, arguments: list[Tensor | None]) -> dict[str, Tensor]:
    names = ("x", "weight", "bias", "v_init") if case.K else ("current", "v_init")
    return {
        name: tensor.requires_grad_()
        for name, tensor in zip(names, arguments, strict=True)
        if tensor is not None and tensor.is_floating_point()
    }
