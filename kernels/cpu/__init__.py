"""The kernels for the CPU, in Numba: ``philox`` (spikes), ``lif`` (scans and linear+LIF), ``rate_step`` (a training step).

Every function is compiled on its first call, for this machine's instruction set, and the machine code is kept on disk
beside the source or in the user's cache folder; where neither can be written it is compiled once per process.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

SERIAL = threading.RLock()
"""Held during a parallel call: Numba's own pool of threads (workqueue) ends the process when two threads use it at once."""

if numba.config.THREADING_LAYER == "default":
    # OpenMP's threads spin at barriers: on a busy machine a step takes ten times as long; and they do not survive a fork.
    numba.config.THREADING_LAYER = "workqueue"

# Numba judges a cached function by its own file alone; with the time of the newest file, a change in one reaches its callers.
_CHANGED = max((path.stat().st_mtime for path in Path(__file__).parent.glob("*.py")), default=0.0)


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """``numba.njit`` without the GIL and with the machine code cached on disk wherever that is possible."""
    if function is None:
        return lambda f: jit(f, **options)
    options = {"nogil": True, "error_model": "numpy"} | options
    try:
        kernel = numba.njit(cache=True, **options)(function)
        cached = kernel._cache._cache_file
        cached._source_stamp = (*cached._source_stamp, _CHANGED)
        return kernel
    except RuntimeError:  # no folder for the cache can be written
        return numba.njit(**options)(function)
