"""Long T in little memory: the operations go through time in segments, and may compute again what backward needs.

A segment is a stretch of time steps. Its currents and their gradient exist while it is worked on. The states at which
it starts are kept, so backward can go from the last segment to the first. What each step keeps for backward is either
kept too or, with *recompute*, made again from the input and those states, a segment at a time. Segments depend on the
sizes alone and sums over them have one order, so both ways give the same bits.

Tests: ``tests/test_recompute.py``. Benchmark: ``bench/memory.py``.
"""

import ctypes
import math
import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from fastsnn.kernels.compiling import called_while_traced

Recompute = Literal["auto", "on", "off"]
CHOICES: tuple[str, ...] = get_args(Recompute)

NOTHING, STATES, STEPS = "nothing", "states", "steps"
"""What an operator keeps for backward: nothing, the states where segments start, or those and what each step keeps."""

SEGMENT_BYTES = {"numba": 1 << 25, "triton": 1 << 28}
"""Bytes of a segment's fp32 currents, at most, but for 32 steps. On the CPU memory that is used again at once costs
less than new pages; on a GPU a segment has to fill the card and to be worth its launches (derived, not measured).
"""
SHARE = 1 / 32
"""Share of a device's memory from which ``auto`` recomputes a layer. A network of ten such layers keeps ten of these
tensors at once, and as many outputs and gradients of outputs may be there: together they would take all of it.
"""


def kernels_of(backend: str, operation: str) -> Any:
    """The module of an operation's kernels, with a ``segment_forward`` and a ``segment_backward``."""
    return import_module(f"fastsnn.kernels.{backend}.{operation}")


def segment_length(T: int, neurons: int, backend: str) -> int:
    """Steps of each segment but the last: a multiple of 32, so that packed words are not cut; segments are alike."""
    # sym_max: torch.compile traces this with sizes that it doesn't know.
    most = torch.sym_max(SEGMENT_BYTES[backend] // (4 * torch.sym_max(neurons, 1)) // 32, 1)
    words = torch.sym_max(-(-T // 32), 1)
    return cast(int, 32 * -(-words // -(-words // most)))


def segments(T: int, neurons: int, backend: str) -> list[slice]:
    """The segments of T steps of so many neurons."""
    length = segment_length(T, neurons, backend)
    return [slice(t, min(t + length, T)) for t in range(0, max(T, 1), length)]


def kept_shapes(
    keep: str, backend: str, T: int, shape: Sequence[int], rows: int, count: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of what an operator keeps of neurons of ``shape``: ``rows`` numbers of each at the start of every segment
    but the first, [segments - 1, rows, ...], and ``count`` of each step, [count, T, ...], which :func:`kept_of` cuts.
    """
    starts = -(-T // segment_length(T, math.prod(shape), backend)) - 1 if keep != NOTHING else 0
    return (starts, rows, *shape), (count, T, *shape) if keep == STEPS else (0,)


def kept_of(kept: Tensor, part: slice) -> Tensor | None:
    """The memory [count, part, ...] of what a segment's steps keep; None if steps keep nothing."""
    if kept.dim() == 1:
        return None
    count, _, *shape = kept.shape
    step = count * math.prod(shape)
    return kept.view(-1)[part.start * step : part.stop * step].view(count, part.stop - part.start, *shape)


def cut(x: Tensor, part: slice) -> Tensor:
    """A segment of values [T, ...], or of int32 words [ceil(T / 32), ...]."""
    return x[part.start // 32 : -(-part.stop // 32)] if x.dtype == torch.int32 else x[part]


def assign(out: Tensor, value: Tensor | float) -> None:
    """``out[...] = value``; on the CPU by NumPy, as torch's threads then spin on the cores that the kernels need."""
    if out.device.type != "cpu":
        out.copy_(value) if isinstance(value, Tensor) else out.fill_(value)
        return
    out.numpy()[...] = value.detach().float().numpy() if isinstance(value, Tensor) else value


def added(totals: Sequence[Tensor | None] | None, parts: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The sums of the gradients of segments, in fp32; None stays None."""
    if totals is None:
        return parts
    pairs = zip(totals, parts, strict=True)
    return [None if total is None or part is None else total.float().add_(part) for total, part in pairs]


class Gradient:
    """A gradient [T, ...] that comes segment by segment; of one segment it is that one, without a copy."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self._shape, self._dtype = tuple(shape), dtype
        self._whole: Tensor | None = None

    def put(self, part: slice, value: Tensor | None) -> None:
        if value is None:
            return
        if len(value) == self._shape[0]:
            self._whole = value
            return
        if self._whole is None:
            self._whole = value.new_empty(self._shape)
        self._whole[part] = value

    def whole(self, like: Tensor) -> Tensor:
        """The gradient; empty if it is not needed."""
        return like.new_empty(0, dtype=self._dtype) if self._whole is None else self._whole


def what_to_keep(needed: bool, recompute: str, kept_bytes: int, device: torch.device) -> str:
    """What an operator keeps if backward is ``needed``; ``kept_bytes`` is what recomputing saves."""
    if not needed:
        return NOTHING
    if recompute == "auto":
        return STATES if kept_bytes > SHARE * memory_of(device) else STEPS
    return STATES if recompute == "on" else STEPS


@called_while_traced
def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has; of the CPU, those that this process's container may use."""
    return _memory_of(device)


@lru_cache
def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    physical = _physical_memory()
    return min(physical, int(allowed)) if allowed.isdigit() else physical


def _physical_memory() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    status = (ctypes.c_uint64 * 8)(64)  # Windows' MEMORYSTATUSEX, whose second field is the physical memory
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return status[1]
