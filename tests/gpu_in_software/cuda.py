"""Stands in for ``torch.cuda``, and lets torch's functions take device="cuda"."""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.gpu_in_software import tensors
from tests.gpu_in_software.log import LOG
from tests.gpu_in_software.targets import Target

FACTORIES = (
    "arange", "as_tensor", "asarray", "empty", "empty_like", "empty_strided", "eye", "full", "full_like", "linspace",
    "ones", "ones_like", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm",
    "scalar_tensor", "tensor", "zeros", "zeros_like",
)  # fmt: skip
METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
CAPTURE_ERROR = "operation not permitted when stream is capturing"


class Stream:
    """Work is done when it is asked for, so that all streams are alike."""

    cuda_stream = 0
    device = tensors.DEVICE

    def __init__(self, *_: Any, **__: Any) -> None:
        self.context = nullcontext()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        LOG.synchronizations["stream"] += 1

    def wait_stream(self, _: Any) -> None:
        pass

    def wait_event(self, _: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return LOG.is_capturing()


class Event:
    """Its times are those of nothing: a card that isn't there has no speed."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def wait(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        LOG.synchronizations["event"] += 1

    def elapsed_time(self, _: "Event") -> float:
        return 1.0


class Graph:
    """A CUDA graph of launches of Triton kernels."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.work: list[Callable[[], object]] = []

    def replay(self) -> None:
        for launch in self.work:
            launch()

    def reset(self) -> None:
        self.work = []

    def pool(self) -> int:
        return 0


class Capture:
    """``torch.cuda.graph``: within it launches are noted, and an operation of torch is an error."""

    def __init__(self, graph: Graph, *_: Any, **__: Any) -> None:
        self.graph = graph

    def __enter__(self) -> None:
        self.operations = LOG.operations.total()
        LOG.capture(self.graph.work)

    def __exit__(self, kind: Any, *_: Any) -> None:
        LOG.capture(None)
        if kind is None and LOG.operations.total() != self.operations:
            raise NotImplementedError("operations of torch in a CUDA graph, which the pretended card can't capture")


def properties(target: Target) -> Any:
    major, minor = divmod(target.sm, 10)
    return SimpleNamespace(
        name=target.card, major=major, minor=minor, total_memory=target.memory_gb << 30,
        multi_processor_count=target.multiprocessors, warp_size=32, is_integrated=0, is_multi_gpu_board=0,
        max_threads_per_multi_processor=target.multiprocessor_threads, regs_per_multiprocessor=65536,
        shared_memory_per_block=48 << 10, shared_memory_per_block_optin=target.block_shared,
        shared_memory_per_multiprocessor=target.multiprocessor_shared, L2_cache_size=4 << 20, uuid="pretended",
    )  # fmt: skip


def _on_card(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` that makes a tensor, with device="cuda" allowed."""

    @functools.wraps(function)
    def made(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        source = args[0] if args and isinstance(args[0], Tensor) else None
        kind = (
            None
            if device is None
            else torch.device("cuda", device)
            if isinstance(device, int)
            else torch.device(device)
        )
        if isinstance(source, tensors.CardTensor) and (kind is None or kind.type == "cuda"):
            return function(*args, **kwargs)
        if isinstance(source, tensors.CardTensor):
            return function(source.host.detach(), *args[1:], device=kind, **kwargs)
        if kind is None or kind.type != "cuda":
            return function(*args, **kwargs) if kind is None else function(*args, device=kind, **kwargs)
        requires_grad, kwargs["pin_memory"] = kwargs.pop("requires_grad", False), False
        if function.__name__ in ("asarray", "as_tensor", "new_tensor") or function.__name__.endswith("_like"):
            kwargs.pop("pin_memory")
        host = function(*args, device="cpu", **kwargs)
        card = tensors.unwritten(host) if function.__name__ in tensors.UNWRITTEN else tensors.CardTensor(host)
        LOG.operations[function.__name__] += function.__name__ not in tensors.UNWRITTEN
        return card.requires_grad_(requires_grad)

    return made


def zero(*_: Any, **__: Any) -> int:
    return 0


def nothing(*_: Any, **__: Any) -> None:
    pass


def replacements(target: Target) -> dict[str, Any]:
    """Names of torch.cuda and what they are on the pretended card."""
    found = properties(target)
    major_minor = divmod(target.sm, 10)
    stream = Stream()
    return {
        "_lazy_init": nothing,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": zero,
        "set_device": nothing,
        "device": lambda *_: nullcontext(),
        "get_device_name": lambda *_: target.card,
        "get_device_capability": lambda *_: major_minor,
        "get_device_properties": lambda *_: found,
        "get_arch_list": lambda: [target.name],
        "is_bf16_supported": lambda *_, **__: target.sm >= 80,
        "set_sync_debug_mode": LOG.set_sync_debug_mode,
        "synchronize": lambda *_: LOG.synchronizations.update(["synchronize"]),
        "current_stream": lambda *_: stream,
        "default_stream": lambda *_: stream,
        "stream": lambda *_: nullcontext(),
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": Capture,
        "is_current_stream_capturing": lambda: LOG.is_capturing(),
        "empty_cache": nothing,
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "memory_allocated": zero,
        "memory_reserved": zero,
        "max_memory_allocated": zero,
        "max_memory_reserved": zero,
        "reset_peak_memory_stats": nothing,
        "mem_get_info": lambda *_: (found.total_memory, found.total_memory),
        "_sleep": nothing,
    }


def install(target: Target) -> None:
    """Let this process believe that it has one card of ``target``, for good."""
    import torch._dynamo  # makes tables of torch's functions when it is imported, in which no other may be

    for name, value in replacements(target).items():
        mock.patch.object(torch.cuda, name, value, create=True).start()
    for name in ("_cuda_getCurrentRawStream", "_cuda_getDevice", "_accelerator_getDeviceIndex"):
        mock.patch.object(torch._C, name, zero, create=True).start()
    for name in ("setDeviceIndex", "exchangeDevice", "maybeExchangeDevice"):
        mock.patch.object(torch._C, f"_accelerator_{name}", zero, create=True).start()
    mock.patch.object(torch._C, "_accelerator_getStream", Stream, create=True).start()
    mock.patch.object(torch._C, "_cuda_getArchFlags", functools.partial(str, target.name), create=True).start()
    for name in FACTORIES:
        plain = getattr(torch, name)
        mock.patch.object(torch, name, _on_card(plain)).start()
        if builtin := torch.jit._builtins._find_builtin(plain):  # TorchScript knows functions by identity
            torch.jit._builtins._register_builtin(getattr(torch, name), builtin)
    for name in METHODS:
        mock.patch.object(Tensor, name, _on_card(getattr(Tensor, name))).start()
    mock.patch.object(Tensor, "to", tensors.move).start()
    mock.patch.object(torch, "save", tensors.save).start()
    mock.patch.object(Tensor, "cuda", lambda tensor, *_, **__: tensors.to_card(tensor)).start()
    mock.patch.object(Tensor, "pin_memory", lambda tensor, *_: tensor).start()
    # Beneath Python it makes a tensor of its own, on the CPU.
    plain_one_hot = torch.nn.functional.one_hot
    mock.patch.object(torch.nn.functional, "one_hot", functools.partial(tensors.on_hosts, plain_one_hot)).start()
    _install_conversion()
    _install_autocast()
    _install_zero_gradients()


def _install_zero_gradients() -> None:
    """Gradients of outputs that nobody used are zeros that autograd makes, beneath Python and so on the CPU."""
    node = torch.autograd.function.BackwardCFunction
    plain = node.apply

    def applied(self: Any, *grads: Any) -> Any:
        if any(isinstance(grad, tensors.CardTensor) for grad in grads):
            grads = tuple(tensors.to_card(grad) if isinstance(grad, Tensor) else grad for grad in grads)
        return plain(self, *grads)

    mock.patch.object(node, "apply", applied).start()


def _install_conversion() -> None:
    """A parameter keeps its identity when its module moves, as between real devices."""
    plain = torch.nn.Module._apply

    def moved(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return plain(module, *args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    mock.patch.object(torch.nn.Module, "_apply", moved).start()


def _install_autocast() -> None:
    """Beneath Python the tensors are on the CPU, so that autocast of the card is autocast of the CPU."""
    plain = torch.amp.autocast_mode.autocast.__init__

    def started(self: Any, device_type: str, dtype: Any = None, *args: Any, **kwargs: Any) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.float16
        plain(self, device_type, dtype, *args, **kwargs)

    mock.patch.object(torch.amp.autocast_mode.autocast, "__init__", started).start()
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        function = getattr(torch, name)
        mock.patch.object(torch, name, lambda kind="cpu", f=function: f("cpu" if kind == "cuda" else kind)).start()
