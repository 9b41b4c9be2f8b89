"""The parser of PTX: one kernel of a module as a list of instructions.

Grammar: NVIDIA's PTX ISA 8. Read here: what Triton 3.3 to 3.8 and NVRTC 12 emit, with inline assembly, whose scopes in
braces may declare registers of their own.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

INSTRUCTION = re.compile(r"(?:@(!?)\s*([%\w$.]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
NAME = re.compile(r"[%\w$]+")
SIZES = {"pred": 0} | {f"{kind}{bits}": bits // 8 for kind in "bsuf" for bits in (8, 16, 32, 64)}


class PtxError(ValueError):
    """A module that can't be read."""


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: tuple[str, ...]
    predicate: str | None
    negated: bool
    line: int
    """In the PTX, from 1."""
    source: str
    """file:line of the kernel's source, from .loc; empty if unknown."""
    text: str
    used_bytes: int | None
    """Of a load: the bytes that the kernel uses, a bit each, if the PTX says so."""


@dataclass
class Block:
    """A basic block: instructions of which only the last one branches or waits at a barrier."""

    label: str
    instructions: list[Instruction]
    successors: list[int] = field(default_factory=list)
    """Indices of the basic blocks that may follow."""


@dataclass
class Kernel:
    name: str
    sm: int
    """Compute capability that it is compiled for."""
    parameters: list[tuple[str, str]]
    """Name and type, as ("kernel_param_0", "u64")."""
    threads: int | None
    """Threads of a block, if the PTX fixes them."""
    registers: dict[str, str]
    """Register, or the prefix of a numbered family of them, -> type."""
    shared: dict[str, int]
    """Variable in shared memory -> its offset; the dynamic one lies behind the others."""
    static_shared: int
    """Bytes of the variables with a size."""
    instructions: list[Instruction]
    labels: dict[str, int]
    blocks: list[Block] = field(default_factory=list)
    """Made by `flow.py`."""

    def register_type(self, name: str) -> str | None:
        """The declared type of a register; None if ``name`` isn't one."""
        if name in self.registers:
            return self.registers[name]
        return self.registers.get(name.rstrip("0123456789") + "<>")


