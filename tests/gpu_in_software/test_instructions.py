"""Known answers for each instruction: values worked out by hand or by Python's integers and fractions."""

from fractions import Fraction

import numpy as np
import pytest

from tests.gpu_in_software.report import UnknownInstructionError
from tests.gpu_in_software.snippets import evaluate, kernel
from tests.gpu_in_software.values import fma

U32, F32 = np.uint32, np.float32
NAN, INF = float("nan"), float("inf")


def u32(*values: int) -> np.ndarray:
    return np.array([value % 2**32 for value in values], U32)


def f32(*values: float) -> np.ndarray:
    return np.array(values, F32)


INTEGERS = [
    ("add.s32 %r0, %r10, %r11;", (u32(7, 2**32 - 1), u32(5, 1)), (12, 0)),
    ("sub.s32 %r0, %r10, %r11;", (u32(7, 0), u32(9, 1)), (-2, -1)),
    ("mul.lo.s32 %r0, %r10, %r11;", (u32(-3, 2**31), u32(7, 2)), (-21, 0)),
    ("mad.lo.s32 %r0, %r10, %r11, -4;", (u32(3), u32(5)), (11,)),
    ("mul.hi.u32 %r0, %r10, %r11;", (u32(2**31, 0xCD9E8D57), u32(4, 0xFFFFFFFF)), (2, 0xCD9E8D56)),
    ("mul.hi.s32 %r0, %r10, %r11;", (u32(-1), u32(2**31 - 1)), (-1,)),
    ("div.s32 %r0, %r10, %r11;", (u32(-7, 7, -7), u32(2, -2, -2)), (-3, -3, 3)),
    ("rem.s32 %r0, %r10, %r11;", (u32(-7, 7), u32(2, -2)), (-1, 1)),
    ("div.u32 %r0, %r10, %r11;", (u32(-7, 9), u32(2, 0)), (2147483644, -1)),
    ("rem.u32 %r0, %r10, 10;", (u32(4294967295),), (5,)),
    ("min.s32 %r0, %r10, %r11;", (u32(-1), u32(1)), (-1,)),
    ("min.u32 %r0, %r10, %r11;", (u32(-1), u32(1)), (1,)),
    ("max.s32 %r0, %r10, %r11;", (u32(-1), u32(1)), (1,)),
    ("max.relu.s32 %r0, %r10, %r11;", (u32(-1, 4), u32(-5, 2)), (0, 4)),
    ("abs.s32 %r0, %r10;", (u32(-5, 5),), (5, 5)),
    ("neg.s32 %r0, %r10;", (u32(-5, 5),), (5, -5)),
    ("and.b32 %r0, %r10, %r11;", (u32(0b1100), u32(0b1010)), (0b1000,)),
    ("or.b32 %r0, %r10, %r11;", (u32(0b1100), u32(0b1010)), (0b1110,)),
    ("xor.b32 %r0, %r10, %r11;", (u32(0b1100), u32(0b1010)), (0b0110,)),
    ("not.b32 %r0, %r10;", (u32(0),), (-1,)),
    ("shl.b32 %r0, %r10, 4;", (u32(0x12345678),), (0x23456780,)),
    ("shl.b32 %r0, %r10, %r11;", (u32(1, 1, 1), u32(31, 32, 99)), (2**31, 0, 0)),
    ("shr.u32 %r0, %r10, %r11;", (u32(-1, -1), u32(31, 32)), (1, 0)),
    ("shr.s32 %r0, %r10, %r11;", (u32(-8, -8, 8), u32(1, 40, 40)), (-4, -1, 0)),
    ("shr.s32 %r0, %r10, 33;", (u32(-8),), (-1,)),
    ("shf.l.wrap.b32 %r0, %r10, %r11, 8;", (u32(0xAABBCCDD), u32(0x11223344)), (0x223344AA,)),
    ("shf.r.wrap.b32 %r0, %r10, %r11, 8;", (u32(0xAABBCCDD), u32(0x11223344)), (0x44AABBCC,)),
    ("bfe.u32 %r0, %r10, 4, 8;", (u32(0xABCDE),), (0xCD,)),
    ("bfe.s32 %r0, %r10, 4, 8;", (u32(0xABCDE, 0x7F0),), (0xFFFFFFCD, 0x7F)),
    ("bfe.s32 %r0, %r10, 28, 8;", (u32(0x80000000),), (0xFFFFFFF8,)),
    ("bfe.u32 %r0, %r10, 4, 0;", (u32(0xABCDE),), (0,)),
    ("bfi.b32 %r0, %r10, %r11, 8, 4;", (u32(0xF5), u32(0xABCD)), (0xA5CD,)),
    ("prmt.b32 %r0, %r10, %r11, 0x7610;", (u32(0x33221100), u32(0x77665544)), (0x77661100,)),
    ("prmt.b32 %r0, %r10, %r11, 0x8888;", (u32(0x80, 0x7F), u32(0)), (0xFFFFFFFF, 0)),
    ("lop3.b32 %r0, %r10, %r11, 12, 0xE8;", (u32(10), u32(6)), (14,)),
    ("popc.b32 %r0, %r10;", (u32(0xF0F0, -1),), (8, 32)),
    ("clz.b32 %r0, %r10;", (u32(1, 0, 2**31),), (31, 32, 0)),
    ("brev.b32 %r0, %r10;", (u32(1, 6),), (2**31, 0x60000000)),
    ("mul.wide.s32 %rd0, %r10, %r11; cvt.u32.u64 %r0, %rd0;", (u32(-2), u32(3)), (-6,)),
    ("mul.wide.u32 %rd0, %r10, %r11; shr.u64 %rd0, %rd0, 32; cvt.u32.u64 %r0, %rd0;", (u32(-2), u32(3)), (2,)),
    ("mad.wide.s32 %rd0, %r10, 4, -1; cvt.u32.u64 %r0, %rd0;", (u32(-2),), (-9,)),
    ("mul.wide.s16 %r0, -2, 3;", (), (-6,)),
    ("cvt.s64.s32 %rd0, %r10; shr.u64 %rd0, %rd0, 32; cvt.u32.u64 %r0, %rd0;", (u32(-1, 1),), (-1, 0)),
    ("cvt.u16.u32 %rs0, %r10; cvt.s32.s16 %r0, %rs0;", (u32(0x1FFFE),), (-2,)),
    ("cvt.s32.s8 %r0, %r10;", (u32(0x1FE),), (-2,)),
    ("mov.b32 {%rs0, %rs1}, %r10; mov.b32 %r0, {%rs1, %rs0};", (u32(0x12345678),), (0x56781234,)),
    ("mov.b64 %rd0, {%r10, %r11}; { .reg .b32 tmp; mov.b64 {tmp, %r0}, %rd0; }", (u32(1), u32(2)), (2,)),
    ("setp.lt.s32 %p0, %r10, %r11; selp.b32 %r0, 5, 6, %p0;", (u32(-1, 1), u32(0)), (5, 6)),
    ("setp.lt.u32 %p0, %r10, %r11; selp.b32 %r0, 5, 6, %p0;", (u32(-1, 0), u32(1)), (6, 5)),
    ("setp.hs.u32 %p0, %r10, 7; selp.b32 %r0, 5, 6, %p0;", (u32(7, 6),), (5, 6)),
    ("setp.eq.and.s32 %p0|%p1, %r10, 1, %p2; selp.b32 %r0, 5, 6, %p0;", (u32(1),), (5,)),
    ("setp.ne.s32 %p0, %r10, 1; @%p0 mov.u32 %r10, 9; mov.u32 %r0, %r10;", (u32(1, 2),), (1, 9)),
    ("setp.ne.s32 %p0, %r10, 1; @!%p0 mov.u32 %r10, 9; mov.u32 %r0, %r10;", (u32(1, 2),), (9, 2)),
    ("set.lt.u32.s32 %r0, %r10, 0;", (u32(-1, 1),), (-1, 0)),
    ("mov.u32 %r0, %laneid;", (), tuple(range(32))),
    ("shfl.sync.bfly.b32 %r0, %r199, 1, 31, -1;", (), tuple(n ^ 1 for n in range(32))),
    ("shfl.sync.up.b32 %r0|%p0, %r199, 2, 0, -1;", (), (0, 1, *range(30))),
    ("shfl.sync.down.b32 %r0|%p0, %r199, 2, 31, -1;", (), (*range(2, 32), 30, 31)),
    ("shfl.sync.idx.b32 %r0, %r199, 3, 31, -1;", (), (3,) * 32),
    ("shfl.sync.idx.b32 %r0, %r199, 3, 0x181f, -1;", (), tuple(n // 8 * 8 + 3 for n in range(32))),
    ("shfl.sync.up.b32 %r1|%p0, %r199, 1, 0, -1; selp.b32 %r0, 1, 0, %p0;", (), (0,) + (1,) * 31),
    ("redux.sync.max.s32 %r0, %r10, -1;", (u32(*range(-5, 27)),), (26,) * 32),
    ("redux.sync.add.u32 %r0, %r199, -1;", (), (496,) * 32),
    ("setp.lt.u32 %p0, %r199, 3; vote.sync.ballot.b32 %r0, %p0, -1;", (), (7,) * 32),
    ("elect.sync %r1|%p0, -1; selp.b32 %r0, 1, 0, %p0;", (), (1,) + (0,) * 31),
]


@pytest.mark.parametrize(("statements", "inputs", "expected"), INTEGERS, ids=[row[0][:30] for row in INTEGERS])
def test_integers(statements: str, inputs: tuple[np.ndarray, ...], expected: tuple[int, ...]) -> None:
    found = evaluate("setp.eq.s32 %p2, 0, 0; " + statements, *inputs)
    assert found[: len(expected)].tolist() == [value % 2**32 for value in expected]


TINY = 2.0**-149
FLOATS = [
    ("add.rn.f32 %f0, %f10, %f11;", (f32(1, INF), f32(2.0**-24, 1)), (1.0, INF)),
    ("sub.rn.f32 %f0, %f10, %f11;", (f32(1), f32(2.0**-25)), (1.0,)),
    ("mul.rn.f32 %f0, %f10, %f11;", (f32(1 + 2.0**-12), f32(1 + 2.0**-12)), (1 + 2.0**-11,)),
    ("mul.ftz.f32 %f0, %f10, %f11;", (f32(TINY, -TINY), f32(2.0**100)), (0.0, -0.0)),
    ("fma.rn.f32 %f0, %f10, %f10, %f11;", (f32(1 + 2.0**-12), f32(-1 - 2.0**-11)), (2.0**-24,)),
    ("fma.rm.f32 %f0, %f10, %f11, 0fBF800000;", (f32(2.0**-30), f32(-1)), (-1 - 2.0**-23,)),
    ("div.rn.f32 %f0, %f10, %f11;", (f32(1, TINY), f32(3, 1)), (float(F32(1) / F32(3)), TINY)),
    ("div.rn.ftz.f32 %f0, %f10, %f11;", (f32(2.0**-126, 1), f32(2, 3)), (0.0, float(F32(1) / F32(3)))),
    ("div.full.f32 %f0, %f10, %f11;", (f32(6), f32(3)), (2.0,)),
    ("sqrt.rn.f32 %f0, %f10;", (f32(2, 4),), (float(np.sqrt(F32(2))), 2.0)),
    ("sqrt.rn.ftz.f32 %f0, %f10;", (f32(2.0**-140, 9),), (0.0, 3.0)),
    ("rcp.rn.f32 %f0, %f10;", (f32(3),), (float(F32(1) / F32(3)),)),
    ("rcp.approx.ftz.f32 %f0, %f10;", (f32(4, TINY),), (0.25, INF)),
    ("rsqrt.approx.ftz.f32 %f0, %f10;", (f32(4, 0.25),), (0.5, 2.0)),
    ("ex2.approx.f32 %f0, %f10;", (f32(3, -1),), (8.0, 0.5)),
    ("ex2.approx.ftz.f32 %f0, %f10;", (f32(-140),), (0.0,)),
    ("lg2.approx.f32 %f0, %f10;", (f32(8, 0),), (3.0, -INF)),
    ("min.f32 %f0, %f10, %f11;", (f32(1, NAN, 0.0), f32(2, 3, -0.0)), (1.0, 3.0, -0.0)),
    ("max.f32 %f0, %f10, %f11;", (f32(1, NAN, -0.0), f32(2, 3, 0.0)), (2.0, 3.0, 0.0)),
    ("max.NaN.f32 %f0, %f10, %f11;", (f32(1, NAN), f32(2, 3)), (2.0, NAN)),
    ("abs.f32 %f0, %f10;", (f32(-2, -0.0),), (2.0, 0.0)),
    ("neg.f32 %f0, %f10;", (f32(-2, 0.0),), (2.0, -0.0)),
    ("copysign.f32 %f0, %f10, %f11;", (f32(-1), f32(3)), (-3.0,)),
    ("cvt.rn.f32.s32 %f0, %r10;", (u32(-3, 16777217),), (-3.0, 16777216.0)),
    ("cvt.rn.f32.u32 %f0, %r10;", (u32(-1),), (4294967296.0,)),
    ("cvt.rn.f16.f32 %rs0, %f10; cvt.f32.f16 %f0, %rs0;", (f32(1 + 2.0**-11, 65520),), (1.0, INF)),
    ("cvt.rn.bf16.f32 %rs0, %f10; cvt.f32.bf16 %f0, %rs0;", (f32(1 + 2.0**-8, 1 + 3 * 2.0**-8),), (1.0, 1 + 2.0**-6)),
    ("cvt.rn.bf16x2.f32 %r0, %f10, %f11; and.b32 %r0, %r0, 0xFFFF0000; mov.b32 %f0, %r0;", (f32(3), f32(5)), (3.0,)),
    ("cvt.rn.f16x2.f32 %r0, %f10, %f11; mov.b32 {%rs0, _}, %r0; cvt.f32.f16 %f0, %rs0;", (f32(3), f32(5)), (5.0,)),
    ("cvt.sat.f32.f32 %f0, %f10;", (f32(-1, 0.5, 7, NAN),), (0.0, 0.5, 1.0, 0.0)),
    ("cvt.rzi.s32.f32 %r0, %f10; cvt.rn.f32.s32 %f0, %r0;", (f32(-1.7, 3e9, NAN),), (-1.0, 2147483648.0, 0.0)),
    ("cvt.rni.s32.f32 %r0, %f10; cvt.rn.f32.s32 %f0, %r0;", (f32(2.5, -1.5),), (2.0, -2.0)),
    ("setp.lt.f32 %p0, %f10, %f11; selp.f32 %f0, 0f3F800000, 0f00000000, %p0;", (f32(1, NAN), f32(2)), (1.0, 0.0)),
    ("setp.ltu.f32 %p0, %f10, %f11; selp.f32 %f0, 0f3F800000, 0f00000000, %p0;", (f32(3, NAN), f32(2)), (0.0, 1.0)),
    ("setp.ne.f32 %p0, %f10, %f11; selp.f32 %f0, 0f3F800000, 0f00000000, %p0;", (f32(3, NAN), f32(2)), (1.0, 0.0)),
    ("setp.neu.f32 %p0, %f10, %f11; selp.f32 %f0, 0f3F800000, 0f00000000, %p0;", (f32(2, NAN), f32(2)), (0.0, 1.0)),
    ("setp.equ.f32 %p0, %f10, %f11; selp.f32 %f0, 0f3F800000, 0f00000000, %p0;", (f32(3, NAN), f32(2)), (0.0, 1.0)),
    ("setp.num.f32 %p0, %f10, %f10; selp.f32 %f0, 0f3F800000, 0f00000000, %p0;", (f32(3, NAN),), (1.0, 0.0)),
    ("set.ge.f32.f32 %f0, %f10, 0f40000000;", (f32(3, 1),), (1.0, 0.0)),
]


@pytest.mark.parametrize(("statements", "inputs", "expected"), FLOATS, ids=[row[0][:24] for row in FLOATS])
def test_floats(statements: str, inputs: tuple[np.ndarray, ...], expected: tuple[float, ...]) -> None:
    found = evaluate(statements, *inputs, result="%f0", kind="f32")[: len(expected)]
    wanted = f32(*expected)
    assert np.array_equal(found, wanted, equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(wanted))


HALVES = [
    ("add.f16x2 %r0, %r10, %r11;", (1.5, 2.0), (0.25, -2.0), (1.75, 0.0)),
    ("sub.f16x2 %r0, %r10, %r11;", (1.5, 2.0), (0.25, -2.0), (1.25, 4.0)),
    ("mul.f16x2 %r0, %r10, %r11;", (1.5, 65504.0), (2.0, 2.0), (3.0, INF)),
    ("fma.rn.f16x2 %r0, %r10, %r11, %r10;", (1.5, 2.0), (2.0, 3.0), (4.5, 8.0)),
    ("neg.f16x2 %r0, %r10;", (1.5, -2.0), (0.0, 0.0), (-1.5, 2.0)),
    ("set.geu.f16x2.f16x2 %r0, %r10, %r11;", (1.0, NAN), (2.0, 3.0), (0.0, 1.0)),
    ("set.eq.f16x2.f16x2 %r0, %r10, %r11;", (1.0, NAN), (1.0, NAN), (1.0, 0.0)),
]


@pytest.mark.parametrize(("statements", "a", "b", "expected"), HALVES, ids=[row[0][:24] for row in HALVES])
def test_halves(statements: str, a: tuple[float, float], b: tuple[float, float], expected: tuple[float, float]) -> None:
    words = [np.array(pair, np.float16).view(U32) for pair in (a, b)]
    assert np.array_equal(evaluate(statements, *words)[:1].view(np.float16), np.array(expected, np.float16))


def test_wide_integers() -> None:
    a, b = np.array([2**63 + 5], np.uint64), np.array([3], np.uint64)
    for statement, expected in {
        "add.s64 %rd0, %rd10, %rd11;": 2**63 + 8,
        "mul.lo.s64 %rd0, %rd10, %rd11;": 2**63 + 15,
        "mul.hi.u64 %rd0, %rd10, %rd11;": 1,
        "shr.u64 %rd0, %rd10, 63;": 1,
        "shr.s64 %rd0, %rd10, 63;": 2**64 - 1,
        "bfe.u64 %rd0, %rd10, 60, 4;": 8,
        "bfe.s64 %rd0, %rd10, 60, 4;": 2**64 - 8,
        "bfe.u64 %rd0, %rd10, 0, 3;": 5,
        "max.s64 %rd0, %rd10, %rd11;": 3,
        "max.u64 %rd0, %rd10, %rd11;": 2**63 + 5,
        "setp.lt.s64 %p0, %rd10, %rd11; selp.b64 %rd0, 7, 8, %p0;": 7,
    }.items():
        assert int(evaluate(statement, a, b, result="%rd0", kind="u64")[0]) == expected, statement


def test_fma_is_rounded_once() -> None:
    """Against fractions, on numbers whose product and sum cancel or differ widely in size."""
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal(300).astype(F32) for _ in range(2))
    c = np.concatenate([(-a[:100].astype(float) * b[:100]).astype(F32), generator.standard_normal(200).astype(F32)])
    c[100:200] *= F32(2.0**30)
    found = fma(a, b, c)
    for x, y, z, result in zip(a, b, c, found, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        neighbours = (np.nextafter(result, F32(-INF)), result, np.nextafter(result, F32(INF)))
        distance = [abs(Fraction(float(n)) - exact) for n in neighbours]
        assert distance[1] == min(distance)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("add.cc.s32 %r0, %r1, %r2;", "unknown modifier cc"),
        ("atom.global.add.u32 %r0, [%rd30], 1;", "unknown instruction"),
        ("mov.u32 %r0, %clock;", "unknown operand %clock"),
        ("ld.volatile.global.u32 %r0, [%rd30];", "unknown instruction"),
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r0}, {%r1}, {%r2}, {%r3};", "unknown instruction"),
        ("cvt.rz.f32.f64 %f0, %fd0;", "unknown modifier rz"),
    ],
)
def test_what_is_unknown_is_named(statement: str, named: str) -> None:
    with pytest.raises(UnknownInstructionError, match=f"snippet, line .*{statement.split()[0]}.*{named}"):
        kernel(statement, 1)
