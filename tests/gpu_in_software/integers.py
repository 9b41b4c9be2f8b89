"""Instructions on integers and bits, and comparisons and selections of any type."""

from tests.gpu_in_software.ptx import Instruction
from tests.gpu_in_software.translate import NUMPY, Writer, opcode, unsigned

ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
NEGATED = {"equ": "!=", "neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
"""Comparisons that hold for NaN too -> the one that they are the negation of (equ: neither less nor greater)."""
WIDE = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}
INTEGERS = tuple(f"{kind}{bits}" for kind in "us" for bits in (16, 32, 64))
BITS = ("b16", "b32", "b64", "pred")


def _binary(w: Writer, each: Instruction, kind: str, template: str) -> None:
    a, b = (w.read(operand, kind) for operand in each.operands[1:3])
    w.write(each.operands[0], kind, template.format(a=a, b=b))


@opcode(*(f"{base}.{kind}" for base in ("add", "sub") for kind in INTEGERS))
def add(w: Writer, each: Instruction, parts: list[str]) -> None:
    """Integers wrap around, so that the sign doesn't matter."""
    _binary(w, each, unsigned(parts[1]), "{a} + {b}" if parts[0] == "add" else "{a} - {b}")


@opcode("mul.lo", "mad.lo")
def multiply_low(w: Writer, each: Instruction, parts: list[str]) -> None:
    kind = unsigned(parts[2])
    a, b, *c = (w.read(operand, kind) for operand in each.operands[1:])
    w.write(each.operands[0], kind, f"{a} * {b}" + "".join(f" + {x}" for x in c))


@opcode("mul.wide", "mad.wide")
def multiply_wide(w: Writer, each: Instruction, parts: list[str]) -> None:
    kind, wide = parts[2], WIDE[parts[2]]
    a, b = (f"{w.read(operand, kind)}.astype({wide.upper()})" for operand in each.operands[1:3])
    c = "".join(f" + {w.read(operand, wide)}" for operand in each.operands[3:])
    w.write(each.operands[0], wide, f"{a} * {b}{c}")


@opcode("mul.hi", "mad.hi")
def multiply_high(w: Writer, each: Instruction, parts: list[str]) -> None:
    kind = parts[2]
    a, b, *c = (w.read(operand, kind) for operand in each.operands[1:])
    w.write(each.operands[0], kind, f"multiply_high({a}, {b})" + "".join(f" + {x}" for x in c))


@opcode(*(f"{base}.{kind}" for base in ("div", "rem") for kind in INTEGERS))
def divide(w: Writer, each: Instruction, parts: list[str]) -> None:
    _binary(w, each, parts[1], ("quotient" if parts[0] == "div" else "remainder") + "({a}, {b})")


@opcode(*(f"{base}.{kind}" for base in ("min", "max", "min.relu", "max.relu") for kind in INTEGERS))
def bound(w: Writer, each: Instruction, parts: list[str]) -> None:
    template = ("np.minimum" if parts[0] == "min" else "np.maximum") + "({a}, {b})"
    _binary(w, each, parts[-1], f"np.maximum({template}, {parts[-1].upper()}(0))" if "relu" in parts else template)


@opcode(*(f"{base}.{kind}" for base in ("and", "or", "xor") for kind in BITS))
def logic(w: Writer, each: Instruction, parts: list[str]) -> None:
    _binary(w, each, parts[1], "{a} " + {"and": "&", "or": "|", "xor": "^"}[parts[0]] + " {b}")


@opcode(*(f"{base}.{kind}" for base in ("not", "cnot") for kind in BITS))
def invert(w: Writer, each: Instruction, parts: list[str]) -> None:
    a = w.read(each.operands[1], parts[1])
    w.write(each.operands[0], parts[1], f"~{a}" if parts[0] == "not" else f"({a} == 0).astype({a}.dtype)")


@opcode("neg.s16", "neg.s32", "neg.s64", "abs.s16", "abs.s32", "abs.s64")
def sign(w: Writer, each: Instruction, parts: list[str]) -> None:
    a = w.read(each.operands[1], parts[1])
    w.write(each.operands[0], parts[1], f"-{a}" if parts[0] == "neg" else f"np.abs({a})")


@opcode("shl", "shr")
def shift(w: Writer, each: Instruction, parts: list[str]) -> None:
    kind, (to, value, count) = parts[1], each.operands
    x = w.read(value, kind)
    if w.kernel.register_type(count) is None:
        n, dtype = w.number(count), NUMPY[kind.upper().replace("B", "U")]
        if 0 <= n < 8 * dtype().itemsize:
            return w.write(to, kind, f"{x} {'<<' if parts[0] == 'shl' else '>>'} {w.constant(dtype(n))}")
    function = "shift_left" if parts[0] == "shl" else "shift_right"
    w.write(to, kind, f"{function}({x}, {w.read(count, 'u32')})")


