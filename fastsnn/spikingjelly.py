"""The cupy backend: SpikingJelly 0.0.0.0.14's own multi-step LIFNode on the CUDA kernels that it generates.

Same interface as the modules of ``fastsnn.kernels``. SpikingJelly and CuPy are imported at the first use. What stands
between LIFNode and today's libraries is kept here: a ``np.int`` that NumPy no longer has, the stream that its kernels are
launched on, evaluation on the kernel instead of TorchScript, and refusals of what its kernels cannot compute.

Its kernels multiply by 1 / tau and use another expression without ``decay_input``; they are compiled with
``-use_fast_math`` unless ``spikingjelly.configure.cuda_compiler_options`` says otherwise. So spikes, h and v are those of
``kernels/reference.py`` bit for bit only for ``decay_input=True``, tau a power of two and ``-fmad=false``.

Tests: ``tests/test_spikingjelly.py``. Source: SpikingJelly, ``activation_based.neuron`` and ``activation_based.auto_cuda``.
"""

import functools
import importlib.metadata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastsnn.errors import BackendUnavailable

SURROGATES = {"atan": "ATan", "sigmoid": "Sigmoid"}
"""The surrogates that SpikingJelly has CUDA code for -> its class."""
DTYPES = {torch.float32: "float", torch.float16: "half2"}
"""The dtypes that its kernels take -> their C type."""
SPIKINGJELLY_PIP = 'pip install "spikingjelly>=0.0.0.0.14,<2"'
CUPY_PIP = {
    12: 'pip install "cupy-cuda12x>=14" nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12',
    13: 'pip install "cupy-cuda13x>=14" nvidia-cuda-nvrtc nvidia-cuda-runtime',
}
"""CUDA's major version -> what installs CuPy with a compiler and the headers for it."""

# SpikingJelly's kernels index with a 32-bit int and write one step past the last.
_MAX_ELEMENTS = 2**31 - 1
# CUDA 13 compiles for nothing older than Turing.
_CUDA13_CAPABILITY = (7, 5)


@dataclass(frozen=True)
class Stack:
    """What the backend stands on, as found on a machine."""

    packages: Mapping[str, str]
    """Installed distribution -> version."""
    torch_cuda: str | None
    """CUDA that torch was built for, as in "12.6"."""
    capability: tuple[int, int] | None
    """Compute capability of the GPU; None without one that torch can use."""
    nvrtc: bool
    """Whether CUDA's run-time compiler is found."""
    headers: str | None
    """Folder of cuda_fp16.h, which every kernel of SpikingJelly includes, where CuPy looks for it."""


def trouble(stack: Stack) -> str | None:
    """Why the backend can't run on ``stack``, in one line that ends with what to run; None where nothing speaks against it."""
    spikingjelly = stack.packages.get("spikingjelly")
    if spikingjelly is None:
        return f"SpikingJelly is not installed; run: {SPIKINGJELLY_PIP}"
    if not (0, 0, 0, 0, 14) <= _numbers(spikingjelly) < (2,):
        return f"SpikingJelly {spikingjelly} has no CuPy kernels that fastsnn can run; run: {SPIKINGJELLY_PIP}"
    major = cuda_major(stack)
    install = CUPY_PIP[major]
    if stack.capability is None:
        return f"it needs an NVIDIA GPU, and torch finds none; on a machine that has one run: pip install torch && {install}"
    cupy = sorted(name for name in stack.packages if name == "cupy" or name.startswith("cupy-cuda"))
    if not cupy:
        return f"CuPy is not installed; run: {install}"
    replace = f"pip uninstall -y {' '.join(cupy)} && {install}"
    if len(cupy) > 1:
        return f"{' and '.join(cupy)} overwrite each other; run: {replace}"
    version = stack.packages[cupy[0]]
    if _numbers(version) < (14,):
        return f"{cupy[0]} {version} is too old; run: {replace}"
    if cupy[0] == "cupy-cuda13x" and stack.capability < _CUDA13_CAPABILITY:
        return f"CUDA 13 has no compiler for this GPU (sm_{stack.capability[0]}{stack.capability[1]}); run: {replace}"
    if not stack.nvrtc:
        return f"CuPy finds no CUDA compiler (NVRTC); run: {install}"
    if stack.headers is None:
        return f"CuPy finds no CUDA headers (cuda_fp16.h); run: {install}"
    return None


