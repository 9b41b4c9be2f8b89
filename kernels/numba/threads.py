"""Kernels on several threads: each worker makes one call without the GIL, and workers can wait for one another in it.

Numba's own parallel loops are not used: they compile everything inside five times over, their threads either spin for
long (OpenMP) or can't serve two callers (workqueue), and they can't meet in the middle of a loop over training steps.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
"""Arrivals where a worker failed: fewer than none, whoever arrives after that."""

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
    """Call ``kernel(worker, workers, *arguments)`` for every worker at once; raises what one of them raised.

    ``arrived`` is what the workers share to :func:`meet`: none of them waits for one that failed, be it to compile.
    """

    def work(worker: int) -> None:
        try:
            kernel(worker, workers, *arguments)
        except BaseException:
            if arrived is not None:
                arrived[0] = FAILED
            raise

    with ThreadPoolExecutor(max(1, workers - 1)) as pool:
        others = [pool.submit(work, worker) for worker in range(1, workers)]
        work(0)
    for other in others:
        other.result()


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
    """Wait until all workers are here for the ``time``-th time, 1 the first; False where one failed and never comes."""
    _arrive(arrived)
    looks = 0
    while True:
        here = _arrivals(arrived)
        if here < 0 or here >= time * workers:
            return here >= 0
        looks += 1
        if looks > PATIENCE:
            _give_way()
