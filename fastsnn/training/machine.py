"""The device and the CPU threads of a run, and torch's settings, which the caller gets back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch

from fastsnn import backends, devices, settings
from fastsnn.config import FitConfig
from fastsnn.errors import FastSNNError
from fastsnn.kernels import triton
from fastsnn.kernels.numba import before_compiling
from fastsnn.kernels.numba.openmp import rest
from fastsnn.monitor import Monitor
from fastsnn.training.process_group import ProcessGroup


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(config: FitConfig, monitor: Monitor, group: ProcessGroup) -> torch.device:
    """The device that ``config`` names, or the first GPU that works, else the CPU; joins the group of processes."""
    # A process of several looks at its own GPU alone: a look at another opens a context there.
    own = group.local_rank if group.size > 1 else 0
    backend = getattr(config, "backend", "auto")
    device = devices.find(config.device, backend, own)
    if group.size > 1 and device.type == "cuda":
        device = devices.find(f"cuda:{own}")
    if backend == "auto" and (reason := backends.slow_reason(device)):
        monitor.message(f"slow, in torch's own operators: {reason}")
    group.join(device)
    _check_amp(config, device)
    return device


def _check_amp(config: FitConfig, device: torch.device) -> None:
    if config.amp == "off":
        return
    if device.type != "cuda":
        raise ValueError(f"amp is {config.amp}; allowed: off on {device}, which gains nothing from it")
    if torch.cuda.get_device_capability(device) < (7, 0):
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"amp is {config.amp}; allowed: off on {name}, whose half precision is slower than fp32")


def use_threads(threads: int | None, backend: str, resumed: bool = False) -> int:
    """Compute on ``threads`` CPU threads (default all cores) and return how many that is."""
    available = cores()
    if threads is None or (resumed and backend == "numba" and threads > available):
        # Numba's results don't depend on the number of threads, so its runs go on anywhere.
        threads = available
    if threads > available:
        raise ValueError(f"threads is {threads}; allowed: 1 to {available}, the cores of this machine")
    if threads > 1:
        rest()  # torch's threads that wait in a loop would burn what other programs need
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    return threads


def be_deterministic(device: torch.device) -> None:
    """Make torch refuse what might vary from run to run on CUDA."""
    if device.type == "cuda":
        # cuBLAS reads it when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


@contextmanager
def settings_kept() -> Iterator[None]:
    """Give the caller back the settings that a run changes for the whole process."""
    threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        numba.set_num_threads(numba_threads)
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic)  # imports torch's compiler, even to change nothing


_OUT_OF_MEMORY = (
    "out of memory", "allocate memory", "alloc_cpu", "bad_alloc", "ALLOC_FAILED", "error return without exception set"
)  # fmt: skip
"""Parts of messages. Torch's allocator, C++ and the CUDA libraries raise a plain RuntimeError, whose text may itself
be cut short; a compiled function that can't allocate may return without an exception, Python's SystemError.
"""


@contextmanager
def memory_explained(device: torch.device, advice: str) -> Iterator[None]:
    """Turn an allocation that fails into one line with ``advice``."""
    try:
        yield
    except (MemoryError, RuntimeError, SystemError) as error:
        if not isinstance(error, MemoryError) and not any(part in str(error) for part in _OUT_OF_MEMORY):
            raise
        raise FastSNNError(f"{device} ran out of memory: {advice}") from error


@contextmanager
def compilation_announced(monitor: Monitor) -> Iterator[None]:
    """Tell the monitor which kernels have to be compiled, and of settings that change what they do."""
    on_cpu = "compiling the CPU kernels: once on this machine, in less than a minute"
    on_gpu = "compiling GPU kernel {}, {}: some seconds, once on this machine"
    with (
        before_compiling(lambda: monitor.message(on_cpu)),
        triton.before_compiling(lambda name, count: monitor.message(on_gpu.format(count, name))),
    ):
        settings.say()
        yield
