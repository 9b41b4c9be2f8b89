"""A basic block as one Python function of NumPy statements over all lanes of a group at once.

A register's value is an array with an element for each lane, or a scalar if all lanes have the same one. It is never
changed in place, so that a move is free. Registers that are live between blocks lie in the group's list; the others
are local variables of the function.

Instructions register with `opcode`; what is not registered, or has a modifier that its function doesn't name, raises
`UnknownInstructionError`.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tests.gpu_in_software import values
from tests.gpu_in_software.flow import Flow, analyse, ends_block
from tests.gpu_in_software.ptx import Block, Instruction, Kernel, elements
from tests.gpu_in_software.report import UnknownInstructionError

DTYPES = {
    "pred": "B", "b8": "U8", "u8": "U8", "s8": "S8", "b16": "U16", "u16": "U16", "s16": "S16", "f16": "F16",
    "bf16": "U16", "b32": "U32", "u32": "U32", "s32": "S32", "f32": "F32", "f16x2": "U32", "bf16x2": "U32",
    "b64": "U64", "u64": "U64", "s64": "S64", "f64": "F64",
}  # fmt: skip
"""Type of PTX -> the dtype of its values here."""
NUMPY = {
    "B": np.bool_, "U8": np.uint8, "S8": np.int8, "U16": np.uint16, "S16": np.int16, "F16": np.float16,
    "U32": np.uint32, "S32": np.int32, "F32": np.float32, "U64": np.uint64, "S64": np.int64, "F64": np.float64,
}  # fmt: skip
SIZE = {name: np.dtype(kind).itemsize for name, kind in NUMPY.items()}
CACHING = {"nc", "ca", "cg", "cs", "cv", "lu", "wb", "wt"}
"""Modifiers of loads and stores that hint at caching; so do L1:: and L2::."""

Translation = Callable[["Writer", Instruction, list[str]], None]
OPCODES: dict[str, Translation] = {}


def opcode(*names: str) -> Callable[[Translation], Translation]:
    """Register how instructions whose opcodes begin with ``names`` are translated; the longest name counts."""

    def register(function: Translation) -> Translation:
        OPCODES.update(dict.fromkeys(names, function))
        return function

    return register


def unsigned(kind: str) -> str:
    """The unsigned type of the same width."""
    return kind.replace("s", "u").replace("b", "u") if kind[0] in "sb" and kind != "bf16" else kind


class Program:
    """A kernel with a function for each basic block."""

    def __init__(self, kernel: Kernel) -> None:
        from tests.gpu_in_software import collectives, conversions, floats, integers, movement  # noqa: F401

        self.kernel, self.flow = kernel, analyse(kernel)
        names = sorted(set[str]().union(*self.flow.live_in, *self.flow.live_out))
        self.slots = {name: index for index, name in enumerate(names)}
        self.live = [[self.slots[name] for name in sorted(live)] for live in self.flow.live_in]
        self.homes = {name: _home(kernel, name) for name in names}
        self.dtypes = [NUMPY[self.homes[name]] for name in names]
        self.functions = [Writer(self, block, self.flow, index).function() for index, block in enumerate(kernel.blocks)]


def _home(kernel: Kernel, name: str) -> str:
    """The dtype in which a register's value is kept between blocks."""
    return DTYPES[kernel.register_type(name) or "b32"]


