"""Tensors on the pretended card: torch's memory on the CPU under another device.

A `CardTensor` wraps a tensor on the CPU, its ``host``, and says that it is on cuda:0. Operations of torch run on the
hosts; operators that a library registered run with the kernel that is for CUDA. Mixing tensors of both devices is the
error that it is on a card. Beneath Python the device is the CPU: only so does autograd need no CUDA.
"""

import ctypes
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.gpu_in_software.log import LOG

DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
NO_LAUNCH = {"detach", "alias", "lift_fresh", "sym_size", "sym_stride", "sym_numel", "is_same_size", "is_pinned"}
SAVING: list[bool] = []
"""Not empty within ``torch.save``."""
UNWRITTEN = {"empty", "empty_strided", "new_empty", "new_empty_strided", "empty_like"}


class Defined:
    """The bytes of a storage that something has written."""

    def __init__(self, size: int) -> None:
        self.bytes_: NDArray[np.bool_] = np.zeros(size, bool)


class CardTensor(Tensor):
    host: Tensor
    defined: Defined | None

    @staticmethod
    def __new__(cls, host: Tensor, defined: Defined | None = None) -> "CardTensor":
        made = Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            layout=host.layout, device=host.device,
        )  # fmt: skip
        made.host, made.defined = host, defined
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> Any:
        return self.host.untyped_storage()

    def get_device(self) -> int:
        return 0

    def cpu(self, *_: Any) -> Tensor:
        return to_host(self)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return to_host(self.detach()).tolist()

    def pin_memory(self, *_: Any) -> Tensor:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def __repr__(self, **_: Any) -> str:
        return repr(self.host)[:-1] + ", device='cuda:0')"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return self.item().__format__(spec) if self.dim() == 0 else object.__format__(self, spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copy = torch.nn.Parameter(copy, self.requires_grad)
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """In a file of torch.save as on the CPU, where torch.load's map_location would bring it."""
        host = self.host.detach().requires_grad_(self.requires_grad and self.is_leaf)
        if isinstance(self, torch.nn.Parameter):
            host = torch.nn.Parameter(host, self.requires_grad)
        return host.__reduce_ex__(protocol) if SAVING else (_rebuild, (host,))

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return move(self, *args, **kwargs)

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self

    def type(self, dtype: Any = None, *_: Any, **__: Any) -> Any:
        if dtype is None:
            return self.host.type().replace("torch.", "torch.cuda.")
        return self.to(dtype)


def _rebuild(host: Tensor) -> Tensor:
    card = CardTensor(host.detach()).requires_grad_(host.requires_grad)
    return torch.nn.Parameter(card, host.requires_grad) if isinstance(host, torch.nn.Parameter) else card


_plain_save = torch.save


def save(*args: Any, **kwargs: Any) -> None:
    """``torch.save``."""
    SAVING.append(True)
    try:
        _plain_save(*args, **kwargs)
    finally:
        SAVING.pop()


class _ToCard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        LOG.operations["copy to the card"] += 1
        return CardTensor(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return to_host(grad)


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        LOG.wait("copy to the host")
        return tensor.host.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return to_card(grad)


def to_card(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, CardTensor) else _ToCard.apply(tensor)


def to_host(tensor: Tensor) -> Tensor:
    return _ToHost.apply(tensor) if isinstance(tensor, CardTensor) else tensor


_plain_to = Tensor.to


def move(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``tensor.to(...)`` in each of its forms."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    if (other := kwargs.pop("other", None)) is not None:
        args = (other.device, other.dtype, *args)
    names = ("dtype", "non_blocking", "copy")
    if args and not isinstance(args[0], torch.dtype):
        names = ("device", *names)
    kwargs |= dict(zip(names, args, strict=False))
    device = kwargs.pop("device", None)
    if kwargs.get("dtype", True) is None:
        del kwargs["dtype"]
    if device is not None:
        device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if device.type == "cuda":
            tensor = to_card(tensor)
        elif device.type == "cpu":
            tensor = to_host(tensor)
        else:
            return _plain_to(tensor, device, **kwargs)
    return _plain_to(tensor, **kwargs) if kwargs.get("dtype") or kwargs.keys() & {"copy", "memory_format"} else tensor


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation with at least one tensor on the card."""
    if func.namespace not in ("aten", "prims", "prim"):
        cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        return func.redispatch(cuda, *args, **kwargs)
    name = func._schema.name.removeprefix("aten::")
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    _check_devices(name, leaves)
    _count(func, name)
    plain_args, plain_kwargs = tree_map_only(CardTensor, lambda tensor: tensor.host, (args, kwargs))
    if plain_kwargs.get("device") is not None:
        plain_kwargs["device"] = torch.device("cpu")
    out = func(*plain_args, **plain_kwargs)
    if name in ("_local_scalar_dense", "equal", "is_nonzero"):
        return out
    if name == "copy_" and not isinstance(args[0], CardTensor):
        LOG.wait("copy to the host")
        return args[0]
    cards = [leaf for leaf in leaves if isinstance(leaf, CardTensor)]
    fresh = name in UNWRITTEN
    out = tree_map_only(Tensor, lambda tensor: _wrap(tensor, cards, fresh), out)
    _define(func._schema, args, kwargs)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _define(schema: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Mark what an operation wrote in place."""
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    for argument in schema.arguments if schema.is_mutable else ():
        if argument.alias_info is not None and argument.alias_info.is_write:
            for leaf in tree_leaves(given.get(argument.name)):
                if isinstance(leaf, CardTensor) and leaf.defined:
                    leaf.defined.bytes_[extent(leaf.host)] = True


def extent(host: Tensor) -> slice:
    """The bytes of its storage that a tensor spans."""
    size = host.element_size()
    low = int(host.storage_offset()) * size
    if not host.numel():
        return slice(low, low)
    last = sum((n - 1) * stride for n, stride in zip(host.shape, host.stride(), strict=True))
    return slice(low, int(low + (last + 1) * size))


def on_hosts(function: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``function`` of a tensor, on its device; not differentiable."""
    if not isinstance(tensor, CardTensor):
        return function(tensor, *args, **kwargs)
    LOG.operations[function.__name__] += 1
    return CardTensor(function(tensor.host, *args, **kwargs))


def _wrap(tensor: Tensor, cards: list[CardTensor], fresh: bool) -> Tensor:
    if isinstance(tensor, CardTensor):
        return tensor
    if fresh:
        return unwritten(tensor)
    storage = tensor.untyped_storage().data_ptr()
    shared = (card.defined for card in cards if card.defined and card.host.untyped_storage().data_ptr() == storage)
    return CardTensor(tensor, next(shared, None))


def unwritten(host: Tensor) -> CardTensor:
    """New memory whose every byte is poison."""
    storage = host.untyped_storage()
    if host.numel() and host.layout == torch.strided:
        ctypes.memset(storage.data_ptr(), 0xFF, storage.nbytes())
    return CardTensor(host, Defined(storage.nbytes()))


def _check_devices(name: str, leaves: list[Tensor]) -> None:
    if name in ("copy_", "_to_copy", "index", "index_put_", "_index_put_impl_"):
        return
    if any(not isinstance(leaf, CardTensor) and leaf.dim() for leaf in leaves):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})"
        )


def _count(func: Any, name: str) -> None:
    if name == "_local_scalar_dense" or name in ("equal", "nonzero", "masked_select", "_unique2", "is_nonzero"):
        LOG.wait(name)
    if not func.is_view and name not in NO_LAUNCH and name not in UNWRITTEN:
        LOG.operations[name] += 1
