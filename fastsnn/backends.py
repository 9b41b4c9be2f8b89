"""Names of the implementations of LIF and linear+LIF, and whether each can run here.

A backend is usable where a tiny kernel of its own really ran. The one that is asked for is the one that runs, or
:func:`resolve` raises and says what to do; only ``auto`` chooses.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastsnn.errors import BackendUnavailable
from fastsnn.kernels import reference
from fastsnn.notices import say_once

Operator = Callable[..., tuple[Tensor, Tensor]]

NAMES = ("torch", "cupy", "triton", "numba")
AUTO_ORDER = {"cuda": ("triton", "cupy", "torch"), "cpu": ("numba", "torch")}
"""What ``auto`` tries, fastest first."""

PASCAL_PIP = "pip install torch==2.7.1 torchvision==0.22.1"


@dataclass(frozen=True)
class Backend:
    """One implementation; ``rate_step`` is its module of fused whole training steps, where it has one."""

    name: str
    lif: Operator
    linear_lif: Operator
    rate_step: ModuleType | None = None
    packs: bool = False
    """Whether linear_lif itself takes and gives packed spikes."""
    paths: tuple[str, ...] = ("auto",)
    """Ways to compute linear_lif, of which it takes more than one by name."""


def resolve(name: str, device: torch.device) -> Backend:
    """The backend ``name`` (or ``auto``) on ``device``.

    Raises ValueError for an unknown name, BackendUnavailable where it can't run here.
    """
    return load(_usable_name(name, device))


# torch.compile calls it while it traces, so that no test kernel becomes part of a graph.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _usable_name(name: str, device: torch.device) -> str:
    if name == "auto":
        name = choose(device)
    elif name not in NAMES:
        raise ValueError(f"backend is {name!r}; allowed: auto, {', '.join(NAMES)}")
    if reason := unusable(name, device):
        raise BackendUnavailable(f"backend {name} cannot run on {device}: {reason}; run `fastsnn doctor`")
    return name


def choose(device: torch.device) -> str:
    """The fastest backend that runs on ``device``."""
    for name in AUTO_ORDER.get(device.type, ()):
        if (reason := unusable(name, device)) is None:
            return name
        say_once(f"auto passes over backend {name} on {device}: {reason}")
    return "torch"


def choose_device() -> torch.device:
    """The first CUDA GPU that ran a tiny kernel of this torch, else the CPU."""
    return torch.device("cuda:0" if cuda_unusable() is None else "cpu")


@lru_cache
def cuda_unusable(index: int = 0) -> str | None:
    """Why this torch can't use CUDA GPU ``index``, in one line that ends with what to do; None where it can."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU here"
    if index >= torch.cuda.device_count():
        return f"there is no cuda:{index}; allowed: cuda:0 to cuda:{torch.cuda.device_count() - 1}"
    try:
        # A card is listed as available by builds that carry no code for it: only running something tells.
        torch.ones(1, device=f"cuda:{index}").add(1).item()
    except RuntimeError as error:
        name = torch.cuda.get_device_name(index)
        major, minor = torch.cuda.get_device_capability(index)
        advice = ""
        if "no kernel image" in str(error):
            pip = PASCAL_PIP if (major, minor) < (7, 5) else "pip install --upgrade torch torchvision"
            advice = f"; torch {torch.__version__} has no code for it: {pip}"
        return f"{name} (sm_{major}{minor}) failed to run a kernel ({first_line(error)}){advice}"
    return None


@lru_cache
def unusable(name: str, device: torch.device) -> str | None:
    """Why backend ``name`` can't run on ``device``, in one line with what to do next; None where it can."""
    if device.type == "cuda" and (reason := cuda_unusable(device.index or 0)):
        return reason
    refusal = _refusal(name, device)
    if refusal or name == "torch":
        return refusal
    try:
        load(name).lif(torch.zeros(1, 1, 1, device=device), **_TEST_NEURON)
    except Exception as error:  # whatever it is, the user gets it as the reason
        return f"its test kernel failed: {type(error).__name__}: {first_line(error)}"
    return None


def first_line(error: BaseException) -> str:
    """Of an error's text, which may be empty."""
    return next(iter(str(error).strip().splitlines()), "no reason given")


_TEST_NEURON: dict[str, Any] = {
    "tau": 2.0,
    "v_threshold": 1.0,
    "v_reset": 0.0,
    "decay_input": True,
    "detach_reset": False,
    "surrogate": "atan",
    "alpha": 2.0,
}


def _refusal(name: str, device: torch.device) -> str | None:
    """What is known without running a kernel."""
    if name == "numba":
        return None if device.type == "cpu" else "it computes on the CPU; use --device cpu, or the triton backend"
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed; on Linux: pip install triton"
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            interpreter = "set TRITON_INTERPRET=1 for Triton's interpreter, which is very slow"
            return f"it needs a CUDA GPU; use --backend numba, or {interpreter}"
    if name == "cupy":
        from fastsnn import spikingjelly

        return spikingjelly.unusable(device)
    return None


def load(name: str) -> Backend:
    """Import backend ``name`` without checking that it runs."""
    if name == "torch":
        return Backend("torch", _torch_lif, _torch_linear_lif)
    if name == "cupy":
        from fastsnn import spikingjelly

        return Backend("cupy", spikingjelly.lif, spikingjelly.linear_lif)
    if name == "triton":
        from fastsnn.kernels.rate_classifier.triton import step as rate_step
        from fastsnn.kernels.triton import lif, linear_lif

        return Backend("triton", lif.lif, linear_lif.linear_lif, rate_step, packs=True, paths=linear_lif.PATHS)
    from fastsnn.kernels.numba import lif as cpu_lif
    from fastsnn.kernels.rate_classifier.numba import step as cpu_rate_step

    return Backend("numba", cpu_lif.lif, cpu_lif.linear_lif, cpu_rate_step)


def _torch_lif(current: Tensor, v_init: Tensor | None = None, **neuron: Any) -> tuple[Tensor, Tensor]:
    # The membrane potential stays in fp32 whatever the current's precision, as in the fused kernels.
    half = current.dtype in (torch.float16, torch.bfloat16)
    spikes, v, _ = reference.lif(current.float() if half else current, v_init, **neuron)
    return spikes.to(current.dtype), v


def _torch_linear_lif(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, v_init: Tensor | None = None, **neuron: Any
) -> tuple[Tensor, Tensor]:
    return _torch_lif(torch.nn.functional.linear(x.to(weight.dtype), weight, bias), v_init, **neuron)
