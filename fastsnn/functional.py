"""The operations as functions, over whichever backend is asked for."""

from collections.abc import Mapping
from typing import Literal, overload

import torch
from torch import Tensor

from fastsnn import backends
from fastsnn.arguments import (
    DTYPES,
    State,
    autocast_off,
    check_bias,
    check_device,
    check_state,
    check_tensor,
    check_weight,
    checked_input,
    checked_neuron,
    checked_parameters,
    in_dtype,
    recomputing,
    stacked_state,
)
from fastsnn.kernels.neurons import Neuron
from fastsnn.kernels.packed import PackedSpikes


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
    check_tensor("current", current, DTYPES)
    if current.dim() < 2 or not current.shape[0]:
        raise ValueError(f"current has shape {list(current.shape)}; allowed: [T, B, ...] with T at least 1")
    shape = current.shape[1:]
    given = checked_parameters(parameters, neuron, shape, current)
    stacked = stacked_state(state, neuron, shape, current)
    chosen = backends.resolve(backend, current.device, neuron, current.dtype, len(given) > 0, "scan")
    output, last = chosen.scan(current, neuron, stacked, given, **recomputing(recompute, chosen))
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
    shape, device = checked_input(x)
    check_weight("weight", weight, (None, shape[-1]), device, f"for x {shape}")
    check_bias(bias, weight)
    output_shape = (*shape[1:-1], weight.shape[0])
    given = checked_parameters(parameters, neuron, output_shape, weight)
    stacked = stacked_state(state, neuron, output_shape, weight)
    chosen = backends.resolve(backend, device, neuron, weight.dtype, len(given) > 0)
    if path not in chosen.paths:
        raise ValueError(f"path is {path!r}; backend {chosen.name} allows: {', '.join(chosen.paths)}")
    options = recomputing(recompute, chosen)
    dtype, precision = autocast_off(device, weight.dtype)
    with precision:
        x, weight, bias = in_dtype(x, dtype), in_dtype(weight, dtype), in_dtype(bias, dtype)
        output, last = chosen.linear(x, weight, bias, neuron, stacked, given, packed, path, **options)
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
    shape, device = checked_input(x)
    check_weight("weight", weight, (None, shape[-1]), device, f"for x {shape}")
    N = weight.shape[0]
    check_tensor("recurrent_weight", recurrent_weight, (weight.dtype,))
    if recurrent_weight.shape not in ((N, N), (N,)):
        found = list(recurrent_weight.shape)
        raise ValueError(
            f"recurrent_weight has shape {found}; allowed: [{N}, {N}] or [{N}] for weight {list(weight.shape)}"
        )
    check_device("recurrent_weight", recurrent_weight, device)
    check_bias(bias, weight)
    output_shape = (*shape[1:-1], N)
    given = checked_parameters(parameters, neuron, output_shape, weight)
    stacked = initial = None
    if state is not None:
        check_state(state, (*neuron.states, "output"), output_shape, weight)
        initial, stacked = state["output"], torch.stack([state[name] for name in neuron.states])
    size = N if recurrent_weight.dim() == 2 else 0
    chosen = backends.resolve(backend, device, neuron, weight.dtype, len(given) > 0, "recurrent", size)
    options = recomputing(recompute, chosen)
    dtype, precision = autocast_off(device, weight.dtype)
    with precision:
        x, weight, bias = in_dtype(x, dtype), in_dtype(weight, dtype), in_dtype(bias, dtype)
        output, last = chosen.recurrent(
            x, weight, recurrent_weight, bias, neuron, stacked, initial, given, packed, **options
        )
    final = output.unpack() if isinstance(output, PackedSpikes) else output
    return output, {**dict(zip(neuron.states, last.unbind(), strict=True)), "output": final[-1].to(last.dtype)}
