"""A network as a NIR graph: :func:`to_nir`."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastsnn.kernels.neurons import IF, LI, LIF, PLIF, CuBaLIF
from fastsnn.networks import Layers, SpatialSpiking, TimeDistributed
from fastsnn.nir.layers import Scale, Threshold, check_dt, import_nir
from fastsnn.nn import LinearLIF, Recurrent, Spiking

Shape = tuple[int, ...]


def to_nir(net: nn.Module, shape: Sequence[int] | None = None, *, dt: float = 1e-4) -> Any:
    """The network as a ``nir.NIRGraph``, without loss; what NIR can't express is refused, naming the layer.

    A time constant of tau steps is one of ``tau * dt`` seconds, in the forward Euler discretisation of ``fastsnn.nir``:
    LIF has r = 1 with ``decay_input`` and r = tau in steps without, IF has r = 1 / dt, CuBaLIF has
    tau_syn = dt / (1 - syn_decay), w_in = tau_syn / dt, and so for the membrane and r. NIR fires above its threshold
    and fastsnn at it, so the threshold is written as the next smaller fp32 number. PLIF is written as the LIF that it
    has become; surrogates are not written.

    Args:
        net: a Sequential of fastsnn's layers, nn.Linear, nn.Flatten(2) and ``TimeDistributed`` convolutions and
            average pooling.
        shape: of a sample at one time step, as (2, 34, 34); default that of the first layer, if it is linear.
        dt: seconds of a time step; snnTorch reads graphs with the default, Norse takes it as an argument.

    Raises:
        ImportError: the package nir is missing.
        ValueError: NIR can't express a layer or its neuron (a reset by subtraction, say).
    """
    import_nir()
    import nir

    dt = check_dt(dt)
    flat = isinstance(net, Layers) and net.flat
    layers = list(_layers(net, ""))
    size = tuple(shape or ())
    if flat or not size:
        width = getattr(layers[0][1], "weight", None) if layers else None
        if not isinstance(width, Tensor) or width.dim() != 2:
            raise ValueError("shape is None; allowed: the shape of a sample, which the first layer doesn't tell")
        size = (width.shape[1],)
    nodes: dict[str, Any] = {"input": nir.Input(np.array(size))}
    with torch.no_grad():
        for name, layer in layers:
            for suffix, node, output in _nodes(name, layer, size, dt):
                nodes[f"{name}{suffix}"], size = node, output
    nodes["output"] = nir.Output(np.array(size))
    names = list(nodes)
    edges = list(pairwise(names))
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata={"dt": dt})


def _layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers in order, by name; what does nothing in evaluation is left out."""
    if isinstance(module, nn.Sequential):
        for part, child in module.named_children():
            yield from _layers(child, f"{name}_{part}" if name else f"layer_{part}")
    elif isinstance(module, TimeDistributed):
        yield from _layers(module.module, name or "layer")
    elif not isinstance(module, (nn.Dropout, nn.Dropout2d, nn.Identity)):
        yield name or "layer", module


def _nodes(name: str, layer: nn.Module, size: Shape, dt: float) -> Iterator[tuple[str, Any, Shape]]:
    """Suffix of the name, node and size of its output, for each node of a layer."""
    import nir

    if isinstance(layer, (nn.Linear, Recurrent)):
        if size != (layer.weight.shape[1],):
            raise ValueError(
                f"{name} is given {list(size)}; allowed: [{layer.weight.shape[1]}], as behind nn.Flatten(2)"
            )
        size = (layer.weight.shape[0],)
        suffix = "_linear" * (type(layer) is not nn.Linear)
        yield suffix, _affine(layer.weight, layer.bias), size
    if isinstance(layer, (Spiking, LinearLIF)):
        yield "", _neuron(name, layer, size, dt), size
    elif isinstance(layer, Recurrent):
        back = layer.recurrent_weight
        parts = {
            "input": nir.Input(np.array(size)),
            "neuron": _neuron(name, layer, size, dt),
            "back": nir.Linear(_array(torch.diag(back) if back.dim() == 1 else back)),
            "output": nir.Output(np.array(size)),
        }
        edges = [("input", "neuron"), ("neuron", "back"), ("back", "neuron"), ("neuron", "output")]
        yield "", nir.NIRGraph(nodes=parts, edges=edges), size
    elif isinstance(layer, Scale):
        yield "", nir.Scale(np.broadcast_to(_array(layer.scale), size).copy()), size
    elif type(layer) is nn.Flatten:
        if (layer.start_dim, layer.end_dim) != (2, -1):
            raise ValueError(f"{name} is {layer}; allowed: nn.Flatten(2), which keeps time and batch")
        yield "", nir.Flatten({"input": np.array(size)}, 0, -1), (int(np.prod(size)),)
    elif type(layer) in (nn.Conv2d, nn.AvgPool2d):
        if len(size) != 3:
            raise ValueError(f"{name} is {layer} over {list(size)}; allowed: [channels, height, width]")
        output = tuple(layer(_zeros(layer, size)).shape[1:])
        node = _convolution(name, layer, size) if isinstance(layer, nn.Conv2d) else _pooling(name, layer)
        yield "", node, output
    elif not isinstance(layer, nn.Linear):
        kind = type(layer).__name__
        allowed = "Linear, Conv2d, AvgPool2d, Flatten, fastsnn's layers and Sequentials of them"
        hint = "; fold it into the layer before" if "Norm" in kind else ""
        raise ValueError(f"{name} is {kind}, which can't be written as NIR{hint}; allowed: {allowed}")


