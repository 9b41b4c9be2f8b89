"""Counter-based random spikes in Triton: one launch from pixels to spikes, and one from packed spikes to unpacked ones.

The twin of ``kernels/philox.py``, the reference, bit for bit. Nothing here waits for the device or looks at values on
the host, so a pixel outside [0, 1] is not refused: below 0 or NaN it never spikes, above 1 it always does.

:func:`poisson_words` is the device function that every kernel draws its spikes with; the fused step's encoder
(``kernels/rate_classifier/triton/encode.py``) is another user. Tests: ``tests/test_triton_philox.py``.
"""

import torch
from torch import Tensor

from fastsnn.kernels import philox
from fastsnn.kernels.triton import device_guard, tl, triton

BLOCK = 128
"""Pixels of one program."""
WORDS = 1024
"""Packed words of one program."""
PIXEL_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
"""Dtypes of pixels that the kernel takes; the thresholds of others are made in torch."""


@triton.jit
def poisson_words(seed, epoch, stream, sample, chunk, pixels, q):
    """128 steps of ``pixels`` int32 [K] with thresholds ``q`` int32 0..65536: four uint32 [K], one bit per step."""
    zero = pixels.to(tl.uint32) * 0
    c0 = pixels.to(tl.uint32)
    c1 = zero + ((stream << 24) + chunk * 16).to(tl.uint32)
    c2 = zero + sample.to(tl.uint32)
    c3 = zero + epoch.to(tl.uint32)
    always = zero + (q == 65536).to(tl.uint32) * 0xFFFFFFFF
    s0, s1, s2, s3 = always, always, always, always
    u0 = always ^ 0xFFFFFFFF
    u1, u2, u3 = u0, u0, u0
    # The bit of the plane is kept in the sign.
    q = q << 16
    for _ in range(16):
        r0, r1, r2, r3 = tl.philox(seed, c0, c1, c2, c3)
        mask = (q >> 31).to(tl.uint32, bitcast=True)
        s0 |= u0 & mask & (r0 ^ 0xFFFFFFFF)
        s1 |= u1 & mask & (r1 ^ 0xFFFFFFFF)
        s2 |= u2 & mask & (r2 ^ 0xFFFFFFFF)
        s3 |= u3 & mask & (r3 ^ 0xFFFFFFFF)
        u0 &= r0 ^ mask ^ 0xFFFFFFFF
        u1 &= r1 ^ mask ^ 0xFFFFFFFF
        u2 &= r2 ^ mask ^ 0xFFFFFFFF
        u3 &= r3 ^ mask ^ 0xFFFFFFFF
        q = q << 1
        c1 += 1
    return s0, s1, s2, s3


@triton.jit
def byte_thresholds(levels):
    """q int32 of pixels 0..255, int32: 257 k, and 65536 for 255."""
    return levels * 257 + (levels == 255).to(tl.int32)


@triton.jit
def _float_thresholds(x):
    """q int32 of intensities fp32; the product with a power of two is exact."""
    inside = (x > 0.0) & (x < 1.0)
    return tl.where(x >= 1.0, 65536, tl.where(inside, x * 65536.0, 0.0).to(tl.int32))


@triton.jit
def _store_steps(out_ptr, offs, word, first, T, n):
    """The 32 steps of ``word`` from ``first`` on, as rows of ``out`` [T, n]."""
    ptrs = out_ptr + tl.cast(first, tl.int64) * n + offs
    for _ in range(first, tl.minimum(first + 32, T)):
        tl.store(ptrs, (word & 1).to(out_ptr.dtype.element_ty), mask=offs < n)
        word = word >> 1
        ptrs += n


