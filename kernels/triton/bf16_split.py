"""Products of fp32 accuracy on tensor cores: an fp32 matrix as the sum of three bf16 parts.

    x = high + middle + low      each rounded to bf16; lossless for every fp32 number from 2^-110 up

The right operand of a product lies in memory as parts; the left one as parts or as it is, and is then split where it
is used. Of the nine products of parts six matter; they are summed smallest first. A left operand of spikes, or of
other numbers that bf16 can hold, is its own high part: that leaves three. Tensor cores truncate when they accumulate,
so each tile of the inner dimension takes a fresh accumulator, which is then added to an fp32 one: the error stays at or
below that of an fp32 matrix product.

A kernel takes the arithmetic as three constants, chosen by :func:`arithmetic`:

    PARTS   3: as above, for fp32 weights on sm_80 and later. 1: one product of operands as they are, for fp16 and bf16
             weights there, and for fp32 dots below sm_80
    ROUNDED  the dtype that the operands of a product are rounded to
    OPERAND  the dtype that they are multiplied in: ROUNDED, but fp32 in the interpreter, whose bf16 dot is wrong

Tests: ``tests/test_bf16_split.py``.
"""

from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels.triton import INTERPRETED, device_guard, tl, triton

ROWS = 128
"""Rows of a tile."""
PANEL_BYTES = 1 << 28
"""Bytes of a weight's bf16 parts that exist at a time: a larger weight is gone through in panels."""
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def capability(device: torch.device) -> int:
    """Compute capability, 90 for sm_90; the interpreter stands in for an sm_80."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def multiprocessors(device: torch.device) -> int:
    """How many programs run at a time; one in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def arithmetic(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The constants for weights of ``dtype``."""
    if capability(device) < 80:
        return {"PARTS": 1, "ROUNDED": tl.float32, "OPERAND": tl.float32}
    rounded = tl.bfloat16 if dtype == torch.float32 else TYPES[dtype]
    parts = 3 if dtype == torch.float32 else 1
    return {"PARTS": parts, "ROUNDED": rounded, "OPERAND": tl.float32 if INTERPRETED else rounded}


def tile_options(
    device: torch.device, left: torch.dtype | None, constants: dict[str, Any], *strides: int
) -> dict[str, Any]:
    """Whether a left operand of dtype ``left`` (None: parts) is exact, and the tile (of ROWS rows) and launch options.

    ``strides`` are the operands'. No tile spills: the addresses of rows that are not aligned take registers, as do
    parts on sm_100 and numbers to be split on sm_86, 89 and 120.
    """
    exact = constants["PARTS"] == 1 or left in (torch.uint8, torch.bfloat16)
    sm = capability(device)
    if sm < 80:
        block_n, block_k, warps, stages = 64, 16, 8, 2
    elif 90 <= sm < 120 and all(stride == 1 or stride % 16 == 0 for stride in strides) and (left or sm < 100):
        block_n, block_k, warps, stages = 128, 64 if exact else 32, 8, 3
    else:
        block_n, block_k, warps, stages = 64, 32 if exact or sm not in (86, 89, 120) else 16, 8, 3
    return {
        "LEFT_EXACT": exact,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "num_warps": warps,
        "num_stages": stages,
        # A limit of 255 is none, but under one the compiler doesn't spill for the sake of a second block.
        "maxnreg": 255,
        "enable_fp_fusion": False,
    }


@triton.jit
def split3(x):
    """The high, middle and low part of an fp32 tile."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    return high, middle, low


@triton.jit
def multiply(
    left_ptrs, left_mask, stride_left, left_part,
    right_ptrs, right_mask, stride_right, right_part, K, right_K,
    LEFT_PARTS: tl.constexpr, LEFT_EXACT: tl.constexpr,
    PARTS: tl.constexpr, ROUNDED: tl.constexpr, OPERAND: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """left @ right in fp32: [ROWS, K] @ [K, COLUMNS] -> [ROWS, COLUMNS].

    ``left_ptrs`` [ROWS, 1] and ``right_ptrs`` [1, COLUMNS] point at k = 0, with masks of those shapes; the strides are
    along k. Parts are ``*_part`` elements apart; LEFT_PARTS 1 is an operand that lies there as it is, and LEFT_EXACT
    one from which rounding takes nothing that counts. From K to ``right_K`` the right operand's rows are zeros.
    """
    offs_k = tl.arange(0, BLOCK_K)
    left_ptrs += offs_k[None, :] * stride_left
    right_ptrs += offs_k[:, None] * stride_right
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    inexact = tl.zeros((ROWS,), tl.int32)
    for start in range(0, K, BLOCK_K):
        k = tl.cast(start, tl.int64)
        mask_left = left_mask & (offs_k < K - start)[None, :]
        mask_right = right_mask & (offs_k < right_K - start)[:, None]
        x = tl.load(left_ptrs + k * stride_left, mask=mask_left, other=0)
        if x.dtype != ROUNDED:
            x = x.to(tl.float32)
            if not LEFT_EXACT:
                inexact = tl.maximum(inexact, tl.max(x.to(tl.int32, bitcast=True) & 0xFFFF, axis=1))
            x = x.to(ROUNDED)
        x = x.to(OPERAND)
        ptrs = right_ptrs + k * stride_right
        high = tl.load(ptrs, mask=mask_right, other=0.0).to(OPERAND)
        if PARTS == 1:
            acc = tl.dot(x, high, acc, input_precision="ieee")
        else:
            middle = tl.load(ptrs + right_part, mask=mask_right, other=0.0).to(OPERAND)
            low = tl.load(ptrs + 2 * right_part, mask=mask_right, other=0.0).to(OPERAND)
            product = tl.dot(x, low)
            product = tl.dot(x, middle, product)
            acc += tl.dot(x, high, product)
    if not LEFT_EXACT:
        # The products of the left operand's lower parts; none where every number of it is one of bf16, as spikes are.
        rest = K
        if LEFT_PARTS == 1:
            rest = tl.where(tl.max(inexact, axis=0) == 0, 0, K)
        for start in range(0, rest, BLOCK_K):
            k = tl.cast(start, tl.int64)
            mask_left = left_mask & (offs_k < K - start)[None, :]
            mask_right = right_mask & (offs_k < right_K - start)[:, None]
            if LEFT_PARTS == 1:
                x = tl.load(left_ptrs + k * stride_left, mask=mask_left, other=0.0).to(tl.float32)
                _, x_middle, x_low = split3(x)
            else:
                ptrs = left_ptrs + k * stride_left
                x_middle = tl.load(ptrs + left_part, mask=mask_left, other=0.0)
                x_low = tl.load(ptrs + 2 * left_part, mask=mask_left, other=0.0)
            x_middle = x_middle.to(OPERAND)
            ptrs = right_ptrs + k * stride_right
            high = tl.load(ptrs, mask=mask_right, other=0.0).to(OPERAND)
            middle = tl.load(ptrs + right_part, mask=mask_right, other=0.0).to(OPERAND)
            product = tl.dot(x_low.to(OPERAND), high)
            product = tl.dot(x_middle, middle, product)
            acc += tl.dot(x_middle, high, product)
    return acc


@triton.jit
def matmul_kernel(
    left_ptr, right_ptr, out_ptr,
    M, N, K, split_K, stride_left_m, stride_left_k, left_part, stride_right_k, right_part,
    stride_out_split, stride_out_m, stride_out_n,
    LEFT_PARTS: tl.constexpr, LEFT_EXACT: tl.constexpr,
    PARTS: tl.constexpr, ROUNDED: tl.constexpr, OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out [splits, M, N]: the shares that stretches of ``split_K`` of the inner dimension have in left @ right."""
    columns = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    pid_m, pid_n = tl.swizzle2d(pid // columns, pid % columns, tl.cdiv(M, BLOCK_M), columns, 16)
    offs_m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m, mask_n = (offs_m < M)[:, None], (offs_n < N)[None, :]
    first = tl.program_id(1).to(tl.int64) * split_K
    length = tl.minimum(K - first, split_K).to(tl.int32)
    acc = multiply(
        left_ptr + first * stride_left_k + offs_m[:, None] * stride_left_m, mask_m, stride_left_k, left_part,
        right_ptr + first * stride_right_k + offs_n[None, :], mask_n, stride_right_k, right_part, length, length,
        LEFT_PARTS, LEFT_EXACT, PARTS, ROUNDED, OPERAND, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    out_ptrs = out_ptr + tl.program_id(1).to(tl.int64) * stride_out_split + offs_m[:, None] * stride_out_m
    tl.store(out_ptrs + offs_n[None, :] * stride_out_n, acc, mask=mask_m & mask_n)


def matmul(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out [M, N] = left @ right, of fp32 accuracy, for ``right`` given as parts [3, K, N or more].

    ``left`` is [M, K] of any float dtype or uint8, or parts [3, M, K]. Where out has fewer tiles than there are
    multiprocessors, programs share out the inner dimension, and their sums are added up in order.
    """
    if (sm := capability(out.device)) < 80:
        raise ValueError(f"out is on {out.device}, sm_{sm}; products of bf16 parts need sm_80 or newer: path library")
    M, N = out.shape
    K = right.shape[1]
    left_parts, left_part = (3, left.stride(0)) if left.dim() == 3 else (1, 0)
    constants = arithmetic(out.device, torch.float32)
    strides = (*left.stride()[-2:], right.stride(1), *out.stride())
    options = tile_options(out.device, left.dtype if left_parts == 1 else None, constants, *strides)
    options["BLOCK_N"] = min(options["BLOCK_N"], max(triton.next_power_of_2(N), 16))
    tiles = triton.cdiv(M, ROWS) * triton.cdiv(N, options["BLOCK_N"])
    splits = max(min(multiprocessors(out.device) // tiles, K // (8 * options["BLOCK_K"])), 1)
    split_K = triton.cdiv(triton.cdiv(K, splits), options["BLOCK_K"]) * options["BLOCK_K"]
    splits = triton.cdiv(K, split_K)
    sums = out[None]
    if splits > 1:
        shape = (splits, N, M) if out.stride(0) == 1 else (splits, M, N)
        sums = torch.empty(shape, dtype=torch.float32, device=out.device)
        sums = sums.transpose(1, 2) if out.stride(0) == 1 else sums
    with device_guard(out):
        matmul_kernel[(tiles, splits)](
            left, right, sums, M, N, K, split_K, left.stride(-2), left.stride(-1), left_part,
            right.stride(1), right.stride(0), sums.stride(0), sums.stride(1), sums.stride(2),
            LEFT_PARTS=left_parts, BLOCK_M=ROWS, **constants, **options,
        )  # fmt: skip
    if splits > 1:
        out.copy_(sums.sum(0))


@triton.jit
def split_kernel(x_ptr, parts_ptr, rows, K, width, stride_x, BLOCK: tl.constexpr):
    """Row ``program_id(0)`` of x [rows, K] -> parts [3, rows, width], zeros from K on."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride_x + offs, mask=offs < K, other=0.0).to(tl.float32)
    high, middle, low = split3(x)
    part = tl.cast(rows, tl.int64) * width
    out = parts_ptr + row * width + offs
    tl.store(out, high, mask=offs < width)
    tl.store(out + part, middle, mask=offs < width)
    tl.store(out + 2 * part, low, mask=offs < width)


def split(x: Tensor) -> Tensor:
    """The parts bf16 [3, rows, width] of an fp32 matrix; width is its columns rounded up to 16, for aligned rows."""
    rows, K = x.shape
    width = triton.cdiv(K, 16) * 16
    parts = torch.empty(3, rows, width, dtype=torch.bfloat16, device=x.device)
    block = 1024
    with device_guard(x):
        split_kernel[(rows, triton.cdiv(width, block))](
            x, parts, rows, K, width, x.stride(0), BLOCK=block, num_warps=4, enable_fp_fusion=False
        )
    return parts
