"""Random spikes on the CPU, in Numba: the layout of ``kernels/philox.py``, bit for bit, with pixels in vector lanes.

Words here are uint64: bit i of word w belongs to t = 64 w + i, so the four 32-bit words of one Philox call are two.
The 64-bit products of 32-bit words vectorize (vpmuludq); nothing is masked before the next product needs it.
Reference: ``kernels/philox.py``. Tests: ``tests/test_cpu_philox.py``.
"""

import numpy as np
import torch
from torch import Tensor

from fastsnn.kernels.numba import jit
from fastsnn.kernels.numba.threads import spread, workers_for

U64 = np.uint64
LOW = U64(0xFFFFFFFF)
ALWAYS = U64(65536)
PLANES = 16
DENSE_PLANES = 8
"""After so many bit planes two thirds of the pixels are decided: from then on only the others draw."""
SCRATCH = 7
"""Rows of uint64 that ``draw`` works in."""


@jit(inline="always")
def philox4x32(k0, k1, c0, c1, c2, c3):
    """Philox4x32-10; returns its 128 bits as two uint64 words."""
    for _ in range(10):
        p0, p1 = (c0 & LOW) * U64(0xD2511F53), (c2 & LOW) * U64(0xCD9E8D57)
        c0, c2 = (p1 >> U64(32)) ^ c1 ^ k0, (p0 >> U64(32)) ^ c3 ^ k1
        c1, c3 = p1, p0
        k0, k1 = (k0 + U64(0x9E3779B9)) & LOW, (k1 + U64(0xBB67AE85)) & LOW
    return c0 & LOW | c1 << U64(32), c2 & LOW | c3 << U64(32)


@jit(inline="always")
def decide(random, mask, undecided, spikes):
    """Compare a bit plane with q's bit (``mask``: all ones where it is 1); returns spikes and undecided."""
    return spikes | undecided & mask & ~random, undecided & (random ^ ~mask)


@jit
def two_planes(pixel, q, undecided, spikes, live, plane, seed, c1, sample, epoch):
    """Draw bit planes ``plane`` and ``plane + 1`` of the first ``live`` pixels."""
    k0, k1 = seed & LOW, seed >> U64(32)
    first, second = c1 + U64(plane), c1 + U64(plane + 1)
    shift = U64(PLANES - 2 - plane)
    undecided_low, undecided_high, spikes_low, spikes_high = undecided[0], undecided[1], spikes[0], spikes[1]
    for i in range(live):
        a_low, a_high = philox4x32(k0, k1, pixel[i], first, sample, epoch)
        b_low, b_high = philox4x32(k0, k1, pixel[i], second, sample, epoch)
        bits = q[i] >> shift
        a_mask, b_mask = U64(0) - (bits >> U64(1) & U64(1)), U64(0) - (bits & U64(1))
        s, u = decide(a_low, a_mask, undecided_low[i], spikes_low[i])
        spikes_low[i], undecided_low[i] = decide(b_low, b_mask, u, s)
        s, u = decide(a_high, a_mask, undecided_high[i], spikes_high[i])
        spikes_high[i], undecided_high[i] = decide(b_high, b_mask, u, s)


@jit
def settle(pixel, q, undecided, spikes, slot, live, words):
    """Add the spikes drawn so far to ``words`` and move undecided pixels to the front; returns how many there are."""
    kept = 0
    for i in range(live):
        low, high = undecided[0, i], undecided[1, i]
        words[0, slot[i]] |= spikes[0, i]
        words[1, slot[i]] |= spikes[1, i]
        pixel[kept], q[kept], slot[kept] = pixel[i], q[i], slot[i]
        undecided[0, kept], undecided[1, kept] = low, high
        spikes[0, kept] = spikes[1, kept] = U64(0)
        kept += (low | high) != U64(0)
    return kept


@jit(inline="always")
def lanes(count):
    """uint64 whose lowest ``count`` bits are 1."""
    if count >= 64:
        return ~U64(0)
    return (U64(1) << U64(max(count, 0))) - U64(1)


