"""Spikes packed along time, 32 steps to a word, so that what lies between two layers takes 1/32 of fp32.

Bit i of word w of ``words`` int32 [ceil(T / 32), ...] is the spike at t = 32 w + i; bits from T on are 0. Integers have
no gradient, so a *carrier* goes with them: a float tensor [T, ...] that holds one number, expanded, and whose gradient
is that of the spikes. Tests: ``tests/test_packed.py``.
"""

import torch
from torch import Tensor

from fastsnn.kernels._triton import device_guard, tl, triton


@triton.jit
def unpack_kernel(words_ptr, spikes_ptr, T, n, BLOCK: tl.constexpr):
    """The 32 steps of word ``program_id(1)`` for BLOCK neurons: int32 [W, n] -> uint8 [T, n]."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    start = tl.program_id(1) * 32
    word = tl.load(words_ptr + tl.program_id(1).to(tl.int64) * n + offs, mask=offs < n, other=0)
    for i in tl.static_range(32):
        t = tl.cast(start + i, tl.int64)
        tl.store(spikes_ptr + t * n + offs, ((word >> i) & 1).to(tl.uint8), mask=offs < tl.where(t < T, n, 0))


def unpack(words: Tensor, T: int) -> Tensor:
    """A byte for every spike: words [ceil(T / 32), ...], contiguous -> uint8 [T, ...]."""
    spikes = torch.empty(T, *words.shape[1:], dtype=torch.uint8, device=words.device)
    n, block = words[0].numel(), 1024
    if n:
        with device_guard(words):
            unpack_kernel[(triton.cdiv(n, block), words.shape[0])](
                words, spikes, T, n, BLOCK=block, num_warps=4, enable_fp_fusion=False
            )
    return spikes
