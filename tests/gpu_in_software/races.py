"""Who touched what: two warps on one location between two barriers, or two blocks within a launch, one of them writing.

Accesses are listed and judged together when a barrier lets their blocks go on, since few array operations over many
accesses are fast. A store of the value that is already there conflicts with a later change, not with an earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tests.gpu_in_software.ptx import Instruction

if TYPE_CHECKING:
    from tests.gpu_in_software.machine import Machine

READ, WRITE, SAME = range(3)
Units = NDArray[np.int64]


@dataclass
class Access:
    kind: int
    units: Units
    """Locations: addresses divided by the smallest access of the kernel."""
    warps: Units
    """Of the launch."""
    instruction: Instruction


class Tracker:
    """The accesses to one memory. ``machine`` takes the faults; ``blocks``: whether blocks share it (global memory)."""

    def __init__(self, machine: Machine, units: int, space: str, blocks: bool) -> None:
        self.machine, self.space = machine, space
        self.owner = np.full(units, -1, np.int64)
        """Scratch: the warp that wrote a unit in the interval that is judged."""
        self.writer = np.full(units if blocks else 0, -1, np.int64)
        self.reader = np.full(units if blocks else 0, -1, np.int64)
        """Block that wrote or read a unit in this launch; -1 none, reader -2 several."""
        self.log: list[Access] = []

    def add(self, kind: int, units: Units, warps: Units, instruction: Instruction) -> None:
        """Note accesses, ``units`` [..., n] of the warps [n]."""
        if units.ndim > 1:
            warps = np.broadcast_to(warps, units.shape).ravel()
            units = units.ravel()
        self.log.append(Access(kind, units, warps, instruction))

    def store(self, units: Units, changed: NDArray[np.bool_], warps: Units, instruction: Instruction) -> None:
        """Note stores, of which only some change what is there."""
        if units.ndim > 1:
            warps = np.broadcast_to(warps, units.shape)
        if changed.all():
            return self.add(WRITE, units.ravel(), warps.ravel(), instruction)
        for kind, chosen in ((WRITE, changed), (SAME, ~changed)):
            if chosen.any():
                self.add(kind, units[chosen], warps[chosen], instruction)

    def barrier(self, blocks: NDArray[np.bool_] | None) -> None:
        """Judge and forget the accesses of ``blocks`` [blocks of the launch]; None for all."""
        log, self.log = self.log, []
        if blocks is not None:
            mine: list[Access] = []
            for access in log:
                passing = blocks[access.warps // self.machine.warps_per_block]
                for chosen, where in ((passing, mine), (~passing, self.log)):
                    if chosen.all():
                        where.append(access)
                    elif chosen.any():
                        where.append(
                            Access(access.kind, access.units[chosen], access.warps[chosen], access.instruction)
                        )
            log = mine
        if any(access.kind == WRITE for access in log):
            self._between_warps(log)
        if len(self.writer):
            self._between_blocks(log)

    def _between_warps(self, log: list[Access]) -> None:
        """Once forwards for accesses after a write, once backwards for those before one."""
        for direction, kinds in ((log, (READ, WRITE)), (log[::-1], (READ, SAME))):
            owner: dict[int, Access] = {}
            for access in direction:
                if access.kind in kinds:
                    warps = self.owner[access.units]
                    bad = (warps >= 0) & (warps != access.warps)
                    if len(self.writer):  # blocks are judged apart
                        per = self.machine.warps_per_block
                        bad &= warps // per == access.warps // per
                    if bad.any():
                        self._between(access, int(bad.argmax()), warps, list(owner.values()))
                if access.kind == WRITE:
                    self.owner[access.units] = access.warps
                    owner[id(access)] = access
            for access in owner.values():
                self.owner[access.units] = -1

    def _between(self, access: Access, at: int, owners: Units, writes: list[Access]) -> None:
        unit, warp = int(access.units[at]), int(owners[at])
        other = next(w for w in reversed(writes) if ((w.units == unit) & (w.warps == warp)).any())
        self._report("warps", access, unit, f"warp {access.warps[at]}", f"warp {warp}", other.instruction)

    def _between_blocks(self, log: list[Access]) -> None:
        per = self.machine.warps_per_block
        for access in log:
            units, block = access.units, access.warps // per
            writer = self.writer[units]
            other = (writer >= 0) & (writer != block) & (access.kind != SAME)
            if access.kind == WRITE:
                reader = self.reader[units]
                other |= (reader != -1) & (reader != block)
                self.writer[units] = block
                # Two blocks may store at one place in one instruction.
                other |= self.writer[units] != block
            else:
                reader = self.reader[units]
                self.reader[units] = np.where((reader == -1) | (reader == block), block, -2)
                again = self.reader[units]
                self.reader[units[(again != block) & (again != -2)]] = -2
            if other.any():
                at = int(other.argmax())
                mine = f"block {int(block[at])}"
                theirs = f"block {int(writer[at])}" if writer[at] >= 0 else "another block"
                self._report("blocks", access, int(units[at]), mine, theirs, None)

    def _report(
        self, scope: str, access: Access, unit: int, mine: str, theirs: str, instruction: Instruction | None
    ) -> None:
        verb = "reads" if access.kind == READ else "writes"
        place = self.machine.describe(self.space, unit)
        other = f" by {instruction.text} ({instruction.source})" if instruction else ""
        detail = f"{mine} {verb} {place}, which {theirs} touched{other}"
        self.machine.fault(f"race between {scope}", access.instruction, detail)
