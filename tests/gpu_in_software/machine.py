"""One launch of a kernel: its blocks in batches, the lanes of a batch in groups that share a program counter.

All lanes of all blocks of a batch start as one group. A branch that lanes take differently splits it. The group with
the lowest program counter goes first, so that the parts meet where paths join and become one group again. A group at
a barrier waits until all living lanes of its blocks are there.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu_in_software.groups import Group, merge
from tests.gpu_in_software.memory import GlobalMemory
from tests.gpu_in_software.ptx import Instruction
from tests.gpu_in_software.report import Fault, GpuError, Report, UnknownInstructionError, fault
from tests.gpu_in_software.shared import SharedMemory
from tests.gpu_in_software.tensor_cores import TensorCores
from tests.gpu_in_software.translate import DTYPES, SIZE, Program
from tests.gpu_in_software.warps import Warps

LANES = 16384
"""Lanes of a batch, at most: more share the overhead of each instruction, fewer stay in the cache."""


def smallest_access(program: Program, space: str) -> int:
    """log2 of the bytes of the kernel's smallest access to ``space``, at most 2."""
    sizes = [4]
    for each in program.kernel.instructions:
        parts = each.opcode.split(".")
        if parts[0] in ("ld", "st") and any(part.split(":")[0] == space for part in parts):
            sizes.append(SIZE[DTYPES[parts[-1]]])
        if parts[0] in ("ldmatrix", "stmatrix", "wgmma") and space == "shared":
            sizes.append(2)
    return min(sizes).bit_length() - 1


