"""Shared memory of the blocks that run together, and cp.async, whose destination is poison until it is waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu_in_software.memory import UNSIGNED, GlobalMemory
from tests.gpu_in_software.ptx import Instruction
from tests.gpu_in_software.races import READ, WRITE, Tracker
from tests.gpu_in_software.report import Access

if TYPE_CHECKING:
    from tests.gpu_in_software.groups import Group
    from tests.gpu_in_software.machine import Machine


@dataclass
class Copy:
    """A cp.async under way."""

    lanes: NDArray[np.int64]
    to: NDArray[np.int64]
    data: NDArray[np.uint8]
    instruction: Instruction

    def select(self, chosen: NDArray[np.bool_]) -> Copy:
        return Copy(self.lanes[chosen], self.to[chosen], self.data[chosen], self.instruction)


class SharedMemory:
    """``size`` bytes for each of ``blocks``; ``shift``: log2 of the bytes of the smallest access."""

    def __init__(self, machine: Machine, size: int, blocks: int, shift: int, track: bool) -> None:
        self.machine, self.size, self.shift = machine, size, shift
        self.stride = -(-max(size, 16) // 128) * 128
        self.data = np.full(self.stride * blocks, 0xFF, np.uint8)
        self.words = {bytes_: self.data.view(kind) for bytes_, kind in UNSIGNED.items()}
        units = len(self.data) >> shift
        self.defined, self.in_flight = np.zeros(units, bool), np.zeros(units, bool)
        self.unfenced = np.full(units, -1, np.int64)
        """Lane whose store no proxy fence has followed: tensor cores may not see it yet."""
        self.tracker = Tracker(machine, units, "shared", blocks=False) if track else None

    def offsets(self, group: Group, address: Any, nbytes: int, lanes: Any, instruction: Instruction) -> Any:
        """Checked addresses in the memory of all blocks."""
        at = address.astype(np.int64)
        if len(at) and (int(at.min()) < 0 or int(at.max()) + nbytes > self.size):
            bad = int(((at < 0) | (at + nbytes > self.size)).argmax())
            detail = f"{self.machine.place(lanes[bad])}: {nbytes} bytes at byte {int(at[bad])} of {self.size}"
            raise self.machine.fatal("shared access out of bounds", instruction, detail)
        if (at % nbytes).any():
            bad = int((at % nbytes != 0).argmax())
            detail = f"{self.machine.place(lanes[bad])}: {nbytes} bytes at byte {int(at[bad])}"
            raise self.machine.fatal("misaligned shared access", instruction, detail)
        return at + (lanes // self.machine.threads) * self.stride

    def units(self, offsets: Any, nbytes: int) -> Any:
        count = max(nbytes >> self.shift, 1)
        units = offsets >> self.shift
        return units if count == 1 else units[None, :] + np.arange(count)[:, None]

    def load(
        self, group: Group, address: Any, size: int, count: int, predicate: Any, instruction: Instruction
    ) -> NDArray[Any]:
        chosen, lanes, address = group.select(predicate, address)
        offsets = self.offsets(group, address, size * count, lanes, instruction)
        values = self.words[size][(offsets // size)[None, :] + np.arange(count)[:, None]]
        self.read(offsets, size * count, lanes, instruction)
        if self.machine.count_memory:
            self._count(offsets, size * count, lanes, instruction)
        if chosen is None:
            return values
        every = np.zeros((count, len(group.lanes)), UNSIGNED[size])
        every[:, chosen] = values
        return every

    def read(self, offsets: Any, nbytes: int, lanes: Any, instruction: Instruction) -> None:
        """Check and note a read."""
        if not self.tracker:
            return
        units = self.units(offsets, nbytes)
        if instruction.used_bytes is not None and units.ndim > 1:
            units = units[[n for n in range(len(units)) if instruction.used_bytes >> (n << self.shift) & 1]]
        for name, bad in (
            ("read of poison", ~self.defined[units]),
            ("read of a copy under way", self.in_flight[units]),
        ):
            if bad.any():
                detail = f"{int(bad.sum())} places of shared memory, the first at {self.describe(int(units[bad][0]))}"
                self.machine.fault(name, instruction, detail)
        self.tracker.add(READ, units, self.machine.warp_of(lanes), instruction)

    def describe(self, unit: int) -> str:
        block, byte = divmod(unit << self.shift, self.stride)
        return f"byte {byte} of the shared memory of block {block + self.machine.first_block}"

    def store(
        self, group: Group, address: Any, size: int, values: tuple[Any, ...], predicate: Any, instruction: Instruction
    ) -> None:
        chosen, lanes, address = group.select(predicate, address)
        if not len(lanes):
            return
        offsets = self.offsets(group, address, size * len(values), lanes, instruction)
        words = (offsets // size)[None, :] + np.arange(len(values))[:, None]
        new = group.stack(values, chosen, UNSIGNED[size])
        self.put(words, size, new, offsets, lanes, instruction)
        if self.machine.count_memory:
            self._count(offsets, size * len(values), lanes, instruction)

    def put(self, words: Any, size: int, new: Any, offsets: Any, lanes: Any, instruction: Instruction) -> None:
        """Store ``new`` at ``words`` [values, lanes], counted in ``size`` bytes."""
        data = self.words[size]
        old = data[words] if self.tracker else None
        data[words] = new
        if not self.tracker:
            return
        if (data[words] != new).any():
            self.machine.fault("different values stored at one place at once", instruction, "in shared memory")
        per = size >> self.shift
        units, changed = words * per, old != new
        if per > 1:
            units = (units[..., None] + np.arange(per)).swapaxes(1, 2).reshape(-1, len(lanes))
            changed = np.repeat(changed, per, axis=0)
        if self.in_flight[units].any():
            self.machine.fault("write over a copy under way", instruction, "in shared memory")
        self.defined[units] = True
        self.unfenced[units] = lanes
        self.tracker.store(units, changed, self.machine.warp_of(lanes), instruction)

    def copy_async(
        self, group: Group, memory: GlobalMemory, to: Any, source: Any, size: int, taken: Any, predicate: Any,
        instruction: Instruction,
    ) -> None:  # fmt: skip
        _, lanes, to = group.select(predicate, to)
        chosen, _, source = group.select(predicate, source)
        taken = np.broadcast_to(taken, group.lanes.shape)
        taken = taken if chosen is None else taken[chosen]
        offsets = self.offsets(group, to, size, lanes, instruction)
        data = np.zeros((len(lanes), size), np.uint8)
        if ((taken != 0) & (taken != size)).any():
            raise self.machine.fatal("partial copy", instruction, "only none or all of the bytes are known here")
        some = taken != 0
        data[some] = memory.fetch(group, source[some], size, lanes[some], instruction)
        self.data[offsets[:, None] + np.arange(size)] = 0xFF
        if self.tracker:
            units = self.units(offsets, size)
            if self.in_flight[units].any():
                self.machine.fault("write over a copy under way", instruction, "in shared memory")
            self.tracker.add(WRITE, units, self.machine.warp_of(lanes), instruction)
            self.in_flight[units] = True
        group.copies.open.append(Copy(lanes, offsets, data, instruction))

    def commit(self, group: Group) -> None:
        group.copies.commit()

    def wait(self, group: Group, left: int, everything: bool) -> None:
        """Land all but the last ``left`` committed groups of copies."""
        if everything:
            group.copies.commit()
        for copy in group.copies.take(left):
            size = copy.data.shape[1]
            self.data[copy.to[:, None] + np.arange(size)] = copy.data
            if self.tracker:
                units = self.units(copy.to, size)
                self.in_flight[units] = False
                self.defined[units] = True
                self.unfenced[units] = copy.lanes
                self.tracker.add(WRITE, units, self.machine.warp_of(copy.lanes), copy.instruction)

    def fence(self, group: Group) -> None:
        """What the group's lanes stored is visible to tensor cores."""
        if self.tracker:
            done = np.zeros(self.machine.lanes + 1, bool)
            done[group.lanes] = True
            self.unfenced[done[self.unfenced]] = -1

    def _count(self, offsets: Any, nbytes: int, lanes: Any, instruction: Instruction) -> None:
        """Passes over the 32 banks: a warp's 16-byte accesses go in quarters, its 8-byte ones in halves."""
        if not len(lanes):
            return
        phase = (lanes >> 5) * 4 + (lanes % 32) // {16: 8, 8: 16}.get(nbytes, 32)
        words = offsets >> 2
        if nbytes > 4:
            words = (words[:, None] + np.arange(nbytes // 4)).ravel()
            phase = np.repeat(phase, nbytes // 4)
        counted = self.machine.report.accesses.setdefault(instruction.line, Access())
        counted.warps += len(np.unique(lanes >> 5))
        passes, phases = bank_passes(phase, words)
        counted.transactions += passes
        counted.ideal += phases


def bank_passes(phase: Any, words: Any) -> tuple[int, int]:
    """Passes that accesses to 4-byte ``words`` take, each ``phase`` on its own, and the number of phases."""
    pairs = np.unique(np.stack([phase, words % 32, words]), axis=1)
    banks, counts = np.unique(pairs[0] * 32 + pairs[1], return_counts=True)
    most = np.zeros(int(phase.max()) + 1, np.int64)
    np.maximum.at(most, banks // 32, counts)
    return int(most.sum()), int((most > 0).sum())