@triton.jit(do_not_specialize=["T", "B", "P", "blocks", "seed_low", "seed_high", "epoch", "stream"])
def poisson_kernel(
    image_ptr, id_ptr, out_ptr, T, B, P, blocks, seed_low, seed_high, epoch, stream,
    HAS_IDS: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK pixels of ``image`` [B, P] in the 128 time steps of a chunk: program ``chunk * blocks + block``.

    ``image`` is uint8, floating point, or thresholds int32. ``out`` is fp32 [T, B * P], or int32 [ceil(T / 32), B * P]
    if PACKED.
    """
    chunk, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    # One division in 64 bits, of a scalar; those of the lanes are in 32.
    first = block.to(tl.int64) * BLOCK
    lane = (first % P).to(tl.int32) + tl.arange(0, BLOCK)
    row = first // P + lane // P
    n = tl.cast(B, tl.int64) * P
    offs = first + tl.arange(0, BLOCK)
    mask = offs < n
    image = tl.load(image_ptr + offs, mask=mask, other=0)
    if image.dtype == tl.uint8:
        q = byte_thresholds(image.to(tl.int32))
    elif image.dtype == tl.int32:
        q = image
    else:
        q = _float_thresholds(image.to(tl.float32))
    sample = tl.load(id_ptr + row, mask=mask, other=0) if HAS_IDS else row
    low, high = tl.cast(seed_low, tl.uint32, bitcast=True), tl.cast(seed_high, tl.uint32, bitcast=True)
    seed = low.to(tl.uint64) | (high.to(tl.uint64) << 32)
    words = poisson_words(seed, tl.cast(epoch, tl.int32), tl.cast(stream, tl.int32), sample, chunk, lane % P, q)
    for w in tl.static_range(4):
        t = chunk * 128 + 32 * w
        if PACKED:
            # Bits past T are 0.
            known = tl.where(T - t < 32, ((1 << (T - t)) - 1), -1)
            stored = words[w].to(tl.int32, bitcast=True) & known
            tl.store(out_ptr + tl.cast(chunk * 4 + w, tl.int64) * n + offs, stored, mask=offs < tl.where(t < T, n, 0))
        else:
            _store_steps(out_ptr, offs, words[w], t, T, n)


@triton.jit(do_not_specialize=["T", "blocks"])
def unpack_kernel(words_ptr, spikes_ptr, T, n, blocks, BLOCK: tl.constexpr):
    """The 32 steps of a word for BLOCK neurons, int32 [W, n] -> 0 or 1 [T, n]: program ``word * blocks + block``."""
    w, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    offs = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words_ptr + w.to(tl.int64) * n + offs, mask=offs < n, other=0)
    _store_steps(spikes_ptr, offs, word, w * 32, T, n)


@triton.jit(do_not_specialize=["T", "blocks"])
def pack_kernel(spikes_ptr, words_ptr, T, n, blocks, BLOCK: tl.constexpr):
    """The word of 32 steps for BLOCK neurons, 0 or 1 as bytes [T, n] -> int32 [W, n]: as :func:`unpack_kernel`."""
    w, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    offs = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = tl.zeros((BLOCK,), tl.int32)
    for i in range(32):
        t = w * 32 + i
        row = spikes_ptr + tl.cast(t, tl.int64) * n
        word |= tl.load(row + offs, mask=offs < tl.where(t < T, n, 0), other=0).to(tl.int32) << i
    tl.store(words_ptr + w.to(tl.int64) * n + offs, word, mask=offs < n)


def poisson_spikes(
    images: Tensor, T: int, seed: int, epoch: int, stream: int, sample_ids: Tensor | None, packed: bool
) -> Tensor:
    """Spikes of ``images`` [B, P], uint8 or floating point, of samples ``sample_ids`` int64 [B] (None: 0 to B - 1).

    Returns fp32 [T, B, P], or int32 words [ceil(T / 32), B, P] if ``packed``; one launch, which nothing waits for.
    """
    if images.dtype not in PIXEL_DTYPES:
        images = philox.thresholds(images).to(torch.int32)
    images = images.contiguous()
    B, P = images.shape
    rows, dtype = (-(-T // 32), torch.int32) if packed else (T, torch.float32)
    out = torch.empty(rows, B, P, dtype=dtype, device=images.device)
    blocks, chunks = triton.cdiv(B * P, BLOCK), triton.cdiv(T, 128)
    if out.numel():
        with device_guard(images):
            poisson_kernel[(blocks * chunks,)](
                images, images if sample_ids is None else sample_ids.contiguous(), out, T, B, P, blocks,
                _signed(seed), _signed(seed >> 32), _signed(epoch), stream,
                HAS_IDS=sample_ids is not None, PACKED=packed, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return out


def unpack(words: Tensor, T: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Packed spikes int32 [ceil(T / 32), ...] -> 0 or 1 of ``dtype`` [T, ...]; one launch."""
    spikes = torch.empty(T, *words.shape[1:], dtype=dtype, device=words.device)
    if spikes.numel():
        n = spikes[0].numel()
        blocks = triton.cdiv(n, WORDS)
        with device_guard(words):
            unpack_kernel[(blocks * len(words),)](
                words.contiguous(), spikes, T, n, blocks, BLOCK=WORDS, num_warps=4, enable_fp_fusion=False
            )
    return spikes


def pack(spikes: Tensor) -> Tensor:
    """Bool [T, ...] -> int32 [ceil(T / 32), ...]; unused bits are 0. One launch."""
    words = torch.empty(-(-len(spikes) // 32), *spikes.shape[1:], dtype=torch.int32, device=spikes.device)
    if words.numel():
        n = words[0].numel()
        blocks = triton.cdiv(n, WORDS)
        with device_guard(spikes):
            pack_kernel[(blocks * len(words),)](
                spikes.contiguous().view(torch.uint8), words, len(spikes), n, blocks,
                BLOCK=WORDS, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return words


def _signed(value: int) -> int:
    """The low 32 bits as a signed number: an integer past 2**31 would be a 64-bit argument, and another kernel."""
    return (value + 2**31) % 2**32 - 2**31
