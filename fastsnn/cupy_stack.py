"""What the cupy backend stands on: versions, the GPU, CUDA's compiler and headers; and what is wrong with them.

Facts are read by :func:`find_cupy_stack` and judged by :func:`refusal`; neither imports SpikingJelly or CuPy.
"""

import importlib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SPIKINGJELLY_PIP = 'pip install "spikingjelly>=0.0.0.0.14,<2"'
CUPY_PIP = {
    12: 'pip install "cupy-cuda12x>=14" nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12',
    13: 'pip install "cupy-cuda13x>=14" nvidia-cuda-nvrtc nvidia-cuda-runtime',
}
"""CUDA's major version -> what installs CuPy, the compiler and the headers for it."""
CUPY_PACKAGES = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")
CUDA13_CAPABILITY = (7, 5)
"""CUDA 13 compiles for no older GPU than Turing."""


@dataclass(frozen=True)
class CupyStack:
    """What the backend stands on, as found on a machine."""

    packages: Mapping[str, str]
    """Installed distribution -> version."""
    torch_cuda: str | None
    """CUDA that torch was built for, as in "12.6"; None for a CPU build."""
    capability: tuple[int, int] | None
    """Compute capability of the GPU; None without one that torch can use."""
    nvrtc: bool
    """Whether CUDA's run-time compiler is found where CuPy looks for it."""
    headers: bool
    """Whether cuda_fp16.h, which each of SpikingJelly's kernels includes, is found there."""


def refusal(stack: CupyStack) -> str | None:
    """Why the backend can't run on ``stack``, in one line that ends with what to run; None where nothing forbids it."""
    return spikingjelly_refusal(stack) or _gpu_refusal(stack) or cupy_refusal(stack) or compiler_refusal(stack)


def spikingjelly_refusal(stack: CupyStack) -> str | None:
    """Like :func:`refusal`, of SpikingJelly alone."""
    version = stack.packages.get("spikingjelly")
    if version is None:
        return f"SpikingJelly is not installed; run: {SPIKINGJELLY_PIP}"
    if not (0, 0, 0, 0, 14) <= version_numbers(version) < (2,):
        lacks = (
            "the kernels that are needed" if version_numbers(version) >= (2,) else "activation_based, or its kernels"
        )
        return f"SpikingJelly {version} is not a release with {lacks}; run: {SPIKINGJELLY_PIP}"
    return None


def _gpu_refusal(stack: CupyStack) -> str | None:
    install = CUPY_PIP[cuda_major(stack)]
    if stack.torch_cuda is None:
        reinstall = "pip install --force-reinstall torch torchvision"
        return f"this torch is built without CUDA; on a machine with an NVIDIA GPU run: {reinstall} && {install}"
    if stack.capability is None:
        return f"torch finds no CUDA GPU; on a machine with an NVIDIA GPU and its driver run: {install}"
    return None


def cupy_refusal(stack: CupyStack) -> str | None:
    """Like :func:`refusal`, of CuPy alone."""
    install, found = CUPY_PIP[cuda_major(stack)], cupy_packages(stack)
    if not found:
        return f"CuPy is not installed; run: {install}"
    replace = f"pip uninstall -y {' '.join(found)} && {install}"
    if len(found) > 1:
        return f"{' and '.join(found)} overwrite each other's files; run: {replace}"
    (name,) = found
    if version_numbers(stack.packages[name]) < (14,):
        return f"{name} {stack.packages[name]} is too old; run: {replace}"
    if name == "cupy-cuda13x" and stack.capability is not None and stack.capability < CUDA13_CAPABILITY:
        return f"CUDA 13 can't compile for this GPU (sm_{stack.capability[0]}{stack.capability[1]}); run: {replace}"
    return None


def compiler_refusal(stack: CupyStack) -> str | None:
    """Like :func:`refusal`, of the compiler that CuPy calls and the headers that it reads."""
    install = CUPY_PIP[cuda_major(stack)]
    if not stack.nvrtc:
        return f"CuPy finds no CUDA compiler (NVRTC); run: {install}"
    if not stack.headers:
        return f"CuPy finds no CUDA headers (cuda_fp16.h); run: {install}"
    return None


def cupy_packages(stack: CupyStack) -> list[str]:
    """Names under which CuPy is installed; more than one is a broken installation."""
    return [name for name in CUPY_PACKAGES if name in stack.packages]


def cuda_major(stack: CupyStack) -> int:
    """Major version of the CUDA to install CuPy for: torch's, or 12 on a GPU that CUDA 13 dropped or is unknown."""
    if stack.capability is not None and stack.capability < CUDA13_CAPABILITY:
        return 12
    return 13 if stack.torch_cuda is not None and version_numbers(stack.torch_cuda) >= (13,) else 12


def version_numbers(version: str) -> tuple[int, ...]:
    """The release part of a version: "2.0.0rc1" -> (2, 0, 0)."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in leading[0].split(".")) if leading else ()


def find_cupy_stack(device: torch.device | None = None) -> CupyStack:
    """The stack of this machine and of CUDA GPU ``device`` (default: the current one); imports none of it but torch."""
    return CupyStack(
        packages=installed("spikingjelly", *CUPY_PACKAGES),
        torch_cuda=torch.version.cuda,
        capability=torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None,
        nvrtc=finds_nvrtc(),
        headers=cuda_headers() is not None,
    )


def installed(*names: str) -> dict[str, str]:
    """Distribution -> version of those of ``names`` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cuda_headers() -> Path | None:
    """Folder of cuda_fp16.h that CuPy compiles with: from a wheel, conda or CUDA_PATH, in this order."""
    pathfinder = _pathfinder()
    folder = pathfinder and pathfinder.find_nvidia_header_directory("cudart")
    return Path(folder) if folder and Path(folder, "cuda_fp16.h").is_file() else None


def finds_nvrtc() -> bool:
    """Whether CuPy finds the run-time compiler of CUDA."""
    pathfinder = _pathfinder()
    try:
        return pathfinder is not None and bool(pathfinder.load_nvidia_dynamic_lib("nvrtc"))
    except RuntimeError:  # pathfinder's way to say that there is none
        return False


def _pathfinder() -> Any:
    """The package that CuPy 14 requires and asks where CUDA's parts are; None without it."""
    try:
        return importlib.import_module("cuda.pathfinder")
    except ImportError:
        return None
