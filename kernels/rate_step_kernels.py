"""The training step of a one-layer rate classifier as Triton kernels: step, update, tally.

``step_kernel``: one program per group of samples, time along the rows of its tiles, 128 steps at a time. Currents are a
product of spikes and weights; the LIF walks the rows forward; backward through
time is the affine recursion gh[t] = a[t] gh[t + 1] + c[t], an associative scan; and dW, for the non-zero pixels alone,
is a second product, written to a partial sum that belongs to the group.
``update_kernel``: adds the partial sums in a fixed order, applies Adam or SGD, and advances the step counter.
``tally_kernel``: mean loss and correct answers of each evaluated batch.

Programs of one launch never communicate, and the launches of a step follow each other on one stream. Within a program,
what one thread stores and another loads goes through global memory with ``tl.debug_barrier`` between. A row of the
partial sums counts only where its stamp is that of the step, so that nothing has to be cleared.

Spikes and buffers: ``kernels/rate_step_encode.py``. Launches: ``kernels/rate_step_launch.py``.
Tests: ``tests/test_rate_step.py``.
"""

from fastsnn.kernels._triton import INTERPRETED, tl, triton
from fastsnn.kernels.surrogates import charge, reset, slopes

SIMULATED = tl.constexpr(INTERPRETED)
"""The interpreter computes wrong bf16 products: there the bf16 parts of a number are multiplied as fp32."""


@triton.jit
def _spike_tile(word_ptr, capacity, offs_k, count, EXACT: tl.constexpr):
    """Spikes of pixels ``offs_k`` in 128 steps, [128, BLOCK_K] of 0 and 1, from packed words [4, capacity]."""
    offs_w = tl.arange(0, 4)[:, None, None] * capacity + offs_k[None, None, :]
    words = tl.load(word_ptr + offs_w, mask=(offs_k < count)[None, None, :], other=0)
    bits = (words & (1 << tl.arange(0, 32))[None, :, None]) != 0
    if EXACT and not SIMULATED:
        one = tl.full(bits.shape, 1.0, tl.bfloat16)
        spikes = tl.where(bits, one, tl.zeros(bits.shape, tl.bfloat16))
    else:
        spikes = tl.where(bits, 1.0, 0.0)
    return tl.reshape(spikes, (128, bits.shape[2]))


@triton.jit
def split(x):
    """Three bf16 whose sum is ``x`` exactly, the largest first."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _operand(part):
    return part.to(tl.float32) if SIMULATED else part


@triton.jit
def _exact_dot(spikes, high, middle, low):
    """spikes @ (high + middle + low) in one fresh fp32 accumulator, the smallest terms first."""
    total = tl.dot(spikes, _operand(low))
    total = tl.dot(spikes, _operand(middle), total)
    return tl.dot(spikes, _operand(high), total)


@triton.jit
def _currents(
    pixel_ptr, word_ptr, weight_ptr, plane_ptr, count, capacity, pixels,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Currents of 128 steps [128, BLOCK_N]: the bias, and the weights of each step's spikes."""
    offs_n = tl.arange(0, BLOCK_N)
    plane = (pixels + 1) * BLOCK_N
    total = tl.zeros((128, BLOCK_N), tl.float32) + tl.load(weight_ptr + pixels * BLOCK_N + offs_n)[None, :]
    for first in range(0, count, BLOCK_K):
        offs_k = first + tl.arange(0, BLOCK_K)
        pixel = tl.load(pixel_ptr + offs_k, mask=offs_k < count, other=0)
        spikes = _spike_tile(word_ptr, capacity, offs_k, count, EXACT)
        offs = pixel[:, None] * BLOCK_N + offs_n[None, :]
        if EXACT:
            high, middle = tl.load(plane_ptr + offs), tl.load(plane_ptr + plane + offs)
            total += _exact_dot(spikes, high, middle, tl.load(plane_ptr + 2 * plane + offs))
        else:
            total += tl.dot(spikes, tl.load(weight_ptr + offs), input_precision="ieee")
    return total


