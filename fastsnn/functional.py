"""The operations as functions, over whichever backend is asked for, and the one place where arguments are checked."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, overload

import torch
from torch import Tensor

from fastsnn import backends
from fastsnn.kernels.neurons import LIF, Neuron
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.kernels.segments import CHOICES

State = Mapping[str, Tensor]
"""A neuron's states by name, each a tensor [B, ...]."""

_DEFAULT = LIF()
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def scan(
    current: Tensor,
    neuron: Neuron | None = None,
    state: State | None = None,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    backend: str = "auto",
    recompute: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run neurons over T time steps of input current.

    Args:
        current: input current, floating point, [T, B, ...].
        neuron: the neuron; default ``fastsnn.LIF()``.
        state: its states before the first step, by name, each [B, ...]; default at rest.
        parameters: parameters of the neuron that learn, by name: tensors that broadcast to [B, ...], as [] (one for the
            layer), [N] (one per neuron) or [C, 1, 1] (one per channel).
        backend: ``auto``, ``torch``, ``cupy``, ``triton``, ``numba``, or one that was registered.
        recompute: ``on`` keeps the neurons' states every so many time steps for backward, which computes the steps
            between again; ``off`` keeps what it needs of every step; ``auto`` is on if that is more than a 32nd of the
            device's memory (``fastsnn.kernels.segments.SHARE``). The results are the same bits. Backends numba and
            triton; on numba a scan computes its steps again in any case. Others: ``auto`` or ``off``.

    Returns:
        the output, spikes of 0 and 1 (or potentials, of a neuron that doesn't spike), [T, B, ...], and the states after
        the last step.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device, or the backend can't compute it.
        BackendUnavailable: the backend can't run on current's device.

    Source: SpikingJelly's neurons in multi-step mode.
    """
    neuron = checked_neuron(neuron)
    check_tensor("current", current, _DTYPES)
    if current.dim() < 2 or not current.shape[0]:
        raise ValueError(f"current has shape {list(current.shape)}; allowed: [T, B, ...] with T at least 1")
    shape = current.shape[1:]
    given = _checked_parameters(parameters, neuron, shape, current)
    stacked = _stacked(state, neuron, shape, current)
    chosen = backends.resolve(backend, current.device, neuron, current.dtype, len(given) > 0, "scan")
    output, last = chosen.scan(current, neuron, stacked, given, **_recomputing(recompute, chosen))
    return output, dict(zip(neuron.states, last.unbind(), strict=True))


@overload
def linear(
    x: Tensor | PackedSpikes,
    weight: Tensor,
    bias: Tensor | None = None,
    neuron: Neuron | None = None,
    state: State | None = None,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    backend: str = "auto",
    packed: Literal[False] = False,
    path: str = "auto",
    recompute: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]: ...


@overload
def linear(
    x: Tensor | PackedSpikes,
    weight: Tensor,
    bias: Tensor | None = None,
    neuron: Neuron | None = None,
    state: State | None = None,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    backend: str = "auto",
    packed: bool,
    path: str = "auto",
    recompute: str = "auto",
) -> tuple[Tensor | PackedSpikes, dict[str, Tensor]]: ...


def linear(
    x: Tensor | PackedSpikes,
    weight: Tensor,
    bias: Tensor | None = None,
    neuron: Neuron | None = None,
    state: State | None = None,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    backend: str = "auto",
    packed: bool = False,
    path: str = "auto",
    recompute: str = "auto",
) -> tuple[Tensor | PackedSpikes, dict[str, Tensor]]:
    """Run neurons driven by ``x @ weight.T + bias`` over T time steps.

    Under autocast x, weight and bias are used in its dtype, as in ``nn.Linear``; states stay in fp32.

    Args:
        x: input spikes or values, floating point, bool or uint8, [T, B, K], or packed spikes.
        weight: [N, K].
        bias: [N] or None.
        neuron, state, parameters, backend, recompute: see :func:`scan`; states and parameters are of [B, N].
        packed: return the spikes as ``PackedSpikes``, for a next layer. They mean the same on every backend; only
            triton keeps them for backward as they are, 1/32 of fp32.
        path: with backend triton ``fused``, ``library`` (torch's product, then the neurons) or ``auto``, which takes
            the faster one by the size of K (``fastsnn.kernels.triton.linear.FUSED_UP_TO``). Others: ``auto``.

    Returns:
        the output [T, B, N], and the states after the last step.

    Raises:
        TypeError, ValueError, BackendUnavailable: see :func:`scan`.

    Source: SpikingJelly's ``layer.Linear`` followed by a neuron in multi-step mode.
    """
    neuron = checked_neuron(neuron)
    if packed and not neuron.spikes:
        raise ValueError(f"packed is True, but {type(neuron).__name__} gives potentials, not spikes; allowed: False")
    shape, device = _checked_input(x)
    check_weight("weight", weight, (None, shape[-1]), device, f"for x {shape}")
    _check_bias(bias, weight)
    output_shape = (*shape[1:-1], weight.shape[0])
    given = _checked_parameters(parameters, neuron, output_shape, weight)
    stacked = _stacked(state, neuron, output_shape, weight)
    chosen = backends.resolve(backend, device, neuron, weight.dtype, len(given) > 0)
    if path not in chosen.paths:
        raise ValueError(f"path is {path!r}; backend {chosen.name} allows: {', '.join(chosen.paths)}")
    recomputing = _recomputing(recompute, chosen)
    dtype, precision = _autocast_off(device, weight.dtype)
    with precision:
        x, weight, bias = _in_dtype(x, dtype), _in_dtype(weight, dtype), _in_dtype(bias, dtype)
        output, last = chosen.linear(x, weight, bias, neuron, stacked, given, packed, path, **recomputing)
    return output, dict(zip(neuron.states, last.unbind(), strict=True))


def recurrent(
    x: Tensor | PackedSpikes,
    weight: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None = None,
    neuron: Neuron | None = None,
    state: State | None = None,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    backend: str = "auto",
    packed: bool = False,
    recompute: str = "auto",
) -> tuple[Tensor | PackedSpikes, dict[str, Tensor]]:
    """Run neurons driven by ``x[t] @ weight.T + output[t - 1] @ recurrent_weight.T + bias`` over T time steps.

    Under autocast x, weight and bias are used in its dtype; states and what comes back stay in fp32.

    Args:
        x: input spikes or values, floating point, bool or uint8, [T, B, K], or packed spikes.
        weight: [N, K].
        recurrent_weight: [N, N], or its diagonal alone, [N]: each neuron comes back to itself.
        bias: [N] or None.
        neuron, parameters, backend, recompute: see :func:`scan`; parameters are of [B, N].
        state: the states before the first step and the output before it, under ``output``, by name, each [B, N];
            default at rest and zeros. What is returned goes on with a sequence that was cut.
        packed: return the output as ``PackedSpikes``, for a next layer.

    Returns:
        the output [T, B, N]; the states after the last step and, under ``output``, the last output.

    Raises:
        TypeError, ValueError, BackendUnavailable: see :func:`scan`.

    Source: SpikingJelly's ``layer.LinearRecurrentContainer`` around a neuron; snnTorch's ``RLeaky`` and ``RSynaptic``.
    """
    neuron = checked_neuron(neuron)
    if packed and not neuron.spikes:
        raise ValueError(f"packed is True, but {type(neuron).__name__} gives potentials, not spikes; allowed: False")
    shape, device = _checked_input(x)
    check_weight("weight", weight, (None, shape[-1]), device, f"for x {shape}")
    N = weight.shape[0]
    check_tensor("recurrent_weight", recurrent_weight, (weight.dtype,))
    if recurrent_weight.shape not in ((N, N), (N,)):
        found = list(recurrent_weight.shape)
        raise ValueError(
            f"recurrent_weight has shape {found}; allowed: [{N}, {N}] or [{N}] for weight {list(weight.shape)}"
        )
    _check_device("recurrent_weight", recurrent_weight, device)
    _check_bias(bias, weight)
    output_shape = (*shape[1:-1], N)
    given = _checked_parameters(parameters, neuron, output_shape, weight)
    stacked = initial = None
    if state is not None:
        _check_state(state, (*neuron.states, "output"), output_shape, weight)
        initial, stacked = state["output"], torch.stack([state[name] for name in neuron.states])
    size = N if recurrent_weight.dim() == 2 else 0
    chosen = backends.resolve(backend, device, neuron, weight.dtype, len(given) > 0, "recurrent", size)
    recomputing = _recomputing(recompute, chosen)
    dtype, precision = _autocast_off(device, weight.dtype)
    with precision:
        x, weight, bias = _in_dtype(x, dtype), _in_dtype(weight, dtype), _in_dtype(bias, dtype)
        output, last = chosen.recurrent(
            x, weight, recurrent_weight, bias, neuron, stacked, initial, given, packed, **recomputing
        )
    final = output.unpack() if isinstance(output, PackedSpikes) else output
    return output, {**dict(zip(neuron.states, last.unbind(), strict=True)), "output": final[-1].to(last.dtype)}


def _recomputing(recompute: str, backend: backends.Backend) -> dict[str, Any]:
    """``recompute`` as a backend takes it. Raises ValueError if it can't, unless no gradient may be asked for."""
    able = getattr(backend, "recomputes", False)
    if recompute not in CHOICES or (recompute == "on" and torch.is_grad_enabled() and not able):
        allowed = [choice for choice in CHOICES if choice != "on" or able]
        raise ValueError(f"recompute is {recompute!r}; backend {backend.name} allows: {', '.join(allowed)}")
    return {"recompute": recompute} if able else {}


def checked_neuron(neuron: Neuron | None) -> Neuron:
    """The neuron, or the default one; raises TypeError for anything else."""
    if neuron is None:
        return _DEFAULT
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
    check_tensor(name, weight, _DTYPES)
    fits = weight.dim() == 2 and all(want in (None, got) for want, got in zip(shape, weight.shape, strict=True))
    if not fits:
        wanted = ", ".join("N" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(weight.shape)}; allowed: [{wanted}] {remark}")
    _check_device(name, weight, device)


def _checked_input(x: object) -> tuple[list[int], torch.device]:
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
        check_tensor("x", x, (*_DTYPES, torch.bool, torch.uint8))
        assert isinstance(x, Tensor)
        shape, device = list(x.shape), x.device
    if len(shape) < 3 or not shape[0] or not shape[-1]:
        raise ValueError(f"x has shape {shape}; allowed: [T, B, K] with T and K at least 1")
    return shape, device


def _check_bias(bias: Tensor | None, weight: Tensor) -> None:
    if bias is not None:
        check_tensor("bias", bias, (weight.dtype,))
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {list(bias.shape)}; allowed: [{weight.shape[0]}]")
        _check_device("bias", bias, weight.device)


def _autocast_off(
    device: torch.device, dtype: torch.dtype
) -> tuple[torch.dtype | None, AbstractContextManager[object]]:
    """The dtype that autocast asks for, if it does, and a context without it."""
    # The meta device knows no autocast, and torch's own leaves fp64 alone.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type) or dtype == torch.float64:
        return None, nullcontext()
    return torch.get_autocast_dtype(device.type), torch.autocast(device.type, enabled=False)


def _in_dtype(value: Any, dtype: torch.dtype | None) -> Any:
    return value.to(dtype) if dtype and isinstance(value, Tensor) and value.is_floating_point() else value


def _check_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}; allowed: {device}, where the input is")


def _stacked(state: State | None, neuron: Neuron, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """The states as the backends take them, [S, B, ...]."""
    if state is None:
        return None
    _check_state(state, neuron.states, shape, like)
    return torch.stack([state[name] for name in neuron.states])


def _check_state(state: State, names: Sequence[str], shape: tuple[int, ...], like: Tensor) -> None:
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
        _check_device(f"state {name!r}", value, like.device)


def state_dtype(like: Tensor) -> torch.dtype:
    """The dtype of states and learnt parameters, which half precision doesn't reach."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _checked_parameters(
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
        _check_device(f"parameter {name!r}", value, like.device)
    return {name: parameters[name] for name in known if name in parameters}
