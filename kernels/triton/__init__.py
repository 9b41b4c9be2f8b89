"""The one place that imports Triton, so that the package also imports where there is none (Windows, macOS).

Kernel modules write ``from fastsnn.kernels.triton import tl, triton``. Without Triton those names are stand-ins under
which the modules still define their functions; :func:`require_triton` then says what to install before one is launched.
"""

import importlib.util
import os
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
