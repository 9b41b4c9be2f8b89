"""Checks of scan, linear and recurrent: bits, spikes, states and gradients against the reference (C1 to C4, C6)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fastsnn.backends import Backend
from fastsnn.kernels import contract, reference
from fastsnn.kernels.contract import Measurement
from fastsnn.kernels.error_analysis import EPS
from fastsnn.kernels.neurons.language import Value
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.triton.linear import full_precision
from fastsnn.verify.case import Case, Inputs, draw, generator

_OF_A_LIBRARY = ("exp", "sigmoid", "reciprocal")


@dataclass(frozen=True)
class Target:
    """A backend on a device; ``mode`` is cpu, gpu or interpreter."""

    backend: Backend
    device: torch.device
    mode: str


class Outcome(NamedTuple):
    """What an operation made of a case, on the CPU."""

    output: Tensor
    state: Tensor
    gradients: Mapping[str, Tensor | None]


def layer(case: Case, target: Target) -> list[Measurement]:
    """One forward and backward pass, against the reference's bits if currents are exact, and against float64."""
    inputs = draw(case)
    outcome, found = run(case, target, inputs), []
    if (case.dyadic or not case.K) and promises_bits(target, case):
        with torch.no_grad():
            silent = _called(case, target.backend, _arguments(case, inputs, target.device))
        x, weight, bias = (None if tensor is None else tensor.float() for tensor in inputs[:3])
        assert x is not None
        current = x if weight is None else F.linear(x, weight, bias)
        states = None if inputs.state is None else tuple(inputs.state)
        output, last = reference.scan(current, case.neuron, states, inputs.parameters)
        if inputs.recurrent_weight is not None and weight is not None:
            back = inputs.recurrent_weight.float()
            output, last = reference.recurrent(
                x, weight, back, bias, case.neuron, states, inputs.initial, inputs.parameters
            )
        found += [
            contract.same_bits("spikes", outcome.output, output.to(case.dtype)),
            contract.same_bits("state", outcome.state, torch.stack(last)),
            contract.same_bits("spikes of inference", silent[0], outcome.output),
            contract.same_bits("state of inference", silent[1], outcome.state),
        ]
    return found + against_float64(case, target, inputs, outcome)


def against_float64(case: Case, target: Target, inputs: Inputs, outcome: Outcome) -> list[Measurement]:
    """C3 and C4: the reference in float64, driven by the recorded spikes."""
    spikes = outcome.output.double()
    if spikes.shape != inputs.grad_output.shape:
        return [contract.close("spikes", spikes, inputs.grad_output.double(), 0.0, "C3")]
    exact = _replayed(case, inputs, spikes, torch.float64)
    magnitude, eps = None, EPS
    if inputs.weight is not None:
        magnitude, eps = contract.product_magnitude(inputs.x, inputs.weight, inputs.bias), torch.finfo(case.dtype).eps
    states, current = None if inputs.state is None else inputs.state.unbind(), _current(case, inputs)
    if inputs.recurrent_weight is not None:
        # From the recorded outputs, so that each step is judged alone.
        first = torch.zeros_like(spikes[:1]) if inputs.initial is None else inputs.initial[None].double()
        previous, back = torch.cat([first, spikes[:-1]]), inputs.recurrent_weight.double()
        current = current + reference.fed_back(previous, back)
        assert magnitude is not None
        magnitude = magnitude + reference.fed_back(previous.abs(), back.abs())
    path = contract.trajectory(current, case.neuron, states, spikes, inputs.parameters, magnitude, eps)
    found = [contract.spikes_at_threshold(spikes, path.distance, path.bound)] if case.neuron.spikes else []
    for name, got, wanted, bound in zip(
        case.neuron.states, outcome.state, path.states, path.state_bounds, strict=True
    ):  # fmt: skip
        found.append(contract.close(f"state {name}", got, wanted, bound, "C3"))
    # Torch's own gradients have nothing to be measured by but the floor.
    eager = {} if target.backend.name == "torch" else _replayed(case, inputs, spikes, torch.float32)
    for name, gradient in exact.items():
        found.append(contract.gradient_error(name, outcome.gradients[name], gradient, eager.get(name)))
    return found


