"""What a launch did: its faults, and counts of instructions, memory sectors, bank conflicts and loop trips."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.gpu_in_software.ptx import Instruction, Kernel


class GpuError(Exception):
    """A kernel did what hardware does not promise to survive; the message lists the faults, one line each."""


class UnknownInstructionError(GpuError):
    """The machine does not know an instruction, an operand or a modifier: nothing is guessed."""


@dataclass(frozen=True)
class Fault:
    kind: str
    """As "race between warps"."""
    kernel: str
    instruction: str
    source: str
    """file:line of the kernel's source; empty if the PTX doesn't say."""
    detail: str

    def __str__(self) -> str:
        place = f" ({self.source})" if self.source else ""
        return f"{self.kernel}: {self.kind}: {self.instruction}{place}: {self.detail}"


def fault(kind: str, kernel: str, instruction: Instruction, detail: str) -> Fault:
    return Fault(kind, kernel, instruction.text, instruction.source, detail)


CLASSES = {
    "product on tensor cores": ("mma", "wgmma"),
    "float": ("fma", "div", "sqrt", "rsqrt", "rcp", "ex2", "lg2", "sin", "cos", "tanh", "copysign", "testp"),
    "global memory": (),
    "shared memory": ("ldmatrix", "stmatrix"),
    "copy": ("cp",),
    "shuffle and vote": ("shfl", "vote", "redux", "elect", "activemask"),
    "control": ("bra", "ret", "exit"),
    "barrier": ("bar", "barrier", "fence", "membar"),
    "move": ("mov", "cvta", "cvt", "selp", "prmt", "ld"),
}
_CLASS_OF = {base: name for name, bases in CLASSES.items() for base in bases}


def class_of(instruction: Instruction) -> str:
    """The class under which an instruction is counted."""
    parts = instruction.opcode.split(".")
    if parts[0] in ("ld", "st"):
        if "param" in parts:
            return "move"
        return "global memory" if "global" in parts else "shared memory"
    if parts[0] in ("add", "sub", "mul", "min", "max", "abs", "neg") and parts[-1] in ("f16", "f32", "f64", "f16x2"):
        return "float"
    return _CLASS_OF.get(parts[0], "integer")


@dataclass
class Access:
    """The accesses of one load or store, counted if the machine was asked to."""

    warps: int = 0
    """Warps that executed it."""
    transactions: int = 0
    """Sectors of 32 bytes of global memory, or passes over the banks of shared memory."""
    ideal: int = 0
    """The fewest that the same bytes could take."""


@dataclass
class Report:
    """One launch of ``kernel``."""

    kernel: Kernel
    grid: tuple[int, int, int]
    threads: int
    """Threads of a block."""
    shared: int
    """Bytes of shared memory of a block."""
    executed: NDArray[np.int64]
    """[basic blocks of the code, blocks of the grid]: warps that executed it."""
    thread_instructions: int = 0
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    accesses: dict[int, Access] = field(default_factory=dict)
    """Line of the PTX -> its accesses."""

    @property
    def programs(self) -> int:
        """Blocks of the grid, which Triton calls programs."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.array([len(block.instructions) for block in self.kernel.blocks])

    @property
    def warp_instructions(self) -> int:
        """Instructions executed, each counted once for a warp."""
        return int(self.sizes @ self.executed.sum(1))

    def slowest_program(self) -> tuple[int, int]:
        """The block of the grid with the most warp instructions, and how many."""
        each = self.sizes @ self.executed
        return int(each.argmax()), int(each.max())

    def classes(self) -> Counter[str]:
        """Warp instructions by class."""
        return self._counted(class_of)

    def opcodes(self) -> Counter[str]:
        """Warp instructions by opcode."""
        return self._counted(lambda instruction: instruction.opcode)

    def _counted(self, key: object) -> Counter[str]:
        counts: Counter[str] = Counter()
        for block, warps in zip(self.kernel.blocks, self.executed.sum(1), strict=True):
            for instruction in block.instructions if warps else ():
                counts[key(instruction)] += int(warps)  # type: ignore[operator]
        return counts

    def trips(self) -> dict[str, tuple[float, float]]:
        """Label of a loop -> how often a warp goes round, mean and most over the blocks of the grid."""
        warps = -(-self.threads // 32)
        found = {}
        for index, block in enumerate(self.kernel.blocks):
            if block.label and any(index in later.successors for later in self.kernel.blocks[index:]):
                each = self.executed[index] / warps
                found[block.label] = float(each.mean()), float(each.max())
        return found

    def check(self) -> None:
        """Raise GpuError if anything was found."""
        if self.faults:
            raise GpuError("\n".join(dict.fromkeys(map(str, self.faults))))
