"""Instructions on floating-point numbers.

Approximations (.approx, .full) give the exact value rounded to fp32, which is within the error that PTX states; asked
for, the machine perturbs them by up to their stated error, so that results that hang on their last bits show.
"""

from tests.gpu_in_software.ptx import Instruction
from tests.gpu_in_software.translate import NUMPY, Writer, opcode

APPROXIMATE = {
    "ex2": ("np.exp2({a})", -22.5), "lg2": ("np.log2({a})", -22.0), "rcp": ("1 / {a}", -23.0),
    "rsqrt": ("1 / np.sqrt({a})", -22.4), "sqrt": ("np.sqrt({a})", -23.0), "sin": ("np.sin({a})", -20.9),
    "cos": ("np.cos({a})", -20.9), "tanh": ("np.tanh({a})", -11.0), "div": ("{a} / {b}", -22.0),
}  # fmt: skip
"""Function of fp64 numbers, and the power of 2 that bounds its relative error, from the PTX ISA."""


def _write(w: Writer, each: Instruction, kind: str, found: set[str], expression: str) -> None:
    if "sat" in found:
        expression = f"saturate({expression})"
    w.write(each.operands[0], kind, f"flush({expression})" if "ftz" in found else expression)


def _sources(w: Writer, each: Instruction, kind: str, found: set[str]) -> list[str]:
    values = (w.read(operand, kind) for operand in each.operands[1:])
    return [w.local(f"flush({value})") if "ftz" in found else value for value in values]


@opcode("add", "sub", "mul")
def arithmetic(w: Writer, each: Instruction, parts: list[str]) -> None:
    """To nearest, which is the default; ptxas fuses nothing that says .rn."""
    found, kind, sign = (
        w.allow(parts[1:-1], "rn", "ftz", "sat"),
        parts[-1],
        {"add": "+", "sub": "-", "mul": "*"}[parts[0]],
    )
    if kind == "f16x2":
        a, b = (w.read(operand, kind) for operand in each.operands[1:])
        return w.write(each.operands[0], kind, f"in_halves(lambda a, b: a {sign} b, {a}, {b})")
    if kind == "f32x2":
        return _pairs(w, each, sign)
    if kind not in ("f16", "f32", "f64"):
        raise w.unknown(f"unknown type {kind}")
    a, b = _sources(w, each, kind, found)
    _write(w, each, kind, found, f"{a} {sign} {b}")


def _pairs(w: Writer, each: Instruction, sign: str) -> None:
    """Two fp32 numbers in 64 bits."""
    a, b = (f"np.atleast_1d({w.read(operand, 'u64')})" for operand in each.operands[1:])
    both = f"np.ascontiguousarray(({a}).view(F32) {sign} ({b}).view(F32)).view(U64)"
    w.write(each.operands[0], "u64", f"np.broadcast_to({both}, (len(G.lanes),))")


@opcode("fma", "mad.rn", "mad.f32")
def multiply_add(w: Writer, each: Instruction, parts: list[str]) -> None:
    found, kind = w.allow(parts[1:-1], "rn", "rm", "ftz", "sat"), parts[-1]
    values = [w.read(operand, kind) for operand in each.operands[1:]]
    if kind == "f16x2":
        return w.write(each.operands[0], kind, f"in_halves(fma, {', '.join(values)})")
    if kind not in ("f16", "f32"):
        raise w.unknown(f"unknown type {kind}")
    a, b, c = _sources(w, each, kind, found)
    _write(w, each, kind, found, f"fma({a}, {b}, {c}{', -1' if 'rm' in found else ''})")


@opcode("div", "sqrt", "rcp", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
def function(w: Writer, each: Instruction, parts: list[str]) -> None:
    found, kind = w.allow(parts[1:-1], "rn", "approx", "full", "ftz"), parts[-1]
    if kind != "f32":
        raise w.unknown(f"unknown type {kind}")
    a, *b = _sources(w, each, kind, found)
    if "rn" in found:
        exact = {"div": f"{a} / {''.join(b)}", "sqrt": f"np.sqrt({a})", "rcp": f"F32(1) / {a}"}[parts[0]]
        return _write(w, each, kind, found, exact)
    if not found & {"approx", "full"}:
        raise w.unknown("neither rounded nor approximate")
    template, error = APPROXIMATE[parts[0]]
    wide = template.format(a=f"{a}.astype(F64)", b=f"{''.join(b)}.astype(F64)")
    _write(w, each, kind, found, f"M.approximate({wide}, {2.0**error})")


@opcode("min", "max")
def bound(w: Writer, each: Instruction, parts: list[str]) -> None:
    found, kind = w.allow(parts[1:-1], "ftz", "NaN"), parts[-1]
    if kind not in ("f16", "f32"):
        raise w.unknown(f"unknown type {kind}")
    a, b, *more = _sources(w, each, kind, found)
    name = {"min": "smaller", "max": "larger"}[parts[0]]
    result = w.local(f"{name}({a}, {b})")
    for c in more:
        result = w.local(f"{name}({result}, {c})")
    if "NaN" in found:
        test = " & ".join(f"({x} == {x})" for x in (a, b, *more))
        result = f"choose({test}, {result}, {w.constant(NUMPY[kind.upper()]('nan'))})"
    _write(w, each, kind, found, result)


@opcode("neg", "abs")
def sign(w: Writer, each: Instruction, parts: list[str]) -> None:
    found, kind = w.allow(parts[1:-1], "ftz"), parts[-1]
    if kind == "f16x2":
        how = "-a" if parts[0] == "neg" else "np.abs(a)"
        return w.write(each.operands[0], kind, f"in_halves(lambda a: {how}, {w.read(each.operands[1], kind)})")
    if kind not in ("f16", "f32", "f64"):
        raise w.unknown(f"unknown type {kind}")
    (a,) = _sources(w, each, kind, found)
    _write(w, each, kind, found, f"-{a}" if parts[0] == "neg" else f"np.abs({a})")


@opcode("copysign")
def copy_sign(w: Writer, each: Instruction, parts: list[str]) -> None:
    a, b = (w.read(operand, parts[1]) for operand in each.operands[1:])
    w.write(each.operands[0], parts[1], f"np.copysign({b}, {a})")


@opcode("testp.finite", "testp.infinite", "testp.notanumber")
def classify(w: Writer, each: Instruction, parts: list[str]) -> None:
    name = {"finite": "isfinite", "infinite": "isinf", "notanumber": "isnan"}[parts[1]]
    w.write(each.operands[0], "pred", f"np.{name}({w.read(each.operands[1], parts[2])})")
