"""Keep torch's idle threads off the cores that the kernels' own threads need.

After each operator that it shared out, torch's OpenMP threads wait for the next one in a loop, for milliseconds, on a
core each. A kernel that follows finds its cores taken: a small layer takes a fifth to a third longer.

GNU's OpenMP, which torch's wheels for Linux bring, waits in that loop (300,000 rounds) only as long as its threads are
no more than the CPUs; if they are more, it soon sleeps (after 100 rounds). Its manual says so of GOMP_SPINCOUNT.
:func:`rest` therefore starts a team of threads that do nothing but sleep. An operator of torch then takes some 10
microseconds longer, to wake its threads. Whoever sets OMP_WAIT_POLICY or GOMP_SPINCOUNT has their way.
"""

import ctypes
import functools
import os
import threading
from pathlib import Path


@functools.cache
def rest() -> bool:
    """Let OpenMP's threads sleep while they have nothing to do, from now on; returns whether that is so."""
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return False
    libraries = _loaded()
    if libraries and not _can_start((os.cpu_count() or 1) + 2):
        return False
    for library in libraries:
        openmp, started = ctypes.CDLL(library), threading.Event()
        threading.Thread(target=_hold_team, args=(openmp, started), name="fastsnn-openmp", daemon=True).start()
        started.wait()
    return bool(libraries)


def _loaded() -> list[str]:
    """The GNU OpenMP libraries of this process: torch's and maybe Numba's; none on other systems."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/libgomp" in line}
    return sorted(path for path in paths if Path(path).is_file())


def _can_start(threads: int) -> bool:
    """Whether so many threads can be had: without them OpenMP ends the process."""
    gate, started = threading.Event(), []
    try:
        for _ in range(threads):
            started.append(threading.Thread(target=gate.wait))
            started[-1].start()
        return True
    except RuntimeError:
        return False
    finally:
        gate.set()
        for thread in started:
            if thread.ident is not None:
                thread.join()


def _hold_team(openmp: ctypes.CDLL, started: threading.Event) -> None:
    """Start more threads than there are CPUs, each of which calls a function without effect, and keep them."""
    threads = max(os.cpu_count() or 1, openmp.omp_get_num_procs()) + 1
    openmp.GOMP_parallel(openmp.omp_get_thread_num, None, threads, 0)
    started.set()
    threading.Event().wait()  # a team ends with the thread that started it
