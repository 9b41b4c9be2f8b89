"""The time loop of a recurrent layer on the CPU, forward and backward: see ``recurrent.py``.

A worker owns samples, and a sample goes through all T. Its current is the sum of rows of a table: of W^T, one for each
input that is not 0, of V^T, one for each neuron that fired, and of the bias. 5 to 10 of a hundred neurons fire. The
gradient that goes back is dense, so a tile of samples shares every row of V that is read.

Layout: inputs [T * B * K]; currents, outputs and their gradients [T * B * N]; ``columns`` is N rounded up to whole
vectors. A table [(K + N + 1) * columns] has the rows of W^T, V^T and the bias; K is 0 if the product with W is made
ahead.
"""

import numpy as np

from fastsnn.kernels.numba import jit
from fastsnn.kernels.numba.bits import (
    LANES,
    U64,
    add,
    add_product,
    aligned_zeros,
    at,
    load,
    nonzero_bits,
    put,
    store,
    zero,
)
from fastsnn.kernels.numba.program import step, step_back
from fastsnn.kernels.numba.spike_products.layout import lowest_bit

TILE = 8
"""Samples that go through the backward pass side by side."""


@jit
def list_nonzero(values, first, n, row, columns, count, rows, factors):
    """Append to the list of ``count`` the values[first : first + n] that are not 0; returns its length.

    rows: where the row of a value begins in the table, if ``row`` is the first one's; factors: the values.
    """
    whole = n // LANES * LANES
    for c in range(0, whole, LANES):
        bits = nonzero_bits(values, first + c)
        while bits != 0:
            j = c + lowest_bit(bits)
            rows[count], factors[count] = (row + j) * columns, at(values, first + j)
            count += 1
            bits &= bits - U64(1)
    for j in range(whole, n):
        if at(values, first + j) != 0:
            rows[count], factors[count] = (row + j) * columns, at(values, first + j)
            count += 1
    return count


@jit
def list_bias(row, columns, count, rows, factors):
    """Append the bias, the last row of the table."""
    rows[count], factors[count] = row * columns, np.float32(1)
    return count + 1


@jit
def add_rows(table, columns, count, rows, factors, total):
    """total[:columns] = the sum of the listed rows of the table, each times its factor."""
    c = 0
    while c + 4 * LANES <= columns:  # four sums at a time, none of which waits for another
        a, b, d, e = zero(), zero(), zero(), zero()
        for k in range(count):
            value, row = at(factors, k), rows[k] + c
            a = add_product(a, value, load(table, row))
            b = add_product(b, value, load(table, row + LANES))
            d = add_product(d, value, load(table, row + 2 * LANES))
            e = add_product(e, value, load(table, row + 3 * LANES))
        store(total, c, a)
        store(total, c + LANES, b)
        store(total, c + 2 * LANES, d)
        store(total, c + 3 * LANES, e)
        c += 4 * LANES
    while c < columns:
        a = zero()
        for k in range(count):
            a = add_product(a, at(factors, k), load(table, rows[k] + c))
        store(total, c, a)
        c += LANES


@jit
def add_outer(grad, first, columns, count, rows, factors, table):
    """Add grad[first : first + columns] to the listed rows of the table, each times its factor."""
    c = 0
    while c + 4 * LANES <= columns:
        a, b = load(grad, first + c), load(grad, first + c + LANES)
        d, e = load(grad, first + c + 2 * LANES), load(grad, first + c + 3 * LANES)
        for k in range(count):
            value, row = at(factors, k), rows[k] + c
            store(table, row, add_product(load(table, row), value, a))
            store(table, row + LANES, add_product(load(table, row + LANES), value, b))
            store(table, row + 2 * LANES, add_product(load(table, row + 2 * LANES), value, d))
            store(table, row + 3 * LANES, add_product(load(table, row + 3 * LANES), value, e))
        c += 4 * LANES
    while c < columns:
        a = load(grad, first + c)
        for k in range(count):
            row = rows[k] + c
            store(table, row, add_product(load(table, row), at(factors, k), a))
        c += LANES


@jit
def copy(source, first, n, out, start):
    """n numbers of ``source``, from its element ``first`` on, to ``out``, from its element ``start`` on."""
    whole = n // LANES * LANES
    for c in range(0, whole, LANES):
        store(out, start + c, load(source, first + c))
    for i in range(whole, n):
        put(out, start + i, at(source, first + i))


