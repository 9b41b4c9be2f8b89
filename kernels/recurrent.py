"""The operation *recurrent*: a linear layer and neurons whose outputs come back to them one step later.

    current[t] = x[t] W^T + output[t - 1] V^T + b

    x [T, ..., K] float, bool, uint8 or packed; W [N, K]; V [N, N], or its diagonal [N]; b [N] or None;
    state [S, ..., N], output before the first step [..., N], or None
    ->  output [T, ..., N] (W's dtype, or packed), state [S, ..., N] (fp32)

One operator of torch for every neuron and both compiled backends; its kernels are in ``triton/recurrent.py`` and
``numba/recurrent.py``, its oracle is ``reference.py``. What is said of values and parameters in ``scan.py`` holds here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels import eager
from fastsnn.kernels.linear import as_last_axis, as_three_axes
from fastsnn.kernels.neurons.neuron import Neuron
from fastsnn.kernels.packed import PackedSpikes, carrier_for
from fastsnn.kernels.scan import learnt_values, needs_gradient, ready, sum_to, without_second_derivative


@torch.library.custom_op("fastsnn::recurrent", mutates_args=())
def recurrent_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor, state: Tensor | None,
    initial: Tensor | None, carrier: Tensor | None, values: Sequence[Tensor], parameters: Sequence[Tensor],
    T: int, pack: bool, keep: bool, neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(output, last state, kept, carrier) of x [T, B, K] or words [ceil(T / 32), B, K]; ``pack`` makes output words.

    Nothing is kept without ``keep``, which backward needs; the carriers (see ``packed.py``) go with words.
    """
    outputs = _empty_outputs(
        x, weight, bias, recurrent_weight, state, initial, carrier, values, parameters, T, pack, keep, neuron, learnt,
        backend,
    )  # fmt: skip
    if not outputs[1].numel():
        return outputs
    prepared, given = ready(neuron, learnt, parameters)
    if backend == "triton":
        from fastsnn.kernels.triton import recurrent as triton_recurrent

        output, final, kept, _ = outputs
        triton_recurrent.recurrent_forward(
            prepared, x, weight, bias, recurrent_weight, state, initial, given, T, output, final, kept if keep else None
        )
        return outputs
    from fastsnn.kernels.numba import recurrent as numba_recurrent

    output, final, kept = numba_recurrent.recurrent_forward(
        prepared, x, weight, bias, recurrent_weight, state, initial, given, T, pack
    )
    return output, final, kept if keep else outputs[2], outputs[3]


