"""Tiny kernels with one fault each, which ``compile_targets.py`` must notice; printed as JSON, {case: faults}."""

import json
from typing import Any

import torch
import triton
import triton.language as tl

from tests.compile_targets import Case, check


@triton.jit
def hold_kernel(x_ptr, BLOCK: tl.constexpr):
    """Keeps BLOCK numbers in registers over a barrier."""
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs)
    tl.debug_barrier()
    tl.store(x_ptr + offs, x + 1.0)


@triton.jit
def arithmetic_kernel(x_ptr, KIND: tl.constexpr):
    offs = tl.arange(0, 128)
    x = tl.load(x_ptr + offs)
    if KIND == "divide":
        y = x / (x + 1.0)
    elif KIND == "root":
        y = tl.sqrt(x)
    elif KIND == "fuse":
        y = tl.fma(x, x, x)
    elif KIND == "contract":
        y = x * x + x
    else:
        y = tl.sqrt_rn(tl.div_rn(x, x + 1.0))
    tl.store(x_ptr + offs, y)


@triton.jit
def product_kernel(x_ptr, FUSED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    left, right = tl.load(x_ptr + m[:, None] * BLOCK_K + k[None, :]), tl.load(x_ptr + k[:, None] * BLOCK_N + n[None, :])
    y = tl.dot(left, right, input_precision="ieee")
    tl.store(x_ptr + m[:, None] * BLOCK_N + n[None, :], tl.fma(y, 2.0, y) if FUSED else y)


def launch(kernel: Any, dtype: torch.dtype = torch.float32, fusion: bool | None = False, **constants: Any) -> None:
    options = {} if fusion is None else {"enable_fp_fusion": fusion}
    kernel[(1,)](torch.empty(1, dtype=dtype, device="meta"), **constants, **options)


TILE = {"FUSED": False, "BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32}
LAUNCHES = {
    "sound": (61, lambda: launch(arithmetic_kernel, KIND="exact")),
    "sound product": (61, lambda: launch(product_kernel, **TILE)),
    "sound bf16 product": (80, lambda: launch(product_kernel, torch.bfloat16, **TILE)),
    "spill": (61, lambda: launch(hold_kernel, BLOCK=65536)),
    "division": (61, lambda: launch(arithmetic_kernel, KIND="divide")),
    "root": (61, lambda: launch(arithmetic_kernel, KIND="root")),
    "fma": (61, lambda: launch(arithmetic_kernel, KIND="fuse")),
    "contraction": (61, lambda: launch(arithmetic_kernel, fusion=None, KIND="contract")),
    "fma beside a product": (61, lambda: launch(product_kernel, **TILE | {"FUSED": True, "BLOCK_K": 64})),
    "product in fp32": (80, lambda: launch(product_kernel, **TILE)),
    "shared memory": (61, lambda: launch(product_kernel, **TILE | {"BLOCK_K": 512})),
}

if __name__ == "__main__":
    found = {}
    for name, (target, run) in LAUNCHES.items():
        (report,) = check(Case(name, False, lambda sm, run=run: run()), target)
        found[name] = report.faults
    print(json.dumps(found))
