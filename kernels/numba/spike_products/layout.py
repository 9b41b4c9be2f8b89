"""Spikes of a group of samples as the products read them: silent inputs left out, one bit a spike, both ways round.

A group is one sample, or, if a sample has few time steps, as many samples as make tables of weights worth their while.
Its rows are pairs (time step, sample), 64 to a word: row r is bit r % 64 of word r // 64. A sample of more than 32
steps takes ceil(T/64) words for itself; of shorter ones a word holds ``per_word``, one after the other.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastsnn.kernels.numba import jit
from fastsnn.kernels.numba.bits import COLUMNS, U64, aligned_empty, transpose

ROWS = 128
"""Rows of a group of several samples: enough that a table of sums costs less than what is read from it."""
LOW = U64(0xFFFFFFFF)


class Shape(NamedTuple):
    """The numbers that a kernel needs: T time steps, B samples, K inputs, N neurons, and how samples form groups."""

    T: int
    B: int
    K: int
    N: int
    per_word: int
    """Samples of one word; 1 if a sample takes words for itself."""
    words: int
    """Words of a group."""
    samples: int
    """Samples of a group; the last group may have fewer."""
    groups: int
    rows: int
    """Rows of a group: all that its words have, or the time steps of one sample."""
    filled: int
    """Those that stand for a time step of a sample, in a full group"""


def shape_of(T: int, B: int, K: int, N: int) -> Shape:
    """How B samples of T steps form groups."""
    if T > 32:
        return Shape(T, B, K, N, per_word=1, words=-(-T // COLUMNS), samples=1, groups=B, rows=T, filled=T)
    per_word = COLUMNS // T
    words = max(1, min(ROWS // COLUMNS, -(-B // per_word)))
    samples = per_word * words
    return Shape(
        T, B, K, N, per_word, words, samples, groups=-(-B // samples), rows=COLUMNS * words, filled=T * min(samples, B)
    )


class Spikes(NamedTuple):
    """The groups' spikes, filled by :func:`gather` and, for the forward product, :func:`turn`."""

    counts: Any
    """int64 [2, groups]: inputs that spike at all; spikes"""
    inputs: Any
    """int32 [groups, K]: which inputs spike at all, in order"""
    by_input: Any
    """uint64 [groups, words, K]: their rows, of input inputs[g, i] at i"""
    by_row: Any
    """uint64 [groups, ceil(K/64), 64 words]: bit i % 64 of word i // 64 is input inputs[g, i]; forward alone"""
    starts: Any
    """int64 [groups, rows or K + 1]: where the spikes of a row (forward) or an input (gradient) begin in ``lists``"""
    lists: Any
    """int32 [spikes, at most]: what is added one by one: inputs (forward) or rows (gradient)"""
    identity: Any
    """int64 [64 words or more]: 0, 1, 2, ..."""


