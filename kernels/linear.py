"""The operation *linear*: neurons driven by a linear layer, forward and backward through time.

    x [T, ..., K] float, bool, uint8 or packed; weight [N, K] fp32, fp16 or bf16; bias [N], state [S, ..., N] or None
    ->  output [T, ..., N] (weight's dtype, or packed), state [S, ..., N] (fp32)

One operator of torch for every neuron and both compiled backends; its kernels are in ``triton/linear.py`` and
``numba/linear.py``, its oracle is ``reference.py``. What is said of values and parameters in ``scan.py`` holds here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels import eager
from fastsnn.kernels.neurons.neuron import Neuron
from fastsnn.kernels.packed import PackedSpikes, carrier_for
from fastsnn.kernels.scan import (
    kept_numbers,
    learnt_values,
    needs_gradient,
    ready,
    sum_to,
    without_second_derivative,
)
from fastsnn.kernels.segments import (
    NOTHING,
    STATES,
    STEPS,
    Gradient,
    added,
    assign,
    cut,
    kept_of,
    kept_shapes,
    kernels_of,
    segments,
    what_to_keep,
)


@torch.library.custom_op("fastsnn::linear", mutates_args=())
def linear_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, carrier: Tensor | None,
    values: Sequence[Tensor], parameters: Sequence[Tensor],
    T: int, pack: bool, keep: str, path: str, neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(output, last state, states at which segments start, kept, carrier) of x [T, B, K] or words [ceil(T / 32), B, K].

    ``pack`` makes output words; the carriers (see ``packed.py``) go with words. keep: see ``segments.py``.
    """
    outputs = _empty_outputs(
        x, weight, bias, state, carrier, values, parameters, T, pack, keep, path, neuron, learnt, backend
    )
    output, final, starts, kept, _ = outputs
    if not final.numel():
        return outputs
    prepared, given = ready(neuron, learnt, parameters)
    kernels = kernels_of(backend, "linear")
    for i, part in enumerate(segments(T, final[0].numel(), backend)):
        if i and keep != NOTHING:
            assign(starts[i - 1], final)
        kernels.segment_forward(
            prepared, cut(x, part), weight, bias, final if i else state, given, part.stop - part.start,
            cut(output, part), final, kept_of(kept, part), path,
        )  # fmt: skip
    return outputs