class Writer:
    """Writes the function of one basic block: ``run(machine, group)``, which returns the last branch's predicate."""

    def __init__(self, program: Program, block: Block, flow: Flow, index: int) -> None:
        self.program, self.kernel, self.block = program, program.kernel, block
        self.live_out = flow.live_out[index]
        self.index = index
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self.known: dict[str, dict[str, str]] = {}
        """Register -> dtype -> the local variable that holds it so."""
        self.written: set[str] = set()
        self.count = 0
        self.instruction: Instruction = block.instructions[0]

    def function(self) -> Callable[[Any, Any], Any]:
        for instruction in self.block.instructions:
            self.instruction = instruction
            if not ends_block(instruction):
                self._translate(instruction)
        last = self.block.instructions[-1]
        result = self.read(last.predicate, "pred") if ends_block(last) and last.predicate else "None"
        for name in sorted(self.written & self.live_out):
            self.lines.append(f"R[{self.program.slots[name]}] = {self._as(name, self._home(name))}")
        body = ["R = G.registers", *self.lines, f"return {result}"]
        text = "def run(M, G):\n" + "".join(f"    {line}\n" for line in body)
        space = values.NAMES | self.constants
        exec(compile(text, f"<{self.kernel.name}, block {self.index}>", "exec"), space)
        return space["run"]

    def _translate(self, instruction: Instruction) -> None:
        parts = instruction.opcode.split(".")
        for length in range(len(parts), 0, -1):
            if translation := OPCODES.get(".".join(parts[:length])):
                try:
                    return translation(self, instruction, parts)
                except (KeyError, ValueError, IndexError) as error:
                    raise self.unknown(f"{type(error).__name__} {error}") from error
        raise self.unknown("unknown instruction")

    def unknown(self, why: str) -> UnknownInstructionError:
        each = self.instruction
        return UnknownInstructionError(f"{self.kernel.name}, line {each.line}: {each.text}: {why}")

    def allow(self, parts: Iterable[str], *modifiers: str) -> set[str]:
        """The modifiers among ``parts``, all of which must be in ``modifiers``."""
        found = set(parts)
        if strange := found - set(modifiers):
            raise self.unknown(f"unknown modifier {', '.join(sorted(strange))}")
        return found

    def where(self) -> str:
        """The name of a constant that holds this instruction."""
        return self.constant(self.instruction)

    def constant(self, value: Any) -> str:
        self.count += 1
        self.constants[f"c{self.count}"] = value
        return f"c{self.count}"

    def local(self, expression: str) -> str:
        """A local variable with the value of ``expression``."""
        self.count += 1
        self.lines.append(f"v{self.count} = {expression}")
        return f"v{self.count}"

    def predicate(self) -> str | None:
        """The lanes that execute this instruction; None for all."""
        each = self.instruction
        if each.predicate is None:
            return None
        name = self.read(each.predicate, "pred")
        return self.local(f"~{name}") if each.negated else name

    def _home(self, name: str) -> str:
        return _home(self.kernel, name)

    def read(self, operand: str, kind: str) -> str:
        """An expression for ``operand`` as a value of the PTX type ``kind``; of a wider register the low bits."""
        if operand.startswith("!"):
            return f"(~{self.read(operand[1:].strip(), kind)})"
        if self.kernel.register_type(operand) is None:
            return self._immediate(operand, kind)
        return self._as(operand, DTYPES[kind])

    def _as(self, operand: str, dtype: str) -> str:
        """The value of a register as ``dtype``."""
        known = self.known.setdefault(operand, {})
        if dtype in known:
            return known[dtype]
        if not known:
            known[self._home(operand)] = self.local(f"R[{self.program.slots[operand]}]")
            if dtype in known:
                return known[dtype]
        have, name = next(iter(known.items()))
        if "B" in (dtype, have):
            raise self.unknown(f"{operand} is a {have}, wanted is a {dtype}")
        if SIZE[have] == SIZE[dtype]:
            known[dtype] = self.local(f"{name}.view({dtype})")
        elif SIZE[have] > SIZE[dtype]:
            bits = have if have[0] != "F" else f"U{have[1:]}"
            narrow = self.local(f"{name if bits == have else name + f'.view({bits})'}.astype(U{dtype[1:]})")
            known[dtype] = narrow if dtype[0] == "U" else self.local(f"{narrow}.view({dtype})")
        else:
            raise self.unknown(f"{operand} is narrower than {dtype}")
        return known[dtype]

    def _immediate(self, operand: str, kind: str) -> str:
        dtype = NUMPY[DTYPES[kind]]
        if found := re.fullmatch(r"%(n?(?:tid|ctaid)|laneid|warpid)(?:\.([xyz]))?", operand):
            return self.local(f"G.special({operand!r}).astype({DTYPES[kind]})") if found else ""
        if operand in self.kernel.shared:
            return self.constant(dtype(self.kernel.shared[operand]))
        if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", operand):
            raw = np.uint32(int(found[1], 16)) if found[1] else np.uint64(int(found[2], 16))
            if raw.itemsize != np.dtype(dtype).itemsize:
                raise self.unknown(f"{operand} as {kind}")
            return self.constant(raw.view(dtype))
        if not re.fullmatch(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?", operand):
            raise self.unknown(f"unknown operand {operand}")
        value = int(operand.rstrip("U"), 0)
        if dtype is np.bool_:
            return self.constant(np.bool_(value))
        bits = 8 * np.dtype(dtype).itemsize
        raw = np.array(value & (1 << bits) - 1, f"u{bits // 8}")
        return self.constant(raw.view(dtype)[()])

    def number(self, operand: str) -> int:
        """An immediate integer."""
        if not re.fullmatch(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?", operand):
            raise self.unknown(f"{operand} is no immediate")
        return int(operand.rstrip("U"), 0)

    def write(self, operand: str, kind: str, expression: str) -> None:
        """Assign a value of PTX type ``kind`` to ``operand``; for a wider register extended by its sign or zeros."""
        if operand == "_":
            return
        dtype = DTYPES[kind]
        if self.kernel.register_type(operand) is None:
            raise self.unknown(f"{operand} is no register")
        home = self._home(operand)
        if SIZE[dtype] < SIZE[home] and dtype != "B":
            dtype = ("S" if dtype[0] == "S" else "U") + home[1:]
            expression = f"({expression}).astype({dtype})"
        elif SIZE[dtype] != SIZE[home] or (dtype == "B") != (home == "B"):
            raise self.unknown(f"{operand} is a {home}, written is a {dtype}")
        predicate = self.predicate()
        if predicate:
            # Lanes that don't execute it keep the register's value.
            expression = f"choose({predicate}, {expression}, {self._as(operand, dtype)})"
        self.known[operand] = {dtype: self.local(expression)}
        self.written.add(operand)

    def write_all(self, operands: list[str], kind: str, tuple_name: str) -> None:
        """Assign the elements of a tuple of values."""
        for index, operand in enumerate(operands):
            self.write(operand, kind, f"{tuple_name}[{index}]")

    def address(self, operand: str) -> str:
        """The address [register + offset] in bytes, as an unsigned number."""
        found = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+)\s*)?\]", operand)
        if not found:
            raise self.unknown(f"unknown address {operand}")
        offset = int(found[2] or "0", 0)
        kind = self.kernel.register_type(found[1])
        if kind is None and found[1] not in self.kernel.shared:
            raise self.unknown(f"unknown address {operand}")
        wide = kind is not None and SIZE[DTYPES[kind]] == 8
        base = self.read(found[1], "u64" if wide else "u32")
        if not offset:
            return base
        dtype = np.uint64 if wide else np.uint32
        return f"({base} + {self.constant(dtype(offset % (1 << (64 if wide else 32))))})"

    def sources(self, operand: str, kind: str) -> str:
        """A tuple of the values of a vector operand."""
        return "(" + "".join(f"{self.read(each, kind)}, " for each in elements(operand)) + ")"
