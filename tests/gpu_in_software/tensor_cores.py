"""mma.sync and wgmma. Layouts of the fragments and descriptors: PTX ISA, "Matrix Fragments for mma.m16n8k16" and
"Asynchronous Warpgroup Level Matrix Shared Memory Layout".

Products of 16-bit factors are exact in fp64 and are summed there, then rounded (``exact``). Real tensor cores keep few
bits below the largest term and cut off: ``truncating`` is a model of that, for a bound that must hold for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu_in_software.ptx import Instruction
from tests.gpu_in_software.races import READ
from tests.gpu_in_software.values import bf16_to_f32
from tests.gpu_in_software.warps import LANE

if TYPE_CHECKING:
    from tests.gpu_in_software.groups import Group
    from tests.gpu_in_software.machine import Machine

ROW, PAIR = LANE >> 2, 2 * (LANE & 3)
A_ROW, A_COLUMN = (ROW, ROW + 8, ROW, ROW + 8), (PAIR, PAIR, PAIR + 8, PAIR + 8)
"""Of the first of the two values in each register of A [16, 16]."""
C_ROW, C_COLUMN = (ROW, ROW, ROW + 8, ROW + 8), (PAIR, PAIR + 1, PAIR, PAIR + 1)
"""Of each register of C and D [16, 8]."""
SWIZZLE = {0: 0, 1: 128, 2: 64, 3: 32}
"""Mode of a descriptor -> bytes of a row of its pattern."""
XOR = {128: 7, 64: 3, 32: 1}


@dataclass
class Pending:
    """A wgmma under way: what its registers will hold."""

    lanes: NDArray[np.int64]
    slots: tuple[int | None, ...]
    values: NDArray[np.float32]
    """[registers, lanes]."""
    touched: list[NDArray[np.int64]]
    """Addresses in shared memory, a row for each warp group, that are read until it has ended."""
    instruction: Instruction

    def select(self, chosen: NDArray[np.bool_]) -> Pending:
        groups = chosen.reshape(-1, 128)[:, 0]
        touched = [addresses[groups] for addresses in self.touched]
        return Pending(self.lanes[chosen], self.slots, self.values[:, chosen], touched, self.instruction)


def exact(a: Any, b: Any, c: Any) -> Any:
    """[..., M, N] fp32 of fp64 factors [..., M, K] and [..., K, N]."""
    return (np.matmul(a, b) + c).astype(np.float32)


def truncating(a: Any, b: Any, c: Any) -> Any:
    """Eight products and the accumulator at a time, cut to 25 bits below the largest term, added, cut to fp32."""
    total = c.astype(np.float64)
    for k in range(0, a.shape[-1], 8):
        terms = a[..., :, k : k + 8, None] * b[..., None, k : k + 8, :]
        terms = np.concatenate([terms, total[..., :, None, :]], -2)
        exponent = np.where(terms == 0, -400, np.frexp(terms)[1]).max(-2, keepdims=True)
        unit = np.ldexp(1.0, exponent - 25)
        total = (np.trunc(terms / unit) * unit).sum(-2)
        mantissa, exponent = np.frexp(total)
        total = np.ldexp(np.trunc(mantissa * 2.0**24), exponent - 24)
    return total.astype(np.float32)


SUMS = {"exact": exact, "truncating": truncating}


def _numbers(kind: str, halves: Any) -> Any:
    return bf16_to_f32(halves) if kind == "bf16" else halves.view(np.float16)


class TensorCores:
    """``sums``: exact or truncating."""

    def __init__(self, machine: Machine, sums: str) -> None:
        self.machine, self.sum = machine, SUMS[sums]

    def _fragment(self, kind: str, registers: Any, rows: int) -> Any:
        """A [warps, 16, 16] of four registers, or B transposed [warps, 8, 16] of two."""
        count = len(registers[0]) // 32
        matrix = np.empty((count, rows, 16))
        for index, register in enumerate(registers):
            words = register.reshape(-1, 32)
            row, column = (A_ROW[index], A_COLUMN[index]) if rows == 16 else (ROW, PAIR + 8 * index)
            for half in range(2):
                bits = (words >> np.uint32(16 * half)).astype(np.uint16)
                matrix[:, row, column + half] = _numbers(kind, bits)
        return matrix

    def mma(self, group: Group, kind: str, a: Any, b: Any, c: Any, instruction: Instruction) -> Any:
        self.machine.warps.whole(group, instruction)
        left = self._fragment(kind, [group.spread(value) for value in a], 16)
        right = self._fragment(kind, [group.spread(value) for value in b], 8)
        start = np.empty((len(left), 16, 8))
        for index, value in enumerate(c):
            start[:, C_ROW[index], C_COLUMN[index]] = group.spread(value).reshape(-1, 32)
        result = self.sum(left, right.swapaxes(1, 2), start)
        return [np.ascontiguousarray(result[:, C_ROW[index], C_COLUMN[index]]).ravel() for index in range(4)]

    def wgmma(
        self, group: Group, kind: str, slots: tuple[int | None, ...], c: Any, a: Any, b: Any, scale: Any,
        transposed: list[int], instruction: Instruction,
    ) -> Any:  # fmt: skip
        """D = A B (+ D if ``scale``); returns NaN for D, whose values come with `wait`."""
        lanes = self._groups(group, instruction)
        columns = 2 * len(slots)
        at = self._addresses(group, b, columns, bool(transposed[1]), lanes, instruction)
        touched = [at]
        words = self.machine.shared.words[2]
        right = _numbers(kind, words[at >> 1]).astype(np.float64)
        if isinstance(a, tuple):
            left = self._fragment(kind, [group.spread(value) for value in a], 16).reshape(-1, 64, 16)
        else:
            rows = self._addresses(group, a, 64, bool(transposed[0]), lanes, instruction)
            touched.append(rows)
            left = _numbers(kind, words[rows >> 1]).astype(np.float64)
        for addresses in touched:
            self._read(addresses, lanes, instruction)
        before = self._accumulator(group, slots, c)
        scale = group.spread(scale).reshape(-1, 128)
        if (scale != scale[:, :1]).any():
            raise self.machine.fatal("scale-d differs within a warp group", instruction, "")
        start = np.empty((len(lanes), 4, 16, columns))
        for index, value in enumerate(before):
            place = C_ROW[index % 4], C_COLUMN[index % 4] + 8 * (index // 4)
            start[:, :, place[0], place[1]] = value.reshape(-1, 4, 32)
        start = np.where(scale[:, :1, None], start.reshape(-1, 64, columns), 0.0)
        result = self.sum(left, right.swapaxes(1, 2), start).reshape(-1, 4, 16, columns)
        values = np.empty((len(slots), lanes.size), np.float32)
        for index in range(len(slots)):
            place = C_ROW[index % 4], C_COLUMN[index % 4] + 8 * (index // 4)
            values[index] = result[:, :, place[0], place[1]].ravel()
        group.products.open.append(Pending(lanes.ravel(), slots, values, touched, instruction))
        return (np.float32("nan"),) * len(slots)

    def _accumulator(self, group: Group, slots: tuple[int | None, ...], c: Any) -> Any:
        """The registers of D, or what a product still under way will put there."""
        for pending in reversed([each for part in group.products.all() for each in part]):
            if pending.slots == slots and len(pending.lanes) == len(group.lanes):
                return pending.values
        return [group.spread(value) for value in c]

    def _groups(self, group: Group, instruction: Instruction) -> Any:
        """The lanes [warp groups, 128]."""
        lanes = self.machine.warps.whole(group, instruction).ravel()
        if (
            len(lanes) % 128
            or (lanes.reshape(-1, 128)[:, 0] % 128).any()
            or (np.diff(lanes.reshape(-1, 128)) != 1).any()
        ):
            raise self.machine.fatal("warps of a warp group are missing", instruction, f"{len(lanes)} lanes execute it")
        return lanes.reshape(-1, 128)

    def _addresses(
        self, group: Group, descriptor: Any, rows: int, transposed: bool, lanes: Any, instruction: Instruction
    ) -> Any:
        """Byte addresses [warp groups, rows, 16] of a matrix whose rows are M or N, and K is 16."""
        words = group.spread(descriptor).reshape(-1, 128)
        if (words != words[:, :1]).any():
            raise self.machine.fatal("descriptors differ within a warp group", instruction, "")
        words = words[:, 0]
        start, leading, stride = (
            ((words >> np.uint64(s)) & np.uint64(0x3FFF)).astype(np.int64) << 4 for s in (0, 16, 32)
        )
        mode, base = (words >> np.uint64(62)).astype(int), (words >> np.uint64(49)) & np.uint64(7)
        if base.any() or (mode != mode[0]).any():
            raise self.machine.fatal("unknown descriptor", instruction, f"{int(words[0]):#x}")
        pattern = SWIZZLE[int(mode[0])]
        leading, stride = leading[:, None, None], stride[:, None, None]
        row, k = np.arange(rows)[:, None], np.arange(16)[None, :]
        if transposed:
            width = pattern // 2 or 8  # rows whose values of one k lie side by side
            steps = (stride, leading) if not pattern else (leading, stride)
            at = row % width * 2 + row // width * steps[0] + k % 8 * (pattern or 16) + k // 8 * steps[1]
        elif pattern:
            at = row % 8 * pattern + row // 8 * stride + k * 2
        else:
            at = row % 8 * 16 + row // 8 * stride + k % 8 * 2 + k // 8 * leading
        at = at + start[:, None, None]
        if pattern:
            at = at ^ ((at >> 7 & XOR[pattern]) << 4)
        shared = self.machine.shared
        if int(at.min()) < 0 or int(at.max()) + 2 > shared.size:
            raise self.machine.fatal("shared access out of bounds", instruction, f"up to byte {int(at.max()) + 1}")
        return at + (lanes[:, 0] // self.machine.threads)[:, None, None] * shared.stride

    def _read(self, addresses: Any, lanes: Any, instruction: Instruction, late: bool = False) -> None:
        """Check and note what a warp group's product reads, under its first warp."""
        shared = self.machine.shared
        if not shared.tracker:
            return
        units = (addresses >> shared.shift).reshape(len(addresses), -1)
        first = np.repeat(lanes.reshape(-1, 128)[:, 0], units.shape[1])
        units = units.ravel()
        if not late:
            checks = {
                "read of poison": ~shared.defined[units],
                "read of a copy under way": shared.in_flight[units],
                "read without a proxy fence after the store": shared.unfenced[units] >= 0,
            }
            for name, bad in checks.items():
                if bad.any():
                    detail = f"{int(bad.sum())} places, the first at {shared.describe(int(units[bad][0]))}"
                    self.machine.fault(name, instruction, detail)
        shared.tracker.add(READ, units, self.machine.warp_of(first), instruction)

    def commit(self, group: Group) -> None:
        group.products.commit()

    def wait(self, group: Group, left: int) -> None:
        """Fill the registers of all but the last ``left`` committed groups of products."""
        for pending in group.products.take(left):
            self._read_late(pending)
            at = None if len(pending.lanes) == len(group.lanes) else np.searchsorted(group.lanes, pending.lanes)
            for slot, values in zip(pending.slots, pending.values, strict=True):
                if slot is None:
                    continue
                values = values.view(self.machine.program.dtypes[slot])
                if at is None:
                    group.registers[slot] = values
                else:
                    whole = group.spread(group.registers[slot]).copy()
                    whole[at] = values
                    group.registers[slot] = whole

    def _read_late(self, pending: Pending) -> None:
        for addresses in pending.touched:
            self._read(addresses, pending.lanes, pending.instruction, late=True)
