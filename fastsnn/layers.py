"""LIF neurons as functions and as ``nn.Module``s, over whichever backend is asked for."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from fastsnn import backends
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.neuron import LIFParameters

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def lif(
    current: Tensor, neuron: LIFParameters | None = None, v_init: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Run LIF neurons over T time steps of input current.

    Args:
        current: input current, floating point, [T, B, ...].
        neuron: the neuron's parameters; default ``LIFParameters()``.
        v_init: membrane potential before the first step, [B, ...]; default v_reset (0 for a soft reset).
        backend: ``auto``, ``torch``, ``cupy``, ``triton`` or ``numba``.

    Returns:
        spikes, 0 or 1, [T, B, ...], and the membrane potential after the last step, [B, ...].

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device.
        BackendUnavailable: the backend can't run on current's device.

    Source: SpikingJelly's ``neuron.LIFNode`` in multi-step mode.
    """
    neuron = _checked_neuron(neuron)
    _check_tensor("current", current, _DTYPES)
    if current.dim() < 2 or not current.shape[0]:
        raise ValueError(f"current has shape {list(current.shape)}; allowed: [T, B, ...] with T at least 1")
    _check_v_init(v_init, current.shape[1:], current)
    return backends.resolve(backend, current.device).lif(current, v_init, **neuron.options())


@overload
def linear_lif(
    x: Tensor | PackedSpikes,
    weight: Tensor,
    bias: Tensor | None = None,
    neuron: LIFParameters | None = None,
    v_init: Tensor | None = None,
    backend: str = "auto",
    packed: Literal[False] = False,
    path: str = "auto",
) -> tuple[Tensor, Tensor]: ...


@overload
def linear_lif(
    x: Tensor | PackedSpikes,
    weight: Tensor,
    bias: Tensor | None = None,
    neuron: LIFParameters | None = None,
    v_init: Tensor | None = None,
    backend: str = "auto",
    *,
    packed: Literal[True],
    path: str = "auto",
) -> tuple[PackedSpikes, Tensor]: ...


def linear_lif(
    x: Tensor | PackedSpikes,
    weight: Tensor,
    bias: Tensor | None = None,
    neuron: LIFParameters | None = None,
    v_init: Tensor | None = None,
    backend: str = "auto",
    packed: bool = False,
    path: str = "auto",
) -> tuple[Tensor | PackedSpikes, Tensor]:
    """Run LIF neurons driven by ``x @ weight.T + bias`` over T time steps.

    Under autocast x, weight and bias are used in its dtype, as in ``nn.Linear``; membrane potentials stay in fp32.

    Args:
        x: input spikes or values, floating point, bool or uint8, [T, B, K], or packed spikes.
        weight: [N, K].
        bias: [N] or None.
        neuron: the neuron's parameters; default ``LIFParameters()``.
        v_init: membrane potential before the first step, [B, N]; default v_reset (0 for a soft reset).
        backend: ``auto``, ``torch``, ``cupy``, ``triton`` or ``numba``.
        packed: return the spikes as ``PackedSpikes``, for a next layer. They mean the same on every backend; only
            triton keeps them for backward as they are, 1/32 of fp32.
        path: with backend triton ``fused``, ``library`` (torch's product, then the neurons) or ``auto``, which takes
            the faster one by the size of K (``fastsnn.kernels.triton.linear_lif.FUSED_UP_TO``). Others: ``auto``.

    Returns:
        spikes, 0 or 1, [T, B, N], and the membrane potential after the last step, [B, N].

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device.
        BackendUnavailable: the backend can't run on x's device.

    Source: SpikingJelly's ``layer.Linear`` followed by ``neuron.LIFNode`` in multi-step mode.
    """
    neuron = _checked_neuron(neuron)
    shape, device = _checked_input(x)
    _check_tensor("weight", weight, _DTYPES)
    if weight.dim() != 2 or weight.shape[1] != shape[-1]:
        raise ValueError(f"weight has shape {list(weight.shape)}; allowed: [N, {shape[-1]}] for x {shape}")
    _check_device("weight", weight, device)
    if bias is not None:
        _check_tensor("bias", bias, (weight.dtype,))
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {list(bias.shape)}; allowed: [{weight.shape[0]}]")
        _check_device("bias", bias, device)
    _check_v_init(v_init, (*shape[1:-1], weight.shape[0]), weight)
    chosen = backends.resolve(backend, device)
    if path not in chosen.paths:
        raise ValueError(f"path is {path!r}; backend {chosen.name} allows: {', '.join(chosen.paths)}")
    options = neuron.options()
    precision: AbstractContextManager[Any] = nullcontext()
    # The meta device knows no autocast, and torch's own leaves fp64 alone.
    if device.type != "meta" and torch.is_autocast_enabled(device.type) and weight.dtype != torch.float64:
        x, weight, bias = (_in_dtype(value, torch.get_autocast_dtype(device.type)) for value in (x, weight, bias))
        precision = torch.autocast(device.type, enabled=False)
    with precision:
        if chosen.packs:
            return chosen.linear_lif(x, weight, bias, v_init, packed=packed, path=path, **options)
        spikes, v = chosen.linear_lif(x.unpack() if isinstance(x, PackedSpikes) else x, weight, bias, v_init, **options)
        return PackedSpikes.pack(spikes) if packed else spikes, v