class Machine:
    """Executes ``program`` over ``grid`` with ``threads`` a block; `run` returns the report.

    Args:
        parameters: raw bits of the kernel's parameters, as integers.
        memory: what the addresses among them point to.
        shared: bytes of a block's dynamic shared memory, as Triton tells them: static memory included.
        track: look for races and poison.
        count_memory: count sectors of global memory and passes over the banks of shared memory.
        sums: how tensor cores add, exact or truncating.
        schedule: batch runs all warps in step, warps each alone up to the next barrier, in random order by ``seed``.
        perturb: move the results of approximate instructions by up to their stated error.
    """

    def __init__(
        self, program: Program, grid: tuple[int, int, int], threads: int, parameters: list[int], memory: GlobalMemory,
        *, shared: int = 0, track: bool = True, count_memory: bool = False, sums: str = "exact",
        schedule: str = "batch", perturb: bool = False, seed: int = 0, lanes: int = LANES,
    ) -> None:  # fmt: skip
        self.program, self.grid, self.threads, self.parameters = program, grid, threads, parameters
        self.memory, self.track, self.count_memory = memory, track, count_memory
        self.schedule, self.perturb, self.random = schedule, perturb, np.random.default_rng(seed)
        self.warps_per_block = -(-threads // 32)
        self.shared_size = max(shared, program.kernel.static_shared)
        self.shift = smallest_access(program, "shared")
        self.blocks = grid[0] * grid[1] * grid[2]
        self.batch = max(1, min(lanes // threads, self.blocks))
        self.first_block = 0
        self.warps, self.tensor_cores = Warps(self), TensorCores(self, sums)
        executed = np.zeros((len(program.functions), self.blocks), np.int64)
        self.report = Report(program.kernel, grid, threads, self.shared_size, executed)
        memory.bind(self, smallest_access(program, "global"), track)

    def run(self) -> Report:
        if self.threads % 32:
            raise GpuError(f"{self.program.kernel.name}: {self.threads} threads a block; allowed here: multiples of 32")
        started = time.perf_counter()
        with np.errstate(all="ignore"):
            for first in range(0, self.blocks, self.batch):
                self.first_block = first
                self._run_batch(min(self.batch, self.blocks - first))
            if self.memory.tracker:
                self.memory.tracker.barrier(None)
        self.report.seconds = time.perf_counter() - started
        return self.report

    # What instructions ask for.

    def parameter(self, index: int, dtype: Any) -> Any:
        bits = 8 * np.dtype(dtype).itemsize
        unsigned = np.array(self.parameters[index] & (1 << bits) - 1, f"u{bits // 8}")
        return unsigned.view(dtype)[()]

    def approximate(self, exact: Any, error: float) -> Any:
        """fp64 to fp32; perturbed by a relative ``error`` if asked for."""
        if self.perturb:
            exact = exact * (1 + error * (2 * self.random.random(np.shape(exact)) - 1))
        return exact.astype(np.float32)

    def warp_of(self, lanes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The warps of the launch that ``lanes`` of the batch belong to."""
        return (lanes >> 5) + self.first_block * self.warps_per_block

    def place(self, lane: int) -> str:
        """A lane of the batch in words."""
        return f"thread {int(lane) % self.threads} of block {self.first_block + int(lane) // self.threads}"

    def describe(self, space: str, unit: int) -> str:
        return self.memory.describe(unit) if space == "global" else self.shared.describe(unit)

    def fault(self, kind: str, instruction: Instruction, detail: str) -> None:
        """Note a fault after which the launch can go on."""
        self.report.faults.append(fault(kind, self.program.kernel.name, instruction, detail))

    def fatal(self, kind: str, instruction: Instruction, detail: str) -> GpuError:
        found: Fault = fault(kind, self.program.kernel.name, instruction, detail)
        self.report.faults.append(found)
        return GpuError("\n".join(dict.fromkeys(map(str, self.report.faults))))

    # A batch of blocks.

    def _run_batch(self, blocks: int) -> None:
        self.lanes = blocks * self.threads
        self.shared = SharedMemory(self, self.shared_size, blocks, self.shift, self.track)
        self.alive = np.full(blocks, self.threads)
        self.waiting: list[Group] = []
        every = Group.start(self, np.arange(self.lanes))
        groups = [every] if self.schedule == "batch" else self._single_warps(every)
        while groups or self.waiting:
            if not groups:
                raise self.fatal("barrier that not all threads reach", self.waiting[0].last, self._missing())
            groups = self._step(groups) if self.schedule == "batch" else self._run_alone(groups)
        if self.shared.tracker:
            self.shared.tracker.barrier(None)

    def _run_alone(self, groups: list[Group]) -> list[Group]:
        """Run one warp to its next barrier or end."""
        mine = [groups.pop(int(self.random.integers(len(groups))))]
        while mine:
            mine = self._step(mine)
            groups += [group for group in mine if group.released]
            mine = [group for group in mine if not group.released]
        for group in groups:
            group.released = False
        return groups

    def _single_warps(self, every: Group) -> list[Group]:
        """A group for each warp, or for four where wgmma needs them."""
        width = 128 if any(each.opcode.startswith("wgmma") for each in self.program.kernel.instructions) else 32
        number = every.lanes // width
        return [every.part(number == n, every.block) for n in range(int(number[-1]) + 1)]

    def _missing(self) -> str:
        here = sum(len(group.lanes) for group in self.waiting)
        return f"{here} threads wait for ever, {int(self.alive.sum()) - here} are elsewhere"

    def _step(self, groups: list[Group]) -> list[Group]:
        """Run the group with the lowest program counter to the end of its basic block."""
        group = min(groups, key=lambda each: each.block) if len(groups) > 1 else groups[0]
        same = [each for each in groups if each.block == group.block]
        rest = [each for each in groups if each.block != group.block]
        if len(same) > 1:
            group = merge(same, self.program.live[group.block])
        index = group.block
        predicate = self.program.functions[index](self, group)
        self._count(group, index)
        return rest + self._after(group, index, predicate)

    def _count(self, group: Group, index: int) -> None:
        self.report.thread_instructions += len(group.lanes) * len(self.program.kernel.blocks[index].instructions)
        self.report.executed[index, self.first_block : self.first_block + len(self.alive)] += group.warps_of_blocks()

    def _after(self, group: Group, index: int, predicate: Any) -> list[Group]:
        """What the last instruction of a basic block makes of the group."""
        block = self.program.kernel.blocks[index]
        last = block.instructions[-1]
        base = last.opcode.split(".")[0]
        group.last = last
        if base == "bra":
            if last.predicate is None:
                return [group.at(block.successors[0])]
            taken, other = group.split(~predicate if last.negated else predicate)
            parts = ((taken, block.successors[0]), (other, index + 1))
            return [part.at(to) for part, to in parts if part is not None]
        if base in ("ret", "exit"):
            done, other = group.split(True if last.predicate is None else ~predicate if last.negated else predicate)
            if done is not None:
                self.alive -= np.bincount(done.lanes // self.threads, minlength=len(self.alive))
            left = [] if other is None else [other.at(index + 1)]
            return left + self._release()
        if base in ("bar", "barrier"):
            self._check_barrier(last)
            self.waiting.append(group.at(index + 1))
            return self._release()
        if last.opcode.startswith("wgmma.wait_group"):
            self.tensor_cores.wait(group, int(last.operands[0]))
        return [group.at(index + 1)]

    def _check_barrier(self, last: Instruction) -> None:
        """Only barrier 0 of the whole block, without a predicate, is known."""
        number, *count = last.operands
        whole = not count or count[0] == str(self.threads)
        if last.predicate or number != "0" or not whole or last.opcode.split(".")[1:2] != ["sync"]:
            raise UnknownInstructionError(f"{self.program.kernel.name}, line {last.line}: {last.text}: unknown barrier")

    def _release(self) -> list[Group]:
        """The waiting groups of blocks all of whose living lanes wait."""
        if not self.waiting:
            return []
        here = np.zeros_like(self.alive)
        for each in self.waiting:
            here += np.bincount(each.lanes // self.threads, minlength=len(here))
        complete = (here == self.alive) & (here > 0)
        if not complete.any():
            return []
        if (self.alive[complete] != self.threads).any():
            self.fault("barrier after some threads have ended", self.waiting[0].last, "the others wait without them")
        released, kept = [], []
        for group in self.waiting:
            go, stay = group.split(complete[group.lanes // self.threads] if not complete.all() else True)
            released += [] if go is None else [go.at(group.block)]
            kept += [] if stay is None else [stay.at(group.block)]
        self.waiting = kept
        if len({group.block for group in released}) > 1 and self._different(released):
            self.fault("divergent barrier", released[0].last, "threads of one block wait at different barriers")
        self._pass(complete)
        for group in released:
            group.released = True
        return released

    def _different(self, released: list[Group]) -> bool:
        """Whether lanes of one block come from different barriers."""
        places = np.zeros((len(self.alive), len(self.program.functions) + 1), bool)
        for group in released:
            places[group.lanes // self.threads, group.block] = True
        return bool((places.sum(1) > 1).any())

    def _pass(self, complete: NDArray[np.bool_]) -> None:
        """Judge the accesses of the interval that ends."""
        for tracker in (self.shared.tracker, self.memory.tracker):
            if tracker:
                tracker.barrier(self._launch_mask(complete))

    def _launch_mask(self, complete: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        if complete.all():
            return None
        mask = np.zeros(self.blocks, bool)
        mask[self.first_block : self.first_block + len(complete)] = complete
        return mask