@jit
def draw(pixels, thresholds, n, T, seed, epoch, stream, sample, words, scratch):
    """Spikes of one sample's pixels, ``words`` uint64 [2 ceil(T/128), n]; each has probability thresholds / 65536.

    pixels (indices in the image), thresholds: uint64 [n]; scratch: uint64 [SCRATCH, n].
    """
    pixel, q, slot, undecided, spikes = scratch[0], scratch[1], scratch[2], scratch[3:5], scratch[5:7]
    for block in range((T + 127) // 128):
        out = words[2 * block : 2 * block + 2]
        low, high = lanes(T - 128 * block), lanes(T - 128 * block - 64)
        for i in range(n):
            always = thresholds[i] == ALWAYS
            pixel[i], q[i], slot[i] = pixels[i], thresholds[i], U64(i)
            out[0, i], out[1, i] = (low, high) if always else (U64(0), U64(0))
            undecided[0, i], undecided[1, i] = (U64(0), U64(0)) if always else (low, high)
            spikes[0, i] = spikes[1, i] = U64(0)
        live = n
        c1 = stream * U64(1 << 24) + U64(16 * block)
        for plane in range(0, PLANES, 2):
            two_planes(pixel, q, undecided, spikes, live, plane, seed, c1, sample, epoch)
            if plane + 2 >= DENSE_PLANES:
                live = settle(pixel, q, undecided, spikes, slot, live, out)
                if live == 0:
                    break


@jit(entry=True)
def draw_batch(worker, workers, thresholds, T, seed, epoch, stream, sample_ids, packed, scratch):
    """One worker's share of :func:`poisson_words`; scratch: uint64 [workers, 2 + words + SCRATCH, P]."""
    count = 2 * ((T + 127) // 128)
    pixels, found, words = scratch[worker, 0], scratch[worker, 1], scratch[worker, 2 : 2 + count]
    for b in range(worker, len(thresholds), workers):
        n = 0
        for p in range(thresholds.shape[1]):
            pixels[n], found[n] = U64(p), U64(thresholds[b, p])
            n += thresholds[b, p] > 0
        draw(pixels, found, n, T, seed, epoch, stream, U64(sample_ids[b]), words, scratch[worker, 2 + count :])
        for w in range(len(packed)):
            shift = U64(32 * (w % 2))
            for p in range(packed.shape[2]):
                packed[w, b, p] = 0
            for i in range(n):
                packed[w, b, pixels[i]] = np.int32(words[w // 2, i] >> shift & LOW)


@jit(entry=True)
def unpack_steps(worker, workers, words, spikes):
    """One worker's share of :func:`unpack`: words int32 [ceil(T/32), n] to spikes float32 [T, n]."""
    for t in range(worker, len(spikes), workers):
        row, out, shift = words[t // 32], spikes[t], np.int32(t % 32)
        for i in range(len(out)):
            out[i] = np.float32(row[i] >> shift & np.int32(1))


def poisson_words(q: Tensor, T: int, seed: int, epoch: int, stream: int, sample_ids: Tensor) -> Tensor:
    """Packed spikes int32 [ceil(T/32), B, P] for thresholds ``q`` int64 [B, P] of samples ``sample_ids`` int64 [B]."""
    packed = torch.empty(-(-T // 32), *q.shape, dtype=torch.int32)
    workers = workers_for(T * q.numel())
    scratch = np.empty((workers, 2 + 2 * -(-T // 128) + SCRATCH, q.shape[1]), np.uint64)
    spread(
        draw_batch, workers, q.contiguous().numpy(), T, np.uint64(seed), np.uint64(epoch), np.uint64(stream),
        sample_ids.contiguous().numpy(), packed.numpy(), scratch,
    )  # fmt: skip
    return packed


def unpack(words: Tensor, T: int) -> Tensor:
    """Packed spikes int32 [ceil(T/32), ...] -> 0 or 1, float32 [T, ...]."""
    spikes = torch.empty(T, *words.shape[1:])
    n = words[0].numel()
    rows = words.reshape(len(words), n).contiguous()
    spread(unpack_steps, workers_for(T * n), rows.numpy(), spikes.reshape(T, n).numpy())
    return spikes
