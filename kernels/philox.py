"""Counter-based random spikes in PyTorch, on any device: the layout that every backend reproduces bit for bit.

A Poisson (rate) coded pixel spikes at each time step with probability q / 65536, q in 0..65536. Spikes are packed along
time: bit i of word w belongs to t = 32 w + i. One call of Philox4x32-10 makes four 32-bit words, so it decides one *bit
plane* of 128 time steps of one pixel:

    key      (seed low word, seed high word)
    counter  (index of the pixel, stream * 2^24 + (t // 128) * 16 + plane, sample id, epoch)

A time step is a lane. At plane p its random bit is compared with bit 15 - p of q, most significant first: a lane
spikes at the first plane where q has 1 and the random bit is 0, and does not where q has 0 and the random bit is 1. A
lane that is undecided after plane 15 does not spike. q = 65536 always spikes and q = 0 never; neither draws a number.

Twins: ``kernels/numba/philox.py`` (Numba), ``kernels/triton/philox.py`` (Triton).
Tests: ``tests/test_philox.py``.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
PLANES = 16
ALWAYS = 65536
"""q of a pixel that spikes at every time step."""

# Rows per pass: the sixteen int64 arrays of a pass stay within a core's second-level cache.
_CHUNK = 1 << 13


def philox4x32(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, rounds: int = 10) -> tuple[Tensor, ...]:
    """Philox4x32 of the counters c0..c3 (int64 tensors that hold 32-bit words, broadcastable) under a 64-bit key."""
    k0, k1 = seed & WORD, seed >> 32 & WORD
    for _ in range(rounds):
        # The product wraps as int64, but its high word after the mask is that of the unsigned product.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (p1 >> 32 & WORD) ^ c1 ^ k0, (p0 >> 32 & WORD) ^ c3 ^ k1
        c1, c3 = p1 & WORD, p0 & WORD
        k0, k1 = k0 + 0x9E3779B9 & WORD, k1 + 0xBB67AE85 & WORD
    return c0, c1, c2, c3


def thresholds(pixels: Tensor) -> Tensor:
    """q int64 of pixels of any shape: 257 k of uint8, and ALWAYS for 255; floating point in units of 1 / 65536.

    An intensity below 0 or NaN counts as 0, one above 1 as 1.
    """
    if pixels.dtype != torch.uint8:
        return (pixels.double().nan_to_num(0.0).clamp(0, 1) * ALWAYS).floor().to(torch.int64)
    levels = pixels.to(torch.int64)
    return torch.where(levels == 255, ALWAYS, 257 * levels)


def poisson_words(q: Tensor, T: int, seed: int, epoch: int, stream: int, sample_ids: Tensor) -> Tensor:
    """Packed spikes int32 [ceil(T/32), B, P] for thresholds ``q`` int64 [B, P] of samples ``sample_ids`` int64 [B]."""
    B, P = q.shape
    blocks = -(-T // 128)
    words = torch.where(q == ALWAYS, WORD, 0).reshape(1, 1, B * P).repeat(blocks, 4, 1)
    flat = q.reshape(-1)
    for rows in ((flat > 0) & (flat < ALWAYS)).nonzero().squeeze(1).split(_CHUNK):
        pixels, samples = rows % P, sample_ids[rows // P]
        for block in range(blocks):
            _draw(words[block], rows, flat[rows], seed, pixels, stream * 2**24 + block * PLANES, samples, epoch)
    # Bits past T are 0; the cast to int32 keeps the low word.
    packed = words.reshape(blocks * 4, B * P)[: -(-T // 32)]
    if T % 32:
        packed[-1] &= (1 << T % 32) - 1
    return packed.to(torch.int32).reshape(len(packed), B, P)


def _draw(out: Tensor, rows: Tensor, q: Tensor, seed: int, c0: Tensor, c1: int, c2: Tensor, c3: int) -> None:
    """Write the 128 lanes of pixels ``rows`` (thresholds ``q``) to ``out`` [4, pixels]."""
    undecided = [torch.full_like(q, WORD) for _ in range(4)]
    spikes = [torch.zeros_like(q) for _ in range(4)]
    plane_word, epoch_word = torch.zeros_like(q), torch.full_like(q, c3)
    for plane in range(PLANES):
        random = philox4x32(seed, c0, plane_word.fill_(c1 + plane), c2, epoch_word)
        mask = -(q >> (PLANES - 1 - plane) & 1) & WORD  # all ones where q has 1
        for und, s, x in zip(undecided, spikes, random, strict=True):
            s |= und & mask & (x ^ WORD)
            und &= x ^ mask ^ WORD
        if plane in (7, 9, 11, 13):
            # Most pixels are decided by now: write those and go on with the rest.
            open_ = undecided[0] | undecided[1] | undecided[2] | undecided[3]
            keep = open_.nonzero().squeeze(1)
            if 4 * len(keep) < 3 * len(rows):
                out[:, rows] = torch.stack(spikes)
                rows, q, c0, c2 = rows[keep], q[keep], c0[keep], c2[keep]
                plane_word, epoch_word = plane_word[keep], epoch_word[keep]
                undecided, spikes = [u[keep] for u in undecided], [s[keep] for s in spikes]
            if not len(rows):
                return
    out[:, rows] = torch.stack(spikes)


def unpack(words: Tensor, T: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Packed spikes int32 [ceil(T/32), ...] -> 0 or 1 of ``dtype`` [T, ...]."""
    spikes = torch.empty(T, *words.shape[1:], dtype=dtype, device=words.device)
    for t in range(T):
        spikes[t] = words[t // 32] >> t % 32 & 1
    return spikes


def pack(spikes: Tensor) -> Tensor:
    """0 or 1 of any dtype [T, ...] -> int32 [ceil(T/32), ...]; unused bits are 0."""
    words = torch.zeros(-(-len(spikes) // 32), *spikes.shape[1:], dtype=torch.int64, device=spikes.device)
    for t, s in enumerate(spikes):
        words[t // 32] |= s.to(torch.int64) << t % 32
    return words.to(torch.int32)