def cuda_major(stack: Stack) -> int:
    """Major version of the CUDA that CuPy should be installed for: torch's, or 12 for a GPU that CUDA 13 dropped."""
    if stack.capability is not None and stack.capability < _CUDA13_CAPABILITY:
        return 12
    return 13 if (stack.torch_cuda or "12").startswith("13") else 12


def unusable(device: torch.device | None = None) -> str | None:
    """Why the backend can't run on ``device`` (default: the current GPU), in one line that ends with what to run; or None.

    Imports neither SpikingJelly nor CuPy and runs no kernel.
    """
    if device is not None and device.type != "cuda" and torch.cuda.is_available():
        return f"it computes on a CUDA GPU, not on {device}; use --device cuda"
    return trouble(_stack(device))


def lif(current: Tensor, v_init: Tensor | None = None, **neuron: Any) -> tuple[Tensor, Tensor]:
    """Run LIF neurons over ``current`` [T, ...], on CUDA, fp32 or fp16; ``v_init`` [...] defaults to v_reset (0 for a soft reset).

    Returns spikes [T, ...] and the final v [...]. In fp16 SpikingJelly's state is fp16 too; v_init and v are fp32 as on
    every backend and are converted.

    Raises:
        ValueError: a surrogate, dtype, device or size that SpikingJelly's kernels do not have.
        BackendUnavailable: SpikingJelly, CuPy or CUDA is missing or too old or new, with the line that installs it.
    """
    _check(current, neuron["surrogate"])
    if not current[0].numel():
        return current.clone(), (current[0] if v_init is None else v_init).clone()
    return _run(current, v_init, **neuron)


def linear_lif(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, v_init: Tensor | None = None, **neuron: Any
) -> tuple[Tensor, Tensor]:
    """LIF neurons driven by ``x @ weight.T + bias``, torch's product: x [T, ..., K], weight [N, K], bias [N]; see :func:`lif`."""
    return lif(F.linear(x if x.is_floating_point() else x.to(weight.dtype), weight, bias), v_init, **neuron)


def kernels(
    dtype: torch.dtype,
    *,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
    **_: Any,
) -> tuple[Any, Any]:
    """SpikingJelly's forward and backward kernels for these options of a neuron; CuPy compiles them at their first launch."""
    library = _spikingjelly()
    hard_reset, ctype = v_reset is not None, DTYPES[dtype]
    forward = library.kernels.LIFNodeFPTTKernel(decay_input=decay_input, hard_reset=hard_reset, dtype=ctype)
    backward = library.kernels.LIFNodeBPTTKernel(
        decay_input=decay_input,
        surrogate_function=library.surrogate(surrogate, alpha).cuda_codes,
        hard_reset=hard_reset,
        detach_reset=detach_reset,
        dtype=ctype,
    )
    return forward, backward


# CuPy's launches are opaque to torch.compile: it runs them as they are, between two compiled graphs.
@torch.compiler.disable
def _run(current: Tensor, v_init: Tensor | None, **neuron: Any) -> tuple[Tensor, Tensor]:
    _require()
    # A new node each time: it carries no state from another batch, and threads don't share one. A node is in training
    # mode until told otherwise, and only that mode runs the kernel.
    node = _node(current.dtype, **neuron)
    if v_init is not None:
        node.v = v_init.reshape(-1).to(current.dtype)
    with _torch_stream(current.device):
        spikes = node(current.reshape(len(current), -1))
    v = node.v.reshape(current.shape[1:])
    return spikes.reshape(current.shape), v.float() if current.dtype == torch.float16 else v


def _node(
    dtype: torch.dtype, *, tau: float, v_threshold: float, v_reset: float | None, surrogate: str, alpha: float, **flags: bool
) -> Any:
    """SpikingJelly's LIFNode with its kernels for ``dtype``; it asserts that its numbers are floats."""
    library = _spikingjelly()
    node = library.LIFNode(
        tau=float(tau),
        v_threshold=float(v_threshold),
        v_reset=None if v_reset is None else float(v_reset),
        surrogate_function=library.surrogate(surrogate, alpha),
        step_mode="m",
        backend="cupy",
        **flags,
    )
    forward, backward = kernels(dtype, v_reset=v_reset, surrogate=surrogate, alpha=alpha, **flags)
    node.forward_kernel, node.backward_kernel = forward, backward
    return node
