"""The time loop of a recurrent layer in Triton, forward and backward: see ``recurrent.py``.

Samples never meet, so a program owns SAMPLES of them and goes through all T. At each step it makes the product of its
tile's last outputs with V, BLOCK_N neurons at a time, then the neurons' step. What a step reads of the step before,
also of other threads, goes round through memory (the cache), behind a barrier: outputs or gradients, states and sums.

Currents, outputs and gradients are [T, B, N]. ``recurrent_ptr`` is V (forward V^T) [N, width], as bf16 parts or as it
is, or with DIAGONAL its diagonal [N]; then a program owns BLOCK_N neurons too.
"""

from fastsnn.kernels.triton import tl, triton
from fastsnn.kernels.triton.bf16_split import multiply, split3
from fastsnn.kernels.triton.scan import load_rows


@triton.jit(do_not_specialize=["T", "B"])
def recurrent_forward_kernel(
    current_ptr, recurrent_ptr, ring_ptr, state_ptr, kept_ptr, output_ptr, rows_ptr,
    T, B, N, width, part, scalars,
    STEP: tl.constexpr, STATES: tl.constexpr, KEPT: tl.constexpr, ROWS_LEARNT: tl.constexpr,
    DIAGONAL: tl.constexpr, PACK: tl.constexpr,
    LEFT_EXACT: tl.constexpr, PARTS: tl.constexpr, ROUNDED: tl.constexpr, OPERAND: tl.constexpr,
    SAMPLES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``state_ptr`` [S, B, N] holds the first states and becomes the last; ``ring_ptr`` [2, B, N] holds the output
    before the first step in its second half, and becomes the outputs of even and of odd steps.
    """
    offs_b = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    mask_b = (offs_b < B)[:, None]
    samples = offs_b.to(tl.int64)[:, None] * N
    stride = tl.cast(B, tl.int64) * N
    first, last = 0, N
    if DIAGONAL:
        first = tl.program_id(1) * BLOCK_N
        last = tl.minimum(first + BLOCK_N, N)
    for t in range(0, T):
        step = tl.cast(t, tl.int64) * stride
        previous = ring_ptr + (t + 1) % 2 * stride
        for start in range(first, last, BLOCK_N):
            offs_n = start + tl.arange(0, BLOCK_N)
            mask_n = (offs_n < N)[None, :]
            lanes, mask = samples + offs_n[None, :], mask_b & mask_n
            if DIAGONAL:
                own = tl.load(recurrent_ptr + offs_n, mask=offs_n < N, other=0.0)
                back = tl.load(previous + lanes, mask=mask, other=0.0).to(tl.float32) * own[None, :]
            else:
                back = multiply(
                    previous + samples, mask_b, 1, 0,
                    recurrent_ptr + offs_n[None, :], mask_n, width, part, N, N,
                    1, LEFT_EXACT, PARTS, ROUNDED, OPERAND, SAMPLES, BLOCK_N, BLOCK_K,
                )  # fmt: skip
            current = tl.load(current_ptr + step + lanes, mask=mask, other=0.0) + back
            state = load_rows(state_ptr, stride, lanes, mask, STATES)
            learnt = load_rows(rows_ptr, stride, lanes, mask, ROWS_LEARNT, 1.0)  # a step may divide by them
            word = tl.zeros((SAMPLES, BLOCK_N), tl.int32)
            if PACK:
                words = output_ptr + tl.cast(t // 32, tl.int64) * stride + lanes
                word = tl.load(words, mask=mask & ((word + t) % 32 != 0), other=0)
            # A lane is one thread's: a tile has at least as many lanes as threads.
            results = STEP((current,) + state, scalars, learnt)
            tl.store(ring_ptr + t % 2 * stride + lanes, results[0], mask=mask)
            if PACK:
                tl.store(words, word | (results[0] != 0.0).to(tl.int32) << t % 32, mask=mask)
            else:
                tl.store(output_ptr + step + lanes, results[0], mask=mask)
            for k in tl.static_range(STATES):
                tl.store(state_ptr + tl.cast(k, tl.int64) * stride + lanes, results[1 + k], mask=mask)
            for k in tl.static_range(KEPT):
                kept = kept_ptr + (tl.cast(k, tl.int64) * T + t) * stride + lanes
                tl.store(kept, results[1 + STATES + k], mask=mask)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["T", "B"])
def recurrent_backward_kernel(
    grad_output_ptr, kept_ptr, recurrent_ptr, rows_ptr, grad_ptr, grad_state_ptr, grad_rows_ptr, total_ptr,
    T, B, N, width, part, stride_grad_t, stride_grad_b, stride_grad_n, scalars,
    STEP: tl.constexpr, STATES: tl.constexpr, KEPT: tl.constexpr, ROWS_LEARNT: tl.constexpr, LEARNT: tl.constexpr,
    DIAGONAL: tl.constexpr, SUM: tl.constexpr,
    LEFT_EXACT: tl.constexpr, PARTS: tl.constexpr, ROUNDED: tl.constexpr, OPERAND: tl.constexpr,
    SAMPLES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From the last step to the first.

    ``grad_ptr`` [T + 1, B, N] (its parts [PARTS, T + 1, B, N]) becomes the currents' gradient; its last row is zeros.
    ``grad_state_ptr`` [S, B, N] holds the gradient of the last states and becomes that of the first. ``grad_rows_ptr``
    [L, B, N] and ``total_ptr`` [B, N], the gradient's sum over time if SUM, start as zeros.
    """
    offs_b = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    mask_b = (offs_b < B)[:, None]
    samples = offs_b.to(tl.int64)[:, None] * N
    stride = tl.cast(B, tl.int64) * N
    grad_part = (T + 1) * stride
    first, last = 0, N
    if DIAGONAL:
        first = tl.program_id(1) * BLOCK_N
        last = tl.minimum(first + BLOCK_N, N)
    for i in range(0, T):
        t = tl.cast(T - 1 - i, tl.int64)
        out, after = grad_ptr + t * stride, grad_ptr + (t + 1) * stride
        for start in range(first, last, BLOCK_N):
            offs_n = start + tl.arange(0, BLOCK_N)
            mask_n = (offs_n < N)[None, :]
            lanes, mask = samples + offs_n[None, :], mask_b & mask_n
            if DIAGONAL:
                own = tl.load(recurrent_ptr + offs_n, mask=offs_n < N, other=0.0)
                back = tl.load(after + lanes, mask=mask, other=0.0).to(tl.float32)
                if PARTS == 3:
                    back += tl.load(after + grad_part + lanes, mask=mask, other=0.0).to(tl.float32)
                    back += tl.load(after + 2 * grad_part + lanes, mask=mask, other=0.0).to(tl.float32)
                back *= own[None, :]
            else:
                back = multiply(
                    after + samples, mask_b, 1, grad_part,
                    recurrent_ptr + offs_n[None, :], mask_n, width, part, N, N,
                    PARTS, LEFT_EXACT, PARTS, ROUNDED, OPERAND, SAMPLES, BLOCK_N, BLOCK_K,
                )  # fmt: skip
            given = grad_output_ptr + t * stride_grad_t + offs_b.to(tl.int64)[:, None] * stride_grad_b
            upstream = tl.load(given + offs_n.to(tl.int64)[None, :] * stride_grad_n, mask=mask, other=0.0)
            history = load_rows(kept_ptr + t * stride, T * stride, lanes, mask, KEPT)
            grad_state = load_rows(grad_state_ptr, stride, lanes, mask, STATES)
            learnt = load_rows(rows_ptr, stride, lanes, mask, ROWS_LEARNT, 1.0)  # a step may divide by them
            sums = load_rows(grad_rows_ptr, stride, lanes, mask, LEARNT)
            total = load_rows(total_ptr, stride, lanes, mask, SUM)
            results = STEP(history + (upstream.to(tl.float32) + back,) + grad_state, scalars, learnt)
            if PARTS == 1:
                tl.store(out + lanes, results[0], mask=mask)
            else:
                high, middle, low = split3(results[0])
                tl.store(out + lanes, high, mask=mask)
                tl.store(out + grad_part + lanes, middle, mask=mask)
                tl.store(out + 2 * grad_part + lanes, low, mask=mask)
            for k in tl.static_range(STATES):
                tl.store(grad_state_ptr + tl.cast(k, tl.int64) * stride + lanes, results[1 + k], mask=mask)
            for k in tl.static_range(LEARNT):
                row = grad_rows_ptr + tl.cast(k, tl.int64) * stride + lanes
                tl.store(row, sums[k] + results[1 + STATES + k], mask=mask)
            for k in tl.static_range(SUM):
                tl.store(total_ptr + lanes, total[k] + results[0], mask=mask)
        tl.debug_barrier()
