"""Products of packed spikes with a float matrix: out[r] += sum of matrix[c] over the bits c of row r that are set.

Four columns at a time: the 16 possible sums of four rows of the matrix are tabulated once, and each row of bits then
costs one addition per four columns. Both products of a linear layer on spikes have this form: the currents (rows are time
steps, columns are pixels) and the weight gradient (rows are pixels, columns are time steps).

``Lanes`` is a vector of 16 floats that lives in registers (LLVM's <16 x float>, on any instruction set).
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from fastsnn.kernels.cpu import jit

LANES = 16
COLUMNS = 64
"""Columns of one word."""
TABLE_SIZE = COLUMNS // 4 * 16 * LANES
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
U64 = np.uint64


class Lanes(types.Type):
    """Numba's type of a vector of 16 float32."""

    def __init__(self):
        super().__init__(name="Lanes")


lanes_type = Lanes()


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """Lanes are one LLVM vector."""

    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VECTOR)


def _address(context, builder, array_type, array, offset):
    """Pointer to the 16 floats of a flat float32 array that start at ``offset``."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _VECTOR.as_pointer())


@intrinsic
def load(typingctx, array, offset):
    """array[offset : offset + 16] as Lanes."""

    def codegen(context, builder, signature, args):
        vector = builder.load(_address(context, builder, signature.args[0], *args))
        vector.align = 4
        return vector

    return lanes_type(array, types.intp), codegen


@intrinsic
def store(typingctx, array, offset, value):
    """array[offset : offset + 16] = value."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes_type), codegen


@intrinsic
def add(typingctx, a, b):
    """a + b, lane by lane."""

    def codegen(context, builder, signature, args):
        return builder.fadd(*args)

    return lanes_type(lanes_type, lanes_type), codegen


@intrinsic
def zero(typingctx):
    """Sixteen zeros."""

    def codegen(context, builder, signature, args):
        return cgutils.get_null_value(_VECTOR)

    return lanes_type(), codegen


@jit
def tabulate(matrix, first, offsets, count, table):
    """Write all sums of rows 4g .. 4g + 3 to table[256 g :]; row c < count <= 64 starts at matrix[first + offsets[c]]."""
    for group in range((count + 3) // 4):
        base = group * 16 * LANES
        store(table, base, zero())
        for k in range(4):
            c = 4 * group + k
            row = load(matrix, first + offsets[c]) if c < count else zero()
            for known in range(1 << k):
                store(table, base + ((1 << k) + known) * LANES, add(load(table, base + known * LANES), row))


@jit
def add_selected(words, rows, count, table, out, first, offsets):
    """Add the tabulated rows whose bits are set in words[r] to row r < rows of ``out``, which starts at first + offsets[r]."""
    for r in range(rows):
        word = words[r]
        total = load(out, first + offsets[r])
        for group in range((count + 3) // 4):
            total = add(total, load(table, (group * 16 + np.intp(word & U64(15))) * LANES))
            word >>= U64(4)
        store(out, first + offsets[r], total)


@jit
def _swap(rows, out, shift, mask):
    """One stage of ``transpose``: swap one bit of the column number with the leading bit of the row number."""
    for i in range(32):
        a, b = rows[i], rows[i + 32]
        difference = (a >> shift ^ b) & mask
        out[2 * i] = a ^ difference << shift
        out[2 * i + 1] = b ^ difference


@jit
def transpose(rows, spare):
    """Transpose a 64 x 64 bit matrix in place: bit c of rows[r] becomes bit r of rows[c]. Both arguments are uint64 [64]."""
    shift, mask = U64(32), U64(0x00000000FFFFFFFF)
    for _ in range(3):
        _swap(rows, spare, shift, mask)
        shift >>= U64(1)
        mask ^= mask << shift
        _swap(spare, rows, shift, mask)
        shift >>= U64(1)
        mask ^= mask << shift
