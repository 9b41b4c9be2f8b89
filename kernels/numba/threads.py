"""Kernels on several threads: each worker makes one call without the GIL, and workers can wait for one another in it.

Numba's own parallel loops are not used: they compile everything inside five times over, their threads either spin for
long (OpenMP) or can't serve two callers (workqueue), and they can't meet in the middle of a loop over training steps.
"""

import ctypes
import logging
import os
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from queue import Empty, SimpleQueue
from statistics import median
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsnn.kernels.numba import jit

WORTHWHILE = 1 << 16
"""Elements that keep a thread busy for longer than it takes to start one."""
PATIENCE = 2000
"""Looks at the other workers before giving way to another program."""
FAILED = -(1 << 62)
"""Counter value after a failure: it stays negative however many workers arrive later."""
GRACE = 10.0
"""Seconds in which a thread that was started must run."""

REMEMBERED = 3
"""Calls of each kind whose times are compared."""
PROBE_EVERY = 64
"""Calls between two looks at the number of workers that was slower."""

logger = logging.getLogger("fastsnn.kernels")

_yield = ctypes.windll.kernel32.SwitchToThread if os.name == "nt" else ctypes.CDLL(None).sched_yield
# Starting Numba's threads sets OpenMP's number of threads, which is torch's as well: torch keeps the one that it has.
_torch_threads = torch.get_num_threads()
numba.get_num_threads()
torch.set_num_threads(_torch_threads)

binding.add_symbol("fastsnn_yield", ctypes.cast(_yield, ctypes.c_void_p).value)


def workers_for(elements: int) -> int:
    """How many of ``numba.get_num_threads()`` threads are worth their while."""
    return max(1, min(numba.get_num_threads(), elements // WORTHWHILE))


def spread(kernel: Callable[..., None], workers: int, *arguments: Any, arrived: np.ndarray | None = None) -> None:
    """Call ``kernel(worker, present, *arguments)`` for every worker at once; raises what one of them raised.

    ``present`` is ``workers``, or fewer if not all of their threads can start; this thread is worker 0. ``arrived`` is
    what the workers share to :func:`meet`: none of them waits for one that failed, be it to compile. When this returns
    or raises, interrupted or not, all of them have ended.
    """
    crew, failures = _Crew(workers - 1), []

    def fail(error: BaseException) -> None:
        failures.append(error)
        if arrived is not None:
            arrived[0] = FAILED

    def work(worker: int, present: int) -> None:
        try:
            kernel(worker, present, *arguments)
        except BaseException as error:
            fail(error)

    try:
        # Nobody begins before it is known how many there are.
        present = 1 + crew.gather()
        crew.order(work, present)
        work(0, present)
    except BaseException as error:  # an interruption
        fail(error)
    while True:
        try:
            crew.end()
            break
        except BaseException as error:
            fail(error)
    if failures:
        raise failures[0]


class MeasuredWorkers:
    """Whether all workers or one alone are faster, for a kernel whose workers meet often.

    On a busy machine a worker that lost its core delays every meeting, and several are slower than one. So both are
    timed in the first calls, and the slower one again from time to time.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._seconds: dict[int, deque[float]] = {}

    def choose(self, most: int) -> int:
        """How many workers the next call gets: ``most`` or 1."""
        self._calls += 1
        known = [self._seconds.setdefault(workers, deque(maxlen=REMEMBERED)) for workers in (most, 1)]
        if any(len(seconds) < REMEMBERED for seconds in known):
            return most if len(known[0]) <= len(known[1]) else 1
        fast, slow = (most, 1) if median(known[0]) <= median(known[1]) else (1, most)
        return slow if self._calls % PROBE_EVERY == 0 else fast

    def note(self, workers: int, seconds: float) -> None:
        """Remember what a sample took with so many workers."""
        self._seconds[workers].append(seconds)


class _Crew:
    """Threads that start, wait for an order, obey it and end.

    ThreadPoolExecutor's take longer to start, and if one can't start, the others wait for work that never comes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._here: list[None] = []
        self._done: list[None] = []
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._wake: SimpleQueue[None] = SimpleQueue()

    def _follow(self) -> None:
        self._here.append(None)
        self._wake.put(None)
        order = self._orders.get()
        try:
            if order is not None:
                order()
        finally:
            self._done.append(None)
            self._wake.put(None)

    def gather(self) -> int:
        """Start the threads; returns how many there are."""
        started = 0
        try:
            for _ in range(self._size):
                start_new_thread(self._follow, ())
                started += 1
        except (RuntimeError, MemoryError) as error:
            _tell_of_missing_threads(self._size + 1, started + 1, str(error) or "out of memory")
        deadline = time.monotonic() + GRACE
        while len(self._here) < started and time.monotonic() < deadline:
            self._look()
        return len(self._here)

    def order(self, work: Callable[[int, int], None], present: int) -> None:
        """Workers 1 .. present - 1 begin."""
        for worker in range(1, present):
            self._orders.put(partial(work, worker, present))

    def end(self) -> None:
        """Wait until all have ended; whoever has no order does so at once."""
        for _ in range(self._size):
            self._orders.put(None)
        while len(self._done) < len(self._here):
            self._look()

    def _look(self) -> None:
        # An interruption can lose what was taken from the queue, so nothing is counted by it.
        with suppress(Empty):
            self._wake.get(timeout=0.1)


@lru_cache
def _tell_of_missing_threads(wanted: int, found: int, reason: str) -> None:
    logger.warning(
        "%d of %d CPU threads could be started (%s): computing on %d; is there a limit, as of `ulimit -u`?",
        found, wanted, reason, found,
    )  # fmt: skip


def meeting() -> np.ndarray:
    """What the workers of one call share to ``meet``."""
    return np.zeros(1, np.int64)


@intrinsic
def _arrive(typingctx, arrived):
    """Count one more worker, after everything that it has written."""

    def codegen(context, builder, signature, args):
        counter = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "seq_cst")
        return context.get_dummy_value()

    return types.void(arrived), codegen


@intrinsic
def _arrivals(typingctx, arrived):
    """The count, read from memory each time and before everything that follows."""

    def codegen(context, builder, signature, args):
        counter = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(counter, "seq_cst", 8)

    return types.int64(arrived), codegen


@intrinsic
def _give_way(typingctx):
    """Let another thread run."""

    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), "fastsnn_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


@jit
def meet(arrived, workers, time):
    """Wait until all workers are here for the ``time``-th time, 1 the first; False if one failed and never comes."""
    _arrive(arrived)
    looks = 0
    while True:
        here = _arrivals(arrived)
        if here < 0 or here >= time * workers:
            return here >= 0
        looks += 1
        if looks > PATIENCE:
            _give_way()
