"""The one place that imports Triton, so that the package also imports where there is none (Windows, macOS).

Kernel modules write ``from fastsnn.kernels.triton import tl, triton``. Without Triton those names are stand-ins under
which the modules still define their functions; :func:`require_triton` then says what to install before one is launched.
"""

import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class _Absent:
    """Stands in for the triton modules: any attribute is another stand-in, and a decorated function is itself."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, value: Any = None, **_: Any) -> Any:
        return self if value is None else value


AVAILABLE = importlib.util.find_spec("triton") is not None

if AVAILABLE:
    import triton as triton
    import triton.language as tl
else:
    triton = tl = _Absent()

__all__ = [
    "AVAILABLE",
    "INTERPRETED",
    "check_device",
    "check_dtype",
    "device_guard",
    "tl",
    "triton",
]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter (on the CPU, slowly); fixed when they are defined."""


def _let_tensors_be_loop_bounds() -> None:
    """Let ``range(n)`` take a run-time ``n`` in the interpreter of Triton 3.3 to 3.6 under NumPy 2.4.

    They convert an array of one element with ``int``, which NumPy 2.4 no longer does.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: Any) -> None:
        patch(tensor)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch_with_index


if AVAILABLE and INTERPRETED and triton.__version__.startswith(("3.3.", "3.4.", "3.5.", "3.6.")):
    _let_tensors_be_loop_bounds()


@contextmanager
def before_compiling(announce: Callable[[str, int], None]) -> Iterator[None]:
    """Call ``announce(kernel, count)`` before each kernel that this block compiles; not for those in Triton's cache."""
    source = getattr(getattr(getattr(triton, "compiler", None), "compiler", None), "ASTSource", None)
    if not AVAILABLE or source is None:
        yield
        return
    make_ir, count = source.make_ir, 0

    def announced(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        announce(self.fn.__name__, count)
        return make_ir(self, *args, **kwargs)

    source.make_ir = announced
    try:
        yield
    finally:
        source.make_ir = make_ir


@functools.lru_cache
def toolchain_refusal() -> str | None:
    """Why Triton can't build the C code that launches its kernels on a GPU, in one line with what to install; or None.

    It compiles that code with the machine's C compiler and Python's headers the first time, and keeps it in its cache.
    """
    if not AVAILABLE:
        return "Triton is not installed; on Linux: pip install triton"
    folders = _include_folders()
    install = "on Debian and Ubuntu: sudo apt install gcc python3-dev"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        missing = f"Triton needs a C compiler, and finds neither gcc nor clang nor CC in the environment; {install}"
    elif not any(Path(folder, "Python.h").is_file() for folder in folders):
        missing = f"Triton needs Python's headers, and {folders[0]} has no Python.h; {install}"
    else:
        return None
    return None if _driver_is_built() else missing


def _include_folders() -> list[str]:
    """Where a C compiler that Triton calls looks for Python.h."""
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme names a folder that its headers are not in; Triton does the same.
    own = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    given = [os.environ.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH")]
    return [own, *(folder for folders in given for folder in folders.split(os.pathsep) if folder)]


def _driver_is_built() -> bool:
    """Whether Triton's cache holds what it would compile."""
    try:
        return triton.runtime.driver.active.utils is not None
    except Exception:  # whatever it is, there is none
        return False


def launches_on(tensor: Tensor) -> bool:
    """Whether kernels can be launched where ``tensor`` is: on a GPU, if Triton has what it needs."""
    return tensor.is_cuda and toolchain_refusal() is None


def check_device(name: str, tensor: Tensor) -> None:
    """Raise unless the kernels can run where ``tensor`` is."""
    if not AVAILABLE:
        raise RuntimeError("backend triton needs Triton, which is not installed; on Linux: pip install triton")
    if tensor.device.type != "cuda" and not (INTERPRETED and tensor.device.type == "cpu"):
        raise ValueError(
            f"{name} is on {tensor.device}; allowed: a CUDA device, or the CPU in Triton's interpreter, "
            "which is slow and asked for by TRITON_INTERPRET=1 in the environment before Python starts"
        )


def check_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}; backend triton allows: {names}")


def needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def device_guard(tensor: Tensor) -> Any:
    """Make ``tensor``'s GPU the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)
