"""Arithmetic on arrays or scalars of values, with the results of the hardware, and the names that block functions see.

NumPy's + - * / and sqrt are those of IEEE 754, rounded to nearest, as PTX's .rn; what differs is here. A NaN may have
other bits than hardware's.
"""

from typing import Any

import numpy as np

B = np.bool_
U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
S8, S16, S32, S64 = np.int8, np.int16, np.int32, np.int64
F16, F32, F64 = np.float16, np.float32, np.float64
Value = Any
"""An array with an element for each lane, or a scalar that all of them have."""


def choose(condition: Value, yes: Value, no: Value) -> Value:
    if np.ndim(condition) == 0:
        return yes if condition else no
    return np.where(condition, yes, no)


def flush(x: Value) -> Value:
    """fp32 with subnormal numbers as zeros of their sign: .ftz."""
    return np.where(np.abs(x) < F32(1.1754944e-38), np.copysign(F32(0), x), x)


def fma(a: Value, b: Value, c: Value, towards: int = 0) -> Value:
    """a * b + c of fp32 or fp16, rounded once, to nearest or (-1) towards minus infinity.

    The product is exact in fp64. The sum is rounded to odd there, so that the second rounding is that of the exact sum.
    """
    dtype = np.result_type(a, b, c)
    product, addend = np.multiply(a, b, dtype=F64), np.asarray(c, F64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    fix = (error != 0) & np.isfinite(total) & (np.asarray(total).view(S64) & 1 == 0)
    if fix.any():
        total = np.where(fix, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    result = total.astype(dtype)
    if towards < 0:
        result = np.where(result > total, np.nextafter(result, dtype.type(-np.inf)), result)
    return result[()]


def smaller(a: Value, b: Value) -> Value:
    """min of floats: the number if the other is NaN, and -0 below +0."""
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), a, b), np.fmin(a, b))


def larger(a: Value, b: Value) -> Value:
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), b, a), np.fmax(a, b))


def bf16_to_f32(x: Value) -> Value:
    return (x.astype(U32) << U32(16)).view(F32)


def f32_to_bf16(x: Value) -> Value:
    """The bits of fp32 rounded to bf16, to nearest even."""
    bits = np.asarray(x, F32).view(U32)
    rounded = (bits + ((bits >> U32(16)) & U32(1)) + U32(0x7FFF)) >> U32(16)
    return np.where(np.isnan(x), U32(0x7FFF), rounded).astype(U16)


def to_integer(x: Value, dtype: Any, how: str) -> Value:
    """A float rounded to an integer as ``how`` says (rzi, rni, rmi, rpi), saturated; NaN is 0."""
    whole = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[how](np.asarray(x, F64))
    info = np.iinfo(dtype)
    inside = np.where(np.isnan(whole), 0.0, np.clip(whole, float(info.min), float(info.max)))
    top = whole >= float(info.max)
    return np.where(top, dtype(info.max), np.where(top, 0.0, inside).astype(dtype))


def saturate(x: Value) -> Value:
    """.sat: fp32 within 0 and 1, NaN as 0."""
    return np.where(x > F32(0), np.minimum(x, F32(1)), F32(0))


def shift_left(x: Value, count: Value) -> Value:
    bits = x.dtype.itemsize * 8
    return np.where(count < U32(bits), x << np.minimum(count, U32(bits - 1)).astype(x.dtype), x.dtype.type(0))


def shift_right(x: Value, count: Value) -> Value:
    """Of a signed value: the sign moves in."""
    bits = x.dtype.itemsize * 8
    moved = x >> np.minimum(count, U32(bits - 1)).astype(x.dtype)
    return moved if x.dtype.kind == "i" else np.where(count < U32(bits), moved, x.dtype.type(0))


def funnel_left(low: Value, high: Value, count: Value, clamp: bool) -> Value:
    """shf.l: the high word of high:low moved left."""
    count = np.minimum(count, U32(32)) if clamp else count & U32(31)
    wide = (high.astype(U64) << U64(32)) | low.astype(U64)
    return ((wide << count.astype(U64)) >> U64(32)).astype(U32)


def funnel_right(low: Value, high: Value, count: Value, clamp: bool) -> Value:
    """shf.r: the low word of high:low moved right."""
    count = np.minimum(count, U32(32)) if clamp else count & U32(31)
    wide = (high.astype(U64) << U64(32)) | low.astype(U64)
    return (wide >> count.astype(U64)).astype(U32)