@linear_op.register_fake
def _empty_outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, carrier: Tensor | None,
    values: Sequence[Tensor], parameters: Sequence[Tensor],
    T: int, pack: bool, keep: str, path: str, neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    prepared, _ = ready(neuron, learnt, parameters)
    shape = (x.shape[1], weight.shape[0])
    output = x.new_empty(-(-T // 32) if pack else T, *shape, dtype=torch.int32 if pack else weight.dtype)
    # On the CPU the currents are kept, from which backward makes the steps again.
    count = prepared.kept if backend == "triton" else 1
    shapes = (prepared.states, *shape), *kept_shapes(keep, backend, T, shape, prepared.states, count)
    final, starts, kept = (x.new_empty(size, dtype=torch.float32) for size in shapes)
    return output, final, starts, kept, carrier_for(final, T, *shape) if pack else final.new_empty(0)


@torch.library.custom_op("fastsnn::linear_backward", mutates_args=())
def linear_backward_op(
    grad_output: Tensor | None, grad_final: Tensor | None, starts: Tensor, kept: Tensor, x: Tensor, weight: Tensor,
    bias: Tensor | None, state: Tensor | None, parameters: Sequence[Tensor], needs: Sequence[bool],
    x_dtype: torch.dtype, path: str, T: int, neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x (``x_dtype``), weight and bias, each empty if ``needs`` is False, of the state and of the rows."""
    prepared, given = ready(neuron, learnt, parameters)
    shape = (x.shape[1], len(weight))
    grad_state = weight.new_empty((prepared.states, *shape), dtype=torch.float32)
    if not grad_state.numel():
        outputs = _empty_grads(
            grad_output, grad_final, starts, kept, x, weight, bias, state, parameters, needs, x_dtype, path, T, neuron,
            learnt, backend,
        )  # fmt: skip
        return tuple(output.zero_() for output in outputs)  # type: ignore[return-value]
    assign(grad_state, 0.0 if grad_final is None else grad_final)
    kernels, parts = kernels_of(backend, "linear"), segments(T, math.prod(shape), backend)
    grad_x, sums = Gradient((T, x.shape[1], weight.shape[1]), x_dtype), None
    for i, part in reversed([*enumerate(parts)]):
        upstream = None if grad_output is None else grad_output[part]
        of_x, *of_others = kernels.segment_backward(
            prepared, upstream, grad_state, kept_of(kept, part), cut(x, part), weight, bias,
            starts[i - 1] if i else state, given, part.stop - part.start, needs, x_dtype, path,
        )  # fmt: skip
        grad_x.put(part, of_x)
        sums = added(sums, of_others)
    assert sums is not None
    grad_weight, grad_bias, grad_rows = (weight.new_empty(0) if grad is None else grad for grad in sums)
    return grad_x.whole(weight), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), grad_state, grad_rows


@linear_backward_op.register_fake
def _empty_grads(
    grad_output: Tensor | None, grad_final: Tensor | None, starts: Tensor, kept: Tensor, x: Tensor, weight: Tensor,
    bias: Tensor | None, state: Tensor | None, parameters: Sequence[Tensor], needs: Sequence[bool],
    x_dtype: torch.dtype, path: str, T: int, neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    prepared, _ = ready(neuron, learnt, parameters)
    (N, K), B = weight.shape, x.shape[1]
    shapes = [shape if need else (0,) for shape, need in zip(((T, B, K), (N, K), (N,)), needs, strict=True)]
    dtypes = (x_dtype, weight.dtype, weight.dtype)
    grads = [weight.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    for count in (prepared.states, len(prepared.learnt_constants)):
        grads.append(weight.new_empty((count, B, N), dtype=torch.float32))
    return tuple(grads)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, state, carrier, values, parameters, T, pack, keep, path, neuron, learnt, backend = inputs
    if keep == NOTHING:
        raise ValueError(f"keep is {keep!r}; allowed: {STATES!r} or {STEPS!r} if a gradient is needed")
    ctx.save_for_backward(output[2], output[3], x, weight, bias, state, *parameters)
    ctx.set_materialize_grads(False)
    ctx.pack, ctx.given = pack, (path, T, neuron, learnt, backend)
    ctx.x_dtype = x.dtype if carrier is None else carrier.dtype
    ctx.value_shapes = [value.shape for value in values]


def _backward(
    ctx: Any, grad_output: Tensor | None, grad_final: Tensor | None, _: Any, __: Any, grad_carrier: Tensor | None
) -> tuple[Any, ...]:
    starts, kept, x, weight, bias, state, *parameters = ctx.saved_tensors
    of_x, of_weight, of_bias, of_state, of_carrier, *_ = ctx.needs_input_grad
    grad_x, grad_weight, grad_bias, grad_state, grad_rows = without_second_derivative(
        ctx.given[-1],
        eager.run(
            linear_backward_op,
            grad_carrier if ctx.pack else grad_output, grad_final, starts, kept, x, weight, bias, state, parameters,
            [of_x or of_carrier, of_weight, of_bias], ctx.x_dtype, *ctx.given,
        ),
        (x, weight, state),
    )  # fmt: skip
    return (
        grad_x if of_x else None,
        grad_weight if of_weight else None,
        grad_bias if of_bias else None,
        grad_state if of_state else None,
        grad_x if of_carrier else None,
        [sum_to(row, shape) for row, shape in zip(grad_rows, ctx.value_shapes, strict=True)],
        [None] * len(parameters),
        *[None] * 7,
    )


linear_op.register_autograd(_backward, setup_context=_setup_context)


def linear(
    x: Tensor | PackedSpikes, weight: Tensor, bias: Tensor | None, neuron: Neuron, state: Tensor | None,
    parameters: Mapping[str, Tensor], backend: str, packed: bool = False, path: str = "auto", recompute: str = "auto",
) -> tuple[Tensor | PackedSpikes, Tensor]:  # fmt: skip
    """Run neurons driven by ``x @ weight.T + bias`` on backend ``triton`` or ``numba``; see ``fastsnn.linear``.

    state: [S, ..., N] or None. Returns the output and the last state.
    """
    learnt, given = ",".join(parameters), list(parameters.values())
    values = learnt_values(neuron.key, learnt, given) if given else []
    words, T, carrier = x if isinstance(x, PackedSpikes) else (x, len(x), None)
    batch, N = words.shape[1:-1], weight.shape[0]
    saved = 4 * T * math.prod(batch) * N * (kept_numbers(neuron.key, learnt) if backend == "triton" else 1)
    needed = needs_gradient(words, weight, bias, state, carrier, *given)
    keep = what_to_keep(needed, recompute, saved, weight.device)
    output, final, *_, out = eager.call(
        linear_op, _setup_context, _backward,
        as_three_axes(words), weight, bias, None if state is None else state.reshape(len(state), -1, N),
        None if carrier is None else as_three_axes(carrier),
        [as_last_axis(value, batch, N) for value in values],
        [as_last_axis(parameter.detach(), batch, N) for parameter in given],
        T, packed, keep, path, neuron.key, learnt, backend,
    )  # fmt: skip
    output, final = output.reshape(len(output), *batch, N), final.reshape(len(final), *batch, N)
    return PackedSpikes(output, T, out.reshape(T, *batch, N)) if packed else output, final


def as_three_axes(x: Tensor) -> Tensor:
    """[T, ..., K] as [T, B, K]."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])


def as_last_axis(value: Tensor, batch: Sequence[int], N: int) -> Tensor:
    """A value that broadcasts to [..., N] as one that broadcasts to [B, N]."""
    if value.dim() <= 1:
        return value
    return value.expand(*batch, N).reshape(-1, N)
