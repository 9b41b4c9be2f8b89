"""The cupy backend: SpikingJelly 0.0.0.0.14's own multi-step LIFNode on the CUDA kernels that it generates.

Same interface as the modules of ``fastsnn.kernels``. SpikingJelly and CuPy are imported at the first use. What stands
between LIFNode and today's libraries is kept here: a ``np.int`` that NumPy no longer has, the stream that its kernels
are launched on, evaluation on the kernel instead of TorchScript, and refusals of what its kernels cannot compute.

Its kernels multiply by 1 / tau, use another expression without ``decay_input``, and are compiled with
``-use_fast_math`` unless ``spikingjelly.configure.cuda_compiler_options`` says otherwise. Spikes, h and v are those of
``kernels/reference.py`` bit for bit only with ``decay_input=True``, tau a power of two and ``-fmad=false``.

Tests: ``tests/test_spikingjelly.py``. Source: SpikingJelly, ``activation_based.neuron`` and ``.auto_cuda``.
"""

import functools
import importlib
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastsnn import cupy_stack
from fastsnn.errors import BackendUnavailable
from fastsnn.kernels.neurons import LIF, Neuron

SURROGATES = ("atan", "sigmoid")
"""Surrogates that SpikingJelly has CUDA code for and computes as they are."""
DTYPES = {torch.float32: "float", torch.float16: "half2"}
"""Dtype that its kernels take -> C type of their arguments."""

# The kernels index with a 32-bit int and write v one step past the last spike.
_MAX_ELEMENTS = 2**31 - 1


def refusal(device: torch.device | None = None) -> str | None:
    """Why the backend can't run on ``device`` (default: the current GPU), in one line with what to do; or None.

    Imports neither SpikingJelly nor CuPy and runs no kernel.
    """
    if device is not None and device.type != "cuda":
        if torch.cuda.is_available():
            return f"it computes on a CUDA GPU, not on {device}; use --device cuda"
        device = None
    return cupy_stack.refusal(cupy_stack.find_cupy_stack(device))


def neuron_refusal(neuron: Neuron, dtype: torch.dtype, learns: bool) -> str | None:
    """Why SpikingJelly's kernels can't compute such neurons in this dtype, in one sentence; None if they can."""
    if type(neuron) is not LIF or not neuron.spikes:
        return f"its kernels compute LIF neurons that spike, not {type(neuron).__name__}"
    if learns:
        return "its kernels compute LIF neurons whose parameters are numbers"
    if neuron.surrogate not in SURROGATES:
        return f"SpikingJelly has no CUDA code for the surrogate {neuron.surrogate!r}, only for {', '.join(SURROGATES)}"
    if dtype not in DTYPES:
        return f"its kernels compute in {_name(*DTYPES)}, not in {_name(dtype)}"
    return None


