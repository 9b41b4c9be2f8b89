"""The fused forward pass of linear + LIF: a matrix product whose epilogue is the scan over time.

A program owns SAMPLES samples and BLOCK_N neurons, and the rows of its tile are (sample, step): STEPS consecutive time
steps of each sample. So the weight is read as often as in a plain product, and the currents make one round trip through
the cache, in the very memory that h will fill. A longer T takes a launch for every STEPS of them, v carried in memory:
a loop in the kernel would keep the addresses of the product alive through the scan, and spill.

Reference: ``kernels/reference.py``. Tests: ``tests/test_linear_lif.py``. Benchmark: ``bench/bench_linear_lif.py``.
"""

from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels.triton import device_guard, planes, tl, triton
from fastsnn.kernels.triton.planes import ROWS, multiply
from fastsnn.kernels.triton.surrogates import charge, forward_arguments, reset


@triton.jit
def linear_lif_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, v_init_ptr, current_ptr, h_ptr, spikes_ptr, v_ptr,
    T, B, N, K, weight_K, width, plane, stride_weight,
    tau, inv_tau, leak, v_threshold, v_reset,
    DECAY_INPUT: tl.constexpr, RESTING: tl.constexpr, POWER_OF_TWO: tl.constexpr, HARD_RESET: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_V_INIT: tl.constexpr, SAVE_H: tl.constexpr, PACK: tl.constexpr,
    LEFT_EXACT: tl.constexpr, PLANES: tl.constexpr, ROUNDED: tl.constexpr, OPERAND: tl.constexpr,
    SAMPLES: tl.constexpr, STEPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """SAMPLES samples and BLOCK_N neurons over T <= STEPS time steps; N of an output row's ``width`` neurons.

    ``current_ptr`` is memory for the fp32 currents [T, B, width]: h's own, or that of fp32 spikes.
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
        weight_ptr + offs_n.to(tl.int64)[None, :] * stride_weight, mask_n, 1, plane, K, weight_K,
        1, LEFT_EXACT, PLANES, ROUNDED, OPERAND, SAMPLES * STEPS, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]

    # A round trip of the currents turns rows, which lie across threads, into lanes that a thread walks along.
    tl.store(current_ptr + row.to(tl.int64) * width + offs_n[None, :], acc, mask=mask_rows & mask_n)
    tl.debug_barrier()
    lane_b = pid_b * SAMPLES + tl.arange(0, SAMPLES)
    lanes = lane_b.to(tl.int64)[:, None] * width + offs_n[None, :]
    mask_lanes = (lane_b < B)[:, None] & mask_n
    stride_t = tl.cast(B, tl.int64) * width
    if HAS_V_INIT:
        v = tl.load(v_init_ptr + lanes, mask=mask_lanes, other=0.0).to(tl.float32)
    else:
        v = tl.zeros((SAMPLES, BLOCK_N), tl.float32) + v_reset
    for start in range(0, T, GROUP):
        currents = ()
        for i in tl.static_range(GROUP):
            mask_t = mask_lanes & (offs_n < tl.where(start + i < T, N, 0))[None, :]
            currents += (tl.load(current_ptr + (start + i) * stride_t + lanes, mask=mask_t, other=0.0),)
        # Where several threads hold one lane, all must have read before one of them writes h over a current.
        tl.debug_barrier()
        word = tl.zeros((SAMPLES, BLOCK_N), tl.int32)
        for i in tl.static_range(GROUP):
            mask_t = mask_lanes & (offs_n < tl.where(start + i < T, N, 0))[None, :]
            h = charge(currents[i], v, tau, inv_tau, leak, v_reset, DECAY_INPUT, RESTING, POWER_OF_TWO)
            fired = (h >= v_threshold) & mask_t
            if SAVE_H:
                tl.store(h_ptr + (start + i) * stride_t + lanes, h, mask=mask_t)
            if PACK:
                word |= fired.to(tl.int32) << i
            else:
                tl.store(spikes_ptr + (start + i) * stride_t + lanes, tl.where(fired, 1.0, 0.0), mask=mask_t)
            v = tl.where(mask_t, reset(h, fired, v_threshold, v_reset, HARD_RESET), v)
        if PACK:
            mask_t = mask_lanes & (offs_n < tl.where(start < T, N, 0))[None, :]
            tl.store(spikes_ptr + (start // 32) * stride_t + lanes, word, mask=mask_t)
    tl.store(v_ptr + lanes, v, mask=mask_lanes)


def linear_lif_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, v_init: Tensor | None,
    spikes: Tensor, v: Tensor, h: Tensor | None, neuron: dict[str, Any],
) -> None:  # fmt: skip
    """Fill ``spikes`` [T, B, N] (int32 words [ceil(T / 32), B, N]), ``v`` [B, N] and ``h`` [T, B, N], all contiguous.

    x [T, B, K] is contiguous, of any float dtype or uint8.
    """
    T, B, K = x.shape
    N = weight.shape[0]
    constants = planes.arithmetic(x.device, weight.dtype)
    options = planes.tile_options(x.device, x.dtype, constants, K, N)
    steps, block_n = choose_tile(T, B, N, options["BLOCK_N"], x.device)
    packed = spikes.dtype == torch.int32
    panel = max(planes.PANEL_BYTES // (6 * K) // 128, 1) * 128 if constants["PLANES"] == 3 else N
    scratch = None
    if h is None and (packed or spikes.dtype != torch.float32):
        scratch = torch.empty(min(T, steps), B, N, dtype=torch.float32, device=x.device)
    with device_guard(x):
        for first in range(0, N, panel):
            neurons = slice(first, first + panel)
            right = planes.split(weight[neurons]) if constants["PLANES"] == 3 else weight[neurons]
            for t in range(0, T, steps):
                chunk = slice(t, t + steps)
                out = spikes[t // 32 if packed else t :, :, neurons]
                h_chunk = out if h is None else h[chunk, :, neurons]
                current = scratch[:, :, neurons] if scratch is not None else h_chunk
                initial = v_init if t == 0 else v
                grid = (triton.cdiv(B, ROWS // steps) * triton.cdiv(right.shape[-2], block_n),)
                linear_lif_forward_kernel[grid](
                    x[chunk], right, weight if bias is None else bias[neurons],
                    v if initial is None else initial[:, neurons], current, h_chunk, out, v[:, neurons],
                    min(steps, T - t), B, right.shape[-2], K, right.shape[-1], N, right.stride(0), right.stride(-2),
                    **forward_arguments(**neuron),
                    HAS_BIAS=bias is not None, HAS_V_INIT=initial is not None, SAVE_H=h is not None, PACK=packed,
                    **constants, **options | {"BLOCK_N": block_n},
                    SAMPLES=ROWS // steps, STEPS=steps, GROUP=min(steps, 32 if packed else 16),
                )  # fmt: skip


def choose_tile(T: int, B: int, N: int, block_n: int, device: torch.device) -> tuple[int, int]:
    """Steps and neurons of a tile: of the divisions of its rows, that which gives the busiest multiprocessor least."""
    slots = planes.multiprocessors(device)

    def work(steps: int, block: int) -> int:
        programs = triton.cdiv(B, ROWS // steps) * triton.cdiv(N, block)
        # What a tile costs besides its products, as 32 neurons more.
        return triton.cdiv(programs, slots) * triton.cdiv(T, steps) * (block + 32)

    steps = [s for s in (128, 64, 32) if s < 2 * T and s * B < 2**31] or [max(triton.next_power_of_2(T), 2)]
    blocks = [b for b in (128, 64, 32, 16) if b <= block_n and (b < 2 * N or b == 16)]
    # At most 1024 lanes, 4 a thread: the addresses of more would spill. Few steps make many lanes, a sample each.
    tiles = [(s, b) for s in steps for b in blocks if ROWS // s * b <= 1024]
    return min(tiles, key=lambda tile: work(*tile))
