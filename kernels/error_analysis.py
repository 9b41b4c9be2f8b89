"""Running error analysis of a neuron's step: how far fp32 may be from float64, operation by operation.

:func:`~fastsnn.kernels.contract.trajectory` carries the errors on from step to step.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from fastsnn.kernels.neurons.differentiate import reachable
from fastsnn.kernels.neurons.language import TORCH
from fastsnn.kernels.neurons.program import CompiledNeuron, Program

EPS = torch.finfo(torch.float32).eps
HALF = EPS / 2
"""Relative error of a number that is rounded to the nearest of fp32."""


def learnt_rows(neuron: CompiledNeuron, values: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The constants made of learnt parameters, in float64, and the errors that fp32 makes in computing them."""
    places = [neuron.forward_constants[place] for place in neuron.learnt_constants]
    numbers = neuron.neuron.parameters()
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for node in reachable(places):
        if node.op == "parameter" and str(node.data) in values:
            value = values[str(node.data)].double()
            error = torch.zeros_like(value)
        elif node.op in ("number", "parameter"):
            number = cast(float, node.data) if node.op == "number" else numbers[str(node.data)]
            value = torch.tensor(number, dtype=torch.float64)
            error = HALF * value.abs()
        else:
            args, errors = ([known[arg.index][part] for arg in node.args] for part in (0, 1))
            value = TORCH[node.op](*args)
            error = rounding(node.op, value, args, errors)
        known[node.index] = value, error
    return [known[place.index] for place in places]


def interpreted(
    program: Program, inputs: Sequence[Tensor], scalars: Sequence[float], rows: Sequence[tuple[Tensor, Tensor]],
    spikes: Tensor,
) -> tuple[list[Tensor], list[Tensor], int | None]:  # fmt: skip
    """Every value of a step, the rounding errors that fp32 adds to it, and which one the neuron fires by.

    rows: its learnt constants and their errors; spikes: what it fires, whatever its potential.
    """
    values: list[Tensor] = []
    errors: list[Tensor] = []
    fired = None
    for instruction in program.instructions:
        a, *others = [values[arg] for arg in instruction.args] or [inputs[0]]
        e = [errors[arg] for arg in instruction.args]
        match instruction.op:
            case "input":
                value, error = inputs[int(instruction.data)], torch.zeros_like(a)
            case "scalar" | "number":
                number = instruction.data if instruction.op == "number" else scalars[int(instruction.data)]
                value = torch.full_like(inputs[0].detach(), number)
                error = HALF * value.abs()
            case "row":
                value, error = (part.expand(inputs[0].shape) for part in rows[int(instruction.data)])
            case "spike":
                value, error, fired = spikes, torch.zeros_like(spikes), instruction.args[0]
            case op:
                value = TORCH[op](a, *others)
                error = rounding(op, value, [a, *others], e)
        values.append(value)
        errors.append(error.detach())
    return values, errors, fired


def rounding(op: str, value: Tensor, args: list[Tensor], errors: list[Tensor]) -> Tensor:
    """The error of an operation's result: that of its operands, carried on, and its own rounding."""
    a, b = (*args, args[0])[:2]
    zero = torch.zeros_like(value, dtype=torch.float64)
    ea, eb = (*errors, zero)[:2]
    own = HALF * value.abs() if value.dtype == torch.float64 else zero
    match op:
        case "add" | "sub":
            return ea + eb + own
        case "mul":
            return a.abs() * eb + b.abs() * ea + own
        case "div":
            return (ea + value.abs() * eb) / b.abs() + own
        case "where":
            return torch.where(a, errors[1], errors[2])
        case "select":
            return torch.where(a != 0, errors[1], errors[2])
        case "minimum" | "maximum":
            return torch.maximum(ea, eb)
        case "exp":
            return value * ea + 4 * own
        case "sqrt":
            return ea / (2 * value).clamp(min=1e-30) + own
        case "sigmoid":
            return ea / 4 + 8 * own
        case "reciprocal":
            return value * value * ea + 8 * own
    return ea  # neg, absolute, detach and conditions