def _zeros(layer: nn.Module, size: Shape) -> Tensor:
    """One sample of zeros where the layer's weights are."""
    like = next(layer.parameters(), torch.empty(0))
    return torch.zeros(1, *size, dtype=like.dtype, device=like.device)


def _array(value: Tensor) -> np.ndarray:
    return np.ascontiguousarray(value.detach().cpu().numpy())


def _affine(weight: Tensor, bias: Tensor | None) -> Any:
    import nir

    return nir.Linear(_array(weight)) if bias is None else nir.Affine(_array(weight), _array(bias))


def _convolution(name: str, layer: nn.Conv2d, size: Shape) -> Any:
    import nir

    if layer.padding_mode != "zeros":
        raise ValueError(f"{name} has padding_mode {layer.padding_mode!r}; NIR allows: zeros")
    if layer.groups != 1:
        raise ValueError(f"{name} has {layer.groups} groups, whose input nir takes for smaller; NIR allows: 1")
    bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias
    padding, weight = layer.padding, _array(layer.weight)
    return nir.Conv2d(size[1:], weight, layer.stride, padding, layer.dilation, layer.groups, _array(bias))


def _pooling(name: str, layer: Any) -> Any:
    """AvgPool2d, or SumPool2d if the divisor is 1."""
    import nir

    pairs = [np.array(value if isinstance(value, tuple) else (value, value))
             for value in (layer.kernel_size, layer.stride, layer.padding)]  # fmt: skip
    if (
        layer.ceil_mode
        or layer.divisor_override not in (None, 1)
        or not (layer.count_include_pad or not pairs[2].any())
    ):
        raise ValueError(f"{name} is {layer}; NIR allows: no ceil_mode, padding that counts, and divisor 1 or none")
    return (nir.SumPool2d if layer.divisor_override == 1 else nir.AvgPool2d)(*pairs)


def _neuron(name: str, layer: Any, size: Shape, dt: float) -> Any:
    """The node of a layer's neurons."""
    import nir

    neuron = layer.neuron
    kind = type(neuron)

    def value(field: str) -> np.ndarray:
        given = (
            getattr(layer, field)
            if field in layer.learns
            else torch.tensor(getattr(neuron, field), dtype=torch.float64)
        )
        array = _array(given).astype(np.float64)
        if isinstance(layer, SpatialSpiking):  # it sees channels last
            return np.moveaxis(np.broadcast_to(array, (*size[1:], size[0])), -1, 0).copy()
        return np.broadcast_to(array, size).copy()

    if kind not in (IF, LIF, PLIF, CuBaLIF, LI, Threshold):
        allowed = "IF, LIF, PLIF, CuBaLIF, LI"
        raise ValueError(f"{name} has the neuron {kind.__name__}, which NIR doesn't have; allowed: {allowed}")
    if kind is Threshold:
        return nir.Threshold(_below(value("v_threshold")))
    if kind is LI:
        tau = value("tau")
        return nir.LI(tau=tau * dt, r=np.ones(size) if neuron.decay_input else tau, v_leak=np.zeros(size))
    _check_reset(name, neuron)
    reset = {"v_threshold": _below(value("v_threshold")), "v_reset": value("v_reset")}
    if kind is IF:
        return nir.IF(r=np.full(size, 1 / dt), **reset)
    if kind is CuBaLIF:
        return _cuba(name, value, dt, reset)
    tau = 1 + np.exp(-value("w")) if kind is PLIF else value("tau")
    r = np.ones(size) if neuron.decay_input else tau
    return nir.LIF(tau=tau * dt, r=r, v_leak=reset["v_reset"].copy(), **reset)


def _cuba(name: str, value: Callable[[str], np.ndarray], dt: float, reset: dict[str, np.ndarray]) -> Any:
    import nir

    decays = {field: value(field) for field in ("syn_decay", "mem_decay")}
    for field, decay in decays.items():
        if (decay >= 1).any() or (decay < 0).any():
            raise ValueError(
                f"{name} has {field} {decay.max():g}, for which NIR has no time constant; allowed: 0 to below 1"
            )
    if reset["v_reset"].any():
        raise ValueError(f"{name} has v_reset {reset['v_reset'].flat[0]:g}, but CuBaLIF leaks to 0; NIR allows: 0")
    synapse, membrane = (1 / (1 - decay) for decay in decays.values())
    leak = np.zeros_like(synapse)
    return nir.CubaLIF(
        tau_syn=synapse * dt, tau_mem=membrane * dt, r=membrane, v_leak=leak, w_in=synapse, **reset
    )  # fmt: skip


def _check_reset(name: str, neuron: Any) -> None:
    if neuron.v_reset is None:
        raise ValueError(
            f"{name} resets by subtraction (v_reset=None), which NIR doesn't have; allowed: v_reset a number"
        )
    if not neuron.spikes:
        raise ValueError(f"{name} has v_threshold inf; allowed: a finite one, or fastsnn.LI for a read-out")


def _below(threshold: np.ndarray) -> np.ndarray:
    """The thresholds that a fp32 potential is above exactly where it is at or above these."""
    return np.nextafter(threshold.astype(np.float32), np.float32(-np.inf))
