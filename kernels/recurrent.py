"""The operation *recurrent*: a linear layer and neurons whose outputs come back to them one step later.

    current[t] = x[t] W^T + output[t - 1] V^T + b

    x [T, ..., K] float, bool, uint8 or packed; W [N, K]; V [N, N], or its diagonal [N]; b [N] or None;
    state [S, ..., N], output before the first step [..., N], or None
    ->  output [T, ..., N] (W's dtype, or packed), state [S, ..., N] (fp32)

One operator of torch for every neuron and both compiled backends; its kernels are in ``triton/recurrent.py`` and
``numba/recurrent.py``, its oracle is ``reference.py``. What is said of values and parameters in ``scan.py`` holds here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels import eager
from fastsnn.kernels.linear import as_last_axis, as_three_axes
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


@torch.library.custom_op("fastsnn::recurrent", mutates_args=())
def recurrent_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor, state: Tensor | None,
    initial: Tensor | None, carrier: Tensor | None, values: Sequence[Tensor], parameters: Sequence[Tensor],
    T: int, pack: bool, keep: str, neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(output, last state, what segments start from, kept, carrier) of x [T, B, K] or words [ceil(T / 32), B, K].

    A segment starts from the states and the output before it. ``pack`` makes output words; the carriers (see
    ``packed.py``) go with words. keep: see ``segments.py``.
    """
    outputs = _empty_outputs(
        x, weight, bias, recurrent_weight, state, initial, carrier, values, parameters, T, pack, keep, neuron, learnt,
        backend,
    )  # fmt: skip
    output, final, starts, kept, _ = outputs
    if not final.numel():
        return outputs
    prepared, given = ready(neuron, learnt, parameters)
    kernels = kernels_of(backend, "recurrent")
    for i, part in enumerate(segments(T, final[0].numel(), backend)):
        if i and keep != NOTHING:
            assert initial is not None
            assign(starts[i - 1, :-1], final)
            assign(starts[i - 1, -1], initial)
        out = cut(output, part)
        kernels.segment_forward(
            prepared, cut(x, part), weight, bias, recurrent_weight, final if i else state, initial, given,
            part.stop - part.start, out, final, kept_of(kept, part),
        )  # fmt: skip
        # A segment but the last ends with the last bit of a word.
        initial = (out[-1] >> 31 & 1 if pack else out[-1]).float()
    return outputs


