"""Pack spikes [T, B, K] of any dtype, 32 time steps to a word, and find out whether they are spikes at all."""

import numpy as np
import torch
from torch import Tensor

from fastsnn.kernels.numba import jit
from fastsnn.kernels.numba.threads import spread, workers_for

INTEGERS = {
    torch.float32: (torch.int32, 0x3F800000, 0x7FFFFFFF),
    torch.float16: (torch.int16, 0x3C00, 0x7FFF),
    torch.bfloat16: (torch.int16, 0x3F80, 0x7FFF),
    torch.bool: (torch.uint8, 1, 0xFF),
    torch.uint8: (torch.uint8, 1, 0xFF),
}
"""dtype -> the integers of its bits, that of 1, and the bits that are 0 in both zeros."""
BLOCK = 1024
"""Neurons of one sample whose words a worker packs at a time."""


@jit
def pack_block(x, words, first, stop, one, mask):
    """Pack neurons first .. stop - 1 of x [T, n] to words [ceil(T/32), n]; False if any is neither 0 nor 1."""
    wrong = 0
    for w in range(len(words)):
        out = words[w, first:stop]
        for i in range(len(out)):
            out[i] = 0
        for t in range(32 * w, min(32 * w + 32, len(x))):
            row, bit = x[t, first:stop], np.int32(t % 32)
            for i in range(len(out)):
                spike = np.int32(row[i] == one)
                out[i] |= spike << bit
                wrong |= np.int32((row[i] & mask) != 0) ^ spike
        if wrong:
            return False
    return True


@jit(entry=True)
def pack_share(worker, workers, x, words, one, mask, ok):
    """One worker's share; ok[worker] is whether all it saw are spikes."""
    n = words.shape[1]
    blocks = (n + BLOCK - 1) // BLOCK
    ok[worker] = True
    for block in range(blocks * worker // workers, blocks * (worker + 1) // workers):
        if not pack_block(x, words, block * BLOCK, min((block + 1) * BLOCK, n), one, mask):
            ok[worker] = False
            return


def pack(x: Tensor) -> Tensor | None:
    """Packed words int32 [ceil(T/32), ...] of x [T, ...] (float32, float16, bfloat16, bool or uint8) on the CPU.

    None if x holds anything but 0 and 1 (-0 is a 0); that is found out at the first values seen, if not earlier.
    Raises TypeError for another dtype.
    """
    if x.dtype not in INTEGERS:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in INTEGERS)
        raise TypeError(f"x has dtype {str(x.dtype).removeprefix('torch.')}; allowed: {allowed}")
    integer, one, mask = INTEGERS[x.dtype]
    words = torch.empty(-(-len(x) // 32), *x.shape[1:], dtype=torch.int32)
    if not words.numel():
        return words
    values = x.detach().contiguous().view(integer).reshape(len(x), -1).numpy()
    workers = workers_for(x.numel())
    ok = np.empty(workers, np.bool_)
    constants = values.dtype.type(one), values.dtype.type(mask)
    spread(pack_share, workers, values, words.reshape(len(words), -1).numpy(), *constants, ok)
    return words if ok.all() else None