def extract_bits(x: Value, start: Value, length: Value) -> Value:
    """bfe: ``length`` bits from ``start``; of a signed value extended by the topmost, or by x's sign past its end."""
    bits, kind = x.dtype.itemsize * 8, np.dtype(f"u{x.dtype.itemsize}").type
    start, length = (np.asarray(n, U32) & U32(255) for n in (start, length))
    field = shift_right(x, start).view(kind) & ~shift_left(~kind(0), length)
    if x.dtype.kind == "u":
        return field
    last = np.clip(start.astype(S64) + length - 1, 0, bits - 1).astype(U32)
    negative = (shift_right(x.view(kind), last) & kind(1) == 1) & (length > 0)
    return np.where(negative, field | shift_left(~kind(0), length), field).view(x.dtype)


def insert_bits(part: Value, x: Value, start: Value, length: Value) -> Value:
    """bfi: the low ``length`` bits of ``part`` put into ``x`` at ``start``."""
    start, length = (np.minimum(np.asarray(n, U64) & U64(255), U64(32)) for n in (start, length))
    mask = ((U64(1) << length) - U64(1)) << start
    return (((part.astype(U64) << start) & mask) | (x.astype(U64) & ~mask)).astype(U32)


def permute_bytes(a: Value, b: Value, selector: Value) -> Value:
    """prmt: each byte of the result is one of the eight of b:a, or its sign repeated."""
    wide = (np.asarray(b).astype(U64) << U64(32)) | a.astype(U64)
    result = U64(0)
    for place in range(4):
        choice = (np.asarray(selector).astype(U64) >> U64(4 * place)) & U64(15)
        byte = (wide >> ((choice & U64(7)) * U64(8))) & U64(255)
        signs = np.where(byte & U64(128), U64(255), U64(0))
        result = result | (np.where(choice & U64(8), signs, byte) << U64(8 * place))
    return np.asarray(result).astype(U32)[()]


def lookup3(a: Value, b: Value, c: Value, table: int) -> Value:
    """lop3: any function of three bits."""
    result = a & U32(0)
    for row in range(8):
        if table >> row & 1:
            result = result | ((a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c))
    return result


def quotient(a: Value, b: Value) -> Value:
    """Integer division towards zero; by zero all ones, as hardware does for unsigned."""
    if a.dtype.kind == "u":
        return np.where(b == 0, ~a.dtype.type(0), a // np.where(b == 0, a.dtype.type(1), b))
    safe = np.where(b == 0, b.dtype.type(1), b)
    floor = a // safe
    towards = floor + ((floor < 0) & (floor * safe != a)).astype(a.dtype)
    return np.where(b == 0, a.dtype.type(-1), towards)


def remainder(a: Value, b: Value) -> Value:
    return a - quotient(a, b) * b


def multiply_high(a: Value, b: Value) -> Value:
    """The upper half of a product of 32-bit or 64-bit integers."""
    if a.dtype.itemsize == 4:
        wide = S64 if a.dtype.kind == "i" else U64
        return ((a.astype(wide) * np.asarray(b).astype(wide)) >> wide(32)).astype(a.dtype)
    if a.dtype.kind == "i":
        raise ValueError("mul.hi.s64")
    low = U64(0xFFFFFFFF)
    a0, a1, b0, b1 = a & low, a >> U64(32), b & low, b >> U64(32)
    middle = a1 * b0 + (a0 * b0 >> U64(32))
    return a1 * b1 + (middle >> U64(32)) + ((middle & low) + a0 * b1 >> U64(32))


def count_bits(x: Value) -> Value:
    return np.bitwise_count(x).astype(U32)


def leading_zeros(x: Value) -> Value:
    bits = x.dtype.itemsize * 8
    _, exponent = np.frexp(np.asarray(x, np.longdouble))
    return (bits - np.where(x == 0, 0, exponent)).astype(U32)


def reverse_bits(x: Value) -> Value:
    result = x & x.dtype.type(0)
    bits = x.dtype.itemsize * 8
    for place in range(bits):
        result = result | (((x >> x.dtype.type(place)) & x.dtype.type(1)) << x.dtype.type(bits - 1 - place))
    return result


def in_halves(function: Any, *packed: Value) -> Value:
    """Apply ``function`` to both fp16 halves of words."""
    arrays = np.broadcast_arrays(*(np.atleast_1d(word) for word in packed))
    result = function(*(np.ascontiguousarray(array).view(F16) for array in arrays))
    words = np.ascontiguousarray(result.astype(F16)).view(U32)
    return words if any(np.ndim(word) for word in packed) else words[0]


def ordered(a: Value, b: Value) -> Value:
    return (a == a) & (b == b)


NAMES: dict[str, Any] = {name: value for name, value in globals().items() if not name.startswith("_")}
