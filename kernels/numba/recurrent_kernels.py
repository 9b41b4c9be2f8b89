"""The time loop of a recurrent layer on the CPU, forward and backward: see ``recurrent.py``.

A worker owns samples, and a sample goes through all T. What comes back from the step before is the sum of the rows of
V^T of the neurons that fired, 5 to 10 of a hundred; the gradient that goes back is dense, so a tile of samples shares
every row of V that is read.

Layout: currents, outputs and their gradients are [T, B * N]; ``columns`` is N rounded up to whole vectors.
"""

import numpy as np

from fastsnn.kernels.numba import jit
from fastsnn.kernels.numba.bits import LANES, U64, add, add_product, at, load, nonzero_bits, store, zero
from fastsnn.kernels.numba.program import step, step_back
from fastsnn.kernels.numba.scan_kernels import forward_block
from fastsnn.kernels.numba.spike_products.layout import lowest_bit

TILE = 8
"""Samples that go through the backward pass side by side."""


@jit
def find_fired(previous, first, N, fired):
    """Write to ``fired`` [N] the neurons j whose output previous[first + j] is not 0, and return how many they are."""
    count, whole = 0, N // LANES * LANES
    for c in range(0, whole, LANES):
        bits = nonzero_bits(previous, first + c)
        while bits != 0:
            fired[count] = c + lowest_bit(bits)
            count += 1
            bits &= bits - U64(1)
    for j in range(whole, N):
        if at(previous, first + j) != 0:
            fired[count] = j
            count += 1
    return count


@jit
def add_fired(previous, first, N, transposed, columns, fired, total):
    """total[:N] = sum of previous[first + j] * V^T[j] over the neurons j that are not 0; ``fired`` is scratch [N]."""
    count, c = find_fired(previous, first, N, fired), 0
    while c + 4 * LANES <= columns:  # four sums at a time, none of which waits for another
        a, b, d, e = zero(), zero(), zero(), zero()
        for k in range(count):
            j = fired[k]
            value, row = at(previous, first + j), j * columns + c
            a = add_product(a, value, load(transposed, row))
            b = add_product(b, value, load(transposed, row + LANES))
            d = add_product(d, value, load(transposed, row + 2 * LANES))
            e = add_product(e, value, load(transposed, row + 3 * LANES))
        store(total, c, a)
        store(total, c + LANES, b)
        store(total, c + 2 * LANES, d)
        store(total, c + 3 * LANES, e)
        c += 4 * LANES
    while c < columns:
        a = zero()
        for k in range(count):
            j = fired[k]
            a = add_product(a, at(previous, first + j), load(transposed, j * columns + c))
        store(total, c, a)
        c += LANES


