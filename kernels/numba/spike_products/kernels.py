"""Both products of a linear layer on spikes: the currents of a group of samples, and its part of the weight gradient.

Neurons come in panels of 32 (of 16 in a layer of no more), whose weights lie together, [K, 32]: a panel and a group's
currents stay in the second-level cache. Two ways, chosen for each group by how often its inputs spike:

    tables  of all sums of four rows: one addition per four inputs and row, whatever their spikes (``bits.py``)
    lists   of what spikes: one addition per spike

Workers share panels and groups out among themselves, but what is added to what, and in which order, depends on the
shape and the spikes alone: the bits of a result don't depend on the number of workers.
"""

from typing import Any, NamedTuple

import numpy as np

from fastsnn.kernels.numba import jit
from fastsnn.kernels.numba.bits import (
    COLUMNS,
    LANES,
    TABLE_SIZE,
    WIDE,
    add,
    add_selected,
    aligned_empty,
    load_like,
    store,
    tabulate,
    wide_zero,
    width,
    zero,
    zeros_like,
)
from fastsnn.kernels.numba.spike_products.layout import (
    Shape,
    gather,
    list_inputs,
    list_rows,
    offsets_of,
    turn,
)
from fastsnn.kernels.numba.threads import meet

PARTS = 16
"""Pieces that the weight gradient is worked out in, at least: panels, times parts of the batch if those are fewer."""


CHUNK = 4
"""Panels that a worker goes through the batch with at a time, at most: rows of memory are then read as long pieces."""
CACHE = 1 << 19
"""Bytes of the second-level cache that a chunk of panels may fill."""


class Work(NamedTuple):
    """Memory of the workers; the first dimension of all but ``panels`` is the worker."""

    panels: Any
    """float32 [panels * K * lanes]: the weights; [parts * panels * K * lanes]: the parts of their gradient"""
    table: Any
    """float32 [workers, TABLE_SIZE * lanes / 16]"""
    blocks: Any
    """float32 [workers, chunk, 64 words * lanes]: a group's currents, or their gradient, for a chunk of panels"""
    offsets: Any
    """int64 [workers, 64 words]"""
    spare: Any
    """uint64 [workers, 64]"""


def lanes_for(N: int) -> int:
    """Neurons of a panel."""
    return LANES if N <= LANES else WIDE