def lif(current: Tensor, neuron: LIF, v_init: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run LIF neurons over ``current`` [T, ...], fp32 or fp16 on CUDA; ``v_init`` [...] defaults to v_reset (soft: 0).

    Returns spikes [T, ...] and the final v [...]. With an fp16 current SpikingJelly's state is fp16 as well; v_init and
    v stay fp32, as on the other backends, and are converted.

    Raises:
        ValueError: neurons, a dtype, device or size that SpikingJelly's kernels don't have.
        BackendUnavailable: SpikingJelly, CuPy or CUDA is missing, too old or too new.
    """
    if reason := neuron_refusal(neuron, current.dtype, False):
        raise ValueError(f"backend cupy cannot compute this: {reason}")
    if current.numel() + current[0].numel() > _MAX_ELEMENTS:
        allowed = f"(T + 1) * neurons up to {_MAX_ELEMENTS}, for SpikingJelly counts them in 32 bits"
        raise ValueError(f"current has shape {list(current.shape)}; the cupy backend allows: {allowed}")
    if current.device.type != "cuda":
        raise ValueError(f"current is on {current.device}; the cupy backend allows: a CUDA GPU")
    if not current[0].numel():
        return current.clone(), (current[0].float() if v_init is None else v_init).clone()
    return _run(current, v_init, neuron)


def _name(*dtypes: torch.dtype) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


# The launches are opaque to torch.compile, which runs them as they are between the graphs before and after.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _run(current: Tensor, v_init: Tensor | None, neuron: LIF) -> tuple[Tensor, Tensor]:
    _require()
    node = _nodes.take(current.device, current.dtype, neuron)
    try:
        if v_init is not None:
            node.v = v_init.reshape(-1).to(current.dtype)
        with _torch_stream(current.device):
            spikes = node(current.reshape(len(current), -1))
        v = node.v.reshape(current.shape[1:])
    finally:
        node.reset()
    return spikes.reshape(current.shape), v.float()


class _Nodes(threading.local):
    """The nodes of this thread, one for each device, dtype and neuron; between two calls none holds a state."""

    def __init__(self) -> None:
        # Bounded, for whoever trains with ever new options, as a sweep does.
        self._make = functools.lru_cache(maxsize=64)(lambda device, dtype, neuron: lif_node(dtype, neuron))

    def take(self, device: torch.device, dtype: torch.dtype, neuron: LIF) -> Any:
        return self._make(device, dtype, neuron)


_nodes = _Nodes()


def lif_node(dtype: torch.dtype, neuron: LIF, backend: str = "cupy") -> Any:
    """A multi-step LIFNode of SpikingJelly with the kernels that it launches for ``dtype``.

    It is in training mode, as every new module is, which is the only mode in which LIFNode runs its kernels, with or
    without gradients. The kernels' source is made once, instead of at each launch.
    """
    modules = library()
    # LIFNode asserts that its numbers are floats, and an integer alpha would make the invalid C literal "2f".
    function = getattr(modules.surrogates, str(neuron.surrogate_row.spikingjelly))(float(neuron.alpha or 0))
    node = modules.neurons.LIFNode(
        tau=neuron.tau,
        decay_input=neuron.decay_input,
        v_threshold=neuron.v_threshold,
        v_reset=neuron.v_reset,
        surrogate_function=function,
        detach_reset=neuron.detach_reset,
        step_mode="m",
        backend=backend,
    )
    hard_reset, ctype = neuron.v_reset is not None, DTYPES[dtype]
    backward = modules.kernels.LIFNodeBPTTKernel(
        neuron.decay_input, function.cuda_codes, hard_reset, neuron.detach_reset, ctype
    )
    node.forward_kernel = _with_source(modules.kernels.LIFNodeFPTTKernel(neuron.decay_input, hard_reset, ctype))
    node.backward_kernel = _OnTorchStream(_with_source(backward))
    return node


def _with_source(kernel: Any) -> Any:
    """``kernel`` with the source that it writes of itself, which its class would write again at each launch."""
    own = type(kernel)
    kernel.__class__ = type(own.__name__, (own,), {"full_codes": kernel.full_codes})
    return kernel


class _OnTorchStream:
    """A kernel of SpikingJelly that is launched on torch's current stream.

    Backward needs it: autograd calls it in a thread of its own, where CuPy's current stream is the default one.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def check_attributes(self, **attributes: Any) -> bool:
        """Whether the kernel is the one for these attributes of LIFNode, which replaces it otherwise."""
        return bool(self.kernel.check_attributes(**attributes))

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: dict[str, Any]) -> None:
        with _torch_stream(arguments["h_seq"].device):
            self.kernel(grid, block, arguments)


class _Stream:
    """torch's current stream under the CUDA stream protocol, which torch 2.7's own streams don't speak."""

    def __init__(self, device: torch.device) -> None:
        self.pointer = torch.cuda.current_stream(device).cuda_stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


@contextmanager
def _torch_stream(device: torch.device) -> Iterator[None]:
    """torch's current stream on ``device`` as CuPy's, on which SpikingJelly copies its scalars and launches."""
    cupy = importlib.import_module("cupy")
    with torch.cuda.device(device), cupy.cuda.Stream.from_external(_Stream(device)):
        yield


class _NumPy:
    """NumPy with the alias ``int``, gone since 1.24, that SpikingJelly compares dtypes with at each launch."""

    int = int

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("numpy"), name)


@dataclass(frozen=True)
class Library:
    """The modules of SpikingJelly that are used here."""

    neurons: Any
    surrogates: Any
    kernels: Any


@functools.cache
def library() -> Library:
    """Import SpikingJelly, quietly and with the shim in place."""
    package = "spikingjelly.activation_based"
    with warnings.catch_warnings():
        # Of TorchScript, which torch has deprecated, and backslashes in its docstrings: nothing that a user can mend.
        warnings.simplefilter("ignore")
        neurons = importlib.import_module(f"{package}.neuron")
        surrogates = importlib.import_module(f"{package}.surrogate")
        kernels = importlib.import_module(f"{package}.auto_cuda.neuron_kernel")
    # The name in that one module, not NumPy: nothing else in the process sees it.
    kernels.base.np = _NumPy()
    return Library(neurons, surrogates, kernels)


@functools.cache
def _require() -> None:
    if reason := refusal():
        raise BackendUnavailable(f"backend cupy cannot run: {reason}")
