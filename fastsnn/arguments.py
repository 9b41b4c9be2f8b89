"""The checks of what the operations and layers are given: each raises in one line that says what is allowed."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastsnn import backends
from fastsnn.kernels.neurons import LIF, Neuron
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.kernels.segments import CHOICES

State = Mapping[str, Tensor]
"""A neuron's states by name, each a tensor [B, ...]."""
DEFAULT = LIF()
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def recomputing(recompute: str, backend: backends.Backend) -> dict[str, Any]:
    """``recompute`` as a backend takes it. Raises ValueError if it can't, unless no gradient may be asked for."""
    able = getattr(backend, "recomputes", False)
    if recompute not in CHOICES or (recompute == "on" and torch.is_grad_enabled() and not able):
        allowed = [choice for choice in CHOICES if choice != "on" or able]
        raise ValueError(f"recompute is {recompute!r}; backend {backend.name} allows: {', '.join(allowed)}")
    return {"recompute": recompute} if able else {}


def checked_neuron(neuron: Neuron | None) -> Neuron:
    """The neuron, or the default one; raises TypeError for anything else."""
    if neuron is None:
        return DEFAULT
    if not isinstance(neuron, Neuron):
        raise TypeError(f"neuron is {neuron!r}; allowed: a fastsnn.Neuron such as fastsnn.LIF(), or None")
    return neuron


def check_tensor(name: str, value: object, dtypes: Sequence[torch.dtype]) -> None:
    """Raise TypeError unless ``value`` is a tensor of one of the dtypes."""
    allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {type(value).__name__}; allowed: a tensor of {allowed}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {str(value.dtype).removeprefix('torch.')}; allowed: {allowed}")


def check_weight(name: str, weight: Tensor, shape: tuple[int | None, int], device: torch.device, remark: str) -> None:
    """Raise unless ``weight`` is a matrix of the shape, of which None is any number, on the device."""
    check_tensor(name, weight, DTYPES)
    fits = weight.dim() == 2 and all(want in (None, got) for want, got in zip(shape, weight.shape, strict=True))
    if not fits:
        wanted = ", ".join("N" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(weight.shape)}; allowed: [{wanted}] {remark}")
    check_device(name, weight, device)


def checked_input(x: object) -> tuple[list[int], torch.device]:
    """The shape [T, B, K] and the device of a layer's x."""
    if isinstance(x, PackedSpikes):
        check_tensor("x's words", x.words, (torch.int32,))
        shape = [x.T, *x.words.shape[1:]]
        if len(x.words) != math.ceil(x.T / 32):
            found = f"x has T = {x.T} and words of shape {list(x.words.shape)}"
            raise ValueError(
                f"{found}; allowed: [ceil(T / 32), B, K], so T from {32 * len(x.words) - 31} to {32 * len(x.words)}"
            )
        if x.carrier is not None and list(x.carrier.shape) != shape:
            raise ValueError(f"x's carrier has shape {list(x.carrier.shape)}; allowed: {shape}, or None")
        device = x.words.device
    else:
        check_tensor("x", x, (*DTYPES, torch.bool, torch.uint8))
        assert isinstance(x, Tensor)
        shape, device = list(x.shape), x.device
    if len(shape) < 3 or not shape[0] or not shape[-1]:
        raise ValueError(f"x has shape {shape}; allowed: [T, B, K] with T and K at least 1")
    return shape, device


def check_bias(bias: Tensor | None, weight: Tensor) -> None:
    if bias is not None:
        check_tensor("bias", bias, (weight.dtype,))
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {list(bias.shape)}; allowed: [{weight.shape[0]}]")
        check_device("bias", bias, weight.device)


def autocast_off(device: torch.device, dtype: torch.dtype) -> tuple[torch.dtype | None, AbstractContextManager[object]]:
    """The dtype that autocast asks for, if it does, and a context without it."""
    # The meta device knows no autocast, and torch's own leaves fp64 alone.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type) or dtype == torch.float64:
        return None, nullcontext()
    return torch.get_autocast_dtype(device.type), torch.autocast(device.type, enabled=False)


def in_dtype(value: Any, dtype: torch.dtype | None) -> Any:
    return value.to(dtype) if dtype and isinstance(value, Tensor) and value.is_floating_point() else value


def check_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}; allowed: {device}, where the input is")


def stacked_state(state: State | None, neuron: Neuron, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """The states as the backends take them, [S, B, ...]."""
    if state is None:
        return None
    check_state(state, neuron.states, shape, like)
    return torch.stack([state[name] for name in neuron.states])


def check_state(state: State, names: Sequence[str], shape: tuple[int, ...], like: Tensor) -> None:
    allowed = ", ".join(names)
    if not isinstance(state, Mapping):
        raise TypeError(f"state is {type(state).__name__}; allowed: a mapping from {allowed} to tensors, or None")
    if wrong := set(state) ^ set(names):
        name = sorted(wrong)[0]
        problem = "lacks" if name in names else "has an unknown"
        raise ValueError(f"state {problem} {name!r}; allowed: all of {allowed}")
    for name, value in state.items():
        check_tensor(f"state {name!r}", value, (state_dtype(like),))
        if value.shape != shape:
            raise ValueError(f"state {name!r} has shape {list(value.shape)}; allowed: {list(shape)}")
        check_device(f"state {name!r}", value, like.device)


def state_dtype(like: Tensor) -> torch.dtype:
    """The dtype of states and learnt parameters, which half precision doesn't reach."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def checked_parameters(
    parameters: Mapping[str, Tensor] | None, neuron: Neuron, shape: tuple[int, ...], like: Tensor
) -> dict[str, Tensor]:
    """The learnt parameters, checked, in the order of the neuron's fields."""
    if not parameters:
        return {}
    known = neuron.learnable()
    for name, value in parameters.items():
        if name not in known:
            raise ValueError(f"parameters has {name!r}; {type(neuron).__name__} allows: {', '.join(known)}")
        check_tensor(f"parameter {name!r}", value, (state_dtype(like),))
        try:
            fits = torch.broadcast_shapes(value.shape, shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"parameter {name!r} has shape {list(value.shape)}; allowed: one that broadcasts to {list(shape)}"
            )
        check_device(f"parameter {name!r}", value, like.device)
    return {name: parameters[name] for name in known if name in parameters}
