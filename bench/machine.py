"""What a time was measured on: the device, its peak bandwidth and FLOP/s as measured here, versions and commit."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.works import synchronize
from fastsnn import versions
from fastsnn.training.machine import cores

ROOT = Path(__file__).parents[1]


def device_name(device: torch.device) -> str:
    """NVIDIA H200, or AMD EPYC, 2 cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{versions.cpu_name()}, {cores()} cores"


def slug(name: str) -> str:
    """A device's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe(device: torch.device, quick: bool) -> dict[str, Any]:
    """The machine as a results file records it; peaks are measured."""
    machine: dict[str, Any] = {
        "device": device_name(device),
        "kind": device.type,
        "cpu": versions.cpu_name(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "peak_bandwidth": peak_bandwidth(device, quick),
        "peak_flops": peak_flops(device, quick),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "capability": f"{properties.major}.{properties.minor}",
            "device_memory_bytes": properties.total_memory,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[:1],
            "cuda": torch.version.cuda,
        }
    return machine


def environment() -> dict[str, str]:
    """Versions of what runs, and the commit (with + where tracked files differ from it)."""
    commit = _output("git", "rev-parse", "--short=10", "HEAD") or os.environ.get("FASTSNN_COMMIT", "unknown")
    changed = "+" if _output("git", "status", "--porcelain", "--untracked-files=no") else ""
    return {"commit": commit + changed} | versions.versions()


def peak_bandwidth(device: torch.device, quick: bool = False) -> float:
    """Bytes per second that a copy reads and writes; far larger than any cache."""
    source = torch.ones((1 << 28 if device.type == "cuda" else 1 << 26) >> 2 * quick, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def peak_flops(device: torch.device, quick: bool = False) -> float:
    """fp32 operations per second of a square matrix product (TF32 off, torch's default).

    On a CPU by torch or by NumPy: their libraries differ, and which is faster depends on the CPU.
    """
    n = (8192 if device.type == "cuda" else 2048) >> quick
    a, b, out = (torch.rand(n, n, device=device) for _ in range(3))
    seconds = _best(lambda: torch.mm(a, b, out=out), device)
    if device.type == "cpu":
        arrays = a.numpy(), b.numpy()
        seconds = min(seconds, _best(lambda: np.matmul(*arrays, out=out.numpy()), device))
    return 2 * n**3 / seconds


def _best(function: Callable[[], Any], device: torch.device, rounds: int = 5) -> float:
    """Seconds of the fastest of ``rounds`` calls, after two of warm-up: a peak is what the machine can do."""
    seconds = []
    for _ in range(rounds + 2):
        synchronize(device)
        started = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[2:])


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