@opcode("shf.l", "shf.r")
def funnel_shift(w: Writer, each: Instruction, parts: list[str]) -> None:
    w.allow(parts[2:], "wrap", "clamp", "b32")
    a, b, c = (w.read(operand, "u32") for operand in each.operands[1:])
    function = "funnel_left" if parts[1] == "l" else "funnel_right"
    w.write(each.operands[0], "u32", f"{function}({a}, {b}, {c}, {'clamp' in parts})")


@opcode("bfe")
def extract(w: Writer, each: Instruction, parts: list[str]) -> None:
    a, start, length = w.read(each.operands[1], parts[1]), *(w.read(n, "u32") for n in each.operands[2:])
    w.write(each.operands[0], parts[1], f"extract_bits({a}, {start}, {length})")


@opcode("bfi.b32")
def insert(w: Writer, each: Instruction, parts: list[str]) -> None:
    values = ", ".join(w.read(operand, "u32") for operand in each.operands[1:])
    w.write(each.operands[0], "u32", f"insert_bits({values})")


@opcode("prmt.b32")
def permute(w: Writer, each: Instruction, parts: list[str]) -> None:
    w.allow(parts[2:])
    w.write(each.operands[0], "u32", f"permute_bytes({', '.join(w.read(a, 'u32') for a in each.operands[1:])})")


@opcode("lop3.b32")
def lookup(w: Writer, each: Instruction, parts: list[str]) -> None:
    values = ", ".join(w.read(operand, "u32") for operand in each.operands[1:4])
    w.write(each.operands[0], "u32", f"lookup3({values}, {w.number(each.operands[4])})")


@opcode("popc", "clz", "brev")
def count(w: Writer, each: Instruction, parts: list[str]) -> None:
    function = {"popc": "count_bits", "clz": "leading_zeros", "brev": "reverse_bits"}[parts[0]]
    kind = "u32" if parts[0] != "brev" else parts[1]
    w.write(each.operands[0], kind, f"{function}({w.read(each.operands[1], parts[1])})")


def comparison(w: Writer, how: str, kind: str, a: str, b: str) -> str:
    """An expression that is true where ``a`` compares to ``b`` as asked."""
    if kind[0] != "f":
        return f"({a} {(ORDERED | UNSIGNED)[how]} {b})"
    if how in ("num", "nan"):
        return f"ordered({a}, {b})" if how == "num" else f"(~ordered({a}, {b}))"
    if how in ("ne", "equ"):  # the only ones that C's operators get wrong for NaN
        return f"(({a} != {b}) & ordered({a}, {b}))" if how == "ne" else f"(({a} == {b}) | ~ordered({a}, {b}))"
    return f"({a} {ORDERED[how]} {b})" if how in ORDERED else f"(~({a} {NEGATED[how]} {b}))"


@opcode("setp")
def compare(w: Writer, each: Instruction, parts: list[str]) -> None:
    """setp.how[.and|.or|.xor][.ftz].type p[|q], a, b[, c]."""
    how, kind = parts[1], parts[-1]
    found = w.allow(parts[2:-1], "and", "or", "xor", "ftz")
    a, b = (w.read(operand, kind) for operand in each.operands[1:3])
    if "ftz" in found:
        a, b = f"flush({a})", f"flush({b})"
    result = w.local(comparison(w, how, kind, a, b))
    to, _, complement = each.operands[0].partition("|")
    opposite = f"~{result}"
    if combine := found & {"and", "or", "xor"}:
        sign, c = {"and": "&", "or": "|", "xor": "^"}[combine.pop()], w.read(each.operands[3], "pred")
        result, opposite = f"{result} {sign} {c}", f"{opposite} {sign} {c}"
    result, opposite = w.local(result), w.local(opposite) if complement else ""
    w.write(to, "pred", result)
    if complement:
        w.write(complement, "pred", opposite)


@opcode("set")
def compare_to_value(w: Writer, each: Instruction, parts: list[str]) -> None:
    """set.how.to.type: 1.0 or all ones where it holds, in both halves of an f16x2."""
    how, to, kind = parts[1], parts[-2], parts[-1]
    w.allow(parts[2:-2], "ftz")
    a, b = (w.read(operand, kind) for operand in each.operands[1:])
    if kind == "f16x2" and to == "f16x2":
        test = comparison(w, how, "f16", "a", "b")
        return w.write(each.operands[0], to, f"in_halves(lambda a, b: {test}.astype(F16), {a}, {b})")
    test = comparison(w, how, kind, a, b)
    dtype = to.upper()
    if to not in ("f32", "u32", "s32"):
        raise w.unknown(f"unknown type {to}")
    value = f"{test}.astype({dtype})" if to == "f32" else f"(-({test}.astype(S32))).view({dtype})"
    w.write(each.operands[0], to, value)


@opcode("selp")
def select(w: Writer, each: Instruction, parts: list[str]) -> None:
    kind = unsigned(parts[1])
    a, b = (w.read(operand, kind) for operand in each.operands[1:3])
    w.write(each.operands[0], kind, f"choose({w.read(each.operands[3], 'pred')}, {a}, {b})")
