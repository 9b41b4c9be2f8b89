"""Environment variables of Numba and OpenMP that a run must not meet unsaid: they change its code, threads or results.

They are often set for another program and forgotten. fastsnn changes none of them.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from fastsnn import notices

_CODE = "the CPU kernels become other machine code than what is tested, and slower"
_ANOTHER = "the CPU kernels are compiled for another processor, which may end in an illegal instruction on this one"
_PRINTS = "Numba prints while it compiles, and takes several times as long"
_VARIES = "torch may compute on fewer threads than --threads says, and its results depend on how many there are"
_BINDS = "OpenMP binds this process to some of its cores, and --threads can't be more than these"

_NOTABLE: dict[str, tuple[str | None, str]] = {
    "NUMBA_OPT": ("3", _CODE),
    "NUMBA_BOUNDSCHECK": ("0", _CODE),
    "NUMBA_DEBUGINFO": ("0", _CODE),
    "NUMBA_LOOP_VECTORIZE": ("1", _CODE),
    "NUMBA_SLP_VECTORIZE": ("0", _CODE),
    "NUMBA_ENABLE_AVX": ("1", _CODE),
    "NUMBA_CPU_NAME": (None, _ANOTHER),
    "NUMBA_CPU_FEATURES": (None, _ANOTHER),
    "NUMBA_DEBUG": ("0", _PRINTS),
    "NUMBA_DEBUG_TYPEINFER": ("0", _PRINTS),
    "NUMBA_DUMP_IR": ("0", _PRINTS),
    "NUMBA_DUMP_LLVM": ("0", _PRINTS),
    "NUMBA_DUMP_OPTIMIZED": ("0", _PRINTS),
    "NUMBA_DUMP_ASSEMBLY": ("0", _PRINTS),
    "NUMBA_TRACE": ("0", _PRINTS),
    "NUMBA_NUM_THREADS": (None, "the CPU kernels use no more threads than that, whatever --threads says"),
    "OMP_THREAD_LIMIT": (None, _VARIES),
    "OMP_DYNAMIC": ("false", _VARIES),
    "OMP_PROC_BIND": ("false", _BINDS),
    "OMP_PLACES": (None, _BINDS),
    "GOMP_CPU_AFFINITY": (None, _BINDS),
}
"""Variable -> the value that changes nothing, if there is one, and what any other does."""

LAYERS = ("default", "omp", "tbb", "workqueue", "safe", "threadsafe", "forksafe")


def check(environment: Mapping[str, str] = os.environ) -> None:
    """Raise ValueError for a value that Numba itself fails on, in words that don't name it."""
    if (disabled := environment.get("NUMBA_DISABLE_JIT", "0")) not in ("", "0"):
        reason = "0 or unset, as fastsnn's CPU kernels exist compiled only"
        raise ValueError(f"the environment variable NUMBA_DISABLE_JIT is {disabled!r}; allowed: {reason}")
    threads = environment.get("NUMBA_NUM_THREADS")
    if threads is not None and not (threads.isascii() and threads.isdecimal() and int(threads) > 0):
        raise ValueError(f"the environment variable NUMBA_NUM_THREADS is {threads!r}; allowed: 1 or more, or unset")
    layer = environment.get("NUMBA_THREADING_LAYER")
    if layer is not None and layer not in LAYERS:
        allowed = ", ".join(LAYERS)
        raise ValueError(f"the environment variable NUMBA_THREADING_LAYER is {layer!r}; allowed: {allowed}, or unset")


def notable(environment: Mapping[str, str] = os.environ, folder: Path | None = None) -> list[str]:
    """A line for each setting of this process that a run should know of."""
    found = [
        f"{name}={environment[name]} is set: {effect}"
        for name, (harmless, effect) in _NOTABLE.items()
        if environment.get(name, "") and environment[name].lower() != harmless
    ]
    path = (folder or Path.cwd()) / ".numba_config.yaml"
    if path.exists():
        found.append(f"{path} is read by Numba: its settings may change the machine code of the CPU kernels")
    return found


def say() -> None:
    """Say them, as notices."""
    for text in notable():
        notices.say_once(text)