def threshold(case: Case, target: Target) -> list[Measurement]:
    """Potentials exactly at the threshold fire, and every surrogate has its full slope there."""
    values = case.neuron.parameters()
    current = torch.full((case.T, case.B, case.N), values["v_threshold"] * values["tau"])
    ones = torch.ones_like(current)
    inputs = Inputs(current, None, None, None, {}, ones, torch.zeros_like(ones[:1]))
    outcome = run(case, target, inputs)
    return [
        contract.same_bits("spikes", outcome.output, ones),
        *against_float64(case, target, inputs, outcome),
    ]


def neuron(case: Case, target: Target) -> list[Measurement]:
    """A neuron of any kind: as a layer, or the gradient that it brings."""
    return hand_gradient(case) if case.hand_gradient else layer(case, target)


def hand_gradient(case: Case) -> list[Measurement]:
    """C4: the gradient that a neuron brings against the one that autograd derives from its step, both in float64."""
    random, states, points = generator(case), case.neuron.states, 2000
    names = ["x", *states, "grad_output", *(f"grad_{name}" for name in states)]
    values = torch.randn(len(names), points, generator=random, dtype=torch.float64) * 1.5 + 0.5
    places, upstream = values[: 1 + len(states)].clone().requires_grad_(), values[1 + len(states) :]
    bound = reference.on_tensors(case.neuron, places)
    x, *before = places.unbind()
    output, after = reference.step(bound, x, before)
    pairs = [pair for pair in zip((output, *after), upstream, strict=True) if pair[0].requires_grad]
    derived = torch.autograd.grad([value for value, _ in pairs], places, [grad for _, grad in pairs])[0]
    found = []
    for i, brought in enumerate(bound.gradient(*cast("list[Value]", values.unbind()))):
        gradient = torch.as_tensor(brought, dtype=torch.float64).expand(points)  # as it may be a number
        measured = contract.close(f"gradient by hand of {names[i]}", gradient, derived[i], _rounding(derived[i]), "C4")
        if not measured.ok:
            first = int((~((gradient - derived[i]).abs() <= _rounding(derived[i]))).nonzero()[0])
            at = ", ".join(f"{name} = {values[j, first].item():.6g}" for j, name in enumerate(names))
            numbers = f"it is {gradient[first].item():.6g}, that of the step {derived[i, first].item():.6g}"
            measured = replace(measured, where=f"{numbers}, first at {at}")
        found.append(measured)
    return found


def _rounding(exact: Tensor) -> Tensor:
    """What two ways to compute the same in float64 may differ by."""
    return 1e-9 * (exact.abs() + 1)


def currents(case: Case, target: Target) -> list[Measurement]:
    """C2, through neurons that only add: one time step of each sample has input, and its current is the last v."""
    x, weight, *_ = draw(case)
    assert weight is not None
    samples = torch.arange(case.B)
    driven = torch.zeros_like(x)
    driven[samples % case.T, samples] = x[samples % case.T, samples]
    with torch.no_grad():
        device = target.device
        x, weight_there = driven.to(device), weight.to(device)
        _, state = target.backend.linear(x, weight_there, None, case.neuron, None, {}, False, "auto")
    rows, library = driven.sum(0, dtype=weight.dtype), None
    if device.type == "cuda":
        with full_precision(device):
            library = rows.to(device) @ weight.to(device).T
    return [contract.current_error(state[0], rows.double() @ weight.double().T, rows @ weight.T, library)]


def repeat(case: Case, target: Target) -> list[Measurement]:
    """C6: the same call gives the same bits, gradients included."""
    inputs = draw(case)
    first, second = run(case, target, inputs), run(case, target, inputs)
    found = [
        contract.same_bits("spikes", second.output, first.output, "C6"),
        contract.same_bits("state", second.state, first.state, "C6"),
    ]
    for name, gradient in first.gradients.items():
        if gradient is not None and (again := second.gradients[name]) is not None:
            found.append(contract.same_bits(f"gradient of {name}", again, gradient, "C6"))
    return found


