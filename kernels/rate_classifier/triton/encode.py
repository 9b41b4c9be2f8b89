"""Encode batches of images as packed Poisson spikes of their non-zero pixels, some steps ahead of the training step.

A data set is kept as an index of its non-zero pixels (81 % of MNIST is zero), built once by :func:`index_pixels`:
sample d owns entries ``row_ptr[d] .. row_ptr[d + 1]``, each ``pixel | value << 16``. The kernel writes, for slot
(batch, sample of the batch):

    sizes    int32 [batches, 2]                            samples in the batch (0 past the run's end), its step
    samples  int32 [batches, B, 2]                         number of non-zero pixels, label
    pixels   int32 [batches, B, capacity]                  the non-zero pixels
    words    int32 [batches, B, chunks, 8, capacity / 2]   spikes: 16 steps of two pixels, the second in the upper half

Random numbers are those of ``kernels/philox.py``, the reference, bit for bit. Nothing here depends on the weights.
Tests: ``tests/test_rate_step.py``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastsnn.kernels.triton import tl, triton
from fastsnn.kernels.triton.philox import byte_thresholds, poisson_words

CHUNK = 128
"""Time steps that one number of Philox decides."""
ALIGNMENT = 16
"""The capacity for non-zero pixels is a multiple of this, so that a program may load several words at a time."""
# Pixels examined at a time while an index is built: bounds the int64 temporaries to 128 MiB.
_SCAN = 1 << 24


@dataclass(frozen=True, eq=False)
class PixelIndex:
    """A data set on its device: which pixels are not zero, what they hold, and the labels."""

    row_ptr: Tensor
    """int32 [D + 1]"""
    entries: Tensor
    """int32 [non-zero pixels], pixel | value << 16"""
    labels: Tensor
    """int64 [D]"""
    pixels: int
    """Pixels of an image."""
    capacity: int
    """The most non-zero pixels of an image, rounded up to a multiple of 16."""

    def __len__(self) -> int:
        return len(self.labels)


def index_pixels(images: Tensor, labels: Tensor) -> PixelIndex:
    """Index ``images`` uint8 [D, P] with ``labels`` int64 [D], both on the device that trains on them."""
    samples, pixels = images.shape
    counts = images.count_nonzero(1)
    if int(counts.sum()) >= 2**31:
        raise ValueError(f"images have {int(counts.sum())} non-zero pixels; allowed: less than 2**31 in a data set")
    row_ptr = torch.zeros(samples + 1, dtype=torch.int32, device=images.device)
    row_ptr[1:] = counts.cumsum(0)
    parts = []
    for block in images.split(max(1, _SCAN // max(1, pixels))):
        row, pixel = block.nonzero(as_tuple=True)
        parts.append(pixel.to(torch.int32) | block[row, pixel].to(torch.int32) << 16)
    most = int(counts.max()) if samples else 0
    capacity = max(ALIGNMENT, -(-most // ALIGNMENT) * ALIGNMENT)
    return PixelIndex(row_ptr, torch.cat(parts), labels, pixels, capacity)


@triton.jit
def _as_int(words):
    return words.to(tl.int32, bitcast=True)


@triton.jit(do_not_specialize=["batch_size", "chunks"])
def encode_kernel(
    job_ptr, order_ptr, row_ptr, entry_ptr, label_ptr, sizes_ptr, samples_ptr, pixels_ptr, words_ptr,
    batch_size, capacity, chunks, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid (batch_size, batches, pixel blocks * chunks); the first batch is that of the step counter."""
    b, batch, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    chunk, first = part % chunks, part // chunks * BLOCK_K
    step = tl.load(job_ptr) + batch
    remaining = tl.load(job_ptr + 1) - step * batch_size
    size = tl.minimum(tl.maximum(remaining, 0), batch_size)
    if b + part == 0:
        tl.store(sizes_ptr + batch * 2, size.to(tl.int32))
        tl.store(sizes_ptr + batch * 2 + 1, step.to(tl.int32))
    if b < size:
        slot = (batch * batch_size + b).to(tl.int64)
        sample = tl.load(order_ptr + step * batch_size + b)
        start = tl.load(row_ptr + sample)
        count = tl.load(row_ptr + sample + 1) - start
        if part == 0:
            tl.store(samples_ptr + slot * 2, count)
            tl.store(samples_ptr + slot * 2 + 1, tl.load(label_ptr + sample).to(tl.int32))
        if first < count:
            seed, epoch, stream = tl.load(job_ptr + 2), tl.load(job_ptr + 3), tl.load(job_ptr + 4)
            offs_k = first + tl.arange(0, BLOCK_K)
            mask_k = offs_k < count
            entry = tl.load(entry_ptr + start + offs_k, mask=mask_k, other=0)
            pixel = entry & 0xFFFF
            spikes = poisson_words(seed, epoch, stream, sample, chunk, pixel, byte_thresholds(entry >> 16))
            if chunk == 0:
                tl.store(pixels_ptr + slot * capacity + offs_k, pixel, mask=mask_k)
            pair = first // 2 + tl.arange(0, BLOCK_K // 2)
            for w in tl.static_range(4):
                even, odd = tl.split(tl.reshape(spikes[w], (BLOCK_K // 2, 2)))
                word = words_ptr + ((slot * chunks + chunk) * 8 + 2 * w) * (capacity // 2) + pair
                mask = 2 * pair < count
                tl.store(word, _as_int((even & 0xFFFF) | (odd << 16)), mask=mask)
                tl.store(word + capacity // 2, _as_int((even >> 16) | (odd & 0xFFFF0000)), mask=mask)
