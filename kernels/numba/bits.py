"""Products of packed spikes with a float matrix: out[r] += sum of matrix[c] over the bits c of row r that are set.

Four columns at a time: the 16 possible sums of four rows of the matrix are tabulated once, and each row of bits then
costs one addition per four columns ("the method of the four Russians"). Both products of a linear layer on spikes have
this form: the currents (rows are time steps, columns are pixels) and the weight gradient (rows are pixels, columns are
time steps).

``Lanes`` is a vector of 16 or 32 floats that lives in registers (LLVM's <16 x float>, on any instruction set).
Functions that work for both widths take one of them as ``like``, of which only the type counts.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from fastsnn.kernels.numba import jit

LANES = 16
"""Floats of the usual vector."""
WIDE = 32
"""Floats of the wide one, which spends less on finding its addresses: for matrices of many columns."""
COLUMNS = 64
"""Columns of one word."""
CACHE_LINE = 64
"""Bytes, and those of 16 lanes."""
TABLE_SIZE = COLUMNS // 4 * 16 * LANES
"""Floats of a table of 16 lanes; one of 32 lanes has twice as many."""
U64 = np.uint64


def aligned_empty(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """np.empty whose data start a cache line, so that vectors do not straddle two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(size + CACHE_LINE, np.uint8)
    start = -buffer.ctypes.data % CACHE_LINE
    return buffer[start : start + size].view(dtype).reshape(shape)


@jit
def aligned_zeros(rows, columns):
    """float32 zeros [rows, columns] for a kernel's own use, aligned as :func:`aligned_empty`'s."""
    buffer = np.zeros(rows * columns + LANES, np.float32)
    start = (-buffer.ctypes.data % CACHE_LINE) // 4
    return buffer[start : start + rows * columns].reshape(rows, columns)


class Lanes(types.Type):
    """Numba's type of a vector of ``count`` float32."""

    def __init__(self, count: int):
        self.count = count
        super().__init__(name=f"Lanes({count})")


lanes_type, wide_type = Lanes(LANES), Lanes(WIDE)


def _vector(lanes: Lanes) -> ir.VectorType:
    return ir.VectorType(ir.FloatType(), lanes.count)


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """Lanes are one LLVM vector."""

    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _vector(fe_type))


def _address(context, builder, array_type, array, offset, lanes):
    """Pointer to the floats of a flat float32 array that start at ``offset``."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _vector(lanes).as_pointer())


@intrinsic
def load_like(typingctx, array, offset, like):
    """array[offset : offset + width] as Lanes of the type of ``like``."""

    def codegen(context, builder, signature, args):
        vector = builder.load(_address(context, builder, signature.args[0], *args[:2], like))
        vector.align = 4
        return vector

    return like(array, types.intp, like), codegen


@intrinsic
def store(typingctx, array, offset, value):
    """array[offset : offset + width] = value."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature.args[0], *args[:2], value), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def at(typingctx, array, offset):
    """array[offset] of a flat float32 array. Offsets are not negative: NumPy's wrap-around takes five instructions."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]), align=4)

    return types.float32(array, types.intp), codegen


@intrinsic
def put(typingctx, array, offset, value):
    """array[offset] = value, of a flat float32 array; offsets as in :func:`at`."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.store(args[2], builder.gep(data, [args[1]]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), codegen


@intrinsic
def nonzero_bits(typingctx, array, offset):
    """Which of array[offset : offset + 16] are not 0, a bit each."""

    def codegen(context, builder, signature, args):
        vector = builder.load(_address(context, builder, signature.args[0], *args, lanes_type), align=4)
        mask = builder.fcmp_unordered("!=", vector, cgutils.get_null_value(vector.type))
        return builder.zext(builder.bitcast(mask, ir.IntType(LANES)), ir.IntType(64))

    return types.uint64(array, types.intp), codegen


@intrinsic
def add(typingctx, a, b):
    """a + b, lane by lane."""

    def codegen(context, builder, signature, args):
        return builder.fadd(*args)

    return a(a, a), codegen


