"""What the neurons of a network do: spikes of every layer, and the membrane potential of the last one.

Tests: ``tests/test_recording.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn.kernels import reference
from fastsnn.kernels.neurons import Neuron
from fastsnn.kernels.neurons.firing import firing
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.nn import LinearLIF, Recurrent, Spiking


class Membrane(NamedTuple):
    """Neurons over time, each [T, ...]."""

    potential: Tensor
    """h, before firing: a neuron fires where it is at or above the threshold."""
    after: Tensor
    """The potential after firing, from which the next step starts; h itself where the neuron did not fire."""
    threshold: Tensor | None
    """None for neurons that don't fire."""
    states: tuple[Tensor, ...]
    """Every state after each step, in the order of the neuron's ``states``."""


@torch.no_grad()
def membrane(
    current: Tensor, neuron: Neuron, output: Tensor, parameters: Mapping[str, Tensor] | None = None
) -> Membrane:
    """What happens in neurons under ``current`` [T, ...] that gave ``output``, in float64 by the neuron's own step.

    A step does not say what its potential is before it fires, so each one is done twice: once as if the neuron had
    not fired, which leaves h in its state v, and once as it did. A neuron whose v holds the leak of the next step
    already (``ALIF``) has h times a factor there, which a change of the current shows.
    """
    current = current.double()
    bound = reference.on_tensors(neuron, current, {name: p.double() for name, p in (parameters or {}).items()})
    v = neuron.states.index("v") if "v" in neuron.states else 0
    state = reference.rest(neuron, current[0])
    distances: list[Tensor] = []
    quiet = partial(_fires, distances, torch.zeros_like(current[0]))
    factor = _factor(bound, current[0], state, v)
    rows: list[tuple[Tensor, ...]] = []
    states: list[tuple[Tensor, ...]] = []
    for x, fired in zip(current, output.double(), strict=True):
        distances.clear()
        with reference.in_precision_of(current):
            with firing(quiet):
                held, silent = reference.step(bound, x, state)
            fires = bool(distances)
            h = silent[v] / factor if fires else held
            threshold = h - distances[0] if fires else h
            with firing(partial(_fires, [], fired)):
                _, state = reference.step(bound, x, state)
        rows.append((h, torch.where(fired > 0, state[v], h) if fires else h, threshold))
        states.append(state)
    h, after, threshold = (torch.stack(part).float() for part in zip(*rows, strict=True))
    every = tuple(torch.stack(part).float() for part in zip(*states, strict=True))
    return Membrane(h, after, threshold if fires else None, every)


def _fires(distances: list[Tensor], spikes: Tensor, distance: Tensor, *_: Any) -> Tensor:
    """A firing rule: ``spikes``, whatever the distance to the threshold, which is noted."""
    distances.append(distance)
    return spikes


def _factor(bound: Neuron, x: Tensor, state: tuple[Tensor, ...], v: int) -> Tensor:
    """Change of the state v by that of the distance to the threshold, if the current of the first step changes."""
    distances: list[Tensor] = []
    silent = []
    with reference.in_precision_of(x), firing(partial(_fires, distances, torch.zeros_like(x))):
        for current in (torch.zeros_like(x), torch.ones_like(x)):
            silent.append(reference.step(bound, current, state)[1][v])
    if len(distances) < 2:
        return torch.ones((), dtype=x.dtype)
    ratio = (silent[1] - silent[0]) / (distances[1] - distances[0])
    return torch.where(ratio.isfinite() & (ratio != 0), ratio, 1.0)


@dataclass(frozen=True)
class Layer:
    """One layer over the steps of one sample."""

    name: str
    shape: tuple[int, ...]
    """Of its neurons."""
    spikes: Tensor | None
    """[T, N], 0 or 1; None for neurons that don't fire."""
    output: Tensor
    """[T, N]: the spikes, or the potential of neurons that don't fire."""
    membrane: Membrane | None = None
    """Of the output layer, each [T, N]; None if the network ends in none of fastsnn's neurons."""

    @property
    def size(self) -> int:
        return self.output.shape[1]


class LayerRecorder:
    """While open it keeps input and output of every layer of neurons, in the order in which they are called."""

    def __init__(self, network: nn.Module) -> None:
        self._names = {module: name for name, module in network.named_modules()}
        self.calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def __enter__(self) -> "LayerRecorder":
        layers = [module for module in self._names if isinstance(module, (Spiking, LinearLIF, Recurrent))]
        self._hooks = [layer.register_forward_hook(self._keep) for layer in layers]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.calls.append((module, _plain(inputs[0]), _plain(output)))

    def layers(self, output: Tensor, own: int, steps: int, named: bool) -> list[Layer]:
        """Every spiking layer, and the output: sample ``own`` of the batch, over its first ``steps`` steps.

        ``output`` [T, B, classes] is the network's. ``named``: say each layer's place in the network.
        """
        calls, last = list(self.calls), None
        if calls and calls[-1][2].shape == output.shape and torch.equal(calls[-1][2].float(), output):
            last = calls.pop()
        layers = []
        for module, _, spikes in calls:
            if not module.neuron.spikes:  # type: ignore[union-attr]
                continue
            one = spikes[:steps, own]
            name = self._names[module] if named else ""
            layers.append(Layer(name, tuple(one.shape[1:]), one.flatten(1).float(), one.flatten(1).float()))
        found = output[:steps, own].float()
        inside = None if last is None else membrane_of(*(part(last, own, steps)))
        fires = bool(((found == 0) | (found == 1)).all()) if last is None else bool(last[0].neuron.spikes)  # type: ignore[union-attr]
        layers.append(Layer("", tuple(found.shape[1:]), found if fires else None, found, inside))
        return layers


def part(call: tuple[nn.Module, Tensor, Tensor], own: int | Tensor, steps: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A layer's call for a part of the batch alone."""
    return call[0], call[1][:steps, own], call[2][:steps, own]


def membrane_of(layer: Any, x: Tensor, output: Tensor) -> Membrane:
    """:func:`membrane` of a layer's neurons, for its input x [T, ..., K] and its output [T, ..., N]."""
    current = x.float()
    if not isinstance(layer, Spiking):
        current = F.linear(current, layer.weight, layer.bias)
    if isinstance(layer, Recurrent):
        before = torch.cat([torch.zeros_like(output[:1]), output[:-1]]).float()
        current = current + reference.fed_back(before, layer.recurrent_weight)
    return membrane(current, layer.neuron, output, {name: getattr(layer, name) for name in layer.learns})


def _plain(x: Tensor | PackedSpikes) -> Tensor:
    return (x.unpack() if isinstance(x, PackedSpikes) else x).detach()