@recurrent_op.register_fake
def _empty_outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor, state: Tensor | None,
    initial: Tensor | None, carrier: Tensor | None, values: Sequence[Tensor], parameters: Sequence[Tensor],
    T: int, pack: bool, keep: str, neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    prepared, _ = ready(neuron, learnt, parameters)
    shape = (x.shape[1], weight.shape[0])
    output = x.new_empty(-(-T // 32) if pack else T, *shape, dtype=torch.int32 if pack else weight.dtype)
    shapes = (prepared.states, *shape), *kept_shapes(keep, backend, T, shape, prepared.states + 1, prepared.kept)
    final, starts, kept = (x.new_empty(size, dtype=torch.float32) for size in shapes)
    return output, final, starts, kept, carrier_for(final, T, *shape) if pack else final.new_empty(0)


@torch.library.custom_op("fastsnn::recurrent_backward", mutates_args=())
def recurrent_backward_op(
    grad_output: Tensor | None, grad_final: Tensor | None, starts: Tensor, kept: Tensor, output: Tensor | None,
    x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor, state: Tensor | None,
    initial: Tensor | None, parameters: Sequence[Tensor], needs: Sequence[bool], x_dtype: torch.dtype, T: int,
    neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, W and b, each empty if ``needs`` is False, of V, of state and first output, and of the rows."""
    prepared, given = ready(neuron, learnt, parameters)
    shape = (x.shape[1], len(weight))
    grad_state = weight.new_empty((prepared.states, *shape), dtype=torch.float32)
    if not grad_state.numel():
        outputs = _empty_grads(
            grad_output, grad_final, starts, kept, output, x, weight, bias, recurrent_weight, state, initial,
            parameters, needs, x_dtype, T, neuron, learnt, backend,
        )  # fmt: skip
        return tuple(grad.zero_() for grad in outputs)  # type: ignore[return-value]
    assign(grad_state, 0.0 if grad_final is None else grad_final)
    kernels, parts = kernels_of(backend, "recurrent"), segments(T, math.prod(shape), backend)
    grad_x, grad_initial, sums = Gradient((T, x.shape[1], weight.shape[1]), x_dtype), None, None
    for i, part in reversed([*enumerate(parts)]):
        upstream = None if grad_output is None else grad_output[part]
        if grad_initial is not None:  # of the output before the segment behind this one, its last
            upstream = grad_initial.new_zeros(parts[0].stop, *shape) if upstream is None else upstream.float()
            upstream = upstream.clone(memory_format=torch.contiguous_format)
            upstream[-1] += grad_initial
        of_x, grad_initial, *of_others = kernels.segment_backward(
            prepared, upstream, grad_state, kept_of(kept, part), None if output is None else cut(output, part),
            cut(x, part), weight, bias, recurrent_weight, starts[i - 1, :-1] if i else state,
            starts[i - 1, -1] if i else initial, given, part.stop - part.start, needs, x_dtype,
        )  # fmt: skip
        grad_x.put(part, of_x)
        sums = added(sums, of_others)
    assert sums is not None
    assert grad_initial is not None
    grad_weight, grad_bias, grad_recurrent, grad_rows = (weight.new_empty(0) if g is None else g for g in sums)
    return (
        grad_x.whole(weight), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype),
        grad_recurrent.to(recurrent_weight.dtype), grad_state, grad_initial, grad_rows,
    )  # fmt: skip


@recurrent_backward_op.register_fake
def _empty_grads(
    grad_output: Tensor | None, grad_final: Tensor | None, starts: Tensor, kept: Tensor, output: Tensor | None,
    x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor, state: Tensor | None,
    initial: Tensor | None, parameters: Sequence[Tensor], needs: Sequence[bool], x_dtype: torch.dtype, T: int,
    neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    prepared, _ = ready(neuron, learnt, parameters)
    (N, K), B = weight.shape, x.shape[1]
    shapes = [shape if need else (0,) for shape, need in zip(((T, B, K), (N, K), (N,)), needs, strict=True)]
    dtypes = (x_dtype, weight.dtype, weight.dtype)
    grads = [weight.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    grads.append(recurrent_weight.new_empty(recurrent_weight.shape))
    for shape in ((prepared.states, B, N), (B, N), (len(prepared.learnt_constants), B, N)):
        grads.append(weight.new_empty(shape, dtype=torch.float32))
    return tuple(grads)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, recurrent_weight, state, initial, carrier, values, parameters, T, pack, keep, *given = inputs
    if keep == NOTHING:
        raise ValueError(f"keep is {keep!r}; allowed: {STATES!r} or {STEPS!r} if a gradient is needed")
    outputs = output[0] if keep == STEPS else None
    ctx.save_for_backward(*output[2:4], outputs, x, weight, bias, recurrent_weight, state, initial, *parameters)
    ctx.set_materialize_grads(False)
    ctx.pack, ctx.given = pack, (T, *given)
    ctx.x_dtype = x.dtype if carrier is None else carrier.dtype
    ctx.value_shapes = [value.shape for value in values]


def _backward(
    ctx: Any, grad_output: Tensor | None, grad_final: Tensor | None, _: Any, __: Any, grad_carrier: Tensor | None
) -> tuple[Any, ...]:
    starts, kept, output, x, weight, bias, recurrent_weight, state, initial, *parameters = ctx.saved_tensors
    of_x, of_weight, of_bias, of_recurrent, of_state, of_initial, of_carrier, *_ = ctx.needs_input_grad
    grad_x, grad_weight, grad_bias, grad_recurrent, grad_state, grad_initial, grad_rows = without_second_derivative(
        ctx.given[-1],
        eager.run(
            recurrent_backward_op,
            grad_carrier if ctx.pack else grad_output, grad_final, starts, kept, output, x, weight, bias,
            recurrent_weight, state, initial, parameters, [of_x or of_carrier, of_weight, of_bias], ctx.x_dtype,
            *ctx.given,
        ),
        (x, weight, recurrent_weight, state, initial),
    )  # fmt: skip
    return (
        grad_x if of_x else None,
        grad_weight if of_weight else None,
        grad_bias if of_bias else None,
        grad_recurrent if of_recurrent else None,
        grad_state if of_state else None,
        grad_initial.to(initial.dtype) if of_initial else None,
        grad_x if of_carrier else None,
        [sum_to(row, shape) for row, shape in zip(grad_rows, ctx.value_shapes, strict=True)],
        [None] * len(parameters),
        *[None] * 6,
    )


recurrent_op.register_autograd(_backward, setup_context=_setup_context)


def recurrent(
    x: Tensor | PackedSpikes, weight: Tensor, recurrent_weight: Tensor, bias: Tensor | None, neuron: Neuron,
    state: Tensor | None, initial: Tensor | None, parameters: Mapping[str, Tensor], backend: str, packed: bool = False,
    recompute: str = "auto",
) -> tuple[Tensor | PackedSpikes, Tensor]:  # fmt: skip
    """Run a recurrent layer on backend ``triton`` or ``numba``; see ``fastsnn.recurrent``.

    state: [S, ..., N] or None; initial: the output before the first step, [..., N] or None. Returns the output and the
    last state.
    """
    learnt, given = ",".join(parameters), list(parameters.values())
    values = learnt_values(neuron.key, learnt, given) if given else []
    words, T, carrier = x if isinstance(x, PackedSpikes) else (x, len(x), None)
    batch, N = words.shape[1:-1], weight.shape[0]
    needed = needs_gradient(words, weight, bias, recurrent_weight, state, initial, carrier, *given)
    saved = 4 * T * math.prod(batch) * N * kept_numbers(neuron.key, learnt)
    keep = what_to_keep(needed, recompute, saved, weight.device)
    output, final, *_, out = eager.call(
        recurrent_op, _setup_context, _backward,
        as_three_axes(words), weight, bias, recurrent_weight,
        None if state is None else state.reshape(len(state), -1, N),
        None if initial is None else initial.reshape(-1, N),
        None if carrier is None else as_three_axes(carrier),
        [as_last_axis(value, batch, N) for value in values],
        [as_last_axis(parameter.detach(), batch, N) for parameter in given],
        T, packed, keep, neuron.key, learnt, backend,
    )  # fmt: skip
    output, final = output.reshape(len(output), *batch, N), final.reshape(len(final), *batch, N)
    return PackedSpikes(output, T, out.reshape(T, *batch, N)) if packed else output, final