@jit(entry=True)
def forward(worker, workers, program, N, current, state, initial, output, transposed, diagonal, scalars, rows):
    """One worker's samples; ``current`` [T, B * N] becomes the whole current, ``state`` [S, B * N] the last.

    initial [B * N]: the outputs before the first step. transposed [N * columns]: V^T; diagonal [N]: V, if that is all
    of it, else of no elements. output [T, B * N] is not current's memory.
    """
    T, n = current.shape
    columns = len(transposed) // N
    samples = n // N
    total, fired = np.zeros(max(columns, N), np.float32), np.empty(N + 1, np.int64)
    for b in range(samples * worker // workers, samples * (worker + 1) // workers):
        start, stop = b * N, (b + 1) * N
        whole = start + N // LANES * LANES
        for t in range(T):
            previous = output[t - 1] if t > 0 else initial
            if len(diagonal) > 0:
                for i in range(N):
                    total[i] = diagonal[i] * previous[start + i]
            else:
                add_fired(previous, start, N, transposed, columns, fired, total)
            row = current[t, start:stop]
            for i in range(N):
                row[i] += total[i]
            for i in range(start, whole, LANES):
                step(program, current, state, output, None, scalars, rows, (t * n + i, i, t * n + i, 0, i), None)
            for i in range(whole, stop):
                step(program, current, state, output, None, scalars, rows, (t * n + i, i, t * n + i, 0, i), 1)


@jit
def tile_product(grad, first, count, N, weight, columns, out):
    """out[s, :N] = grad[first + s * N : ... + N] @ V for s < count <= TILE samples; the last stands in for others."""
    most = count - 1
    s0, s1, s2, s3 = first, first + min(1, most) * N, first + min(2, most) * N, first + min(3, most) * N
    s4, s5, s6, s7 = (
        first + min(4, most) * N, first + min(5, most) * N, first + min(6, most) * N, first + min(7, most) * N
    )  # fmt: skip
    c = 0
    while c + 2 * LANES <= columns:
        a0, a1, a2, a3, a4, a5, a6, a7 = zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()
        b0, b1, b2, b3, b4, b5, b6, b7 = zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()
        for n in range(N):
            row, next_row = load(weight, n * columns + c), load(weight, n * columns + c + LANES)
            g = at(grad, s0 + n)
            a0, b0 = add_product(a0, g, row), add_product(b0, g, next_row)
            g = at(grad, s1 + n)
            a1, b1 = add_product(a1, g, row), add_product(b1, g, next_row)
            g = at(grad, s2 + n)
            a2, b2 = add_product(a2, g, row), add_product(b2, g, next_row)
            g = at(grad, s3 + n)
            a3, b3 = add_product(a3, g, row), add_product(b3, g, next_row)
            g = at(grad, s4 + n)
            a4, b4 = add_product(a4, g, row), add_product(b4, g, next_row)
            g = at(grad, s5 + n)
            a5, b5 = add_product(a5, g, row), add_product(b5, g, next_row)
            g = at(grad, s6 + n)
            a6, b6 = add_product(a6, g, row), add_product(b6, g, next_row)
            g = at(grad, s7 + n)
            a7, b7 = add_product(a7, g, row), add_product(b7, g, next_row)
        store(out, c, a0)
        store(out, c + LANES, b0)
        store(out, columns + c, a1)
        store(out, columns + c + LANES, b1)
        store(out, 2 * columns + c, a2)
        store(out, 2 * columns + c + LANES, b2)
        store(out, 3 * columns + c, a3)
        store(out, 3 * columns + c + LANES, b3)
        store(out, 4 * columns + c, a4)
        store(out, 4 * columns + c + LANES, b4)
        store(out, 5 * columns + c, a5)
        store(out, 5 * columns + c + LANES, b5)
        store(out, 6 * columns + c, a6)
        store(out, 6 * columns + c + LANES, b6)
        store(out, 7 * columns + c, a7)
        store(out, 7 * columns + c + LANES, b7)
        c += 2 * LANES
    if c < columns:
        a0, a1, a2, a3, a4, a5, a6, a7 = zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()
        for n in range(N):
            row = load(weight, n * columns + c)
            a0 = add_product(a0, at(grad, s0 + n), row)
            a1 = add_product(a1, at(grad, s1 + n), row)
            a2 = add_product(a2, at(grad, s2 + n), row)
            a3 = add_product(a3, at(grad, s3 + n), row)
            a4 = add_product(a4, at(grad, s4 + n), row)
            a5 = add_product(a5, at(grad, s5 + n), row)
            a6 = add_product(a6, at(grad, s6 + n), row)
            a7 = add_product(a7, at(grad, s7 + n), row)
        store(out, c, a0)
        store(out, columns + c, a1)
        store(out, 2 * columns + c, a2)
        store(out, 3 * columns + c, a3)
        store(out, 4 * columns + c, a4)
        store(out, 5 * columns + c, a5)
        store(out, 6 * columns + c, a6)
        store(out, 7 * columns + c, a7)


@jit
def backward_tile(
    program, N, b, count, kept, output, initial, grad_output, grad_state, grad_current, grad_rows, grad_initial,
    weight, diagonal, grad_weight, grad_diagonal, scalars, rows, upstream, back, fired,
):  # fmt: skip
    """Samples b .. b + count - 1 from the last step to the first; see :func:`backward`."""
    T, n = grad_current.shape
    columns, width = len(weight) // N, kept.shape[2]
    start, stop = b * N, (b + count) * N
    whole = start + (stop - start) // LANES * LANES
    back[:] = np.float32(0)
    total = upstream[0]
    for t in range(T - 1, -1, -1):
        given = grad_output[min(t, len(grad_output) - 1)]
        for s in range(count):
            for c in range(0, N // LANES * LANES, LANES):
                store(total, s * N + c, add(load(given, start + s * N + c), load(back, s * columns + c)))
            for i in range(N // LANES * LANES, N):
                total[s * N + i] = given[start + s * N + i] + back[s * columns + i]
        for i in range(start, whole, LANES):
            places = (t * width + i - start, i - start, i, t * n + i, i)
            step_back(program, kept, upstream, grad_state, grad_current, grad_rows, scalars, rows, places, None)
        for i in range(whole, stop):
            places = (t * width + i - start, i - start, i, t * n + i, i)
            step_back(program, kept, upstream, grad_state, grad_current, grad_rows, scalars, rows, places, 1)
        grad, previous = grad_current[t], output[t - 1] if t > 0 else initial
        if len(diagonal) > 0:
            for s in range(count):
                for i in range(N):
                    g = grad[start + s * N + i]
                    back[s * columns + i] = g * diagonal[i]
                    grad_diagonal[i] += g * previous[start + s * N + i]
        else:
            tile_product(grad, start, count, N, weight, columns, back)
            for s in range(count):
                add_outer(previous, grad, start + s * N, N, columns, grad_weight, fired)
    for s in range(count):
        for i in range(N):
            grad_initial[start + s * N + i] = back[s * columns + i]


@jit
def add_outer(previous, grad, first, N, columns, grad_weight, fired):
    """grad_weight[j] += previous[first + j] * grad[first : first + N], for the neurons j that are not 0."""
    count, whole = find_fired(previous, first, N, fired), N // LANES * LANES
    for k in range(count):
        j = fired[k]
        value, row = at(previous, first + j), j * columns
        for c in range(0, whole, LANES):
            store(grad_weight, row + c, add_product(load(grad_weight, row + c), value, load(grad, first + c)))
        for c in range(whole, N):
            grad_weight[row + c] += value * at(grad, first + c)


@jit(entry=True)
def backward(
    worker, workers, forward_program, forward_scalars, forward_rows, kept_numbers, program, scalars, rows,
    N, groups, current, state, initial, output, grad_output, grad_state, grad_current, grad_rows, grad_initial,
    weight, diagonal, grad_weight, grad_diagonal,
):  # fmt: skip
    """One worker's groups of samples: their steps are made again from the whole ``current``, and gone back.

    state [S, B * N]: the first states, which are overwritten; grad_state holds the gradients of the last ones and
    becomes those of the first. weight [N * columns]: V. grad_weight [groups, N * columns], grad_diagonal [groups, N]: a
    partial sum of V's gradient, transposed, for each of the groups that tiles of samples are divided into, whatever the
    number of workers.
    """
    T, n = current.shape
    samples, columns = n // N, len(weight) // N
    tiles = (samples + TILE - 1) // TILE
    kept = np.empty((kept_numbers, T, TILE * N), np.float32)
    upstream, back = np.empty((1, TILE * N), np.float32), np.empty(TILE * max(columns, N), np.float32)
    fired = np.empty(N + 1, np.int64)
    for group in range(worker, groups, workers):
        grad_weight[group] = np.float32(0)
        grad_diagonal[group] = np.float32(0)
        for tile in range(tiles * group // groups, tiles * (group + 1) // groups):
            b = tile * TILE
            count = min(TILE, samples - b)
            forward_block(
                forward_program, current, state, None, kept, forward_scalars, forward_rows, b * N, (b + count) * N
            )
            backward_tile(
                program, N, b, count, kept, output, initial, grad_output, grad_state, grad_current, grad_rows,
                grad_initial, weight, diagonal, grad_weight[group], grad_diagonal[group], scalars, rows, upstream, back,
                fired,
            )  # fmt: skip
