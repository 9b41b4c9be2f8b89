"""What the numbers of a run depend on besides its options: versions of packages, and the processor."""

import platform
from importlib import metadata
from pathlib import Path

import torch


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {
        "fastsnn": metadata.version("fastsnn"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    for package in ("numpy", "numba", "triton", "spikingjelly", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
