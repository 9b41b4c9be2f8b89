"""A recurrent layer in Triton: the product with W, the time loop of ``recurrent_kernels.py``, products of gradients.

V is taken as exact parts of bf16 on tensor cores from sm_80 on, and in fp32 below. The gradients of W, V, x and b are
products of the currents' gradient over all T. Sums have a fixed order.

Operation: ``kernels/recurrent.py``. Twin: ``kernels/numba/recurrent.py``. Tests: ``tests/test_recurrent.py``.
Benchmark: ``bench/cases.py``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels.neurons.program import CompiledNeuron
from fastsnn.kernels.triton import bf16_split, device_guard, triton
from fastsnn.kernels.triton.linear import (
    full_precision,
    input_gradient,
    operand,
    product_gradients,
    weight_gradient,
)
from fastsnn.kernels.triton.program import device_function
from fastsnn.kernels.triton.recurrent_kernels import recurrent_backward_kernel, recurrent_forward_kernel
from fastsnn.kernels.triton.scan import constants

MAX_NEURONS = 1024
"""Neurons of a layer, at most: all of V is read at each step by each program, from the second-level cache."""
SAMPLES = 16
"""Samples of a program: the rows of the smallest tile of tensor cores."""


def segment_forward(
    neuron: CompiledNeuron, x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor,
    state: Tensor | None, initial: Tensor | None, parameters: dict[str, Tensor], T: int,
    output: Tensor, final: Tensor, kept: Tensor | None,
) -> None:  # fmt: skip
    """Fill ``output`` [T, B, N] (int32 words if packed), ``final`` [S, B, N], which may be ``state``, and ``kept``.

    Raises ValueError for more than :data:`MAX_NEURONS` neurons.
    """
    N = final.shape[-1]
    if recurrent_weight.dim() == 2 and N > MAX_NEURONS:
        raise ValueError(f"backend triton cannot compute this: {too_many(N)}; use --backend torch")
    kept = kept if neuron.kept else None
    current = _currents(operand(x, T), weight, bias, kept, output)
    forward_loop(neuron, current, recurrent_weight, state, initial, parameters, output, final, kept)


def forward_loop(
    neuron: CompiledNeuron, current: Tensor, recurrent_weight: Tensor, state: Tensor | None, initial: Tensor | None,
    parameters: dict[str, Tensor], output: Tensor, final: Tensor, kept: Tensor | None,
) -> None:  # fmt: skip
    """The time loop over the products with W, ``current`` [T, B, N], which may be kept[0] or an fp32 output."""
    T, B, N = current.shape
    for k, rest in enumerate(neuron.neuron.rest()):
        final[k].copy_(state[k]) if state is not None else final[k].fill_(rest)
    # Spikes are exact in bf16, the dtype that tensor cores take.
    exact = neuron.neuron.spikes and initial is None
    # V^T, so that the lanes of a tile lie side by side: as rows of V they would lie in one bank of shared memory.
    right, options = _prepared(recurrent_weight.t(), 128)  # of one axis it is itself
    halved = exact and options["PARTS"] == 3
    ring = final.new_zeros((2, B, N), dtype=torch.bfloat16 if halved else torch.float32)
    if initial is not None:
        ring[1].copy_(initial)
    scalars, rows = constants(neuron, parameters, final[0])
    with device_guard(final):
        recurrent_forward_kernel[_grid(B, N, options)](
            current, right, ring, final, final if kept is None else kept, output, rows,
            T, B, N, *_strides(right), scalars,
            STEP=device_function(neuron.forward), STATES=neuron.states, KEPT=0 if kept is None else neuron.kept,
            ROWS_LEARNT=neuron.forward.rows, PACK=output.dtype == torch.int32,
            LEFT_EXACT=exact or options["PARTS"] == 1, **options,
        )  # fmt: skip


def segment_backward(
    neuron: CompiledNeuron, grad_output: Tensor | None, grad_state: Tensor, kept: Tensor | None, output: Tensor | None,
    x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor, state: Tensor | None,
    initial: Tensor | None, parameters: dict[str, Tensor], T: int, needs: Sequence[bool], x_dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, of the output before the first step [B, N], of W, b and V, and of the rows [L, B, N].

    Those of x, W and b are None if ``needs`` is False. ``grad_state`` [S, B, N], that of the last state, becomes that
    of ``state``. What steps keep, and the outputs, are made again unless they were kept.
    """
    x, shape = operand(x, T), (T, *grad_state.shape[1:])
    if kept is None or output is None:
        kept = grad_state.new_empty((neuron.kept, *shape))
        words = neuron.neuron.spikes
        size, dtype = (-(-T // 32), *shape[1:]) if words else shape, torch.int32 if words else weight.dtype
        output = grad_state.new_empty(size, dtype=dtype)
        segment_forward(
            neuron, x, weight, bias, recurrent_weight, state, initial, parameters, T, output,
            torch.empty_like(grad_state), kept,
        )  # fmt: skip
    total = kept.new_zeros(shape[1:]) if needs[2] else None
    grad_rows = grad_state.new_empty((len(neuron.learnt_constants), *shape[1:]))
    grad = backward_loop(
        neuron, grad_output, grad_state, kept, recurrent_weight, parameters, grad_state, grad_rows, total
    )
    grad_recurrent, grad_initial = torch.empty_like(recurrent_weight), grad_state.new_empty(shape[1:])
    _recurrent_gradients(grad, _previous(neuron, output, initial, T), recurrent_weight, grad_recurrent, grad_initial)
    grad = grad if grad.dim() == 4 else grad.to(weight.dtype)
    grad_x, grad_weight, grad_bias = product_gradients(grad, x, weight, total, needs, x_dtype)
    return grad_x, grad_initial, grad_weight, grad_bias, grad_recurrent, grad_rows


def backward_loop(
    neuron: CompiledNeuron, grad_output: Tensor | None, grad_final: Tensor | None, kept: Tensor,
    recurrent_weight: Tensor, parameters: dict[str, Tensor], grad_state: Tensor, grad_rows: Tensor,
    total: Tensor | None,
) -> Tensor:  # fmt: skip
    """The currents' gradient [T, B, N], or its parts [3, T, B, N]; fills those of the first state and of the rows.

    To ``total`` [B, N], zeros, the currents' gradient is added up over time.
    """
    T, (_, B, N) = kept.shape[1], grad_state.shape
    right, options = _prepared(recurrent_weight, 64)  # a step back takes more registers
    shape = (T + 1, B, N)
    grad = kept.new_empty((3, *shape), dtype=torch.bfloat16) if options["PARTS"] == 3 else kept.new_empty(shape)
    grad[..., T, :, :].zero_()
    grad_state.zero_() if grad_final is None else grad_state.copy_(grad_final)
    grad_rows.zero_()
    upstream = kept.new_zeros(()).expand(T, B, N) if grad_output is None else grad_output
    scalars, rows = constants(neuron, parameters, grad_state[0], backward=True)
    with device_guard(kept):
        recurrent_backward_kernel[_grid(B, N, options)](
            upstream, kept, right, rows, grad, grad_state, grad_rows, grad_state if total is None else total,
            T, B, N, *_strides(right), *upstream.stride(), scalars,
            STEP=device_function(neuron.backward), STATES=neuron.states, KEPT=neuron.kept,
            ROWS_LEARNT=neuron.backward.rows, LEARNT=len(neuron.learnt_constants), SUM=int(total is not None),
            LEFT_EXACT=options["PARTS"] == 1, **options,
        )  # fmt: skip
    return grad[..., :T, :, :]


def too_many(N: int) -> str:
    """Why a layer of N neurons is refused."""
    return f"a recurrent layer of {N} neurons; its kernels take at most {MAX_NEURONS}"


def _currents(x: Tensor, weight: Tensor, bias: Tensor | None, kept: Tensor | None, output: Tensor) -> Tensor:
    """``x @ W.T + b`` as fp32 [T, B, N], in the memory of what is kept or of an fp32 output if it is free."""
    T, B, K = x.shape
    N, rows = len(weight), x.view(T * B, K)
    if kept is not None:
        current = kept[0]
    elif output.dtype == torch.float32:
        current = output
    else:
        current = torch.empty(T, B, N, dtype=torch.float32, device=x.device)
    flat = current.view(T * B, N)
    if bf16_split.arithmetic(x.device, weight.dtype)["PARTS"] == 3:
        bf16_split.matmul(rows, bf16_split.split(weight.t().contiguous()), flat)
    else:
        with full_precision(x.device):
            flat.copy_(rows.to(weight.dtype) @ weight.t())
    return current if bias is None else current.add_(bias.float())


def _prepared(recurrent_weight: Tensor, most: int) -> tuple[Tensor, dict[str, Any]]:
    """V as the kernels take it, parts [3, N, width], fp32 [N, N], or the diagonal [N]; and their constants.

    A tile has at most ``most`` neurons.
    """
    back = recurrent_weight.detach().float().contiguous()
    arithmetic, N = bf16_split.arithmetic(back.device, torch.float32), len(back)
    diagonal = back.dim() == 1
    block_n = min(most if arithmetic["PARTS"] == 3 else 64, max(triton.next_power_of_2(N), 16))
    launch = {
        "DIAGONAL": diagonal, "SAMPLES": SAMPLES, "BLOCK_N": block_n,
        "BLOCK_K": 32 if arithmetic["PARTS"] == 3 else 16,
        "num_warps": 8 if block_n >= 64 else 4, "num_stages": 3 if arithmetic["PARTS"] == 3 else 2,
        "maxnreg": 255, "enable_fp_fusion": False,
    }  # fmt: skip
    split = bf16_split.split(back) if arithmetic["PARTS"] == 3 and not diagonal else back
    return split, arithmetic | launch


def _strides(right: Tensor) -> tuple[int, int]:
    """Elements between rows of V and between its parts."""
    return (right.stride(-2), right.stride(0)) if right.dim() > 1 else (0, 0)


def _grid(B: int, N: int, options: dict[str, Any]) -> tuple[int, int]:
    """Programs over samples, and over neurons if none of them meet."""
    return triton.cdiv(B, SAMPLES), triton.cdiv(N, options["BLOCK_N"]) if options["DIAGONAL"] else 1


def _previous(neuron: CompiledNeuron, output: Tensor, initial: Tensor | None, T: int) -> Tensor:
    """The outputs that came back [T, B, N]: a byte each, if they are spikes."""
    output = operand(output, T)
    output = output.to(torch.uint8) if neuron.neuron.spikes and initial is None else output.float()
    previous = torch.zeros_like(output)
    previous[1:] = output[:-1]
    if initial is not None:
        previous[0] = initial
    return previous


def _recurrent_gradients(
    grad: Tensor, previous: Tensor, recurrent_weight: Tensor, grad_recurrent: Tensor, grad_initial: Tensor
) -> None:
    """Fill dV and the gradient of the output before the first step, from the currents' gradient or its parts."""
    if recurrent_weight.dim() == 1:
        dense = grad.float().sum(0) if grad.dim() == 4 else grad  # parts add up exactly
        grad_recurrent.copy_((dense * previous).sum((0, 1), dtype=torch.float64))
        torch.mul(dense[0], recurrent_weight.float(), out=grad_initial)
        return
    back = recurrent_weight.detach().float().contiguous()
    of_weight = grad_recurrent if grad_recurrent.dtype == torch.float32 else torch.empty_like(back)
    weight_gradient(grad, previous, of_weight)
    if of_weight is not grad_recurrent:
        grad_recurrent.copy_(of_weight)
    input_gradient(grad[..., :1, :, :], back, grad_initial[None])
