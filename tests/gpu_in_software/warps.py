"""What the lanes of a warp do together: shuffles, votes, reductions and matrix loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu_in_software.ptx import Instruction
from tests.gpu_in_software.report import Access
from tests.gpu_in_software.shared import bank_passes

if TYPE_CHECKING:
    from tests.gpu_in_software.groups import Group
    from tests.gpu_in_software.machine import Machine

LANE = np.arange(32)
REDUCTIONS = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
REDUCTIONS["xor"] = np.bitwise_xor


class Warps:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def whole(self, group: Group, instruction: Instruction) -> NDArray[np.int64]:
        """The group's lanes [warps, 32]; all lanes of every warp must be there."""
        if group.warps_of_32 is None:
            raise self.machine.fatal("lanes of a warp are missing", instruction, f"{len(group.lanes)} lanes execute it")
        return group.warps_of_32

    def shuffle(self, group: Group, mode: str, value: Any, other: Any, clamp: Any, instruction: Instruction) -> Any:
        """The value of another lane, and whether it lies within the segment; outside a lane keeps its own."""
        self.whole(group, instruction)
        values = group.spread(value).reshape(-1, 32)
        clamp, other = np.asarray(clamp, np.int64), np.asarray(other).astype(np.int64) & 31
        if other.ndim:
            other = other.reshape(-1, 32)
        if clamp.ndim:
            clamp = clamp.reshape(-1, 32)
        segment, last = clamp >> 8 & 31, clamp & 31
        if mode == "up":
            source = LANE - other
            inside = source >= ((LANE & segment) | (last & ~segment & 31))
        else:
            bound = (LANE & segment) | (last & ~segment & 31)
            base = (LANE & segment) | (other & ~segment & 31)
            source = {"down": LANE + other, "bfly": LANE ^ other, "idx": base}[mode]
            inside = source <= bound
        source = np.broadcast_to(np.where(inside, source, LANE), values.shape)
        result = np.take_along_axis(values, source, 1).ravel()
        return result, np.broadcast_to(inside, values.shape).ravel()

    def vote(self, group: Group, how: str, value: Any, instruction: Instruction) -> Any:
        self.whole(group, instruction)
        votes = group.spread(value).reshape(-1, 32)
        if how == "ballot":
            return np.repeat((votes.astype(np.uint32) << LANE.astype(np.uint32)).sum(1, dtype=np.uint32), 32)
        all_, any_ = votes.all(1), votes.any(1)
        return np.repeat({"all": all_, "any": any_, "uni": all_ | ~any_}[how], 32)

    def reduce(self, group: Group, how: str, value: Any, members: Any, instruction: Instruction) -> Any:
        """Over the lanes that name the same members, to which each must belong."""
        self.whole(group, instruction)
        values = group.spread(value).reshape(-1, 32)
        masks = group.spread(members).reshape(-1, 32)
        function = REDUCTIONS[how]
        if (masks == 0xFFFFFFFF).all():
            return np.repeat(function.reduce(values, axis=1, dtype=values.dtype), 32)
        result = np.zeros_like(values)
        for warp, lanes in enumerate(masks):
            for mask in np.unique(lanes):
                inside = (int(mask) >> LANE) & 1 == 1
                if not (inside == (lanes == mask)).all():
                    raise self.machine.fatal("lanes name different members", instruction, f"{int(mask):#x}")
                result[warp, inside] = function.reduce(values[warp, inside], dtype=values.dtype)
        return result.ravel()

    def elect(self, group: Group, instruction: Instruction) -> Any:
        return self.whole(group, instruction).ravel() % 32 == 0

    def _rows(self, group: Group, address: Any, count: int, instruction: Instruction) -> tuple[Any, Any]:
        """Offsets of the rows of ``count`` matrices, given by as many times 8 lanes, and those lanes."""
        warps = self.whole(group, instruction)
        lanes = warps[:, : 8 * count].ravel()
        address = group.spread(address).reshape(-1, 32)[:, : 8 * count].ravel()
        return self.machine.shared.offsets(group, address, 16, lanes, instruction), lanes

    def load_matrix(self, group: Group, address: Any, count: int, transposed: bool, instruction: Instruction) -> Any:
        """ldmatrix: ``count`` matrices of 8 rows of 8 values of 16 bits; lane 4 r + c gets two values of row r."""
        shared = self.machine.shared
        rows, lanes = self._rows(group, address, count, instruction)
        shared.read(rows, 16, lanes, instruction)
        if self.machine.count_memory:
            self._count(rows, lanes, instruction)
        halves = shared.words[2][(rows // 2)[:, None] + np.arange(8)].reshape(-1, count, 8, 8)
        if transposed:
            halves = halves.swapaxes(2, 3)
        pairs = halves.reshape(-1, count, 32, 2).astype(np.uint32)
        words = pairs[..., 0] | pairs[..., 1] << np.uint32(16)
        return [np.ascontiguousarray(words[:, index]).ravel() for index in range(count)]

    def store_matrix(self, group: Group, address: Any, values: Any, transposed: bool, instruction: Instruction) -> None:
        """stmatrix: the inverse of `load_matrix`."""
        rows, lanes = self._rows(group, address, len(values), instruction)
        words = np.stack([group.spread(value).reshape(-1, 32) for value in values], 1)
        halves = np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], -1).astype(np.uint16)
        halves = halves.reshape(-1, len(values), 8, 8)
        if transposed:
            halves = halves.swapaxes(2, 3)
        places = (rows // 2)[None, :] + np.arange(8)[:, None]
        self.machine.shared.put(places, 2, halves.reshape(-1, 8).T, rows, lanes, instruction)
        if self.machine.count_memory:
            self._count(rows, lanes, instruction)

    def _count(self, rows: Any, lanes: Any, instruction: Instruction) -> None:
        phase = np.repeat((lanes >> 5) * 4 + lanes % 32 // 8, 4)
        passes, phases = bank_passes(phase, ((rows >> 2)[:, None] + np.arange(4)).ravel())
        counted = self.machine.report.accesses.setdefault(instruction.line, Access())
        counted.warps += len(np.unique(lanes >> 5))
        counted.transactions += passes
        counted.ideal += phases
