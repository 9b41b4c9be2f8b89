"""The one place that imports Triton, so that the package also imports where there is none (Windows, macOS).

Kernel modules write ``from fastsnn.kernels._triton import tl, triton``. Without Triton those names are stand-ins under
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
        return value


AVAILABLE = importlib.util.find_spec("triton") is not None

if AVAILABLE:
    import triton
    import triton.language as tl
else:
    triton = tl = _Absent()

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter (on the CPU, slowly); fixed when they are defined."""


def require_triton(tensor: Tensor) -> None:
    """Raise unless the kernels can run on ``tensor``'s device."""
    if not AVAILABLE:
        raise RuntimeError("backend triton needs Triton, which is not installed: pip install triton (Linux)")
    if tensor.device.type != "cuda" and not (INTERPRETED and tensor.device.type == "cpu"):
        raise ValueError(
            f"backend triton needs a CUDA tensor, got one on {tensor.device}; "
            "TRITON_INTERPRET=1, set before Python starts, runs the kernels on the CPU in Triton's interpreter (slow)"
        )


def device_guard(tensor: Tensor) -> Any:
    """Make ``tensor``'s GPU the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)
