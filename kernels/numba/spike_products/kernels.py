"""Both products of a linear layer on spikes: the currents of a group of samples, and its part of the weight gradient.

Each is computed for a group of samples (``layout.py``) and a panel of neurons (``panels.py``) at a time, between a
block of float32 [rows, lanes] in the cache and the weights, in the way that suits the group's spikes:

    tables  of all sums of four rows: one addition per four inputs and row, whatever their spikes (``bits.py``)
    lists   of what spikes: one addition per spike

Workers share panels and groups out among themselves, but what is added to what, and in which order, depends on the
shape and the spikes alone: the bits of a result don't depend on the number of workers.

From another kernel, as one that runs neurons over the currents while they are in the cache: all workers call
:func:`prepare`, then :func:`block_currents` for any panel and group, which fills the worker's block; or
:func:`add_block`, for which each worker must own what it adds to. ``like`` is ``wide_zero()`` for more than 16 neurons,
else ``zero()``. Row r of a block of more than 32 time steps is step r of the sample that the group is; for fewer, step
t of the group's sample i is row ``layout.first_row(shape, i) + t``. ``prepare`` meets the workers twice: the next
``meet(product.arrived, workers, 3)`` is theirs.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from fastsnn.kernels.numba import jit
from fastsnn.kernels.numba.bits import (
    COLUMNS,
    LANES,
    TABLE_SIZE,
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
from fastsnn.kernels.numba.spike_products.choice import ALWAYS, BEGIN, BUILD, NEVER
from fastsnn.kernels.numba.spike_products.layout import (
    Shape,
    Spikes,
    gather,
    list_inputs,
    list_rows,
    offsets_of,
    spikes_for,
    turn,
)
from fastsnn.kernels.numba.spike_products.panels import (
    lanes_for,
    lay_panel,
    load_rows,
    panels_for,
    store_rows,
    take_panel,
)
from fastsnn.kernels.numba.threads import meet, meeting

PARTS = 16
"""Pieces that the weight gradient is computed in, at least: panels, times parts of the batch if those are fewer."""
CHUNK = 4
"""Panels that a worker goes through the batch with at a time, at most: rows of memory are then read as long pieces."""
CACHE = 1 << 19
"""Bytes of the second-level cache that a chunk of panels may fill."""


class Product(NamedTuple):
    """Operands and memory of one product; the first dimension of ``tables`` and what follows is the worker."""

    shape: Shape
    share: float
    """Spikes per addition of the tables below which a group takes lists: see ``choice.py``."""
    words: Any
    """int32 [ceil(T/32), B, K]"""
    weight: Any
    """float32 [N * K]; of no elements for the gradient"""
    bias: Any
    """float32 [N], or of no elements"""
    arrived: Any
    """what the workers share to ``meet``"""
    spikes: Spikes
    parts: int
    """parts of the batch whose gradients are computed one by one and then added"""
    panels: Any
    """float32 [panels * K * lanes], the weights; for the gradient [parts * panels * (K + 1) * lanes], bias last"""
    tables: Any
    """float32 [workers, TABLE_SIZE * lanes / 16]"""
    blocks: Any
    """float32 [workers, chunk, rows * lanes]: a group's currents, or their gradient, for a chunk of panels"""
    offsets: Any
    """int64 [workers, rows]"""
    spare: Any
    """uint64 [workers, 64]"""