def spikes_for(shape: Shape, listed: int, forward: bool) -> Spikes:
    """Memory for the groups' spikes, of which at most ``listed`` in a group are listed."""
    rows, blocks = COLUMNS * shape.words, -(-shape.K // COLUMNS)
    return Spikes(
        counts=np.empty((2, shape.groups), np.int64),
        inputs=np.empty((shape.groups, shape.K), np.int32),
        by_input=aligned_empty((shape.groups, shape.words, shape.K), np.uint64),
        by_row=aligned_empty((shape.groups if forward else 0, blocks, rows), np.uint64),
        starts=np.empty((shape.groups, (rows if forward else shape.K) + 1), np.int64),
        lists=np.empty(shape.groups * listed, np.int32),
        identity=np.arange(max(rows, COLUMNS)),
    )


@intrinsic
def count_bits(typingctx, word):
    """How many bits of a uint64 are 1."""

    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


@intrinsic
def lowest_bit(typingctx, word):
    """The number of the lowest bit that is 1, of a uint64 that has one."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@jit
def word_of(words, shape, group, q, out):
    """Word q of a group for every input, out uint64 [K], from packed ``words`` int32 [ceil(T/32), B, K]."""
    if shape.per_word == 1 and shape.T > 32:
        last = shape.T - 64 * q  # steps from here on; what lies past them is ignored
        mask = ~U64(0) if last >= 64 else (U64(1) << U64(last)) - U64(1)
        low = words[2 * q, group]
        if last <= 32:
            for k in range(len(out)):
                out[k] = U64(low[k]) & LOW & mask
        else:
            high = words[2 * q + 1, group]
            for k in range(len(out)):
                out[k] = (U64(low[k]) & LOW | U64(high[k]) << U64(32)) & mask
        return
    mask = (U64(1) << U64(shape.T)) - U64(1)
    first = (group * shape.words + q) * shape.per_word
    for k in range(len(out)):
        out[k] = U64(0)
    for sample in range(first, min(first + shape.per_word, shape.B)):
        row, shift = words[0, sample], U64((sample - first) * shape.T)
        for k in range(len(out)):
            out[k] |= (U64(row[k]) & mask) << shift


@jit
def gather(words, shape, group, spikes):
    """List the group's inputs that spike at all and their rows, and count them and their spikes."""
    inputs, by_input = spikes.inputs[group], spikes.by_input[group]
    any_row = np.zeros(shape.K, np.uint64)
    for q in range(shape.words):
        row = by_input[q]
        word_of(words, shape, group, q, row)
        for k in range(shape.K):
            any_row[k] |= row[k]
    n = 0
    for k in range(shape.K):
        inputs[n] = k
        n += any_row[k] != U64(0)
    total = 0
    for q in range(shape.words):
        row = by_input[q]
        for i in range(n):
            word = row[inputs[i]]
            row[i] = word
            total += count_bits(word)
    spikes.counts[0, group], spikes.counts[1, group] = n, total


@jit
def turn(shape, group, spikes, spare):
    """The group's bits by row, from those by input; ``spare`` uint64 [64]."""
    n = spikes.counts[0, group]
    for block in range((n + COLUMNS - 1) // COLUMNS):
        first = block * COLUMNS
        size = min(COLUMNS, n - first)
        for q in range(shape.words):
            out, row = spikes.by_row[group, block, COLUMNS * q : COLUMNS * (q + 1)], spikes.by_input[group, q]
            for i in range(size):
                out[i] = row[first + i]
            for i in range(size, COLUMNS):
                out[i] = U64(0)
            transpose(out, spare)


@jit
def list_bits(word, position, first, lists):
    """Write first + i for every bit i of the word to lists[position:]; returns the position after them."""
    while word != U64(0):
        lists[position] = first + lowest_bit(word)
        word &= word - U64(1)
        position += 1
    return position


@jit
def list_inputs(shape, group, spikes, position):
    """List the inputs that spike in each row of the group, from ``position`` of ``spikes.lists`` on."""
    n, starts, inputs = spikes.counts[0, group], spikes.starts[group], spikes.inputs[group]
    for row in range(shape.rows):
        starts[row] = position
        for block in range((n + COLUMNS - 1) // COLUMNS):
            begin = position
            position = list_bits(spikes.by_row[group, block, row], position, COLUMNS * block, spikes.lists)
            for i in range(begin, position):
                spikes.lists[i] = inputs[spikes.lists[i]]
    starts[shape.rows] = position


@jit
def list_rows(shape, group, spikes, position):
    """List the rows in which each of the group's inputs spikes, from ``position`` of ``spikes.lists`` on."""
    n, starts = spikes.counts[0, group], spikes.starts[group]
    for i in range(n):
        starts[i] = position
        for q in range(shape.words):
            position = list_bits(spikes.by_input[group, q, i], position, COLUMNS * q, spikes.lists)
    starts[n] = position


@jit
def offsets_of(shape, group, offsets):
    """offsets[r] = index of row r in an array [T, B], or -1 for a row that stands for nothing; int64 [rows]."""
    if shape.T > 32:
        for r in range(len(offsets)):
            offsets[r] = r * shape.B + group
        return
    for r in range(len(offsets)):
        q, i = r // COLUMNS, r % COLUMNS
        place, t = i // shape.T, i % shape.T
        sample = (group * shape.words + q) * shape.per_word + place
        offsets[r] = t * shape.B + sample if place < shape.per_word and sample < shape.B else -1


@jit
def first_row(shape, sample):
    """Row of the first time step of a group's ``sample``-th sample; the other steps follow."""
    return sample // shape.per_word * COLUMNS + sample % shape.per_word * shape.T