@recurrent_op.register_fake
def _empty_outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor, state: Tensor | None,
    initial: Tensor | None, carrier: Tensor | None, values: Sequence[Tensor], parameters: Sequence[Tensor],
    T: int, pack: bool, keep: bool, neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    prepared, _ = ready(neuron, learnt, parameters)
    shape = (x.shape[1], weight.shape[0])
    output = x.new_empty(-(-T // 32) if pack else T, *shape, dtype=torch.int32 if pack else weight.dtype)
    final = x.new_empty((prepared.states, *shape), dtype=torch.float32)
    # On the CPU the currents are kept, from which backward makes the steps again.
    count = prepared.kept if backend == "triton" else 1
    kept = x.new_empty((count, T, *shape) if keep else (0,), dtype=torch.float32)
    return output, final, kept, carrier_for(final, T, *shape) if pack else final.new_empty(0)


@torch.library.custom_op("fastsnn::recurrent_backward", mutates_args=())
def recurrent_backward_op(
    grad_output: Tensor | None, grad_final: Tensor | None, kept: Tensor, output: Tensor, x: Tensor, weight: Tensor,
    recurrent_weight: Tensor, state: Tensor | None, initial: Tensor | None, parameters: Sequence[Tensor],
    needs: Sequence[bool], x_dtype: torch.dtype, T: int, neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, W and b, each empty if ``needs`` is False, of V, of state and first output, and of the rows."""
    outputs = _empty_grads(
        grad_output, grad_final, kept, output, x, weight, recurrent_weight, state, initial, parameters, needs, x_dtype,
        T, neuron, learnt, backend,
    )  # fmt: skip
    grad_x, grad_weight, grad_bias, grad_recurrent, grad_state, grad_initial, grad_rows = outputs
    if not grad_state.numel():
        return tuple(grad.zero_() for grad in outputs)  # type: ignore[return-value]
    prepared, given = ready(neuron, learnt, parameters)
    of_x, of_weight, of_bias = (
        grad if need else None for grad, need in zip((grad_x, grad_weight, grad_bias), needs, strict=True)
    )
    if backend == "triton":
        from fastsnn.kernels.triton.recurrent import recurrent_backward

        recurrent_backward(
            prepared, grad_output, grad_final, kept, output, x, weight, recurrent_weight, state, initial, given,
            of_x, of_weight, of_bias, grad_recurrent, grad_state, grad_initial, grad_rows,
        )  # fmt: skip
        return outputs
    from fastsnn.kernels.numba import recurrent as numba_recurrent

    numba_recurrent.recurrent_backward(
        prepared, grad_output, grad_final, kept[0], output, x, weight, recurrent_weight, state, initial, given,
        of_x, of_weight, of_bias, grad_recurrent, grad_state, grad_initial, grad_rows,
    )  # fmt: skip
    return outputs


@recurrent_backward_op.register_fake
def _empty_grads(
    grad_output: Tensor | None, grad_final: Tensor | None, kept: Tensor, output: Tensor, x: Tensor, weight: Tensor,
    recurrent_weight: Tensor, state: Tensor | None, initial: Tensor | None, parameters: Sequence[Tensor],
    needs: Sequence[bool], x_dtype: torch.dtype, T: int, neuron: str, learnt: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    prepared, _ = ready(neuron, learnt, parameters)
    (N, K), B = weight.shape, x.shape[1]
    shapes = [shape if need else (0,) for shape, need in zip(((T, B, K), (N, K), (N,)), needs, strict=True)]
    dtypes = (x_dtype, weight.dtype, weight.dtype)
    grads = [weight.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    grads.append(torch.empty_like(recurrent_weight))
    for shape in ((prepared.states, B, N), (B, N), (len(prepared.learnt_constants), B, N)):
        grads.append(weight.new_empty(shape, dtype=torch.float32))
    return tuple(grads)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, recurrent_weight, state, initial, carrier, values, parameters, T, pack, keep, *given = inputs
    if not keep:
        raise ValueError("keep is False; allowed: True if a gradient is needed")
    ctx.save_for_backward(output[2], output[0], x, weight, recurrent_weight, state, initial, *parameters)
    ctx.set_materialize_grads(False)
    ctx.pack, ctx.given = pack, (T, *given)
    ctx.x_dtype = x.dtype if carrier is None else carrier.dtype
    ctx.value_shapes = [value.shape for value in values]


def _backward(
    ctx: Any, grad_output: Tensor | None, grad_final: Tensor | None, _: Any, grad_carrier: Tensor | None
) -> tuple[Any, ...]:
    kept, output, x, weight, recurrent_weight, state, initial, *parameters = ctx.saved_tensors
    of_x, of_weight, of_bias, of_recurrent, of_state, of_initial, of_carrier, *_ = ctx.needs_input_grad
    grad_x, grad_weight, grad_bias, grad_recurrent, grad_state, grad_initial, grad_rows = without_second_derivative(
        ctx.given[-1],
        eager.run(
            recurrent_backward_op,
            grad_carrier if ctx.pack else grad_output, grad_final, kept, output, x, weight, recurrent_weight, state,
            initial, parameters, [of_x or of_carrier, of_weight, of_bias], ctx.x_dtype, *ctx.given,
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
) -> tuple[Tensor | PackedSpikes, Tensor]:  # fmt: skip
    """Run a recurrent layer on backend ``triton`` or ``numba``; see ``fastsnn.recurrent``.

    state: [S, ..., N] or None; initial: the output before the first step, [..., N] or None. Returns the output and the
    last state.
    """
    learnt, given = ",".join(parameters), list(parameters.values())
    values = learnt_values(neuron.key, learnt, given) if given else []
    words, T, carrier = x if isinstance(x, PackedSpikes) else (x, len(x), None)
    batch, N = words.shape[1:-1], weight.shape[0]
    keep = needs_gradient(words, weight, bias, recurrent_weight, state, initial, carrier, *given)
    output, final, _, out = eager.call(
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