def product(shape: Shape, share: float, workers: int, words: Any, weight: Any = None, bias: Any = None) -> Product:
    """The product of spikes with ``weight`` [N, K] and ``bias`` [N] or None; without weight, that of the gradient."""
    lanes, forward = lanes_for(shape.N), weight is not None
    panels = panels_for(shape.N)
    parts = 1 if forward else max(1, min(-(-PARTS // panels), shape.groups))
    chunk = max(1, min(CHUNK, CACHE // (4 * lanes * (shape.rows + shape.K)), panels))
    most = shape.K * shape.filled
    listed = most if share >= ALWAYS else math.ceil(max(0.0, share) * (shape.K + BUILD) * (shape.filled + BUILD))
    empty = np.empty(0, np.float32)
    return Product(
        shape, share, words, weight.reshape(-1) if forward else empty, empty if bias is None else bias, meeting(),
        spikes_for(shape, min(listed, most), forward), parts,
        panels=aligned_empty((parts * panels * (shape.K + (not forward)) * lanes,), np.float32),
        tables=aligned_empty((workers, TABLE_SIZE // LANES * lanes), np.float32),
        blocks=aligned_empty((workers, chunk, shape.rows * lanes), np.float32),
        offsets=np.empty((workers, shape.rows), np.int64),
        spare=aligned_empty((workers, COLUMNS), np.uint64),
    )  # fmt: skip


@jit
def prepare(worker, workers, product, like):
    """Lay out spikes and weights, each worker its share; False if another worker failed and there is nothing to do."""
    shape, spikes, forward = product.shape, product.spikes, len(product.weight) > 0
    lanes = width(like)
    panels = (shape.N + lanes - 1) // lanes
    if forward:
        for panel in range(panels * worker // workers, panels * (worker + 1) // workers):
            lay_panel(product.weight, shape.K, shape.N, panel, product.panels, lanes)
    first, last = shape.groups * worker // workers, shape.groups * (worker + 1) // workers
    for group in range(first, last):
        gather(product.words, shape, group, spikes)
        if forward:
            turn(shape, group, spikes, product.spare[worker])
    if not meet(product.arrived, workers, 1):
        return False
    position = 0
    for group in range(last):
        if use_lists(product, group):
            if group >= first:
                if forward:
                    list_inputs(shape, group, spikes, position)
                else:
                    list_rows(shape, group, spikes, position)
            position += spikes.counts[1, group]
    return meet(product.arrived, workers, 2)


@jit
def use_lists(product, group):
    """Whether the group's spikes are added one by one: they are few beside what the tables would add."""
    n, rows = product.spikes.counts[0, group], product.shape.filled
    if product.share >= ALWAYS or product.share <= NEVER:
        return product.share >= ALWAYS
    tables = n * (rows + BUILD) if len(product.weight) > 0 else rows * (n + BUILD) - n * BEGIN
    return product.spikes.counts[1, group] < product.share * tables


@jit
def add_listed(starts, lists, matrix, first, out, out_first, rows, n, like):
    """Add the vectors ``lists[i]`` from matrix[first:], starts[r] <= i < starts[r + 1], to vector rows[r] of out."""
    lanes = width(like)
    for r in range(n):
        address = out_first + np.intp(rows[r]) * lanes
        even, odd = load_like(out, address, like), zeros_like(like)
        i, stop = starts[r], starts[r + 1]
        while i + 1 < stop:
            even = add(even, load_like(matrix, first + np.intp(lists[i]) * lanes, like))
            odd = add(odd, load_like(matrix, first + np.intp(lists[i + 1]) * lanes, like))
            i += 2
        if i < stop:
            even = add(even, load_like(matrix, first + np.intp(lists[i]) * lanes, like))
        store(out, address, add(even, odd))


@jit
def block_currents(product, worker, group, panel, block, like):
    """Currents of a group for one panel of neurons, bias included: ``block`` float32 [rows * lanes]."""
    shape, spikes, lanes = product.shape, product.spikes, width(like)
    for j in range(lanes):
        n = panel * lanes + j
        block[j] = product.bias[n] if n < len(product.bias) else np.float32(0)
    vector = load_like(block, 0, like)
    for r in range(1, shape.rows):
        store(block, r * lanes, vector)
    n, first = spikes.counts[0, group], panel * shape.K * lanes
    if use_lists(product, group):
        starts = spikes.starts[group]
        add_listed(starts, spikes.lists, product.panels, first, block, 0, spikes.identity, shape.rows, like)
        return
    for column in range(0, n, COLUMNS):
        size, table = min(COLUMNS, n - column), product.tables[worker]
        tabulate(product.panels, first, lanes, spikes.inputs[group, column:], size, table, like)
        bits = spikes.by_row[group, column // COLUMNS]
        add_selected(bits, size, table, block, 0, lanes, spikes.identity, shape.rows, like)


@jit
def add_block(product, worker, group, block, first, like):
    """Add a group's part of the gradient, [K + 1, lanes] at panels[first:], from that of its currents, ``block``."""
    shape, spikes, lanes = product.shape, product.spikes, width(like)
    n, inputs, total = spikes.counts[0, group], spikes.inputs[group], zeros_like(like)
    for r in range(shape.rows):
        total = add(total, load_like(block, r * lanes, like))
    bias = first + shape.K * lanes
    store(product.panels, bias, add(load_like(product.panels, bias, like), total))
    if use_lists(product, group):
        add_listed(spikes.starts[group], spikes.lists, block, 0, product.panels, first, inputs, n, like)
        return
    for q in range(shape.words):
        size = min(COLUMNS, shape.rows - COLUMNS * q)
        tabulate(block, COLUMNS * q * lanes, lanes, spikes.identity, size, product.tables[worker], like)
        bits = spikes.by_input[group, q]
        add_selected(bits, size, product.tables[worker], product.panels, first, lanes, inputs, n, like)


@jit
def _currents(worker, workers, product, out, like):
    shape, lanes, offsets = product.shape, width(like), product.offsets[worker]
    if not prepare(worker, workers, product, like):
        return
    panels, longest = (shape.N + lanes - 1) // lanes, product.blocks.shape[1]
    chunks = (panels + longest - 1) // longest
    items = chunks * shape.groups
    for item in range(items * worker // workers, items * (worker + 1) // workers):
        chunk, group = item // shape.groups, item % shape.groups
        first, last = chunk * panels // chunks, (chunk + 1) * panels // chunks
        blocks = product.blocks[worker, : last - first]
        for panel in range(first, last):
            block_currents(product, worker, group, panel, blocks[panel - first], like)
        offsets_of(shape, group, offsets)
        store_rows(blocks, offsets, out, shape.N, first * lanes, like)


@jit
def _gradient(worker, workers, product, grad, out, bias, like):
    shape, lanes, offsets, parts = product.shape, width(like), product.offsets[worker], product.parts
    if not prepare(worker, workers, product, like):
        return
    panels, longest, size = (shape.N + lanes - 1) // lanes, product.blocks.shape[1], (shape.K + 1) * lanes
    item, stop = panels * parts * worker // workers, panels * parts * (worker + 1) // workers
    product.panels[item * size : stop * size] = np.float32(0)
    while item < stop:
        part, panel = item // panels, item % panels
        blocks = product.blocks[worker, : min(longest, panels - panel, stop - item)]
        for group in range(shape.groups * part // parts, shape.groups * (part + 1) // parts):
            offsets_of(shape, group, offsets)
            load_rows(grad, offsets, shape.N, panel * lanes, blocks, like)
            for i in range(len(blocks)):
                add_block(product, worker, group, blocks[i], (item + i) * size, like)
        item += len(blocks)
    if not meet(product.arrived, workers, 3):
        return
    for panel in range(panels * worker // workers, panels * (worker + 1) // workers):
        total = product.panels[panel * size : (panel + 1) * size]
        for part in range(1, parts):
            other = product.panels[(part * panels + panel) * size : (part * panels + panel + 1) * size]
            for i in range(size):
                total[i] += other[i]
        take_panel(total, shape.K, shape.N, panel, out, lanes)
        for n in range(panel * lanes, min((panel + 1) * lanes, len(bias))):
            bias[n] = total[shape.K * lanes + n - panel * lanes]


@jit(entry=True)
def currents_narrow(worker, workers, product, out):
    """:func:`currents` for at most 16 neurons."""
    _currents(worker, workers, product, out, zero())


@jit(entry=True)
def currents(worker, workers, product, out):
    """One worker's share of out [T * B * N] = spikes @ weight.T + bias."""
    _currents(worker, workers, product, out, wide_zero())


@jit(entry=True)
def gradient_narrow(worker, workers, product, grad, out, bias):
    """:func:`gradient` for at most 16 neurons."""
    _gradient(worker, workers, product, grad, out, bias, zero())


@jit(entry=True)
def gradient(worker, workers, product, grad, out, bias):
    """One worker's share of the gradients out [N * K] and bias [N], or of no elements, from ``grad`` [T * B * N]."""
    _gradient(worker, workers, product, grad, out, bias, wide_zero())
