"""Forward and backward of a one-layer rate classifier in one Triton kernel, from packed spikes to weight gradients.

One program per group of samples, BLOCK_T time steps at a time (128, or all T where they fit in fewer):

1. currents [BLOCK_T, N]: the spikes of the non-zero pixels times their weights;
2. the neurons go along the currents, which gives what is kept of each step, the numbers of spikes and, by those, the
   loss's gradient;
3. backward through time is an affine recursion, s[t] = a[t + 1] s[t + 1] + c[t + 1], and so an associative scan, along
   time reversed: what is kept lies that way, for Triton's own reversal takes four shuffles of each number;
4. weight gradients: the same spikes times the gradient of the currents, added to a partial sum that the group owns.

A row of a partial sum counts where its stamp is that of the step, so that nothing need be cleared between steps.
``kernels/rate_classifier/triton/update.py`` adds the groups' sums in a fixed order and trains the weights.

Programs of a launch never communicate, and launches follow each other on one stream. Within a program, what one thread
stores and another loads passes through global memory, with ``tl.debug_barrier`` between.

On tensor cores (EXACT) a product of spikes, 0 or 1, with fp32 numbers is three bf16 products with the parts of those
numbers: exact but for the order of summation. Spikes come from ``encode.py``, which describes their buffers.
Reference: ``kernels/reference.py``. Tests: ``tests/test_rate_step.py``.
"""

from fastsnn.kernels.triton import INTERPRETED, tl, triton
from fastsnn.kernels.triton.bf16_split import split3

SIMULATED = tl.constexpr(INTERPRETED)
"""The interpreter computes wrong bf16 products: there the bf16 parts of a number are multiplied as fp32."""

FMA_INPUTS = tl.constexpr(16)
"""Pixels of a tile of the first product in fp32: more of them take the registers of a fourth block."""


