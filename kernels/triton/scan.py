"""Neurons over given currents in Triton: forward and backward through time, one launch each.

Every neuron is a lane of one program that goes through the T steps with its states in registers. What a step keeps for
backward is stored as [K, T, n] (fp32), which inference leaves out. ``n`` is the number of neurons (all axes but time).

Operation: ``kernels/scan.py``. Twin: ``kernels/numba/scan.py``. Tests: ``tests/test_scan.py``.
Benchmark: ``bench/cases.py``.
"""

from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels.neurons.program import CompiledNeuron
from fastsnn.kernels.triton import device_guard, tl, triton
from fastsnn.kernels.triton.bf16_split import split3
from fastsnn.kernels.triton.program import device_function


@triton.jit
def load_rows(ptr, stride, offs, mask, COUNT: tl.constexpr, OTHER: tl.constexpr = 0.0):
    """COUNT rows of fp32 numbers, ``stride`` apart, as a tuple; OTHER for lanes without a neuron."""
    values = ()
    for k in tl.static_range(COUNT):
        values += (tl.load(ptr + tl.cast(k, tl.int64) * stride + offs, mask=mask, other=OTHER),)
    return values


@triton.jit(do_not_specialize=["T"])
def scan_forward_kernel(
    current_ptr, state_ptr, output_ptr, final_ptr, kept_ptr, rows_ptr,
    T, n, stride_current_t, stride_current_n, scalars, rest,
    STEP: tl.constexpr, STATES: tl.constexpr, KEPT: tl.constexpr, ROWS: tl.constexpr,
    HAS_STATE: tl.constexpr, PACK: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK neurons over all of T; with PACK the spikes are stored as int32 words of 32 steps."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    if HAS_STATE:
        state = load_rows(state_ptr, n, offs, mask, STATES)
    else:
        state = ()
        for k in tl.static_range(STATES):
            state += (tl.zeros((BLOCK,), tl.float32) + rest[k],)
    rows = load_rows(rows_ptr, n, offs, mask, ROWS, 1.0)  # a step may divide by them
    current_ptrs = current_ptr + offs * stride_current_n
    word = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, T, UNROLL):
        # UNROLL loads in flight before the first store: the compiler can't move a load over a store.
        currents = ()
        for i in tl.static_range(UNROLL):
            t = tl.cast(start + i, tl.int64)
            mask_t = offs < tl.where(t < T, n, 0)
            currents += (tl.load(current_ptrs + t * stride_current_t, mask=mask_t, other=0.0),)
        for i in tl.static_range(UNROLL):
            t = tl.cast(start + i, tl.int64)
            mask_t = offs < tl.where(t < T, n, 0)
            results = STEP((currents[i].to(tl.float32),) + state, scalars, rows)
            if PACK:
                fired = (results[0] != 0.0) & mask_t
                word = tl.where((start + i) % 32 == 0, 0, word) | fired.to(tl.int32) << (start + i) % 32
            else:
                tl.store(output_ptr + t * n + offs, results[0], mask=mask_t)
            for k in tl.static_range(KEPT):
                kept = kept_ptr + (tl.cast(k, tl.int64) * T + t) * n + offs
                tl.store(kept, results[1 + STATES + k], mask=mask_t)
            after = ()
            for k in tl.static_range(STATES):
                after += (tl.where(mask_t, results[1 + k], state[k]),)
            state = after
        if PACK:
            # UNROLL divides 32; a word is stored again with each of its groups of steps, last when it is complete.
            tl.store(output_ptr + tl.cast(start // 32, tl.int64) * n + offs, word, mask=mask)
    for k in tl.static_range(STATES):
        tl.store(final_ptr + tl.cast(k, tl.int64) * n + offs, state[k], mask=mask)


@triton.jit(do_not_specialize=["T"])
def scan_backward_kernel(
    grad_output_ptr, grad_final_ptr, kept_ptr, rows_ptr, grad_current_ptr, grad_state_ptr, grad_rows_ptr, total_ptr,
    T, n, stride_grad_t, stride_grad_n, scalars,
    STEP: tl.constexpr, STATES: tl.constexpr, KEPT: tl.constexpr, ROWS: tl.constexpr, LEARNT: tl.constexpr,
    HAS_GRAD_FINAL: tl.constexpr, SUM: tl.constexpr, PARTS: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK neurons from the last step to the first.

    With PARTS 3 the gradient of the current is stored as its parts; with SUM its sum over time is stored too.
    """
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    if HAS_GRAD_FINAL:
        grad_state = load_rows(grad_final_ptr, n, offs, mask, STATES)
    else:
        grad_state = ()
        for _ in tl.static_range(STATES):
            grad_state += (tl.zeros((BLOCK,), tl.float32),)
    rows = load_rows(rows_ptr, n, offs, mask, ROWS, 1.0)  # a step may divide by them
    grad_rows = ()
    for _ in tl.static_range(LEARNT):
        grad_rows += (tl.zeros((BLOCK,), tl.float32),)
    total = tl.zeros((BLOCK,), tl.float32)
    grad_ptrs = grad_output_ptr + offs * stride_grad_n
    for start in range(0, T, UNROLL):
        grads = ()
        history = ()
        for i in tl.static_range(UNROLL):
            t = tl.cast(T - 1 - start - i, tl.int64)
            mask_t = offs < tl.where(t >= 0, n, 0)
            grads += (tl.load(grad_ptrs + t * stride_grad_t, mask=mask_t, other=0.0),)
            history += (load_rows(kept_ptr + t * n, tl.cast(T, tl.int64) * n, offs, mask_t, KEPT),)
        for i in tl.static_range(UNROLL):
            t = tl.cast(T - 1 - start - i, tl.int64)
            mask_t = offs < tl.where(t >= 0, n, 0)
            results = STEP(history[i] + (grads[i].to(tl.float32),) + grad_state, scalars, rows)
            out = grad_current_ptr + t * n + offs
            if PARTS == 1:
                tl.store(out, results[0], mask=mask_t)
            else:
                part = tl.cast(T, tl.int64) * n
                high, middle, low = split3(results[0])
                tl.store(out, high, mask=mask_t)
                tl.store(out + part, middle, mask=mask_t)
                tl.store(out + 2 * part, low, mask=mask_t)
            before = ()
            for k in tl.static_range(STATES):
                before += (tl.where(mask_t, results[1 + k], grad_state[k]),)
            grad_state = before
            sums = ()
            for k in tl.static_range(LEARNT):
                sums += (grad_rows[k] + tl.where(mask_t, results[1 + STATES + k], 0.0),)
            grad_rows = sums
            total += tl.where(mask_t, results[0], 0.0)
    for k in tl.static_range(STATES):
        tl.store(grad_state_ptr + tl.cast(k, tl.int64) * n + offs, grad_state[k], mask=mask)
    for k in tl.static_range(LEARNT):
        tl.store(grad_rows_ptr + tl.cast(k, tl.int64) * n + offs, grad_rows[k], mask=mask)
    if SUM:
        tl.store(total_ptr + offs, total, mask=mask)


def segment_forward(
    neuron: CompiledNeuron, current: Tensor, state: Tensor | None, parameters: dict[str, Tensor],
    output: Tensor, final: Tensor, kept: Tensor | None,
) -> None:  # fmt: skip
    """See :func:`scan_forward`; ``final`` may be ``state``."""
    scan_forward(neuron, current, state, parameters, output, final, kept)


def segment_backward(
    neuron: CompiledNeuron, grad_output: Tensor | None, current: Tensor, state: Tensor | None, kept: Tensor | None,
    parameters: dict[str, Tensor], grad_current: Tensor, grad_state: Tensor, grad_rows: Tensor,
) -> None:  # fmt: skip
    """Fill the gradients of current and rows; ``grad_state``, that of the last state, becomes that of ``state``.

    What steps keep is made again from ``current`` and ``state`` unless it is given.
    """
    if kept is None:
        shape, words = current.shape, (-(-len(current) // 32), *current.shape[1:])
        kept = grad_state.new_empty((neuron.kept, *shape))
        output, final = current.new_empty(words, dtype=torch.int32), torch.empty_like(grad_state)
        scan_forward(neuron, current, state, parameters, output, final, kept)
    scan_backward(neuron, grad_output, grad_state, kept, parameters, grad_current, grad_state, grad_rows, None)


def constants(
    neuron: CompiledNeuron, parameters: dict[str, Tensor], like: Tensor, backward: bool = False
) -> tuple[tuple[float, ...], Tensor]:
    """A program's scalars, at least one, and its rows [R, n], for neurons of the shape of ``like``."""
    scalars, rows = neuron.constants(parameters, backward)
    expanded = [row.detach().float().expand(like.shape).reshape(-1) for row in rows]
    return scalars or (0.0,), torch.stack(expanded) if expanded else like


def scan_forward(
    neuron: CompiledNeuron, current: Tensor, state: Tensor | None, parameters: dict[str, Tensor],
    output: Tensor, final: Tensor, kept: Tensor | None,
) -> None:  # fmt: skip
    """Fill ``output`` [T, ...], ``final`` [S, ...] and ``kept`` [K, T, ...] (contiguous).

    An int32 output is packed, see ``packed.py``. kept[0], or an fp32 output, may be the very memory of an fp32 current:
    no thread reads what another one has written over.
    """
    T, n = current.shape[0], final[0].numel()
    if not n:
        return
    rows, options = current.reshape(T, n), launch_options(n)
    scalars, learnt = constants(neuron, parameters, final[0])
    with device_guard(current):
        scan_forward_kernel[(triton.cdiv(n, options["BLOCK"]),)](
            rows, final if state is None else state.contiguous(), output, final, final if kept is None else kept,
            learnt, T, n, rows.stride(0), rows.stride(1), scalars, neuron.neuron.rest(),
            STEP=device_function(neuron.forward), STATES=neuron.states, KEPT=0 if kept is None else neuron.kept,
            ROWS=neuron.forward.rows, HAS_STATE=state is not None, PACK=output.dtype == torch.int32, **options,
        )  # fmt: skip


def scan_backward(
    neuron: CompiledNeuron, grad_output: Tensor | None, grad_final: Tensor | None, kept: Tensor,
    parameters: dict[str, Tensor], grad_current: Tensor, grad_state: Tensor, grad_rows: Tensor, total: Tensor | None,
) -> None:  # fmt: skip
    """Fill the gradients of current [T, ...], first state [S, ...] and rows [L, ...], and the current's sum over time.

    All are contiguous; a gradient of None is zero. A ``grad_current`` of bfloat16 [3, T, ...] is filled with the parts
    of the gradient (``bf16_split.py``).
    """
    n = grad_state[0].numel()
    if not n:
        return
    split = grad_current.dim() > grad_state.dim()
    T = len(grad_current[0] if split else grad_current)
    # An expanded gradient, as of output.sum(), keeps its strides of 0: it is read from the cache.
    grad = torch.zeros((), device=grad_state.device).expand(T, n) if grad_output is None else grad_output.reshape(T, n)
    options = launch_options(n)
    scalars, learnt = constants(neuron, parameters, grad_state[0], backward=True)
    with device_guard(grad_state):
        scan_backward_kernel[(triton.cdiv(n, options["BLOCK"]),)](
            grad, grad_state if grad_final is None else grad_final.contiguous(), kept, learnt, grad_current, grad_state,
            grad_rows, grad_state if total is None else total, T, n, grad.stride(0), grad.stride(1), scalars,
            STEP=device_function(neuron.backward), STATES=neuron.states, KEPT=neuron.kept, ROWS=neuron.backward.rows,
            LEARNT=len(neuron.learnt_constants), HAS_GRAD_FINAL=grad_final is not None, SUM=total is not None,
            PARTS=3 if split else 1, **options,
        )  # fmt: skip


def launch_options(n: int) -> dict[str, Any]:
    """How to launch either kernel over ``n`` neurons: 4 a thread, in 16-byte accesses, or 1 if threads are scarce.

    What counts is bytes in flight: 64 (forward) and 128 (backward) a thread there, with at most 100 registers.
    """
    block, unroll = (512, 4) if n >= 1 << 19 else (128, 8)
    return {"BLOCK": block, "UNROLL": unroll, "num_warps": 4, "enable_fp_fusion": False}