@intrinsic
def width(typingctx, like):
    """How many lanes ``like`` has, a constant to the compiler."""

    def codegen(context, builder, signature, args):
        return context.get_constant(types.intp, like.count)

    return types.intp(like), codegen


@intrinsic
def add_product(typingctx, a, factor, b):
    """a + factor * b, a float32 and lanes, rounded once where the processor can (fma)."""

    def codegen(context, builder, signature, args):
        lanes = builder.insert_element(ir.Constant(_vector(lanes_type), ir.Undefined), args[1], ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        factors = builder.shuffle_vector(lanes, ir.Constant(_vector(lanes_type), ir.Undefined), mask)
        product = builder.fmul(factors, args[2], flags=("contract",))
        return builder.fadd(args[0], product, flags=("contract",))

    return lanes_type(lanes_type, types.float32, lanes_type), codegen


@intrinsic
def zero(typingctx):
    """Sixteen zeros."""

    def codegen(context, builder, signature, args):
        return cgutils.get_null_value(_vector(lanes_type))

    return lanes_type(), codegen


@intrinsic
def wide_zero(typingctx):
    """Thirty-two zeros."""

    def codegen(context, builder, signature, args):
        return cgutils.get_null_value(_vector(wide_type))

    return wide_type(), codegen


@intrinsic
def zeros_like(typingctx, like):
    """Zeros of the type of ``like``."""

    def codegen(context, builder, signature, args):
        return cgutils.get_null_value(_vector(like))

    return like(like), codegen


@jit
def load(array, offset):
    """array[offset : offset + 16] as Lanes."""
    return load_like(array, offset, zero())


@jit
def tabulate(matrix, first, stride, rows, count, table, like):
    """Write all sums of four rows of ``matrix`` to ``table``, for columns c < count <= 64 of the bits, in whole bytes.

    Column c stands for the vector at matrix[first + rows[c] * stride]; sum m of columns 4g .. 4g + 3 is the vector
    16 g + m of the table. The last column stands in for those past it, whose bits are 0.
    """
    lanes, nothing = width(like), zeros_like(like)
    for group in range((count + 7) // 8 * 2):
        c = 4 * group
        a = load_like(matrix, first + np.intp(rows[min(c, count - 1)]) * stride, like)
        b = load_like(matrix, first + np.intp(rows[min(c + 1, count - 1)]) * stride, like)
        low = (nothing, a, b, add(a, b))
        a = load_like(matrix, first + np.intp(rows[min(c + 2, count - 1)]) * stride, like)
        b = load_like(matrix, first + np.intp(rows[min(c + 3, count - 1)]) * stride, like)
        high = (nothing, a, b, add(a, b))
        for i in range(4):
            for j in range(4):
                store(table, (16 * group + 4 * i + j) * lanes, add(high[i], low[j]))


@jit(inline="always")
def _add_byte(even, odd, word, byte, table, lanes):
    """Add the tabulated sums of one byte of the word to both."""
    base = byte * 32 * lanes
    even = add(even, load_like(table, base + np.intp(word & U64(15)) * lanes, even))
    odd = add(odd, load_like(table, base + (np.intp(word >> U64(4) & U64(15)) + 16) * lanes, odd))
    return even, odd


@jit
def add_selected(words, count, table, out, first, stride, rows, n, like):
    """Add the tabulated rows whose bits words[r] has to the vector at out[first + rows[r] * stride], for r < n."""
    lanes, size = width(like), (count + 7) // 8
    if size == 8:  # of a constant length, so that the compiler writes it out
        for r in range(n):
            word, address = words[r], first + np.intp(rows[r]) * stride
            even, odd = load_like(out, address, like), zeros_like(like)
            for byte in range(8):
                even, odd = _add_byte(even, odd, word >> U64(8 * byte), byte, table, lanes)
            store(out, address, add(even, odd))
        return
    for r in range(n):
        word, address = words[r], first + np.intp(rows[r]) * stride
        even, odd = load_like(out, address, like), zeros_like(like)
        for byte in range(size):
            even, odd = _add_byte(even, odd, word, byte, table, lanes)
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
