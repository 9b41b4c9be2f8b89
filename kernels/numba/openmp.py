"""Keep torch's idle threads off the cores that our own threads need.

After each operator that it shared out, torch's OpenMP threads wait for the next one in a loop, for milliseconds, on a
core each. A kernel of ours that follows finds its cores taken: of a small layer's time that is a third.

GNU's OpenMP, which torch's wheels for Linux bring, waits in that loop (300,000 rounds) only as long as its threads are
no more than the CPUs; if they are more, it soon sleeps (after 100 rounds). It says so of GOMP_SPINCOUNT in its manual.
:func:`rest` therefore starts a team of threads that do nothing but sleep. An operator of torch then takes about 10
microseconds longer to wake its threads. Whoever sets OMP_WAIT_POLICY or GOMP_SPINCOUNT has their way.
"""

import ctypes
import functools
import os
import threading
from pathlib import Path

import torch


@functools.cache
def rest() -> bool:
    """Let torch's threads sleep while they have nothing to do, from now on; returns whether that is so."""
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return False
    library = next(iter(sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))), None)
    if library is None:  # another OpenMP, as on macOS
        return False
    openmp = ctypes.CDLL(str(library))  # the one that torch has loaded
    started = threading.Event()

    def hold() -> None:
        # More threads than CPUs, each of which calls a function without effect.
        threads = max(os.cpu_count() or 1, openmp.omp_get_num_procs()) + 1
        openmp.GOMP_parallel(openmp.omp_get_thread_num, None, threads, 0)
        started.set()
        threading.Event().wait()  # a team ends with the thread that started it

    threading.Thread(target=hold, name="fastsnn-openmp", daemon=True).start()
    started.wait()
    return True