def parse(text: str, name: str | None = None) -> Kernel:
    """Read the kernel ``name`` of a module, or its only one."""
    target = re.search(r"^\.target\s+sm_(\d+)", text, re.M)
    entries = {m[1]: m for m in re.finditer(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{;]*)\{", text, re.S)}
    if target is None or not entries:
        raise PtxError("PTX without .target or .entry")
    if name is None and len(entries) > 1:
        raise PtxError(f"PTX with kernels {', '.join(entries)}; name one")
    if name is not None and name not in entries:
        raise PtxError(f"PTX has no kernel {name}; it has {', '.join(entries)}")
    entry = entries[name or next(iter(entries))]
    parameters = [_parameter(part) for part in entry[2].split(",") if part.strip()]
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", entry[3])
    shared, static = _shared_variables(text)
    kernel = Kernel(
        entry[1], int(target[1]), parameters, int(threads[1]) if threads else None, {}, shared, static, [], {}
    )
    _Body(kernel).read(text, entry.end())
    return kernel


def _parameter(text: str) -> tuple[str, str]:
    found = re.match(r"\s*\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s+.*\s)?([\w$]+)\s*$", text, re.S)
    if not found:
        raise PtxError(f"PTX with an unknown kind of parameter: {text.strip()}")
    return found[2], found[1]


def _shared_variables(text: str) -> tuple[dict[str, int], int]:
    """Offsets of the variables in shared memory, and the bytes of those with a size."""
    offsets, end, dynamic = {}, 0, []
    pattern = r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(?:\[(\d*)\])?\s*;"
    for align, kind, name, count in re.findall(pattern, text):
        step = max(int(align or 1), SIZES[kind])
        end = -(-end // step) * step
        if re.search(rf"\.extern\s+\.shared[^;]*\b{re.escape(name)}\b", text):
            dynamic.append(name)
        else:
            offsets[name] = end
            end += SIZES[kind] * int(count or 1)
    end = -(-end // 16) * 16
    return offsets | dict.fromkeys(dynamic, end), end


class _Body:
    """The statements between a kernel's braces."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.scopes: list[dict[str, str]] = [{}]
        self.source, self.scoped = "", 0
        self.used: int | None = None

    def read(self, text: str, start: int) -> None:
        line = text.count("\n", 0, start)
        buffer = ""
        for number, raw in enumerate(text[start:].splitlines(), line + 1):
            code, _, comment = raw.partition("//")
            if re.match(r"\s*\.loc\s", code):
                self.source = comment.strip().rpartition(":")[0] or self.source
                continue
            for statement, rest in self._statements(buffer, code + " "):
                buffer = rest
                if statement == "}" and len(self.scopes) == 1:
                    return
                self._statement(statement, number)
        raise PtxError(f"kernel {self.kernel.name}: the PTX ends within it")

    def _statements(self, buffer: str, code: str) -> Iterator[tuple[str, str]]:
        """Complete statements, each with what is left over."""
        for char in code:
            empty = not buffer.strip()
            if (char in "{}" and empty) or char == ";":
                statement = (buffer + char).strip(" \t;") if char == ";" else char
                buffer = ""
                yield statement, ""
            elif char == ":" and re.fullmatch(r"\s*[\w$]+", buffer) and not buffer.strip().startswith("."):
                yield buffer.strip() + ":", ""
                buffer = ""
            else:
                buffer += char
        yield "", buffer

    def _statement(self, text: str, line: int) -> None:
        kernel = self.kernel
        if text == "{":
            self.scopes.append({})
        elif text == "}":
            self.scopes.pop()
        elif text.endswith(":"):
            kernel.labels[text[:-1]] = len(kernel.instructions)
        elif text.startswith(".reg"):
            self._registers(text)
        elif text.startswith(".pragma"):
            if found := re.search(r"used_bytes_mask (0x[0-9a-fA-F]+|\d+)", text):
                self.used = int(found[1], 0)
        elif text.startswith("."):
            if not text.startswith((".shared", ".loc", ".file")):
                raise PtxError(f"line {line}: unknown directive: {text}")
        elif text:
            kernel.instructions.append(self._instruction(text, line))

    def _registers(self, text: str) -> None:
        found = re.fullmatch(r"\.reg\s*\.(\w+)\s+(.*)", text, re.S)
        if not found:
            raise PtxError(f"unknown declaration: {text}")
        for name in found[2].split(","):
            name = name.strip()
            if family := re.fullmatch(r"([%\w$]+?)<\d+>", name):
                self.kernel.registers[family[1] + "<>"] = found[1]
            elif len(self.scopes) == 1:
                self.kernel.registers[name] = found[1]
            else:
                self.scoped += 1
                unique = f"%scope{self.scoped}_{name.lstrip('%')}"
                self.scopes[-1][name] = unique
                self.kernel.registers[unique] = found[1]

    def _instruction(self, text: str, line: int) -> Instruction:
        found = INSTRUCTION.fullmatch(text)
        if not found:
            raise PtxError(f"line {line}: can't read {text!r}")
        renamed = {old: new for scope in self.scopes for old, new in scope.items()}

        def name_of(match: re.Match[str]) -> str:
            return renamed.get(match[0], match[0])

        operands = tuple(NAME.sub(name_of, operand) if renamed else operand for operand in split_operands(found[4]))
        predicate = renamed.get(found[2], found[2]) if found[2] else None
        used, self.used = self.used, None
        clean = " ".join(text.split())
        return Instruction(found[3], operands, predicate, found[1] == "!", line, self.source, clean, used)


def split_operands(text: str) -> Iterator[str]:
    """The operands between the commas outside of braces and brackets."""
    depth, current = 0, ""
    for char in text:
        depth += char in "{[("
        depth -= char in "}])"
        if char == "," and not depth:
            yield current.strip()
            current = ""
        else:
            current += char
    if current.strip():
        yield current.strip()


def elements(operand: str) -> list[str]:
    """The registers of a vector operand {a, b}, or the operand alone."""
    return [part.strip() for part in operand.strip("{} \n\t").split(",")]
