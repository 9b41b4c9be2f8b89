"""The fused forward pass of a linear layer and its neurons: a matrix product whose epilogue is the scan over time.

A program owns SAMPLES samples and BLOCK_N neurons, and the rows of its tile are (sample, step): STEPS consecutive time
steps of each sample. So the weight is read as often as in a plain product, and the currents make one round trip through
the cache, in the very memory that what is kept will fill. A longer T takes a launch for every STEPS of them, states
carried in memory: a loop in the kernel would keep the addresses of the product alive through the scan, and spill.

Tests: ``tests/test_linear.py``. Benchmark: ``bench/cases.py``.
"""

import torch
from torch import Tensor

from fastsnn.kernels.neurons.program import CompiledNeuron
from fastsnn.kernels.triton import bf16_split, device_guard, tl, triton
from fastsnn.kernels.triton.bf16_split import ROWS, multiply
from fastsnn.kernels.triton.program import device_function
from fastsnn.kernels.triton.scan import constants, load_rows


@triton.jit(do_not_specialize=["T", "B", "kept_T"])
def linear_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, state_ptr, current_ptr, kept_ptr, output_ptr, final_ptr, rows_ptr,
    T, kept_T, B, N, K, weight_K, width, part, stride_weight, scalars, rest,
    STEP: tl.constexpr, STATES: tl.constexpr, KEPT: tl.constexpr, ROWS_LEARNT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr, PACK: tl.constexpr,
    LEFT_EXACT: tl.constexpr, PARTS: tl.constexpr, ROUNDED: tl.constexpr, OPERAND: tl.constexpr,
    SAMPLES: tl.constexpr, STEPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """SAMPLES samples and BLOCK_N neurons over T <= STEPS time steps; N of an output row's ``width`` neurons.

    What is kept has ``kept_T`` steps. A change of T or B compiles nothing, as rows are aligned by their width alone.

    ``current_ptr`` is memory for the fp32 currents [T, B, width]: that of what is kept first, or of an fp32 output.
    """
    columns = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    pid_b, pid_n = tl.swizzle2d(pid // columns, pid % columns, tl.cdiv(B, SAMPLES), columns, 16)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = (offs_n < N)[None, :]
    rows = tl.arange(0, SAMPLES * STEPS)
    row_b, row_t = pid_b * SAMPLES + rows // STEPS, rows % STEPS
    mask_rows = ((row_b < B) & (row_t < T))[:, None]
    row = (row_t * B + row_b)[:, None]  # int32, for registers: choose_tile sees to it that it fits
    acc = multiply(
        x_ptr + row.to(tl.int64) * K, mask_rows, 1, 0,
        weight_ptr + offs_n.to(tl.int64)[None, :] * stride_weight, mask_n, 1, part, K, weight_K,
        1, LEFT_EXACT, PARTS, ROUNDED, OPERAND, SAMPLES * STEPS, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]

    # A round trip of the currents turns rows, which lie across threads, into lanes that a thread walks along.
    tl.store(current_ptr + row.to(tl.int64) * width + offs_n[None, :], acc, mask=mask_rows & mask_n)
    tl.debug_barrier()
    lane_b = pid_b * SAMPLES + tl.arange(0, SAMPLES)
    lanes = lane_b.to(tl.int64)[:, None] * width + offs_n[None, :]
    mask_lanes = (lane_b < B)[:, None] & mask_n
    stride_t = tl.cast(B, tl.int64) * width  # between steps, and between states
    if HAS_STATE:
        state = load_rows(state_ptr, stride_t, lanes, mask_lanes, STATES)
    else:
        state = ()
        for k in tl.static_range(STATES):
            state += (tl.zeros((SAMPLES, BLOCK_N), tl.float32) + rest[k],)
    learnt = load_rows(rows_ptr, stride_t, lanes, mask_lanes, ROWS_LEARNT, 1.0)  # a step may divide by them
    for start in range(0, T, GROUP):
        currents = ()
        for i in tl.static_range(GROUP):
            mask_t = mask_lanes & (offs_n < tl.where(start + i < T, N, 0))[None, :]
            currents += (tl.load(current_ptr + (start + i) * stride_t + lanes, mask=mask_t, other=0.0),)
        # If several threads hold one lane, all must have read before one of them writes over a current.
        tl.debug_barrier()
        word = tl.zeros((SAMPLES, BLOCK_N), tl.int32)
        for i in tl.static_range(GROUP):
            mask_t = mask_lanes & (offs_n < tl.where(start + i < T, N, 0))[None, :]
            results = STEP((currents[i],) + state, scalars, learnt)
            for k in tl.static_range(KEPT):
                kept = kept_ptr + (tl.cast(k, tl.int64) * kept_T + start + i) * stride_t + lanes
                tl.store(kept, results[1 + STATES + k], mask=mask_t)
            if PACK:
                word |= ((results[0] != 0.0) & mask_t).to(tl.int32) << i
            else:
                tl.store(output_ptr + (start + i) * stride_t + lanes, results[0], mask=mask_t)
            after = ()
            for k in tl.static_range(STATES):
                after += (tl.where(mask_t, results[1 + k], state[k]),)
            state = after
        if PACK:
            mask_t = mask_lanes & (offs_n < tl.where(start < T, N, 0))[None, :]
            tl.store(output_ptr + (start // 32) * stride_t + lanes, word, mask=mask_t)
    for k in tl.static_range(STATES):
        tl.store(final_ptr + k * stride_t + lanes, state[k], mask=mask_lanes)


def linear_forward(
    neuron: CompiledNeuron, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None,
    parameters: dict[str, Tensor], output: Tensor, final: Tensor, kept: Tensor | None,
) -> None:  # fmt: skip
    """Fill ``output`` [T, B, N] (int32 words [ceil(T / 32), B, N]), ``final`` [S, B, N] and ``kept`` [K, T, B, N].

    All are contiguous, as x [T, B, K], of any float dtype or uint8, is.
    """
    T, B, K = x.shape
    N = weight.shape[0]
    kept = kept if neuron.kept else None
    arithmetic = bf16_split.arithmetic(x.device, weight.dtype)
    options = bf16_split.tile_options(x.device, x.dtype, arithmetic, K, N)
    steps, block_n = choose_tile(T, B, N, options["BLOCK_N"], x.device)
    packed = output.dtype == torch.int32
    panel = max(bf16_split.PANEL_BYTES // (6 * K) // 128, 1) * 128 if arithmetic["PARTS"] == 3 else N
    scratch = None
    if kept is None and (packed or output.dtype != torch.float32):
        scratch = torch.empty(min(T, steps), B, N, dtype=torch.float32, device=x.device)
    scalars, rows = constants(neuron, parameters, final[0])
    rows = rows.view(-1, B, N)
    with device_guard(x):
        for first in range(0, N, panel):
            neurons = slice(first, first + panel)
            right = bf16_split.split(weight[neurons]) if arithmetic["PARTS"] == 3 else weight[neurons]
            for t in range(0, T, steps):
                chunk = slice(t, t + steps)
                out = output[t // 32 if packed else t :, :, neurons]
                kept_chunk = out if kept is None else kept[:, chunk, :, neurons]
                current = out if kept is None else kept_chunk[0]
                current = current if scratch is None else scratch[:, :, neurons]
                initial = state if t == 0 else final
                grid = (triton.cdiv(B, ROWS // steps) * triton.cdiv(right.shape[-2], block_n),)
                linear_forward_kernel[grid](
                    x[chunk], right, weight if bias is None else bias[neurons],
                    final if initial is None else initial[:, :, neurons], current, kept_chunk, out,
                    final[:, :, neurons], rows[:, :, neurons],
                    min(steps, T - t), T, B, right.shape[-2], K, right.shape[-1], N, right.stride(0), right.stride(-2),
                    scalars, neuron.neuron.rest(),
                    STEP=device_function(neuron.forward), STATES=neuron.states,
                    KEPT=0 if kept is None else neuron.kept, ROWS_LEARNT=neuron.forward.rows,
                    HAS_BIAS=bias is not None, HAS_STATE=initial is not None, PACK=packed,
                    **arithmetic, **options | {"BLOCK_N": block_n},
                    SAMPLES=ROWS // steps, STEPS=steps, GROUP=min(steps, 32 if packed else 16),
                )  # fmt: skip


def choose_tile(T: int, B: int, N: int, block_n: int, device: torch.device) -> tuple[int, int]:
    """Steps and neurons of a tile: of the divisions of its rows, that which gives the busiest multiprocessor least."""
    slots = bf16_split.multiprocessors(device)

    def work(steps: int, block: int) -> int:
        programs = triton.cdiv(B, ROWS // steps) * triton.cdiv(N, block)
        # What a tile costs besides its products, as 32 neurons more.
        return triton.cdiv(programs, slots) * triton.cdiv(T, steps) * (block + 32)

    steps = [s for s in (128, 64, 32) if s < 2 * T and s * B < 2**31] or [max(triton.next_power_of_2(T), 2)]
    blocks = [b for b in (128, 64, 32, 16) if b <= block_n and (b < 2 * N or b == 16)]
    # At most 1024 lanes, 4 a thread: the addresses of more would spill. Few steps make many lanes, a sample each.
    tiles = [(s, b) for s in steps for b in blocks if ROWS // s * b <= 1024]
    return min(tiles, key=lambda tile: work(*tile))
