"""Products of packed spikes with a float matrix: out[r] += sum of matrix[c] over the bits c of row r that are set.

Four columns at a time: the 16 possible sums of four rows of the matrix are tabulated once, and each row of bits then
costs one addition per four columns ("the method of the four Russians"). Both products of a linear layer on spikes have
this form: the currents (rows are time steps, columns are pixels) and the weight gradient (rows are pixels, columns are
time steps).

``Lanes`` is a vector of 16 floats that lives in registers (LLVM's <16 x float>, on any instruction set).
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from fastsnn.kernels.numba import jit

LANES = 16
COLUMNS = 64
"""Columns of one word."""
CACHE_LINE = 64
"""Bytes, and those of Lanes."""
TABLE_SIZE = COLUMNS // 4 * 16 * LANES
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
U64 = np.uint64


def aligned_empty(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """np.empty whose data start a cache line, so that vectors do not straddle two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(size + CACHE_LINE, np.uint8)
    start = -buffer.ctypes.data % CACHE_LINE
    return buffer[start : start + size].view(dtype).reshape(shape)


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
def add_product(typingctx, a, factor, b):
    """a + factor * b, a float32 and lanes, rounded once where the processor can (fma)."""

    def codegen(context, builder, signature, args):
        lanes = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), args[1], ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        factors = builder.shuffle_vector(lanes, ir.Constant(_VECTOR, ir.Undefined), mask)
        product = builder.fmul(factors, args[2], flags=("contract",))
        return builder.fadd(args[0], product, flags=("contract",))

    return lanes_type(lanes_type, types.float32, lanes_type), codegen


@intrinsic
def zero(typingctx):
    """Sixteen zeros."""

    def codegen(context, builder, signature, args):
        return cgutils.get_null_value(_VECTOR)

    return lanes_type(), codegen


@jit
def tabulate(matrix, first, stride, rows, count, table):
    """Write all sums of four rows of ``matrix`` to ``table``, for columns c < count <= 64 of the bits, in whole bytes.

    Column c stands for the 16 floats at matrix[first + rows[c] * stride]; sum m of columns 4g .. 4g + 3 is at
    table[(16 g + m) * 16]. The last column stands in for those past it, whose bits are 0.
    """
    for group in range((count + 7) // 8 * 2):
        c = 4 * group
        a = load(matrix, first + np.intp(rows[min(c, count - 1)]) * stride)
        b = load(matrix, first + np.intp(rows[min(c + 1, count - 1)]) * stride)
        low = (zero(), a, b, add(a, b))
        a = load(matrix, first + np.intp(rows[min(c + 2, count - 1)]) * stride)
        b = load(matrix, first + np.intp(rows[min(c + 3, count - 1)]) * stride)
        high = (zero(), a, b, add(a, b))
        for i in range(4):
            for j in range(4):
                store(table, (16 * group + 4 * i + j) * LANES, add(high[i], low[j]))


@jit
def add_selected(words, count, table, out, first, stride, rows, n):
    """Add the tabulated rows whose bits words[r] has to the 16 floats at out[first + rows[r] * stride], for r < n."""
    for r in range(n):
        word = words[r]
        address = first + np.intp(rows[r]) * stride
        even, odd = load(out, address), zero()
        for byte in range((count + 7) // 8):
            base = byte * 32 * LANES
            even = add(even, load(table, base + np.intp(word & U64(15)) * LANES))
            odd = add(odd, load(table, base + (np.intp(word >> U64(4) & U64(15)) + 16) * LANES))
            word >>= U64(8)
        store(out, address, add(even, odd))


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
    """Transpose a 64 x 64 bit matrix in place: bit c of rows[r] becomes bit r of rows[c]. Both are uint64 [64]."""
    shift, mask = U64(32), U64(0x00000000FFFFFFFF)
    for _ in range(3):
        _swap(rows, spare, shift, mask)
        shift >>= U64(1)
        mask ^= mask << shift
        _swap(spare, rows, shift, mask)
        shift >>= U64(1)
        mask ^= mask << shift
