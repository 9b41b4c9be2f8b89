"""Kernels on several threads: each worker makes one call without the GIL, and workers can wait for one another in it.

Numba's own parallel loops are not used: they compile everything inside five times over, their threads either spin for
long (OpenMP) or can't serve two callers (workqueue), and they can't meet in the middle of a loop over training steps.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsnn.kernels.cpu import jit

WORTHWHILE = 1 << 16
"""Elements that keep a thread busy for longer than it takes to start one."""
PATIENCE = 2000
"""Looks at the other workers before giving way to another program."""

_yield = ctypes.windll.kernel32.SwitchToThread if os.name == "nt" else ctypes.CDLL(None).sched_yield
binding.add_symbol("fastsnn_yield", ctypes.cast(_yield, ctypes.c_void_p).value)


def workers_for(elements: int) -> int:
    """How many of ``numba.get_num_threads()`` threads are worth their while."""
    return max(1, min(numba.get_num_threads(), elements // WORTHWHILE))


def spread(kernel: Callable[..., None], workers: int, *arguments: Any) -> None:
    """Call ``kernel(worker, workers, *arguments)`` for every worker at once."""
    threads = [threading.Thread(target=kernel, args=(i, workers, *arguments)) for i in range(1, workers)]
    for thread in threads:
        thread.start()
    kernel(0, workers, *arguments)
    for thread in threads:
        thread.join()


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
    """Wait until all workers are here for the ``time``-th time, 1 the first."""
    _arrive(arrived)
    looks = 0
    while _arrivals(arrived) < time * workers:
        looks += 1
        if looks > PATIENCE:
            _give_way()
