"""The operation *scan*: neurons over given currents, forward and backward through time.

    current [T, ...] fp32, fp16 or bf16; state [S, ...] or None  ->  output [T, ...] (current's dtype), state [S, ...]

One operator of torch for every neuron and both compiled backends; its kernels are in ``triton/scan.py`` and
``numba/scan.py``, its oracle is ``reference.py``. States are fp32. A neuron that learns gives *values*: its constants
that are made of learnt parameters, through which gradients flow, and the parameters themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels import eager
from fastsnn.kernels.compiling import called_while_traced
from fastsnn.kernels.neurons.neuron import Neuron
from fastsnn.kernels.neurons.program import CompiledNeuron, compiled
from fastsnn.kernels.segments import (
    NOTHING,
    STATES,
    STEPS,
    assign,
    kept_of,
    kept_shapes,
    kernels_of,
    segments,
    what_to_keep,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@torch.library.custom_op("fastsnn::scan", mutates_args=())
def scan_op(
    current: Tensor, state: Tensor | None, values: Sequence[Tensor], parameters: Sequence[Tensor],
    neuron: str, learnt: str, backend: str, keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(output, last state [S, ...], states at which segments start, kept [K, T, ...]), the last two as ``keep`` says.

    learnt: names of ``parameters``, separated by commas; keep: see ``segments.py``.
    """
    outputs = _empty_outputs(current, state, values, parameters, neuron, learnt, backend, keep)
    output, final, starts, kept = outputs
    prepared, given = ready(neuron, learnt, parameters)
    kernels = kernels_of(backend, "scan")
    for i, part in enumerate(segments(len(current), final[:1].numel(), backend)):
        if i and keep != NOTHING:
            starts[i - 1].copy_(final)
        first = final if i else state
        kernels.segment_forward(prepared, current[part], first, given, output[part], final, kept_of(kept, part))
    return outputs


