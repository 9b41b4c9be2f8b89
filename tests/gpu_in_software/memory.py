"""Global memory: the allocations whose addresses a launch was given, with bounds, alignment and poison.

Poison: bytes that nothing has written since they were allocated. They are all ones, which is NaN, and a load of one is
a fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu_in_software.ptx import Instruction
from tests.gpu_in_software.races import READ, Tracker
from tests.gpu_in_software.report import Access

if TYPE_CHECKING:
    from tests.gpu_in_software.groups import Group
    from tests.gpu_in_software.machine import Machine

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
GRAIN = 64


@dataclass
class Region:
    """The part of an allocation that a launch may touch: ``data`` starts at ``address``, a multiple of 64."""

    name: str
    address: int
    data: NDArray[np.uint8]
    low: int
    high: int
    """Bytes of ``data`` that the kernel was given."""
    defined: NDArray[np.bool_] | None = None
    """Bytes that were written, if some were not."""
    first_unit: int = 0

    def __post_init__(self) -> None:
        self.words = {size: self.data[: len(self.data) // size * size].view(kind) for size, kind in UNSIGNED.items()}


class GlobalMemory:
    """What one launch sees, once it is bound to the machine."""

    machine: Machine
    tracker: Tracker | None

    def __init__(self, regions: list[Region]) -> None:
        self.regions = sorted(regions, key=lambda region: region.address)
        self.starts = np.array([region.address + region.low for region in self.regions], np.uint64)

    def bind(self, machine: Machine, shift: int, track: bool) -> None:
        """Belong to a launch; ``shift``: log2 of the bytes of its smallest access."""
        self.machine, self.shift, units = machine, shift, 0
        for region in self.regions:
            region.first_unit = units
            units += (len(region.data) >> shift) + 1
        self.tracker = Tracker(machine, units, "global", blocks=True) if track else None

    def describe(self, unit: int) -> str:
        region = max((r for r in self.regions if r.first_unit <= unit), key=lambda r: r.first_unit)
        return f"byte {((unit - region.first_unit) << self.shift) - region.low} of {region.name}"

    def load(
        self, group: Group, address: Any, size: int, count: int, predicate: Any, instruction: Instruction
    ) -> NDArray[Any]:
        """[count, lanes] of values of ``size`` bytes."""
        chosen, lanes, address = group.select(predicate, address)
        result = np.zeros((count, len(lanes)), UNSIGNED[size])
        for region, at, offsets in self._locate(group, address, size * count, lanes, instruction):
            words = (offsets // size)[None, :] + np.arange(count)[:, None]
            values = region.words[size][words]
            self._read(group, region, offsets, size * count, lanes[at], instruction)
            if len(at) == len(lanes):
                result = values
            else:
                result[:, at] = values
        if chosen is None:
            return result
        every = np.zeros((count, len(group.lanes)), UNSIGNED[size])
        every[:, chosen] = result
        return every

    def fetch(self, group: Group, address: Any, size: int, lanes: Any, instruction: Instruction) -> NDArray[np.uint8]:
        """[lanes, size] bytes, for cp.async of some ``lanes`` of a group."""
        result = np.zeros((len(lanes), size), np.uint8)
        for region, at, offsets in self._locate(group, address, size, lanes, instruction):
            result[at] = region.data[offsets[:, None] + np.arange(size)]
            self._read(group, region, offsets, size, lanes[at], instruction)
        return result

    def _read(
        self, group: Group, region: Region, offsets: Any, nbytes: int, lanes: Any, instruction: Instruction
    ) -> None:
        machine = self.machine
        if region.defined is not None:
            known = region.defined[offsets[:, None] + np.arange(nbytes)]
            if instruction.used_bytes is not None:
                known = known[:, [n for n in range(nbytes) if instruction.used_bytes >> n & 1]]
            if not known.all():
                lane = lanes[int((~known.all(1)).argmax())]
                place = f"{int((~known).sum())} bytes of {region.name} that nothing wrote"
                machine.fault("read of poison", instruction, f"{machine.place(lane)} reads {place}")
        if self.tracker:
            units = self._units(region, offsets, nbytes)
            self.tracker.add(READ, units, machine.warp_of(lanes), instruction)
        if machine.count_memory:
            self._count(offsets + region.address, nbytes, lanes, instruction)

    def store(
        self, group: Group, address: Any, size: int, values: tuple[Any, ...], predicate: Any, instruction: Instruction
    ) -> None:
        chosen, lanes, address = group.select(predicate, address)
        if not len(lanes):
            return
        nbytes = size * len(values)
        matrix = group.stack(values, chosen, UNSIGNED[size])
        for region, at, offsets in self._locate(group, address, nbytes, lanes, instruction):
            words = (offsets // size)[None, :] + np.arange(len(values))[:, None]
            data, new = region.words[size], matrix[:, at]
            old = data[words] if self.tracker else None
            data[words] = new
            if region.defined is not None:
                region.defined[offsets[:, None] + np.arange(nbytes)] = True
            if self.tracker:
                self._written(region, words, size, new, old, lanes[at], instruction)
            if self.machine.count_memory:
                self._count(offsets + region.address, nbytes, lanes[at], instruction)

    def _written(
        self, region: Region, words: Any, size: int, new: Any, old: Any, lanes: Any, instruction: Instruction
    ) -> None:
        if (region.words[size][words] != new).any():
            self.machine.fault("different values stored at one place at once", instruction, f"in {region.name}")
        per = size >> self.shift
        units, changed = words * per + region.first_unit, old != new
        if per > 1:
            units = (units[..., None] + np.arange(per)).swapaxes(1, 2).reshape(-1, len(lanes))
            changed = np.repeat(changed, per, axis=0)
        self.tracker.store(units, changed, self.machine.warp_of(lanes), instruction)

    def _units(self, region: Region, offsets: Any, nbytes: int) -> Any:
        units = (offsets >> self.shift) + region.first_unit
        count = nbytes >> self.shift
        return units if count == 1 else units[None, :] + np.arange(count)[:, None]

    def _locate(self, group: Group, address: Any, nbytes: int, lanes: Any, instruction: Instruction) -> Any:
        """The regions that ``address`` points into, each with the positions of its lanes and their offsets in it."""
        if not len(lanes):
            return
        index = np.searchsorted(self.starts, address, "right") - 1
        for number in np.unique(index).tolist():
            region = self.regions[number] if number >= 0 else None
            at = np.flatnonzero(index == number)
            if region is None:
                raise self._outside(address, at, nbytes, lanes, instruction)
            offsets = (address[at] - np.uint64(region.address)).view(np.int64)
            if int(offsets.max()) + nbytes > region.high:
                raise self._outside(address, at[offsets + nbytes > region.high], nbytes, lanes, instruction)
            if (offsets % nbytes).any():
                bad = int((offsets % nbytes != 0).argmax())
                detail = (
                    f"{self.machine.place(lanes[at[bad]])}: {nbytes} bytes at byte {int(offsets[bad]) - region.low} of"
                )
                raise self.machine.fatal("misaligned access", instruction, f"{detail} {region.name}")
            yield region, at, offsets

    def _outside(self, address: Any, bad: Any, nbytes: int, lanes: Any, instruction: Instruction) -> Exception:
        where = int(address[bad[0]])
        place = self.machine.place(lanes[bad[0]])
        detail = f"{place}: {nbytes} bytes at {where:#x}, outside of every tensor"
        if self.regions:
            near = min(self.regions, key=lambda r: abs(where - r.address - (r.low + r.high) // 2))
            detail += f"; {where - near.address - near.low} bytes from the start of {near.name}"
            detail += f", which has {near.high - near.low}"
        return self.machine.fatal("access out of bounds", instruction, f"{detail} ({len(bad)} lanes)")

    def _count(self, address: Any, nbytes: int, lanes: Any, instruction: Instruction) -> None:
        """Sectors of 32 bytes for each warp, and the fewest that hold as many different bytes."""
        warps = self.machine.warp_of(lanes)
        sectors = np.unique(np.stack([warps, address >> 5]), axis=1).shape[1]
        distinct = np.unique(np.stack([warps, address]), axis=1).shape[1] * nbytes
        counted = self.machine.report.accesses.setdefault(instruction.line, Access())
        counted.warps += len(np.unique(warps))
        counted.transactions += sectors
        counted.ideal += -(-distinct // 32)
