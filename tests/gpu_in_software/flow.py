"""Basic blocks of a kernel, and the registers that are live between them."""

import re
from dataclasses import dataclass, field

from tests.gpu_in_software.ptx import Block, Instruction, Kernel

NAME = re.compile(r"%?[A-Za-z_$][\w$]*")
WRITE_NOTHING = ("st.", "stmatrix.", "bar", "bra", "ret", "exit", "fence.", "membar.", "wgmma.wait", "cp.")
"""How the opcodes of instructions begin that write no register."""


def is_barrier(instruction: Instruction) -> bool:
    """Whether threads of a block wait for one another here; bar.warp.sync is within a warp."""
    parts = instruction.opcode.split(".")
    return parts[0] in ("bar", "barrier") and "warp" not in parts


def ends_block(instruction: Instruction) -> bool:
    """Whether the machine, not the block's function, acts on an instruction; wgmma.wait_group fills registers."""
    control = instruction.opcode.split(".")[0] in ("bra", "ret", "exit")
    return control or is_barrier(instruction) or instruction.opcode.startswith("wgmma.wait_group")


@dataclass
class Flow:
    """Registers that a basic block takes over and those that it must leave behind."""

    live_in: list[set[str]] = field(default_factory=list)
    live_out: list[set[str]] = field(default_factory=list)


def split_blocks(kernel: Kernel) -> None:
    """Fill ``kernel.blocks``."""
    instructions = kernel.instructions
    starts = {0} | {at for at in kernel.labels.values() if at < len(instructions)}
    starts |= {n + 1 for n, each in enumerate(instructions) if ends_block(each) and n + 1 < len(instructions)}
    ordered = sorted(starts)
    number = {start: index for index, start in enumerate(ordered)}
    names = {at: label for label, at in kernel.labels.items()}
    kernel.blocks = [
        Block(names.get(start, ""), instructions[start:end])
        for start, end in zip(ordered, [*ordered[1:], len(instructions)], strict=True)
    ]
    for index, block in enumerate(kernel.blocks):
        last = block.instructions[-1]
        base = last.opcode.split(".")[0]
        if base == "bra":
            block.successors.append(number[kernel.labels[last.operands[0]]])
        if (base not in ("bra", "ret", "exit") or last.predicate) and index + 1 < len(kernel.blocks):
            block.successors.append(index + 1)


def uses_and_definitions(kernel: Kernel, instruction: Instruction) -> tuple[set[str], set[str]]:
    """Registers that an instruction reads, and those that it writes for certain or perhaps."""
    operands = [
        [name for name in NAME.findall(operand) if kernel.register_type(name)] for operand in instruction.operands
    ]
    writes_none = instruction.opcode.startswith(WRITE_NOTHING)
    defined = set() if writes_none or not operands else set(operands[0])
    used = {name for names in operands[0 if writes_none else 1 :] for name in names}
    if instruction.opcode.startswith("wgmma.mma"):
        used |= defined  # the accumulator
    if instruction.predicate:
        used |= {instruction.predicate} | defined
    return used, defined


def analyse(kernel: Kernel) -> Flow:
    """Split ``kernel`` into basic blocks and find the live registers by the usual iteration to a fixed point."""
    split_blocks(kernel)
    used, defined = [], []
    for block in kernel.blocks:
        first, written = set[str](), set[str]()
        for instruction in block.instructions:
            reads, writes = uses_and_definitions(kernel, instruction)
            first |= reads - written
            written |= writes
        used.append(first)
        defined.append(written)
    flow = Flow([set(names) for names in used], [set() for _ in used])
    changed = True
    while changed:
        changed = False
        for index in reversed(range(len(kernel.blocks))):
            out = {name for after in kernel.blocks[index].successors for name in flow.live_in[after]}
            before = used[index] | (out - defined[index])
            if out != flow.live_out[index] or before != flow.live_in[index]:
                flow.live_out[index], flow.live_in[index], changed = out, before, True
    return flow