@scan_op.register_fake
def _empty_outputs(
    current: Tensor, state: Tensor | None, values: Sequence[Tensor], parameters: Sequence[Tensor],
    neuron: str, learnt: str, backend: str, keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    prepared, _ = ready(neuron, learnt, parameters)
    shape = current.shape[1:]
    shapes = kept_shapes(keep, backend, len(current), shape, prepared.states, prepared.kept)
    if backend == "numba":  # backward makes the steps again from the currents
        shapes = shapes[0], (0,)
    output = torch.empty(current.shape, dtype=current.dtype, device=current.device)
    final, starts, kept = (
        torch.empty(size, dtype=torch.float32, device=current.device) for size in ((prepared.states, *shape), *shapes)
    )
    return output, final, starts, kept


@torch.library.custom_op("fastsnn::scan_backward", mutates_args=())
def scan_backward_op(
    grad_output: Tensor | None, grad_final: Tensor | None, current: Tensor, state: Tensor | None, starts: Tensor,
    kept: Tensor, parameters: Sequence[Tensor], neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the current (its dtype), of the first state [S, ...] and of the values [L, ...]."""
    outputs = _empty_grads(grad_output, grad_final, current, state, starts, kept, parameters, neuron, learnt, backend)
    grad_current, grad_state, grad_rows = outputs
    assign(grad_state, 0.0 if grad_final is None else grad_final)
    assign(grad_rows, 0.0)
    prepared, given = ready(neuron, learnt, parameters)
    kernels = kernels_of(backend, "scan")
    parts = segments(len(current), grad_state[:1].numel(), backend)
    for i, part in reversed([*enumerate(parts)]):
        first = starts[i - 1] if i else state
        upstream = None if grad_output is None else grad_output[part]
        rows = torch.empty_like(grad_rows)
        kernels.segment_backward(
            prepared, upstream, current[part], first, kept_of(kept, part), given, grad_current[part], grad_state, rows
        )
        grad_rows += rows
    return outputs


@scan_backward_op.register_fake
def _empty_grads(
    grad_output: Tensor | None, grad_final: Tensor | None, current: Tensor, state: Tensor | None, starts: Tensor,
    kept: Tensor, parameters: Sequence[Tensor], neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    prepared, _ = ready(neuron, learnt, parameters)
    shape = current.shape[1:]
    grad_current = torch.empty(current.shape, dtype=current.dtype, device=current.device)
    state_shape, rows_shape = (prepared.states, *shape), (len(prepared.learnt_constants), *shape)
    return grad_current, *(current.new_empty(s, dtype=torch.float32) for s in (state_shape, rows_shape))  # type: ignore[return-value]


def ready(neuron: str, learnt: str, parameters: Sequence[Tensor]) -> tuple[CompiledNeuron, dict[str, Tensor]]:
    """The compiled neuron and the parameters that it learns, by name."""
    names = tuple(name for name in learnt.split(",") if name)
    return compiled(neuron, names), dict(zip(names, parameters, strict=True))


# torch.compile need not look into it.
@called_while_traced
def kept_numbers(neuron: str, learnt: str) -> int:
    """Numbers that a step keeps for backward."""
    return compiled(neuron, tuple(name for name in learnt.split(",") if name)).kept


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    current, state, values, parameters, neuron, learnt, backend, keep = inputs
    if keep == NOTHING:
        raise ValueError(f"keep is {keep!r}; allowed: {STATES!r} or {STEPS!r} if a gradient is needed")
    ctx.set_materialize_grads(False)
    ctx.given, ctx.has_state = (neuron, learnt, backend), state is not None
    if backend == "triton" and keep == STEPS:  # what was kept is enough: the currents' memory may be freed
        current, state = current.new_empty(()).expand(current.shape), None
    ctx.save_for_backward(current, state, *output[2:], *parameters)
    ctx.value_shapes = [value.shape for value in values]


def _backward(ctx: Any, grad_output: Tensor | None, grad_final: Tensor | None, *_: Any) -> tuple[Any, ...]:
    current, state, starts, kept, *parameters = ctx.saved_tensors
    grad_current, grad_state, grad_rows = without_second_derivative(
        ctx.given[2],
        eager.run(scan_backward_op, grad_output, grad_final, current, state, starts, kept, parameters, *ctx.given),
        (current, state),
    )
    grad_values = [sum_to(row, shape) for row, shape in zip(grad_rows, ctx.value_shapes, strict=True)]
    none = [None] * len(parameters)
    return grad_current, grad_state if ctx.has_state else None, grad_values, none, *[None] * 4


scan_op.register_autograd(_backward, setup_context=_setup_context)


def without_second_derivative(backend: str, grads: Sequence[Any], inputs: Sequence[Tensor | None]) -> list[Any]:
    """The gradients; with ``create_graph`` such that to differentiate them again raises RuntimeError.

    Without this they would count as constants. inputs: what was saved of the operation's inputs; if a graph is made and
    none of them needs a gradient, the error comes at once.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return list(grads)
    leaves = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    if not leaves:
        raise RuntimeError(_no_second_derivative(backend))
    return [grad if grad is None else _Once.apply(backend, grad, *leaves) for grad in grads]


class _Once(torch.autograd.Function):
    """A gradient that can't be differentiated."""

    @staticmethod
    def forward(ctx: Any, backend: str, grad: Tensor, *inputs: Tensor) -> Tensor:
        ctx.backend = backend
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:  # type: ignore[override]
        raise RuntimeError(_no_second_derivative(ctx.backend))


def _no_second_derivative(backend: str) -> str:
    return f"backend {backend} has no second derivative (create_graph=True); use backend torch"


def sum_to(grad: Tensor, shape: torch.Size) -> Tensor:
    """``grad`` summed over the axes along which a value of ``shape`` was broadcast, in double and in a fixed order."""
    leading = grad.dim() - len(shape)
    axes = [*range(leading), *(leading + i for i, size in enumerate(shape) if size == 1 != grad.shape[leading + i])]
    if not axes:
        return grad.reshape(shape)
    return grad.sum(axes, keepdim=True, dtype=torch.float64).to(grad.dtype).reshape(shape)


def needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def scan(
    current: Tensor, neuron: Neuron, state: Tensor | None, parameters: Mapping[str, Tensor], backend: str,
    recompute: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run neurons over ``current`` [T, ...] on backend ``triton`` or ``numba``; see ``fastsnn.scan``.

    state: [S, ...] or None. Returns the output and the last state.
    """
    learnt, given = ",".join(parameters), list(parameters.values())
    values = learnt_values(neuron.key, learnt, given) if given else []
    # Recomputing keeps the currents instead of what each step keeps; on the CPU that is so anyway.
    saved = current.numel() * (4 * kept_numbers(neuron.key, learnt) - current.element_size())
    keep = what_to_keep(needs_gradient(current, state, *given), recompute, saved, current.device)
    detached = [parameter.detach() for parameter in given]
    output, final, *_ = eager.call(
        scan_op, _setup_context, _backward, current, state, values, detached, neuron.key, learnt, backend, keep
    )
    return output, final


def learnt_values(neuron: str, learnt: str, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The neuron's constants that are made of learnt parameters, through which gradients flow to these."""
    if torch.compiler.is_compiling():
        _take_as_it_is()
    return _learnt_values(neuron, learnt, parameters)


def _learnt_values(neuron: str, learnt: str, parameters: Sequence[Tensor]) -> list[Tensor]:
    prepared, given = ready(neuron, learnt, parameters)
    return prepared.learnt_values(given)


@called_while_traced
def _take_as_it_is() -> None:
    """torch.compile need not look into the expressions of a neuron."""
    torch.compiler.allow_in_graph(_learnt_values)