class LIF(nn.Module):
    """A layer of LIF neurons over given currents: [T, B, ...] -> spikes [T, B, ...]. See :func:`lif`."""

    def __init__(self, neuron: LIFParameters | None = None, backend: str = "auto") -> None:
        super().__init__()
        self.neuron, self.backend = _checked_neuron(neuron), backend

    def forward(self, current: Tensor) -> Tensor:
        return lif(current, self.neuron, backend=self.backend)[0]

    def extra_repr(self) -> str:
        return f"{self.neuron}, backend={self.backend!r}"


class LinearLIF(nn.Linear):
    """``nn.Linear`` followed by LIF neurons, fused: spikes [T, B, K] -> spikes [T, B, N]. See :func:`linear_lif`.

    Weights, their initial values and the keys of ``state_dict`` are nn.Linear's, so the weights of a pair of
    SpikingJelly's ``layer.Linear`` and ``neuron.LIFNode`` load as they are. Every call starts from ``v_reset``. A layer
    with ``packed`` hands packed spikes to the next one, as the first of
    ``nn.Sequential(LinearLIF(784, 1000, packed=True), LinearLIF(1000, 10))``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        neuron: LIFParameters | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        packed: bool = False,
        path: str = "auto",
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.neuron, self.backend = _checked_neuron(neuron), backend
        self.packed, self.path = packed, path

    def forward(self, x: Tensor | PackedSpikes) -> Any:
        options: dict[str, Any] = {"backend": self.backend, "packed": self.packed, "path": self.path}
        return linear_lif(x, self.weight, self.bias, self.neuron, **options)[0]

    def extra_repr(self) -> str:
        packed, path = ", packed=True" * self.packed, f", path={self.path!r}" * (self.path != "auto")
        return f"{super().extra_repr()}, {self.neuron}, backend={self.backend!r}{packed}{path}"


def _checked_neuron(neuron: Any) -> LIFParameters:
    if neuron is None:
        return LIFParameters()
    if not isinstance(neuron, LIFParameters):
        raise TypeError(f"neuron is {neuron!r}; allowed: fastsnn.LIFParameters or None")
    return neuron


def _check_tensor(name: str, value: Any, dtypes: tuple[torch.dtype, ...]) -> None:
    allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {type(value).__name__}; allowed: a tensor of {allowed}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {str(value.dtype).removeprefix('torch.')}; allowed: {allowed}")


def _checked_input(x: Any) -> tuple[list[int], torch.device]:
    """The shape [T, B, K] and the device of linear_lif's x."""
    if isinstance(x, PackedSpikes):
        _check_tensor("x's words", x.words, (torch.int32,))
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
        _check_tensor("x", x, (*_DTYPES, torch.bool, torch.uint8))
        shape, device = list(x.shape), x.device
    if len(shape) < 3 or not shape[0] or not shape[-1]:
        raise ValueError(f"x has shape {shape}; allowed: [T, B, K] with T and K at least 1")
    return shape, device


def _in_dtype(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _check_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}; allowed: {device}, where the input is")


def _check_v_init(v_init: Any, shape: tuple[int, ...], like: Tensor) -> None:
    if v_init is None:
        return
    state = torch.float32 if like.dtype in (torch.float16, torch.bfloat16) else like.dtype
    _check_tensor("v_init", v_init, (state,))
    if v_init.shape != torch.Size(shape):
        raise ValueError(f"v_init has shape {list(v_init.shape)}; allowed: {list(shape)}")
    _check_device("v_init", v_init, like.device)