@triton.jit
def _walk(
    current_ptr, h_ptr, v, tau, inv_tau, leak, v_threshold, v_reset,
    DECAY_INPUT: tl.constexpr, RESTING: tl.constexpr, POWER_OF_TWO: tl.constexpr, HARD_RESET: tl.constexpr,
    STEPS: tl.constexpr, UNROLL: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The neurons over rows of currents [STEPS, BLOCK_N]: writes h [BLOCK_N, 128], returns the last v [BLOCK_N].

    The next rows are loaded before the present ones are used, since a load can't be moved over a store.
    """
    offs_n = tl.arange(0, BLOCK_N)
    rows = ()
    for i in tl.static_range(UNROLL):
        rows += (tl.load(current_ptr + i * BLOCK_N + offs_n),)
    for t in range(0, STEPS, UNROLL):
        later = ()
        for i in tl.static_range(UNROLL):
            later += (tl.load(current_ptr + (t + UNROLL + i) * BLOCK_N + offs_n),)
        for i in tl.static_range(UNROLL):
            h = charge(rows[i], v, tau, inv_tau, leak, v_reset, DECAY_INPUT, RESTING, POWER_OF_TWO)
            tl.store(h_ptr + offs_n * 128 + t + i, h)
            v = reset(h, h >= v_threshold, v_threshold, v_reset, HARD_RESET)
        rows = later
    return v


@triton.jit
def _rate_gradient(
    spikes, label, size, T: tl.constexpr, CLASSES: tl.constexpr, BLOCK_N: tl.constexpr, CROSS_ENTROPY: tl.constexpr
):
    """Gradient of the batch's mean loss by one spike of each neuron [BLOCK_N], from their numbers of spikes."""
    offs_n = tl.arange(0, BLOCK_N)
    target = tl.where(offs_n == label, 1.0, 0.0)
    rate = spikes * (1.0 / T)
    if CROSS_ENTROPY:
        e = tl.where(offs_n < CLASSES, tl.exp(rate - tl.max(rate, 0)), 0.0)
        error = e * tl.div_rn(1.0, tl.sum(e, 0)) - target
        scale = 1.0 / T
    else:
        error = tl.where(offs_n < CLASSES, rate - target, 0.0)
        scale = 2.0 / (CLASSES * T)
    return error * tl.div_rn(scale, size.to(tl.float32))


@triton.jit
def _compose(a1, c1, a2, c2):
    """The map x -> a2 (a1 x + c1) + c2 as one (a, c)."""
    return a1 * a2, a2 * c1 + c2


@triton.jit
def _accumulate(ptr, value, mask, ACCUMULATE: tl.constexpr):
    if ACCUMULATE:
        value += tl.load(ptr, mask=mask, other=0.0)
        # An element may be held by several threads: all must have read it before one writes it.
        tl.debug_barrier()
    tl.store(ptr, value, mask=mask)


@triton.jit
def _add_weight_gradient(
    gradient, pixel_ptr, word_ptr, partial_ptr, stamp_ptr, stamp, count, capacity,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EXACT: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Add the spikes of 128 steps times the currents' gradient [BLOCK_N, 128] to the rows of the non-zero pixels."""
    offs_n = tl.arange(0, BLOCK_N)
    gradient = tl.trans(gradient)
    high, middle, low = split(gradient)
    for first in range(0, count, BLOCK_K):
        offs_k = first + tl.arange(0, BLOCK_K)
        mask_k = offs_k < count
        pixel = tl.load(pixel_ptr + offs_k, mask=mask_k, other=0)
        spikes = tl.trans(_spike_tile(word_ptr, capacity, offs_k, count, EXACT))
        rows = _exact_dot(spikes, high, middle, low) if EXACT else tl.dot(spikes, gradient, input_precision="ieee")
        _accumulate(partial_ptr + pixel[:, None] * BLOCK_N + offs_n[None, :], rows, mask_k[:, None], ACCUMULATE)
        if not ACCUMULATE:
            tl.store(stamp_ptr + pixel, stamp + tl.zeros_like(pixel), mask=mask_k)


@triton.jit
def _clear(partial_ptr, stamp_ptr, stamp, rows, BLOCK_N: tl.constexpr):
    """Make every row of a partial sum a zero that counts."""
    offs_n = tl.arange(0, BLOCK_N)
    for first in range(0, rows, 128):
        offs = first + tl.arange(0, 128)
        mask = offs < rows
        zeros = tl.zeros((128, BLOCK_N), tl.float32)
        tl.store(partial_ptr + offs[:, None] * BLOCK_N + offs_n[None, :], zeros, mask=mask[:, None])
        tl.store(stamp_ptr + offs, stamp + tl.zeros_like(offs), mask=mask)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["batch"])
def step_kernel(
    sizes_ptr, samples_ptr, pixels_ptr, words_ptr, weight_ptr, plane_ptr,
    current_ptr, h_ptr, partial_ptr, stamp_ptr, spikes_ptr,
    batch, batch_size, capacity, pixels,
    tau, inv_tau, leak, v_threshold, v_reset, alpha,
    DECAY_INPUT: tl.constexpr, RESTING: tl.constexpr, POWER_OF_TWO: tl.constexpr, HARD_RESET: tl.constexpr,
    DETACH_RESET: tl.constexpr, SURROGATE: tl.constexpr, CROSS_ENTROPY: tl.constexpr, HAS_BIAS: tl.constexpr,
    T: tl.constexpr, CLASSES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    UNROLL: tl.constexpr, EXACT: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Grid (groups of GROUP samples, batches from ``batch`` on)."""
    CHUNKS: tl.constexpr = (T + 127) // 128
    STEPS: tl.constexpr = T if T < 128 else 128
    # Several passes add to the same rows: the partial sum is cleared first, and each pass reads what it adds to.
    ACCUMULATE: tl.constexpr = BACKWARD and GROUP * CHUNKS > 1
    group, batch = tl.program_id(0), batch + tl.program_id(1)
    program = (tl.program_id(1) * tl.num_programs(0) + group).to(tl.int64)
    current_ptr += program * ((128 + UNROLL) * BLOCK_N)
    h_ptr += program * (CHUNKS * 128 * BLOCK_N)
    partial_ptr += program * (pixels + 1) * BLOCK_N
    stamp_ptr += program * (pixels + 1)
    size, stamp = tl.load(sizes_ptr + batch * 2), tl.load(sizes_ptr + batch * 2 + 1) + 1
    offs_n, offs_t = tl.arange(0, BLOCK_N), tl.arange(0, 128)
    # h has time along the lanes of a warp: the sum over time and the scan then need no shared memory.
    h_tile = offs_n[:, None] * 128 + offs_t[None, :]
    if ACCUMULATE:
        _clear(partial_ptr, stamp_ptr, stamp, tl.where(group * GROUP < size, pixels + 1, 0), BLOCK_N)
    for i in range(GROUP):
        b = group * GROUP + i
        slot = (batch * batch_size + b).to(tl.int64)
        count = tl.load(samples_ptr + slot * 2, mask=b < batch_size, other=0)
        label = tl.load(samples_ptr + slot * 2 + 1, mask=b < batch_size, other=0)
        if b < size:
            pixel_ptr, word_ptr = pixels_ptr + slot * capacity, words_ptr + slot * CHUNKS * 4 * capacity
            v = tl.zeros((BLOCK_N,), tl.float32) + v_reset
            spikes = tl.zeros((BLOCK_N,), tl.float32)
            for chunk in range(CHUNKS):
                current = _currents(
                    pixel_ptr, word_ptr + chunk * 4 * capacity, weight_ptr, plane_ptr, count, capacity, pixels,
                    BLOCK_N, BLOCK_K, EXACT,
                )  # fmt: skip
                tl.store(current_ptr + offs_t[:, None] * BLOCK_N + offs_n[None, :], current)
                tl.debug_barrier()
                h_rows = h_ptr + chunk * 128 * BLOCK_N
                v = _walk(
                    current_ptr, h_rows, v, tau, inv_tau, leak, v_threshold, v_reset,
                    DECAY_INPUT, RESTING, POWER_OF_TWO, HARD_RESET, STEPS, UNROLL, BLOCK_N,
                )  # fmt: skip
                tl.debug_barrier()
                mask_t = (chunk * 128 + offs_t < T)[None, :]
                h = tl.load(h_rows + h_tile, mask=mask_t, other=0.0)
                spikes += tl.sum(tl.where(mask_t & (h >= v_threshold), 1.0, 0.0), 1)
            tl.store(spikes_ptr + slot * BLOCK_N + offs_n, spikes)
            if BACKWARD:
                g = _rate_gradient(spikes, label, size, T, CLASSES, BLOCK_N, CROSS_ENTROPY)
                gh_next = tl.zeros((BLOCK_N,), tl.float32)
                for j in range(CHUNKS):
                    chunk = CHUNKS - 1 - j
                    mask_t = (chunk * 128 + offs_t < T)[None, :]
                    h = tl.load(h_ptr + chunk * 128 * BLOCK_N + h_tile, mask=mask_t, other=0.0)
                    spike_slope, reset_slope = slopes(
                        h, v_threshold, v_reset, alpha, HARD_RESET, DETACH_RESET, SURROGATE
                    )
                    # A neuron whose loss has no gradient gets none, however steep its surrogate.
                    a = tl.where(mask_t & (g != 0.0)[:, None], reset_slope * leak, 0.0)
                    c = tl.where(mask_t, g[:, None] * spike_slope, 0.0)
                    a, gh = tl.associative_scan((a, c), 1, _compose, reverse=True)
                    if CHUNKS > 1:
                        gh += a * gh_next[:, None]
                        gh_next = tl.sum(tl.where(offs_t[None, :] == 0, gh, 0.0), 1)
                    gradient = gh * inv_tau if DECAY_INPUT else gh
                    _add_weight_gradient(
                        gradient, pixel_ptr, word_ptr + chunk * 4 * capacity, partial_ptr, stamp_ptr, stamp,
                        count, capacity, BLOCK_N, BLOCK_K, EXACT, ACCUMULATE,
                    )  # fmt: skip
                    if HAS_BIAS:
                        _accumulate(
                            partial_ptr + pixels * BLOCK_N + offs_n, tl.sum(gradient, 1), offs_n < BLOCK_N, ACCUMULATE
                        )
                        if not ACCUMULATE:
                            tl.store(stamp_ptr + pixels, stamp)
                    if ACCUMULATE:
                        tl.debug_barrier()
