"""cvt: conversions between types."""

from tests.gpu_in_software.ptx import Instruction
from tests.gpu_in_software.translate import DTYPES, Writer, opcode

FLOATS = ("f16", "bf16", "f32", "f64")


@opcode("cvt")
def convert(w: Writer, each: Instruction, parts: list[str]) -> None:
    to, kind = parts[-2:]
    found = w.allow(parts[1:-2], "rn", "rz", "rzi", "rni", "rmi", "rpi", "ftz", "sat")
    if to in ("bf16x2", "f16x2") and kind == "f32" and found == {"rn"}:
        return _pack(w, each, to)
    if to in FLOATS:
        result = _to_float(w, each, to, kind, found)
    elif kind in FLOATS:
        result = _to_integer(w, each, to, kind, found)
    elif found:
        raise w.unknown(f"unknown modifier {', '.join(sorted(found))}")
    else:
        result = _resize(w, each, to, kind)
    w.write(each.operands[0], to, result)


def _pack(w: Writer, each: Instruction, to: str) -> None:
    """Two fp32 numbers to the halves of a word, the first to the upper one."""
    rounded = "f32_to_bf16({})" if to == "bf16x2" else "{}.astype(F16).view(U16)"
    high, low = (rounded.format(w.read(operand, "f32")) + ".astype(U32)" for operand in each.operands[1:])
    w.write(each.operands[0], to, f"({high} << U32(16)) | {low}")


def _float(w: Writer, operand: str, kind: str) -> str:
    """A value of a floating-point type as a NumPy float, bf16 as fp32."""
    return f"bf16_to_f32({w.read(operand, kind)})" if kind == "bf16" else w.read(operand, kind)


def _to_float(w: Writer, each: Instruction, to: str, kind: str, found: set[str]) -> str:
    """To nearest; a narrower float without rounding, or an integer to another place of the point, is not met."""
    if found & {"rz", "rzi", "rmi", "rpi"}:
        raise w.unknown(f"unknown modifier {', '.join(sorted(found))}")
    value = _float(w, each.operands[1], kind) if kind in FLOATS else w.read(each.operands[1], kind)
    if "ftz" in found:
        value = f"flush({value})" if kind == "f32" else value
    if "rni" in found:
        value = f"np.rint({value})"
    if "sat" in found:
        if to != "f32":
            raise w.unknown(".sat to another type than f32")
        value = f"saturate({value})"
    if to == "bf16":
        return f"f32_to_bf16({value}.astype(F32))"
    return f"{value}.astype({DTYPES[to]})"


def _to_integer(w: Writer, each: Instruction, to: str, kind: str, found: set[str]) -> str:
    how = found & {"rzi", "rni", "rmi", "rpi"}
    if len(how) != 1:
        raise w.unknown("no rounding to an integer")
    value = _float(w, each.operands[1], kind)
    value = f"flush({value})" if "ftz" in found else value
    return f"to_integer({value}, {DTYPES[to]}, {how.pop()!r})"


def _resize(w: Writer, each: Instruction, to: str, kind: str) -> str:
    """Cut off or extended, by the sign of the source."""
    return f"{w.read(each.operands[1], kind)}.astype({DTYPES[to]})"
