"""Groups of lanes that share a program counter, with their registers and what they wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tests.gpu_in_software.machine import Machine

ALL_ONES = {size: np.array(-1, f"i{size}") for size in (1, 2, 4, 8)}


class Queue:
    """Asynchronous work in groups: what is open, and what was committed, the latest last."""

    def __init__(self) -> None:
        self.open: list[Any] = []
        self.committed: list[list[Any]] = []

    def all(self) -> list[list[Any]]:
        return [*self.committed, self.open]

    def commit(self) -> None:
        self.committed.append(self.open)
        self.open = []

    def take(self, left: int) -> list[Any]:
        """Remove all but the last ``left`` committed groups and return their work in order."""
        ready = self.committed[: max(len(self.committed) - left, 0)]
        self.committed = self.committed[len(ready) :]
        return [work for part in ready for work in part]

    def select(self, lanes: NDArray[np.int64]) -> Queue:
        """The part of the work that belongs to ``lanes``."""
        result = Queue()
        parts = []
        for part in self.all():
            chosen = [work.select(np.isin(work.lanes, lanes)) for work in part]
            parts.append([work for work in chosen if len(work.lanes)])
        *result.committed, result.open = parts
        return result

    @staticmethod
    def join(queues: list[Queue]) -> Queue:
        """Of lanes that meet: what each committed last is in the last group."""
        result = Queue()
        depth = max(len(queue.committed) for queue in queues)
        result.committed = [[] for _ in range(depth)]
        for queue in queues:
            result.open += queue.open
            for place, part in enumerate(queue.committed, depth - len(queue.committed)):
                result.committed[place] = result.committed[place] + part
        return result


class Group:
    """``lanes`` of the batch in rising order, at basic block ``block``, with a value for each live register."""

    def __init__(self, machine: Machine, lanes: NDArray[np.int64], registers: list[Any], block: int) -> None:
        self.machine, self.lanes, self.registers, self.block = machine, lanes, registers, block
        self.copies, self.products = Queue(), Queue()
        self.last: Any = None
        """The instruction that it came from."""
        self.released = False
        """Whether it has just passed a barrier."""
        self.full = len(lanes) == machine.lanes
        warps = lanes.reshape(-1, 32) if len(lanes) % 32 == 0 else None
        complete = warps is not None and (
            self.full or bool((warps[:, 0] % 32 == 0).all() and (np.diff(warps, axis=1) == 1).all())
        )
        self.warps_of_32 = warps if complete else None
        """The lanes [warps, 32], if every warp is there with all of its lanes."""
        self._specials: dict[str, Any] = {}
        self._warps: Any = None

    @classmethod
    def start(cls, machine: Machine, lanes: NDArray[np.int64]) -> Group:
        """At the first instruction; what is read before it is written is all ones."""
        program = machine.program
        registers: list[Any] = [None] * len(program.slots)
        for name, slot in program.slots.items():
            if name in program.flow.live_in[0]:
                registers[slot] = poison(program.homes[name])
        return cls(machine, lanes, registers, 0)

    def at(self, block: int) -> Group:
        self.block = block
        return self

    def spread(self, value: Any) -> NDArray[Any]:
        """A value as an array with an element for each lane."""
        if np.ndim(value):
            return value
        return np.full(len(self.lanes), value)

    def select(self, predicate: Any, address: Any) -> tuple[Any, NDArray[np.int64], NDArray[Any]]:
        """Positions of the lanes for which ``predicate`` holds (None for all), those lanes, and their addresses."""
        if predicate is None or (np.ndim(predicate) == 0 and predicate):
            return None, self.lanes, self.spread(address)
        chosen = np.flatnonzero(self.spread(predicate))
        if len(chosen) == len(self.lanes):
            return None, self.lanes, self.spread(address)
        return chosen, self.lanes[chosen], self.spread(address)[chosen]

    def stack(self, values: tuple[Any, ...], chosen: Any, dtype: Any) -> NDArray[Any]:
        """[values, chosen lanes]."""
        rows = [self.spread(value) for value in values]
        return np.array([row if chosen is None else row[chosen] for row in rows], dtype)

    def special(self, name: str) -> Any:
        """A special register, as %ctaid.x."""
        if name not in self._specials:
            self._specials[name] = self._special(name)
        return self._specials[name]

    def _special(self, name: str) -> Any:
        machine = self.machine
        threads, (x, y, _) = machine.threads, machine.grid
        axis = "xyz".find(name[-1])
        if name.startswith("%ntid"):
            return np.uint32(threads if axis == 0 else 1)
        if name.startswith("%nctaid"):
            return np.uint32(machine.grid[axis])
        if name.startswith("%tid"):
            return (self.lanes % threads).astype(np.uint32) if axis == 0 else np.uint32(0)
        if name in ("%laneid", "%warpid"):
            inside = self.lanes % threads
            return (inside % 32 if name == "%laneid" else inside // 32).astype(np.uint32)
        block = self.lanes // threads + machine.first_block
        return [block % x, block // x % y, block // (x * y)][axis].astype(np.uint32)

    def warps_of_blocks(self) -> Any:
        """[blocks of the batch]: warps of the group; a number if all have as many."""
        if self.full:
            return self.machine.warps_per_block
        if self._warps is None:
            warps = np.unique(self.lanes >> 5)
            self._warps = np.bincount(warps // self.machine.warps_per_block, minlength=len(self.machine.alive))
        return self._warps

    def part(self, chosen: NDArray[np.bool_], block: int) -> Group:
        """The lanes for which ``chosen`` holds, as a group of their own."""
        at = np.flatnonzero(chosen)
        registers = [value[at] if np.ndim(value) else value for value in self.registers]
        result = Group(self.machine, self.lanes[at], registers, block)
        result.last = self.last
        for name in ("copies", "products"):
            if any(getattr(self, name).all()):
                setattr(result, name, getattr(self, name).select(result.lanes))
            else:
                getattr(result, name).committed = [[] for _ in getattr(self, name).committed]
        return result

    def split(self, condition: Any) -> tuple[Group | None, Group | None]:
        """The lanes for which ``condition`` holds, and the others; None for nobody."""
        if np.ndim(condition) == 0:
            return (self, None) if condition else (None, self)
        if condition.all():
            return self, None
        if not condition.any():
            return None, self
        return self.part(condition, self.block), self.part(~condition, self.block)


def poison(dtype: str) -> Any:
    """All ones: NaN as a float."""
    if dtype == "B":
        return np.bool_(True)
    size = int(dtype[1:]) // 8
    return ALL_ONES[size].view(f"{'f' if dtype[0] == 'F' else 'u'}{size}")[()]


def merge(groups: list[Group], live: list[int]) -> Group:
    """Groups that meet at one basic block as one, with the registers that are ``live`` there."""
    lanes = np.concatenate([group.lanes for group in groups])
    order = np.argsort(lanes)
    registers: list[Any] = [None] * len(groups[0].registers)
    for slot in live:
        values = [group.registers[slot] for group in groups]
        if all(value is None for value in values):
            continue
        known = next(value for value in values if value is not None)
        values = [known.dtype.type(0) if value is None else value for value in values]
        if not any(map(np.ndim, values)) and all(value.tobytes() == values[0].tobytes() for value in values):
            registers[slot] = values[0]
        else:
            rows = [group.spread(value) for group, value in zip(groups, values, strict=True)]
            registers[slot] = np.concatenate(rows)[order]
    result = Group(groups[0].machine, lanes[order], registers, groups[0].block)
    result.last = groups[0].last
    for name in ("copies", "products"):
        setattr(result, name, Queue.join([getattr(group, name) for group in groups]))
    return result