def panels_for(N: int) -> int:
    return -(-N // lanes_for(N))


def parts_for(shape: Shape) -> int:
    """Parts of the batch whose weight gradients are worked out one by one and then added."""
    return max(1, min(-(-PARTS // panels_for(shape.N)), shape.groups))


def work_for(shape: Shape, workers: int, parts: int) -> Work:
    """Memory for so many workers."""
    lanes, rows = lanes_for(shape.N), COLUMNS * shape.words
    chunk = max(1, min(CHUNK, CACHE // (4 * lanes * (rows + shape.K)), panels_for(shape.N)))
    return Work(
        panels=aligned_empty((parts * panels_for(shape.N) * shape.K * lanes,), np.float32),
        table=aligned_empty((workers, TABLE_SIZE // LANES * lanes), np.float32),
        blocks=aligned_empty((workers, chunk, rows * lanes), np.float32),
        offsets=np.empty((workers, rows), np.int64),
        spare=aligned_empty((workers, COLUMNS), np.uint64),
    )


@jit
def lay_panel(weight, panel, panels, lanes):
    """Copy the weights [N, K] of one panel's neurons to ``panels``; neurons past the last have none."""
    N, K = weight.shape
    for k in range(K):
        out = panels[(panel * K + k) * lanes : (panel * K + k + 1) * lanes]
        for j in range(lanes):
            n = panel * lanes + j
            out[j] = weight[n, k] if n < N else np.float32(0)


@jit
def use_lists(shape, group, spikes, threshold):
    """Whether the group's spikes are added one by one: they are fewer than this share of rows and active inputs."""
    return spikes.counts[1, group] < threshold * (spikes.counts[0, group] * min(shape.T * shape.samples, shape.rows))


@jit
def add_listed(starts, lists, matrix, first, stride, out, out_first, rows, n, like):
    """Add the vectors matrix[first + lists[i] * stride], starts[r] <= i < starts[r + 1], to row rows[r] of out."""
    lanes = width(like)
    for r in range(n):
        address = out_first + np.intp(rows[r]) * lanes
        even, odd = load_like(out, address, like), zeros_like(like)
        i, stop = starts[r], starts[r + 1]
        while i + 1 < stop:
            even = add(even, load_like(matrix, first + np.intp(lists[i]) * stride, like))
            odd = add(odd, load_like(matrix, first + np.intp(lists[i + 1]) * stride, like))
            i += 2
        if i < stop:
            even = add(even, load_like(matrix, first + np.intp(lists[i]) * stride, like))
        store(out, address, add(even, odd))


@jit
def block_currents(shape, group, spikes, panel, panels, bias, threshold, table, block, like):
    """Currents of a group for one panel of neurons, ``block`` float32 [64 words * lanes]: a row for each of its rows.

    Needs the group's :func:`gather`, :func:`turn` and, with fewer spikes than ``threshold``, :func:`list_inputs`, and
    the panel's :func:`lay_panel`. ``bias`` float32 [N], or of no elements. Row r is time step r of more than 32 steps,
    see ``layout.offsets_of`` for fewer. ``table`` is scratch.
    """
    lanes, rows = width(like), shape.rows
    start = block[:lanes]
    for j in range(lanes):
        n = panel * lanes + j
        start[j] = bias[n] if n < len(bias) else np.float32(0)
    vector = load_like(block, 0, like)
    for r in range(rows):
        store(block, r * lanes, vector)
    n, first = spikes.counts[0, group], panel * shape.K * lanes
    if use_lists(shape, group, spikes, threshold):
        add_listed(
            spikes.starts[group], spikes.lists, panels, first, lanes, block, 0, spikes.identity, rows, like
        )  # fmt: skip
        return
    for column in range(0, n, COLUMNS):
        size = min(COLUMNS, n - column)
        tabulate(panels, first, lanes, spikes.inputs[group, column:], size, table, like)
        bits = spikes.by_row[group, column // COLUMNS]
        add_selected(bits, size, table, block, 0, lanes, spikes.identity, rows, like)


@jit
def store_rows(blocks, offsets, out, first, like):
    """Copy the rows of blocks of neurons ``first`` and on to out [T * B, N]."""
    lanes, N, flat = width(like), out.shape[1], out.reshape(out.size)
    for r in range(len(offsets)):
        if offsets[r] < 0:
            continue
        for i in range(len(blocks)):
            start, block = first + i * lanes, blocks[i]
            if start + lanes <= N:
                store(flat, offsets[r] * N + start, load_like(block, r * lanes, like))
            else:
                for j in range(N - start):
                    flat[offsets[r] * N + start + j] = block[r * lanes + j]


@jit
def load_rows(grad, offsets, first, blocks, like):
    """Copy neurons ``first`` and on of grad [T * B, N] to the rows of blocks, zeros where there are none."""
    lanes, N, flat = width(like), grad.shape[1], grad.reshape(grad.size)
    for r in range(len(offsets)):
        for i in range(len(blocks)):
            start, block = first + i * lanes, blocks[i]
            if offsets[r] >= 0 and start + lanes <= N:
                store(block, r * lanes, load_like(flat, offsets[r] * N + start, like))
                continue
            store(block, r * lanes, zeros_like(like))
            for j in range(N - start if offsets[r] >= 0 else 0):
                block[r * lanes + j] = flat[offsets[r] * N + start + j]


@jit
def add_block(shape, group, spikes, threshold, block, panels, first, table, like):
    """Add a group's part of the weight gradient to the panel at panels[first:], from the gradient of its currents."""
    lanes, n, inputs = width(like), spikes.counts[0, group], spikes.inputs[group]
    if use_lists(shape, group, spikes, threshold):
        add_listed(spikes.starts[group], spikes.lists, block, 0, lanes, panels, first, inputs, n, like)
        return
    for q in range(shape.words):
        size = min(COLUMNS, shape.T - COLUMNS * q) if shape.T > 32 else shape.per_word * shape.T
        tabulate(block, COLUMNS * q * lanes, lanes, spikes.identity, size, table, like)
        add_selected(spikes.by_input[group, q], size, table, panels, first, lanes, inputs, n, like)


@jit
def prepare(worker, workers, words, shape, spikes, threshold, forward, arrived, spare):
    """Fill ``spikes``, each worker its share; True if all workers did."""
    for group in range(shape.groups * worker // workers, shape.groups * (worker + 1) // workers):
        gather(words, shape, group, spikes)
        if forward:
            turn(shape, group, spikes, spare)
    if not meet(arrived, workers, 1):
        return False
    position = 0
    for group in range(shape.groups * (worker + 1) // workers):
        if use_lists(shape, group, spikes, threshold):
            if group >= shape.groups * worker // workers:
                if forward:
                    list_inputs(shape, group, spikes, position)
                else:
                    list_rows(shape, group, spikes, position)
            position += spikes.counts[1, group]
    return meet(arrived, workers, 2)


@jit
def _forward(worker, workers, arrived, words, weight, bias, out, shape, threshold, spikes, work, like):
    lanes = width(like)
    panels, longest = (shape.N + lanes - 1) // lanes, work.blocks.shape[1]
    for panel in range(panels * worker // workers, panels * (worker + 1) // workers):
        lay_panel(weight, panel, work.panels, lanes)
    if not prepare(worker, workers, words, shape, spikes, threshold, True, arrived, work.spare[worker]):
        return
    table, offsets = work.table[worker], work.offsets[worker][: shape.rows]
    chunks = (panels + longest - 1) // longest
    items = chunks * shape.groups
    for item in range(items * worker // workers, items * (worker + 1) // workers):
        chunk, group = item // shape.groups, item % shape.groups
        first, last = chunk * panels // chunks, (chunk + 1) * panels // chunks
        blocks = work.blocks[worker, : last - first]
        for panel in range(first, last):
            block = blocks[panel - first]
            block_currents(shape, group, spikes, panel, work.panels, bias, threshold, table, block, like)
        offsets_of(shape, group, offsets)
        store_rows(blocks, offsets, out, first * lanes, like)


@jit
def _gradient(worker, workers, arrived, words, grad, out, shape, threshold, parts, spikes, work, like):
    lanes = width(like)
    panels, longest, size = (shape.N + lanes - 1) // lanes, work.blocks.shape[1], shape.K * lanes
    if not prepare(worker, workers, words, shape, spikes, threshold, False, arrived, work.spare[worker]):
        return
    table, offsets = work.table[worker], work.offsets[worker][: shape.rows]
    item, stop = panels * parts * worker // workers, panels * parts * (worker + 1) // workers
    work.panels[item * size : stop * size] = np.float32(0)
    while item < stop:
        part, panel = item // panels, item % panels
        blocks = work.blocks[worker, : min(longest, panels - panel, stop - item)]
        for group in range(shape.groups * part // parts, shape.groups * (part + 1) // parts):
            offsets_of(shape, group, offsets)
            load_rows(grad, offsets, panel * lanes, blocks, like)
            for i in range(len(blocks)):
                add_block(shape, group, spikes, threshold, blocks[i], work.panels, (item + i) * size, table, like)
        item += len(blocks)
    if not meet(arrived, workers, 3):
        return
    for panel in range(panels * worker // workers, panels * (worker + 1) // workers):
        total = work.panels[panel * size : (panel + 1) * size]
        for part in range(1, parts):
            other = work.panels[(part * panels + panel) * size : (part * panels + panel + 1) * size]
            for i in range(size):
                total[i] += other[i]
        for n in range(panel * lanes, min((panel + 1) * lanes, shape.N)):
            row, j = out[n], n - panel * lanes
            for k in range(shape.K):
                row[k] = total[k * lanes + j]


@jit(entry=True)
def forward_narrow(worker, workers, arrived, words, weight, bias, out, shape, threshold, spikes, work):
    """:func:`forward` for at most 16 neurons."""
    _forward(worker, workers, arrived, words, weight, bias, out, shape, threshold, spikes, work, zero())


@jit(entry=True)
def forward(worker, workers, arrived, words, weight, bias, out, shape, threshold, spikes, work):
    """One worker's share of out [T * B, N] = spikes @ weight.T + bias; bias of no elements is zero."""
    _forward(worker, workers, arrived, words, weight, bias, out, shape, threshold, spikes, work, wide_zero())


@jit(entry=True)
def gradient_narrow(worker, workers, arrived, words, grad, out, shape, threshold, parts, spikes, work):
    """:func:`gradient` for at most 16 neurons."""
    _gradient(worker, workers, arrived, words, grad, out, shape, threshold, parts, spikes, work, zero())


@jit(entry=True)
def gradient(worker, workers, arrived, words, grad, out, shape, threshold, parts, spikes, work):
    """One worker's share of out [N, K] = sum over t and b of grad[t * B + b, n] * spikes[t, b, k]."""
    _gradient(worker, workers, arrived, words, grad, out, shape, threshold, parts, spikes, work, wide_zero())