def promises_bits(target: Target, case: Case) -> bool:
    """Whether C1 covers the backend and the neuron.

    SpikingJelly's kernels contract to fma and are held to C3, as is a step that takes a function such as exp, which
    has another last bit in each library, of a current or a state.
    """
    steps = compile_neuron(case.neuron, case.learn).forward.instructions
    return target.backend.name != "cupy" and not any(step.op in _OF_A_LIBRARY for step in steps)


def run(case: Case, target: Target, inputs: Inputs) -> Outcome:
    """Forward and backward on the target; a gradient that doesn't come is None."""
    arguments = _arguments(case, inputs, target.device)
    leaves = _leaves(arguments)
    output, state = _called(case, target.backend, arguments)
    upstream = [grad.to(target.device) for grad in (inputs.grad_output, inputs.grad_state)]
    gradients = torch.autograd.grad((output, state), list(leaves.values()), upstream, allow_unused=True)
    found = {name: None if g is None else g.cpu() for name, g in zip(leaves, gradients, strict=True)}
    return Outcome(output.detach().cpu(), state.detach().cpu(), found)


def _called(case: Case, backend: Backend, given: Inputs) -> tuple[Tensor, Tensor]:
    """The backend's operation on the case."""
    if given.weight is None:
        return backend.scan(given.x, case.neuron, given.state, given.parameters)
    x, weight, bias, state = given.x, given.weight, given.bias, given.state
    if given.recurrent_weight is not None:
        back, initial = given.recurrent_weight, given.initial
        output, state = backend.recurrent(x, weight, back, bias, case.neuron, state, initial, given.parameters, False)
    else:
        output, state = backend.linear(x, weight, bias, case.neuron, state, given.parameters, False, "auto")
    assert isinstance(output, Tensor)
    return output, state


def _current(case: Case, given: Inputs) -> Tensor:
    """The currents in float64."""
    if given.weight is None:
        return given.x.double()
    return F.linear(given.x.double(), given.weight.double(), None if given.bias is None else given.bias.double())


def _replayed(case: Case, inputs: Inputs, spikes: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gradients of the reference with the recorded spikes, all in float64 or as eager torch computes them."""
    given = _arguments(case, inputs, torch.device("cpu"))
    if dtype == torch.float64:
        given = Inputs(*(_doubled(value) for value in given))  # type: ignore[arg-type]
    leaves = _leaves(given)
    current = given.x if given.weight is None else F.linear(given.x.to(given.weight.dtype), given.weight, given.bias)
    states = None if given.state is None else given.state.unbind()
    back = None if given.recurrent_weight is None else given.recurrent_weight.to(dtype)
    output, last = contract.replay(
        current.to(dtype), case.neuron, states, spikes, given.parameters, back, given.initial
    )
    upstream = [inputs.grad_output.to(dtype), inputs.grad_state.to(dtype)]
    gradients = torch.autograd.grad((output, torch.stack(last)), list(leaves.values()), upstream, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


def _doubled(value: object) -> object:
    if isinstance(value, dict):
        return {name: _doubled(item) for name, item in value.items()}
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _arguments(case: Case, inputs: Inputs, device: torch.device) -> Inputs:
    """The tensors as new leaves on the device; a strided input stays one."""

    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device, copy=True).detach()

    parameters = {name: value.to(device, copy=True) for name, value in inputs.parameters.items()}
    x = moved(inputs.x)
    assert x is not None
    return inputs._replace(
        x=x, weight=moved(inputs.weight), bias=moved(inputs.bias), state=moved(inputs.state), parameters=parameters,
        recurrent_weight=moved(inputs.recurrent_weight), initial=moved(inputs.initial),
    )  # fmt: skip


def _leaves(given: Inputs) -> dict[str, Tensor]:
    named = {"x" if given.weight is not None else "current": given.x, "weight": given.weight, "bias": given.bias}
    named |= {"recurrent_weight": given.recurrent_weight, "initial": given.initial}
    named |= {"state": given.state, **given.parameters}
    return {
        name: tensor.requires_grad_()
        for name, tensor in named.items()
        if tensor is not None and tensor.is_floating_point()
    }
