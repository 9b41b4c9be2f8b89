"""Backends: names of the implementations of an operation, and whether each can run here.

A backend is usable if a tiny kernel of its own really ran. The one that is asked for is the one that runs, or
:func:`resolve` raises and says what to do; only ``auto`` chooses, and it says what it passes over. Another package
adds a backend with :func:`register`.
"""

from functools import lru_cache

import torch

from fastsnn.backend_protocol import Backend as Backend
from fastsnn.builtin_backends import CupyBackend, NumbaBackend, TorchBackend, TritonBackend
from fastsnn.errors import BackendUnavailable
from fastsnn.kernels.compiling import called_while_traced
from fastsnn.kernels.neurons import LIF, Neuron
from fastsnn.kernels.neurons.neuron import neuron_of
from fastsnn.notices import say_once

AUTO_ORDER = {"cuda": ("triton", "cupy", "torch"), "cpu": ("numba", "torch")}
"""What ``auto`` tries, fastest first."""

PASCAL_PIP = "pip install torch==2.7.1 torchvision==0.22.1"

_LIF = LIF()

_backends: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Make a backend known by its name. Raises ValueError if the name is taken."""
    if backend.name in _backends or backend.name == "auto":
        raise ValueError(f"backend {backend.name!r} is taken; allowed: a name other than auto, {', '.join(_backends)}")
    _backends[backend.name] = backend


for _builtin in (TorchBackend(), CupyBackend(), TritonBackend(), NumbaBackend()):
    register(_builtin)


def names() -> tuple[str, ...]:
    """The names of all backends."""
    return tuple(_backends)


def load(name: str) -> Backend:
    """Backend ``name``, without checking that it runs. Raises ValueError for an unknown name."""
    if name not in _backends:
        raise ValueError(f"backend is {name!r}; allowed: auto, {', '.join(_backends)}")
    return _backends[name]


def resolve(
    name: str,
    device: torch.device,
    neuron: Neuron | None = None,
    dtype: torch.dtype = torch.float32,
    learns: bool = False,
    operation: str = "linear",
    size: int = 0,
) -> Backend:
    """The backend ``name`` (or ``auto``) for these neurons on ``device``; torch in an export, as to ONNX.

    Raises ValueError for an unknown name or for neurons that the backend declines, BackendUnavailable if it can't run
    here.
    """
    reason = _transformed()
    if reason is not None and name != "torch":
        if name != "auto" and reason != _EXPORTED:
            raise ValueError(f"backend {name} cannot compute this: {reason}; use backend torch")
        _say_that_torch_is_taken(name, reason)
        return load("torch")
    # The neuron by its key: torch.compile of torch before 2.8 can't hand on a frozen dataclass.
    key = _LIF.key if neuron is None else neuron.key
    return load(_usable_name(name, device, key, dtype, learns, operation, size))


@called_while_traced
def _say_that_torch_is_taken(name: str, reason: str) -> None:
    say_once(f"backend {name} takes torch: {reason}")


_EXPORTED = "only torch's own operators can be exported, as to ONNX"
_TELLS_EXPORT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
"""torch.compile of torch before 2.8 takes all compilations for exports; its flag tells all but strict ones."""


def _transformed() -> str | None:
    """Why only plain torch can compute what is called now; None if any backend may."""
    if torch.compiler.is_compiling():
        exports = torch.compiler.is_exporting() if _TELLS_EXPORT else torch.compiler._is_exporting_flag
        return _EXPORTED if exports else None
    if torch.onnx.is_in_onnx_export():
        return _EXPORTED
    if torch._C._are_functorch_transforms_active():
        return "only torch's own operators can be transformed by torch.func (grad, vmap, jvp)"
    return None


# torch.compile calls it while it traces, so that no test kernel becomes part of a graph.
@called_while_traced
def _usable_name(
    name: str, device: torch.device, key: str, dtype: torch.dtype, learns: bool, operation: str, size: int
) -> str:
    neuron = neuron_of(key)
    if name == "auto":
        chosen, passed_over = choose(device, neuron, dtype, learns, operation, size)
        if passed_over:
            say_once(f"backend auto takes {chosen} on {device}: {'; '.join(passed_over)}")
        return chosen
    backend = load(name)
    if reason := refusal(name, device):
        raise BackendUnavailable(f"backend {name} cannot run on {device}: {reason}; run `fastsnn doctor`")
    if reason := backend.neuron_refusal(neuron, dtype, learns, operation, size):
        able = [other for other in _backends if not _why_not(other, device, neuron, dtype, learns, operation, size)]
        raise ValueError(f"backend {name} cannot compute this: {reason}; allowed here: {', '.join(able)}")
    return name


def choose(
    device: torch.device,
    neuron: Neuron | None = None,
    dtype: torch.dtype = torch.float32,
    learns: bool = False,
    operation: str = "linear",
    size: int = 0,
) -> tuple[str, list[str]]:
    """The fastest backend for these neurons on ``device``, and what was passed over, with the reasons."""
    passed_over: list[str] = []
    for name in AUTO_ORDER.get(device.type, ()):
        reason = _why_not(name, device, neuron or _LIF, dtype, learns, operation, size)
        if reason is None:
            return name, passed_over
        passed_over.append(f"not {name}, {reason}")
    return "torch", passed_over


def _why_not(
    name: str, device: torch.device, neuron: Neuron, dtype: torch.dtype, learns: bool, operation: str, size: int
) -> str | None:
    return refusal(name, device) or load(name).neuron_refusal(neuron, dtype, learns, operation, size)


def choose_device(backend: str = "auto", index: int = 0) -> torch.device:
    """CUDA GPU ``index`` if :func:`gpu_refusal` has nothing against it, else the CPU."""
    return torch.device(f"cuda:{index}" if gpu_refusal(backend, index) is None else "cpu")


def gpu_refusal(backend: str = "auto", index: int = 0) -> str | None:
    """Why ``auto`` trains ``backend`` on the CPU, in one line with what to do next; None if it takes GPU ``index``.

    A GPU that has no fused kernels, as without the C compiler that Triton needs, is slower than the CPU, which has.
    """
    if reason := cuda_refusal(index):
        return reason
    gpu, cpu = torch.device("cuda", index), torch.device("cpu")
    if backend == "auto" and choose(gpu)[0] == "torch" and choose(cpu)[0] != "torch":
        return f"torch's own operators there are slower than backend {choose(cpu)[0]} on the CPU; {slow_reason(gpu)}"
    return None


def slow_reason(device: torch.device) -> str | None:
    """Why ``auto`` has only torch's own operators on GPU ``device``, which are slow; None if it has fused kernels."""
    if device.type != "cuda" or choose(device)[0] != "torch":
        return None
    return f"backend triton cannot run on {device}: {refusal('triton', device)}"


@lru_cache
def cuda_refusal(index: int = 0) -> str | None:
    """Why this torch can't use CUDA GPU ``index``, in one line that ends with what to do; None if it can."""
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
def refusal(name: str, device: torch.device) -> str | None:
    """Why backend ``name`` can't run on ``device``, in one line with what to do next; None if it can."""
    if device.type == "cuda" and (reason := cuda_refusal(device.index or 0)):
        return reason
    refusal = load(name).refusal(device)
    if refusal or name == "torch":
        return refusal
    try:
        load(name).scan(torch.zeros(1, 1, 1, device=device), _LIF, None, {})
    except Exception as error:  # whatever it is, the user gets it as the reason
        return f"its test kernel failed: {type(error).__name__}: {first_line(error)}"
    return None


def first_line(error: BaseException) -> str:
    """Of an error's text, which may be empty."""
    return next(iter(str(error).strip().splitlines()), "no reason given")
