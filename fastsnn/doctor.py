"""What is right and wrong with an installation: ``fastsnn doctor``.

:func:`diagnose` is a function of an :class:`~fastsnn.environment.Environment` alone; it looks at no machine and prints
nothing. Each row says what was found and, where that is a problem, what to run.
"""

import re
from dataclasses import dataclass
from typing import Literal

from fastsnn.backends import PASCAL_PIP
from fastsnn.cupy_stack import (
    CUDA13_CAPABILITY,
    CUPY_PIP,
    compiler_refusal,
    cuda_major,
    cupy_packages,
    cupy_refusal,
    spikingjelly_refusal,
    version_numbers,
)
from fastsnn.environment import GPU, Environment
from fastsnn.text import printable

TORCH_PIP = "pip install --force-reinstall torch torchvision"
_INDEX = "--index-url https://download.pytorch.org/whl"
CU126_PIP = f'pip install --force-reinstall "torch<2.15" torchvision {_INDEX}/cu126'

# Oldest Linux driver for each major version of CUDA (CUDA's release notes on minor version compatibility).
_OLDEST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
# For GPUs older than Turing: the last driver branch, and the last Python that torch 2.7.1 has wheels for.
_LAST_DRIVER, _LAST_PYTHON = 580, (3, 13)
_OLDEST_CAPABILITY = (5, 0)
_GIB = 2**30
_ENOUGH_DISK, _ENOUGH_MEMORY = 1 * _GIB, 2 * _GIB


@dataclass(frozen=True)
class Row:
    """One finding. A ``note`` is worth knowing, a ``problem`` keeps something from working."""

    name: str
    value: str
    verdict: Literal["ok", "note", "problem"] = "ok"
    advice: str = ""


def diagnose(env: Environment) -> list[Row]:
    """Every finding about ``env``, from the ground up: Python, torch, GPU, libraries, data, machine, backends."""
    rows = [_python(env), _torch(env), _torchvision(env), *_gpus(env), _driver(env)]
    if is_ten_series(env.gpu):
        rows.append(_ten_series())
    rows += [_triton(env), *_c_compiler(env), _cupy(env), _compiler(env), _spikingjelly(env)]
    if env.old_layout:
        rows.append(_old_layout(env))
    return [*rows, _mnist(env), _disk(env), _memory(env), *_backends(env)]


def is_ten_series(gpu: GPU | None) -> bool:
    """Whether it is a GTX 10-series card, or another of its architecture: Pascal."""
    return gpu is not None and gpu.capability is not None and gpu.capability[0] == 6


