"""What a time was measured on: the device, versions and commit."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

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


def describe(device: torch.device) -> dict[str, Any]:
    """The machine as a results file records it."""
    machine: dict[str, Any] = {
        "device": device_name(device),
        "kind": device.type,
        "cpu": versions.cpu_name(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
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
