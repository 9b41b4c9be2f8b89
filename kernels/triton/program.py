"""A neuron's programs as Triton device functions, written out as source text.

A kernel takes one as a constant STEP and calls ``STEP(inputs, scalars, rows)`` on tuples; outputs are a tuple too. The
function's name holds the program's digest, by which Triton's caches tell one from another.
"""

import linecache
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fastsnn.kernels.neurons.program import Instruction, Program
from fastsnn.kernels.triton import tl, triton


@triton.jit
def reciprocal(x):
    """1 / x of x > 0 within 4e-7, a tenth of the work of an IEEE division."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return tl.div_rn(1.0, 1.0 + tl.exp(-x))


TEMPLATES = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "tl.div_rn({0}, {1})",
    "neg": "-{0}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "where": "tl.where({0}, {1}, {2})",
    "select": "(1.0 - {0}) * {2} + {0} * {1}",
    "minimum": "tl.minimum({0}, {1})",
    "maximum": "tl.maximum({0}, {1})",
    "absolute": "tl.abs({0})",
    "exp": "tl.exp({0})",
    "sqrt": "tl.sqrt_rn({0})",
    "sigmoid": "sigmoid({0})",
    "reciprocal": "reciprocal({0})",
    "input": "inputs[{data}]",
    "scalar": "scalars[{data}]",
    "row": "rows[{data}]",
    "number": "{data!r}",
}
"""Operation -> Triton's expression."""


@lru_cache(maxsize=4096)
def device_function(program: Program) -> Any:
    """The program as a jit function."""
    name = f"step_{program.digest}"
    source = source_of(program, name)
    file = f"<fastsnn {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names = {"tl": tl, "reciprocal": reciprocal, "sigmoid": sigmoid, "__name__": __name__}
    exec(compile(source, file, "exec"), names)
    function: Callable[..., Any] = names[name]  # type: ignore[assignment]
    return triton.jit(function)


def source_of(program: Program, name: str) -> str:
    """The text of the function."""
    lines = [_line(i, instruction, program) for i, instruction in enumerate(program.instructions)]
    varies = [instruction.op not in ("number", "scalar") for instruction in program.instructions]
    outputs = [f"v{i}" if varies[i] else f"tl.zeros_like(inputs[0]) + v{i}" for i in program.outputs]
    return "\n    ".join([f"def {name}(inputs, scalars, rows):", *lines, f"return ({', '.join(outputs)},)"]) + "\n"


def _line(i: int, instruction: Instruction, program: Program) -> str:
    args = [f"v{arg}" for arg in instruction.args]
    operands = [program.instructions[arg] for arg in instruction.args]
    if instruction.op == "spike":
        # a - b >= 0 as a >= b: the same for numbers, and safe from a difference that is flushed to 0.
        pair = [f"v{arg}" for arg in operands[0].args] if operands[0].op == "sub" else [args[0], "0.0"]
        return f"c{i} = {pair[0]} >= {pair[1]}\n    v{i} = tl.where(c{i}, 1.0, 0.0)"
    if instruction.op == "select" and operands[0].op == "spike":
        return f"v{i} = tl.where(c{instruction.args[0]}, {args[1]}, {args[2]})"
    if instruction.op == "mul" and operands[0].op == "spike":
        return f"v{i} = tl.where(c{instruction.args[0]}, {args[1]}, 0.0)"
    return f"v{i} = " + TEMPLATES[instruction.op].format(*args, data=instruction.data)
