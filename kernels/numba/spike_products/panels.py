"""Weights in panels: those of 32 neurons (of 16 in a layer of no more) lie together, [K, lanes], and so do gradients.

A panel stays in the second-level cache while all samples go by, wherever a whole row of the weights would not.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastsnn.kernels.numba import jit
from fastsnn.kernels.numba.bits import LANES, WIDE, load_like, store, width, zeros_like

_TILE = ir.VectorType(ir.FloatType(), LANES)


def lanes_for(N: int) -> int:
    """Neurons of a panel."""
    return LANES if N <= LANES else WIDE


def panels_for(N: int) -> int:
    return -(-N // lanes_for(N))


@intrinsic
def _transpose_tile(typingctx, source, first, stride, target, target_first, target_stride):
    """target[target_first + j * target_stride + i] = source[first + i * stride + j] for i, j < 16, both flat."""

    def codegen(context, builder, signature, args):
        def pointer(array, start, step, i):
            data = context.make_array(signature.args[array])(context, builder, args[array]).data
            offset = builder.add(args[start], builder.mul(args[step], context.get_constant(types.intp, i)))
            return builder.bitcast(builder.gep(data, [offset]), _TILE.as_pointer())

        rows = [builder.load(pointer(0, 1, 2, i), align=4) for i in range(LANES)]
        step = 1
        while step < LANES:  # blocks of step x step change places across the diagonal
            low = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
            high = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
            masks = [ir.Constant(ir.VectorType(ir.IntType(32), LANES), mask) for mask in (low, high)]
            for i in range(LANES):
                if not i & step:
                    pair = rows[i], rows[i + step]
                    rows[i], rows[i + step] = (builder.shuffle_vector(*pair, mask) for mask in masks)
            step *= 2
        for j, row in enumerate(rows):
            builder.store(row, pointer(3, 4, 5, j), align=4)
        return context.get_dummy_value()

    step = types.intp
    return types.void(source, step, step, target, step, step), codegen


@jit
def lay_panel(weight, K, N, panel, panels, lanes):
    """Copy the weights, flat [N * K], of one panel's neurons to ``panels``; neurons past the last have zeros."""
    start = panel * K * lanes
    for j in range(0, lanes, LANES):
        first = panel * lanes + j
        whole = K // LANES * LANES if first + LANES <= N else 0
        for k in range(0, whole, LANES):
            _transpose_tile(weight, first * K + k, K, panels, start + k * lanes + j, lanes)
        for k in range(whole, K):
            for i in range(LANES):
                n = first + i
                panels[start + k * lanes + j + i] = weight[n * K + k] if n < N else np.float32(0)


@jit
def take_panel(total, K, N, panel, out, lanes):
    """Copy one panel's gradient, ``total`` [K * lanes], to its neurons of ``out``, flat [N * K]."""
    for j in range(0, lanes, LANES):
        first = panel * lanes + j
        whole = K // LANES * LANES if first + LANES <= N else 0
        for k in range(0, whole, LANES):
            _transpose_tile(total, k * lanes + j, lanes, out, first * K + k, K)
        for k in range(whole, K):
            for n in range(first, min(first + LANES, N)):
                out[n * K + k] = total[k * lanes + j + n - first]


@jit
def store_rows(blocks, offsets, out, N, first, like):
    """Copy the rows of blocks to neurons ``first`` and on of out, flat [T * B * N]."""
    lanes = width(like)
    for r in range(len(offsets)):
        if offsets[r] < 0:
            continue
        for i in range(len(blocks)):
            start, block = first + i * lanes, blocks[i]
            if start + lanes <= N:
                store(out, offsets[r] * N + start, load_like(block, r * lanes, like))
            else:
                for j in range(N - start):
                    out[offsets[r] * N + start + j] = block[r * lanes + j]


@jit
def load_rows(grad, offsets, N, first, blocks, like):
    """Copy neurons ``first`` and on of grad, flat [T * B * N], to the rows of blocks, zeros if there are none."""
    lanes = width(like)
    for r in range(len(offsets)):
        for i in range(len(blocks)):
            start, block = first + i * lanes, blocks[i]
            if offsets[r] >= 0 and start + lanes <= N:
                store(block, r * lanes, load_like(grad, offsets[r] * N + start, like))
                continue
            store(block, r * lanes, zeros_like(like))
            for j in range(N - start if offsets[r] >= 0 else 0):
                block[r * lanes + j] = grad[offsets[r] * N + start + j]
