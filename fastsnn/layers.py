"""LIF neurons as functions and as ``nn.Module``s, over whichever backend is asked for."""

from typing import Any

import torch
from torch import Tensor, nn

from fastsnn import backends
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


def linear_lif(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    neuron: LIFParameters | None = None,
    v_init: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run LIF neurons driven by ``x @ weight.T + bias`` over T time steps.

    Args:
        x: input spikes or values, floating point, bool or uint8, [T, B, K].
        weight: [N, K].
        bias: [N] or None.
        neuron: the neuron's parameters; default ``LIFParameters()``.
        v_init: membrane potential before the first step, [B, N]; default v_reset (0 for a soft reset).
        backend: ``auto``, ``torch``, ``cupy``, ``triton`` or ``numba``.

    Returns:
        spikes, 0 or 1, [T, B, N], and the membrane potential after the last step, [B, N].

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device.
        BackendUnavailable: the backend can't run on x's device.

    Source: SpikingJelly's ``layer.Linear`` followed by ``neuron.LIFNode`` in multi-step mode.
    """
    neuron = _checked_neuron(neuron)
    _check_tensor("x", x, (*_DTYPES, torch.bool, torch.uint8))
    _check_tensor("weight", weight, _DTYPES)
    if x.dim() < 3 or not x.shape[0]:
        raise ValueError(f"x has shape {list(x.shape)}; allowed: [T, B, K] with T at least 1")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(f"weight has shape {list(weight.shape)}; allowed: [N, {x.shape[-1]}] for x {list(x.shape)}")
    _check_device("weight", weight, x)
    if bias is not None:
        _check_tensor("bias", bias, (weight.dtype,))
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {list(bias.shape)}; allowed: [{weight.shape[0]}]")
        _check_device("bias", bias, x)
    _check_v_init(v_init, (*x.shape[1:-1], weight.shape[0]), weight)
    return backends.resolve(backend, x.device).linear_lif(x, weight, bias, v_init, **neuron.options())


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
    SpikingJelly's ``layer.Linear`` and ``neuron.LIFNode`` load as they are. Every call starts from ``v_reset``.
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
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.neuron, self.backend = _checked_neuron(neuron), backend

    def forward(self, x: Tensor) -> Tensor:
        return linear_lif(x, self.weight, self.bias, self.neuron, backend=self.backend)[0]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.neuron}, backend={self.backend!r}"


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


def _check_device(name: str, value: Tensor, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device}; allowed: {like.device}, where the input is")


def _check_v_init(v_init: Any, shape: tuple[int, ...], like: Tensor) -> None:
    if v_init is None:
        return
    state = torch.float32 if like.dtype in (torch.float16, torch.bfloat16) else like.dtype
    _check_tensor("v_init", v_init, (state,))
    if v_init.shape != torch.Size(shape):
        raise ValueError(f"v_init has shape {list(v_init.shape)}; allowed: {list(shape)}")
    _check_device("v_init", v_init, like)