@triton.jit
def _spike_tile(
    word_ptr, first, count, capacity, REVERSED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Spikes of BLOCK_K pixels from ``first`` on, [BLOCK_T, BLOCK_K] of 0 and 1, fp32 or (EXACT) bf16.

    Of a step, pixels are neighbours in memory. A word holds 16 steps of two pixels; a step's two bits times the bits of
    1.0 in bf16 are two spikes at once.
    """
    pair = first // 2 + tl.arange(0, BLOCK_K // 2)[None, None, None, :]
    row, half, t = tl.arange(0, BLOCK_T // 16), tl.arange(0, 2), tl.arange(0, 8)
    if REVERSED:  # the last step of the tile comes first
        row, half, t = BLOCK_T // 16 - 1 - row, 1 - half, 7 - t
    offs = row[:, None, None, None] * (capacity // 2) + pair
    words = tl.load(word_ptr + offs, mask=2 * pair < count, other=0)
    half, t = half[None, :, None, None], t[None, None, :, None]
    ones = ((words >> (8 * half)) & (0x00010001 << t)) * (0x3F80 >> t)
    if EXACT:
        even, odd = ones.to(tl.int16), (ones >> 16).to(tl.int16)
        spikes = _operand(tl.join(even, odd).to(tl.bfloat16, bitcast=True))
    else:
        # An fp32 number whose lower half is 0 is a bf16 number.
        spikes = tl.join(ones << 16, ones & -65536).to(tl.float32, bitcast=True)
    return tl.reshape(spikes, (BLOCK_T, BLOCK_K))


@triton.jit
def _spike_tile_by_steps(word_ptr, first, count, capacity, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):
    """The same in fp32 with neighbouring steps in neighbouring places, as the left operand of a product needs it.

    Such an operand is read by rows: held by pixels, all of its rows would lie in one bank of shared memory.
    """
    pair = first // 2 + tl.arange(0, BLOCK_K // 2)[:, None, None, None, None]
    offs = tl.arange(0, BLOCK_T // 16)[None, None, :, None, None] * (capacity // 2) + pair
    words = tl.load(word_ptr + offs, mask=2 * pair < count, other=0)
    odd = tl.arange(0, 2)[None, :, None, None, None]
    half, t = tl.arange(0, 2)[None, None, None, :, None], tl.arange(0, 8)[None, None, None, None, :]
    # The bit of the step, as the sign of a number, and from there over the bits of 1.0.
    bits = (words << (31 - 16 * odd - 8 * half - t)) >> 31
    spikes = (bits & 0x3F800000).to(tl.float32, bitcast=True)
    return tl.trans(tl.reshape(spikes, (BLOCK_K, BLOCK_T)))


@triton.jit
def _operand(part):
    """bf16 as a product takes it."""
    return part.to(tl.float32) if SIMULATED else part


@triton.jit
def _exact_dot(spikes, high, middle, low):
    """spikes @ (high + middle + low) in one fresh fp32 accumulator, the smallest terms first."""
    total = tl.dot(spikes, _operand(low))
    total = tl.dot(spikes, _operand(middle), total)
    return tl.dot(spikes, _operand(high), total)


@triton.jit
def _currents(
    pixel_ptr, word_ptr, weight_ptr, parts_ptr, count, capacity, pixels,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Currents [BLOCK_T, BLOCK_N]: the bias and the weights of each step's spikes."""
    offs_n = tl.arange(0, BLOCK_N)
    part = (pixels + 1) * BLOCK_N
    total = tl.zeros((BLOCK_T, BLOCK_N), tl.float32) + tl.load(weight_ptr + pixels * BLOCK_N + offs_n)[None, :]
    STEP: tl.constexpr = BLOCK_K if EXACT else FMA_INPUTS
    for first in range(0, count, STEP):
        offs_k = first + tl.arange(0, STEP)
        pixel = tl.load(pixel_ptr + offs_k, mask=offs_k < count, other=0)
        offs = pixel[:, None] * BLOCK_N + offs_n[None, :]
        if EXACT:
            spikes = _spike_tile(word_ptr, first, count, capacity, False, BLOCK_T, STEP, EXACT)
            high, middle = tl.load(parts_ptr + offs), tl.load(parts_ptr + part + offs)
            total += _exact_dot(spikes, high, middle, tl.load(parts_ptr + 2 * part + offs))
        else:
            spikes = _spike_tile_by_steps(word_ptr, first, count, capacity, BLOCK_T, STEP)
            total += tl.dot(spikes, tl.load(weight_ptr + offs), input_precision="ieee")
    return total


@triton.jit
def _walk(
    current_ptr, kept_ptr, state, left, scalars, STEP: tl.constexpr,
    steps, UNROLL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The neurons over rows of currents [steps, BLOCK_N], of which ``left`` count.

    Writes what is kept of each step, [BLOCK_N, BLOCK_T], the last step first; returns the last state and the numbers
    of spikes [BLOCK_N]. The next rows are loaded before the present ones are used, since a load can't be moved over
    a store.
    """
    offs_n = tl.arange(0, BLOCK_N)
    spikes = tl.zeros((BLOCK_N,), tl.float32)
    rows = ()
    for i in tl.static_range(UNROLL):
        rows += (tl.load(current_ptr + i * BLOCK_N + offs_n),)
    for t in range(0, steps, UNROLL):
        later = ()
        for i in tl.static_range(UNROLL):
            later += (tl.load(current_ptr + (t + UNROLL + i) * BLOCK_N + offs_n),)
        for i in tl.static_range(UNROLL):
            results = STEP((rows[i], state), scalars, ())
            tl.store(kept_ptr + offs_n * BLOCK_T + (BLOCK_T - 1 - i) - t, results[2])
            spikes += tl.where(t + i < left, results[0], 0.0)
            state = results[1]
        rows = later
    return state, spikes


@triton.jit
def _rate_gradient(
    spikes, label, size, inv_T, scale, CLASSES: tl.constexpr, BLOCK_N: tl.constexpr, CROSS_ENTROPY: tl.constexpr
):
    """Gradient of the batch's mean loss by one spike of each neuron [BLOCK_N], from their numbers of spikes.

    ``scale`` is that of one sample's loss: 1 / T with cross entropy, else 2 / (CLASSES T).
    """
    offs_n = tl.arange(0, BLOCK_N)
    target = tl.where(offs_n == label, 1.0, 0.0)
    rate = spikes * inv_T
    if CROSS_ENTROPY:
        e = tl.where(offs_n < CLASSES, tl.exp(rate - tl.max(rate, 0)), 0.0)
        error = e * tl.div_rn(1.0, tl.sum(e, 0)) - target
    else:
        error = tl.where(offs_n < CLASSES, rate - target, 0.0)
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
    gradient, pixel_ptr, word_ptr, scratch_ptr, partial_ptr, stamp_ptr, stamp, count, capacity,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EXACT: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Add the spikes times the currents' gradient [BLOCK_N, BLOCK_T], last step first, to the non-zero pixels' rows."""
    offs_n = tl.arange(0, BLOCK_N)
    if EXACT:
        gradient = tl.trans(gradient)
    else:
        # A product in fp32 reads its right operand from shared memory by rows. Transposed in registers, all of these
        # would lie in one bank; a round trip through the cache turns them.
        tile = scratch_ptr + tl.arange(0, BLOCK_T)[:, None] * BLOCK_N + offs_n[None, :]
        tl.store(tl.trans(tile), gradient)
        tl.debug_barrier()
        gradient = tl.load(tile)
    high, middle, low = split3(gradient)
    for first in range(0, count, BLOCK_K):
        offs_k = first + tl.arange(0, BLOCK_K)
        mask_k = offs_k < count
        pixel = tl.load(pixel_ptr + offs_k, mask=mask_k, other=0)
        spikes = tl.trans(_spike_tile(word_ptr, first, count, capacity, True, BLOCK_T, BLOCK_K, EXACT))
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


@triton.jit(do_not_specialize=["batch", "batch_size", "pixels", "T"])
def step_kernel(
    sizes_ptr, samples_ptr, pixels_ptr, words_ptr, weight_ptr, parts_ptr,
    current_ptr, h_ptr, partial_ptr, stamp_ptr, spikes_ptr,
    batch, batch_size, capacity, pixels, T, inv_T, scale, scalars, backward_scalars, rest,
    STEP: tl.constexpr, STEP_BACK: tl.constexpr, CROSS_ENTROPY: tl.constexpr, HAS_BIAS: tl.constexpr,
    LONG: tl.constexpr, CLASSES: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, UNROLL: tl.constexpr, EXACT: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Grid (groups of GROUP samples, batches from ``batch`` on); LONG is a T of several chunks."""
    chunks = (T + 127) // 128 if LONG else 1
    steps = tl.minimum(T, BLOCK_T)
    # Several passes add to the same rows: the partial sum is cleared first, and each pass reads what it adds to.
    ACCUMULATE: tl.constexpr = BACKWARD and (GROUP > 1 or LONG)
    group, batch = tl.program_id(0), batch + tl.program_id(1)
    program = (tl.program_id(1) * tl.num_programs(0) + group).to(tl.int64)
    current_ptr += program * ((BLOCK_T + UNROLL) * BLOCK_N)
    h_ptr += program * (chunks * BLOCK_T * BLOCK_N)
    partial_ptr += program * (pixels + 1) * BLOCK_N
    stamp_ptr += program * (pixels + 1)
    size, stamp = tl.load(sizes_ptr + batch * 2), tl.load(sizes_ptr + batch * 2 + 1) + 1
    offs_n, offs_t = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_T)
    # h has time along the lanes of a warp: the sum over time and the scan then need no shared memory.
    h_tile = offs_n[:, None] * BLOCK_T + offs_t[None, :]
    h_time = (BLOCK_T - 1 - offs_t)[None, :]
    if ACCUMULATE:
        _clear(partial_ptr, stamp_ptr, stamp, tl.where(group * GROUP < size, pixels + 1, 0), BLOCK_N)
    for i in range(GROUP):
        b = group * GROUP + i
        slot = (batch * batch_size + b).to(tl.int64)
        count = tl.load(samples_ptr + slot * 2, mask=b < batch_size, other=0)
        label = tl.load(samples_ptr + slot * 2 + 1, mask=b < batch_size, other=0)
        if b < size:
            pixel_ptr, word_ptr = pixels_ptr + slot * capacity, words_ptr + slot * chunks * 4 * capacity
            state = tl.zeros((BLOCK_N,), tl.float32) + rest
            spikes = tl.zeros((BLOCK_N,), tl.float32)
            for chunk in range(chunks):
                current = _currents(
                    pixel_ptr, word_ptr + chunk * 4 * capacity, weight_ptr, parts_ptr, count, capacity, pixels,
                    BLOCK_T, BLOCK_N, BLOCK_K, EXACT,
                )  # fmt: skip
                tl.store(current_ptr + offs_t[:, None] * BLOCK_N + offs_n[None, :], current)
                tl.debug_barrier()
                h_rows = h_ptr + chunk * BLOCK_T * BLOCK_N
                state, fired = _walk(
                    current_ptr, h_rows, state, T - chunk * 128, scalars, STEP, steps, UNROLL, BLOCK_T, BLOCK_N
                )
                spikes += fired
                tl.debug_barrier()
            tl.store(spikes_ptr + slot * BLOCK_N + offs_n, spikes)
            if BACKWARD:
                g = _rate_gradient(spikes, label, size, inv_T, scale, CLASSES, BLOCK_N, CROSS_ENTROPY)
                g_tile = tl.zeros((BLOCK_N, BLOCK_T), tl.float32) + g[:, None]
                none = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
                grad_state = tl.zeros((BLOCK_N,), tl.float32)
                for j in range(chunks):
                    chunk = chunks - 1 - j
                    h_rows = h_ptr + chunk * BLOCK_T * BLOCK_N
                    mask_t = chunk * 128 + h_time < T
                    mask_next = (chunk * 128 + h_time + 1 < T) & (h_time + 1 < BLOCK_T)
                    # The gradient of the state after step t, s[t] = a[t + 1] s[t + 1] + c[t + 1], from step t + 1's.
                    after = tl.load(h_rows + h_tile - 1, mask=mask_next, other=0.0)
                    a = STEP_BACK((after, none, none + 1.0), backward_scalars, ())[1]
                    c = STEP_BACK((after, g_tile, none), backward_scalars, ())[1]
                    # A neuron whose loss has no gradient gets none, however steep its surrogate.
                    a = tl.where(mask_next & (g_tile != 0.0), a, 0.0)
                    c = tl.where(mask_next, c, grad_state[:, None])
                    _, s = tl.associative_scan((a, c), 1, _compose)
                    h = tl.load(h_rows + h_tile, mask=mask_t, other=0.0)
                    results = STEP_BACK((h, g_tile, s), backward_scalars, ())
                    gradient = tl.where(mask_t & (g_tile != 0.0), results[0], 0.0)
                    if LONG:
                        grad_state = tl.sum(tl.where(h_time == 0, results[1], 0.0), 1)
                    _add_weight_gradient(
                        gradient, pixel_ptr, word_ptr + chunk * 4 * capacity, current_ptr, partial_ptr, stamp_ptr,
                        stamp, count, capacity, BLOCK_T, BLOCK_N, BLOCK_K, EXACT, ACCUMULATE,
                    )  # fmt: skip
                    if HAS_BIAS:
                        _accumulate(
                            partial_ptr + pixels * BLOCK_N + offs_n, tl.sum(gradient, 1), offs_n < BLOCK_N, ACCUMULATE
                        )
                        if not ACCUMULATE:
                            tl.store(stamp_ptr + pixels, stamp)
                    if ACCUMULATE:
                        tl.debug_barrier()