def has_code_for(architectures: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether a build for ``architectures`` runs on a GPU of ``capability``.

    sm_60 runs on every later GPU of its generation (6.0, 6.1, 6.2), compute_60 on every later GPU, sm_90a on 9.0 alone.
    """
    for name in architectures:
        if not (parts := re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name)):
            continue
        built = int(parts[2]), int(parts[3])
        if built == capability:
            return True
        later = built <= capability and not parts[4]
        if later and (parts[1] == "compute" or built[0] == capability[0]):
            return True
    return False


def _python(env: Environment) -> Row:
    value = f"{env.python}, {env.system}"
    if _is_dropped(env.gpu) and version_numbers(env.python)[:2] > _LAST_PYTHON:
        return Row("Python", value, "problem", "this GPU needs torch 2.7.1, and that Python 3.13 or older")
    return Row("Python", value)


def _torch(env: Environment) -> Row:
    value = f"{env.packages.get('torch', '?')}, " + (f"CUDA {env.torch_cuda}" if env.torch_cuda else "CPU only")
    if env.torch_cuda is None and (env.driver_gpus or env.nvidia_devices):
        return Row("torch", value, "problem", f"it can't use this machine's GPU; run: {_torch_pip(env)}")
    if env.torch_cuda and env.driver_gpus and not env.torch_gpus:
        advice = (
            "it does not see the GPU that the driver sees: the driver may be too old, or CUDA_VISIBLE_DEVICES hides it"
        )
        return Row("torch", value, "problem", advice)
    return Row("torch", value)


def _torchvision(env: Environment) -> Row:
    version = env.packages.get("torchvision")
    if version is None:
        advice = f"MNIST needs it, digits does not; run: {_torchvision_pip(env)}"
        return Row("torchvision", "not installed", "note", advice)
    if env.torchvision_error:
        advice = f"it does not match torch ({env.torchvision_error}); run: {_torchvision_pip(env)}"
        return Row("torchvision", version, "problem", advice)
    return Row("torchvision", version)


def _gpus(env: Environment) -> list[Row]:
    gpus = env.torch_gpus or env.driver_gpus
    if gpus:
        return [_gpu(gpu, env) for gpu in gpus]
    if env.nvidia_devices:
        return [Row("GPU", "NVIDIA, not known without a driver", "note")]
    return [Row("GPU", "none", "note", "training runs on the CPU")]


def _gpu(gpu: GPU, env: Environment) -> Row:
    known = [gpu.name, f"sm_{gpu.capability[0]}{gpu.capability[1]}" if gpu.capability else None, _gib(gpu.memory)]
    value = ", ".join(part for part in known if part)
    if gpu.capability is None or not env.torch_architectures or has_code_for(env.torch_architectures, gpu.capability):
        return Row("GPU", value)
    built = " ".join(env.torch_architectures)
    if gpu.capability < _OLDEST_CAPABILITY:
        return Row("GPU", value, "problem", f"torch has no code for it ({built}), nor has any that fastsnn works with")
    return Row("GPU", value, "problem", f"torch has no code for it ({built}); run: {_torch_pip(env)}")


def _driver(env: Environment) -> Row:
    if env.driver is None:
        if not env.nvidia_devices:
            return Row("NVIDIA driver", "none")
        advice = f"install NVIDIA's driver; for a GTX 10-series card one of branch {_LAST_DRIVER} or older"
        return Row("NVIDIA driver", "not found", "problem", advice)
    if _is_dropped(env.gpu) and version_numbers(env.driver)[0] > _LAST_DRIVER:
        advice = f"drivers after branch {_LAST_DRIVER} leave this GPU out; install one of branch {_LAST_DRIVER}"
        return Row("NVIDIA driver", env.driver, "problem", advice)
    oldest = _OLDEST_DRIVER.get(version_numbers(env.torch_cuda)[0]) if env.torch_cuda else None
    if oldest and version_numbers(env.driver) < version_numbers(oldest):
        advice = f"torch's CUDA {env.torch_cuda} needs {oldest} or newer; update the driver, or run: {CU126_PIP}"
        return Row("NVIDIA driver", env.driver, "problem", advice)
    return Row("NVIDIA driver", env.driver)


def _ten_series() -> Row:
    working_set = f"Python 3.13 or older, driver branch {_LAST_DRIVER} or older, {PASCAL_PIP} && {CUPY_PIP[12]}"
    advice = f"works with: {working_set}; torch may also come from its own index: {CU126_PIP}"
    return Row("GTX 10-series", "fp32 only, no --amp", "note", advice)


def _triton(env: Environment) -> Row:
    version, wanted = env.packages.get("triton"), env.torch_triton
    pinned = f"triton=={wanted}" if wanted else "triton"
    if version is None:
        if not env.system.startswith("Linux"):
            return Row("Triton", "not installed", "note", "it exists for Linux only; --backend cupy works without it")
        return Row("Triton", "not installed", "problem" if env.gpu else "note", f"run: pip install {pinned}")
    if wanted and version_numbers(version)[:2] != version_numbers(wanted)[:2]:
        return Row("Triton", version, "problem", f"torch was built with Triton {wanted}; run: pip install {pinned}")
    return Row("Triton", version)


def _c_compiler(env: Environment) -> list[Row]:
    if "triton" not in env.packages:
        return []
    if env.triton_toolchain is None:
        return [Row("C compiler", "found, and Python's headers")]
    advice = env.triton_toolchain if env.gpu else f"only a GPU needs it: {env.triton_toolchain}"
    return [Row("C compiler", "not complete", "problem" if env.gpu else "note", advice)]


def _cupy(env: Environment) -> Row:
    stack = env.stack
    found, refusal = cupy_packages(stack), cupy_refusal(stack)
    if not found:
        return Row("CuPy", "not installed", "note", f"only --backend cupy needs it; with a GPU run: {_cupy_pip(env)}")
    value = ", ".join(f"{name} {env.packages[name]}" for name in found)
    if refusal:
        return Row("CuPy", value, "problem", refusal)
    if env.torch_cuda and f"cupy-cuda{cuda_major(stack)}x" not in found:
        replace = f"pip uninstall -y {found[0]} && {_cupy_pip(env)}"
        advice = f"torch is built for CUDA {env.torch_cuda}; for one CUDA in both run: {replace}"
        return Row("CuPy", value, "note", advice)
    return Row("CuPy", value)


def _compiler(env: Environment) -> Row:
    refusal = compiler_refusal(env.stack)
    value = f"headers in {env.headers}" if env.headers else "no headers"
    if refusal and cupy_packages(env.stack):
        return Row("CUDA compiler", value, "problem", refusal)
    return Row("CUDA compiler", value, "note" if refusal else "ok", "only --backend cupy needs them" if refusal else "")


def _spikingjelly(env: Environment) -> Row:
    refusal = spikingjelly_refusal(env.stack)
    return Row(
        "SpikingJelly", env.packages.get("spikingjelly", "not installed"), "problem" if refusal else "ok", refusal or ""
    )


def _old_layout(env: Environment) -> Row:
    shown, more = env.old_layout[:5], len(env.old_layout) - 5
    files = printable(", ".join(map(str, shown))) + (f" and {more} more" if more > 0 else "")
    advice = "SpikingJelly 0.0.0.0.14 renamed clock_driven: import spikingjelly.activation_based in these files"
    return Row("clock_driven", files, "problem", advice)


def _mnist(env: Environment) -> Row:
    if env.mnist:
        return Row("MNIST", f"in {env.data_folder}")
    advice = "the first training downloads it (11 MB); without a network: --data-dir, or --dataset digits"
    return Row("MNIST", f"not in {env.data_folder}", "note", advice)


def _disk(env: Environment) -> Row:
    value = f"{_gib(env.disk_free)} free"
    if env.disk_free < _ENOUGH_DISK:
        return Row("Disk", value, "problem", "a run and MNIST need about 0.1 GiB, torch's caches more: make room")
    return Row("Disk", value)


def _memory(env: Environment) -> Row:
    value = f"{_gib(env.memory_available) or '?'} free of {_gib(env.memory) or '?'}"
    if env.memory_available is not None and env.memory_available < _ENOUGH_MEMORY:
        return Row("Memory", value, "note", "where it runs out, lower --batch-size or --T")
    return Row("Memory", value)


def _backends(env: Environment) -> list[Row]:
    rows = []
    for name, (device, reason) in env.backends.items():
        if reason is None:
            interpreted = ", in Triton's interpreter" * (name == "triton" and device == "cpu")
            rows.append(Row(f"backend {name}", f"runs on {device}{interpreted}"))
        else:
            needs_gpu = name in ("cupy", "triton") and env.gpu is None
            rows.append(Row(f"backend {name}", f"can't run on {device}", "note" if needs_gpu else "problem", reason))
    return rows


def _is_dropped(gpu: GPU | None) -> bool:
    """Whether CUDA 13, and with it every new torch on PyPI, has left the GPU behind."""
    return gpu is not None and gpu.capability is not None and gpu.capability < CUDA13_CAPABILITY


def _torch_pip(env: Environment) -> str:
    if not env.system.startswith("Linux"):
        # PyPI has CPU builds alone for other systems.
        return CU126_PIP if _is_dropped(env.gpu) else f"{TORCH_PIP} {_INDEX}/cu130"
    return f"{PASCAL_PIP}, or: {CU126_PIP}" if _is_dropped(env.gpu) else TORCH_PIP


def _torchvision_pip(env: Environment) -> str:
    return PASCAL_PIP if _is_dropped(env.gpu) else "pip install --upgrade torch torchvision"


def _cupy_pip(env: Environment) -> str:
    return CUPY_PIP[cuda_major(env.stack)]


def _gib(size: int | None) -> str | None:
    return None if size is None else f"{size / _GIB:.1f} GiB"