@jit(entry=True)
def forward(worker, workers, program, N, inputs, current, state, initial, output, kept, table, diagonal, scalars, rows):
    """One worker's samples; ``state`` [S, B * N] becomes the last one.

    inputs: x, or no elements if ``current`` [T * B * N] holds the product with W. initial [B * N]: the outputs before
    the first step. kept [numbers, T * B * N]: what a step keeps for backward, or no elements. diagonal [columns]: V, if
    that is all of it, else no elements. rows [R, B * N + LANES].

    A sample's numbers lie in whole vectors of its own while it is worked on, so that no neuron is computed alone.
    """
    n, columns = len(initial), (N + LANES - 1) // LANES * LANES
    samples, T = n // N, len(output) // n
    K, back = len(inputs) // (T * samples), 0 if len(diagonal) > 0 else N
    total, fired = aligned_zeros(1, columns), aligned_zeros(1, TILE * columns)
    own, numbers = aligned_zeros(len(state), TILE * columns), aligned_zeros(len(kept), columns)
    listed, factors = np.empty(K + back + 1, np.int64), np.empty(K + back + 1, np.float32)
    last = samples * (worker + 1) // workers
    for tile in range(samples * worker // workers, last, TILE):
        b_end = min(tile + TILE, last)
        for b in range(tile, b_end):
            place = (b - tile) * columns
            copy(initial, b * N, N, fired, place)
            for s in range(len(state)):
                copy(state, s * n + b * N, N, own, s * TILE * columns + place)
        for t in range(T):
            for b in range(tile, b_end):
                place, first = (b - tile) * columns, t * n + b * N
                count = list_nonzero(inputs, (t * samples + b) * K, K, 0, columns, 0, listed, factors)
                count = list_nonzero(fired, place, back, K, columns, count, listed, factors)
                count = list_bias(K + back, columns, count, listed, factors)
                add_rows(table, columns, count, listed, factors, total)
                if len(diagonal) > 0:
                    for i in range(N):
                        put(total, i, at(total, i) + at(diagonal, i) * at(fired, place + i))
                if len(current) > 0:
                    for i in range(N):
                        put(total, i, at(total, i) + at(current, first + i))
                for c in range(0, columns, LANES):
                    places = (c, place + c, place + c, c, b * N + c)
                    step(program, total, own, fired, numbers, scalars, rows, places, None)
                copy(fired, place, N, output, first)
                if kept.shape[1] > 0:
                    for k in range(len(kept)):
                        copy(numbers, k * columns, N, kept, k * T * n + first)
        for b in range(tile, b_end):
            for s in range(len(state)):
                copy(own, s * TILE * columns + (b - tile) * columns, N, state, s * n + b * N)


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
    program, N, b, count, inputs, initial, output, kept, grad_output, grad_state, grad_current, grad_rows, grad_initial,
    weight, diagonal, grad_table, grad_diagonal, scalars, rows, upstream, grad, back, listed, factors,
):  # fmt: skip
    """Samples b .. b + count - 1 from the last step to the first; see :func:`backward`."""
    n, columns = len(initial), (N + LANES - 1) // LANES * LANES
    samples, T = n // N, len(output) // n
    K, N_back = len(inputs) // (T * samples), 0 if len(diagonal) > 0 else N
    start, stop = b * N, (b + count) * N
    whole = start + (stop - start) // LANES * LANES
    back[:] = np.float32(0)
    for t in range(T - 1, -1, -1):
        given = min(t, len(grad_output) // n - 1) * n + start
        for s in range(count):
            for c in range(0, N // LANES * LANES, LANES):
                store(upstream, s * N + c, add(load(grad_output, given + s * N + c), load(back, s * columns + c)))
            for i in range(N // LANES * LANES, N):
                put(upstream, s * N + i, at(grad_output, given + s * N + i) + at(back, s * columns + i))
        for i in range(start, whole, LANES):
            places = (t * n + i, i - start, i, i - start, i)
            step_back(program, kept, upstream, grad_state, grad, grad_rows, scalars, rows, places, None)
        for i in range(whole, stop):
            places = (t * n + i, i - start, i, i - start, i)
            step_back(program, kept, upstream, grad_state, grad, grad_rows, scalars, rows, places, 1)
        if len(grad_current) > 0:
            copy(grad, 0, count * N, grad_current, t * n + start)
        for s in range(count):
            entries = list_nonzero(inputs, (t * samples + b + s) * K, K, 0, columns, 0, listed, factors)
            if t > 0:
                first = (t - 1) * n + start + s * N
                entries = list_nonzero(output, first, N_back, K, columns, entries, listed, factors)
            else:
                entries = list_nonzero(initial, start + s * N, N_back, K, columns, entries, listed, factors)
            entries = list_bias(K + N_back, columns, entries, listed, factors)
            add_outer(grad, s * N, columns, entries, listed, factors, grad_table)
        if len(diagonal) > 0:
            previous = output[(t - 1) * n : t * n] if t > 0 else initial
            for s in range(count):
                for i in range(N):
                    g = at(grad, s * N + i)
                    put(back, s * columns + i, g * diagonal[i])
                    grad_diagonal[i] += g * previous[start + s * N + i]
        else:
            tile_product(grad, 0, count, N, weight, columns, back)
    for s in range(count):
        copy(back, s * columns, N, grad_initial, start + s * N)


@jit(entry=True)
def backward(
    worker, workers, program, N, groups, inputs, initial, output, kept, grad_output, grad_state, grad_current,
    grad_rows, grad_initial, weight, diagonal, grad_table, grad_diagonal, scalars, rows,
):  # fmt: skip
    """One worker's groups of samples, from what their steps kept.

    grad_state [S, B * N] holds the gradients of the last states and becomes those of the first. grad_output
    [T or 1 * B * N]. grad_current [T * B * N], or no elements if nobody needs it. weight [N * columns]: V. grad_table
    [groups, (K + N + 1) * columns], grad_diagonal [groups, N]: a partial sum of the table's gradient and of V's
    diagonal, for each of the groups that tiles of samples are divided into, whatever the number of workers.
    """
    samples, columns = len(initial) // N, (N + LANES - 1) // LANES * LANES
    tiles, longest = (samples + TILE - 1) // TILE, grad_table.shape[1] // columns
    upstream, grad = aligned_zeros(1, TILE * N), aligned_zeros(1, TILE * N + LANES)
    back = aligned_zeros(1, TILE * columns)
    listed, factors = np.empty(longest, np.int64), np.empty(longest, np.float32)
    for group in range(worker, groups, workers):
        grad_table[group] = np.float32(0)
        grad_diagonal[group] = np.float32(0)
        for tile in range(tiles * group // groups, tiles * (group + 1) // groups):
            b = tile * TILE
            backward_tile(
                program, N, b, min(TILE, samples - b), inputs, initial, output, kept, grad_output, grad_state,
                grad_current, grad_rows, grad_initial, weight, diagonal, grad_table[group], grad_diagonal[group],
                scalars, rows, upstream, grad, back, listed, factors,
            )  # fmt: skip
