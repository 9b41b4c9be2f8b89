"""Initial weights of deep networks, scaled so that every layer fires from the first step on.

nn.Linear's own initial weights drive a LIF neuron to about a tenth of its threshold: one layer learns to fire, but
behind a silent layer nothing learns. So in a network with hidden layers some samples are sent through, layer by layer,
and the weights of each layer (of a batch norm behind it, if there is one) are multiplied by the number with which its
neurons fire at :data:`RATE`, or half as often as any number could make them, if that is less. This takes no formula for
the neuron, so it fits any. It is layer-sequential unit-variance initialization (D. Mishkin and J. Matas 2016) with the
firing rate in place of the variance; that a neuron's input should reach its threshold by its fluctuations is from
J. Rossbroich, J. Gygax and F. Zenke 2022. A network of a single layer keeps nn.Linear's weights.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn.functional import scan
from fastsnn.kernels.neurons import Neuron
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.nn import LinearLIF, Recurrent, Spiking

RATE = 0.1
"""Spikes per step that the neurons of a layer start with, on average."""
SAMPLES, VALUES = 64, 2**20
"""Samples that are looked at, at most, and values of x in all of them."""
_SCALES = 2.0**-8, 2.0**12
"""Numbers between which that for a layer is looked for."""


def samples_to_look_at(shape: Sequence[int], T: int) -> int:
    """How many samples of a data set are sent through."""
    return max(1, min(SAMPLES, VALUES // (T * math.prod(shape))))


def random_spikes(shape: Sequence[int]) -> Tensor:
    """Spikes at RATE [32, 32, *shape], for a network whose data nobody has."""
    return (torch.rand(32, 32, *shape, generator=torch.Generator().manual_seed(0)) < RATE).float()


@torch.no_grad()
def scale_weights(network: Iterable[nn.Module], inputs: Tensor | PackedSpikes) -> None:
    """Scale the weights of a network on the CPU in place, for inputs [T, B, ...]; biases keep their values.

    Weights in front of neurons that never spike keep theirs, and so does a layer that no number makes fire.
    """
    x = inputs.unpack() if isinstance(inputs, PackedSpikes) else inputs
    weight, bias = torch.empty(0), torch.zeros(())
    for module in network:
        if isinstance(module, LinearLIF):
            bias = torch.zeros(()) if module.bias is None else module.bias
            x = _fired(module.neuron, module.weight, nn.functional.linear(x, module.weight), bias)
            continue
        if isinstance(module, Recurrent):
            bias = torch.zeros(()) if module.bias is None else module.bias
            _fired(module.neuron, module.weight, nn.functional.linear(x, module.weight), bias)
            x = module(x)
            continue
        if isinstance(module, Spiking) and module.neuron.spikes:
            x = _fired(module.neuron, weight, x - bias, bias)
            continue
        layer: Any = getattr(module, "module", module)
        statistics = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        x = module(x)
        layer.load_state_dict(statistics, strict=False)  # a batch norm's, which these samples are none of
        if isinstance(getattr(layer, "weight", None), Tensor):
            weight, bias = layer.weight, torch.zeros(())
            if layer.bias is not None:
                bias = layer.bias[:, None, None] if x.dim() == 5 else layer.bias


def _fired(neuron: Neuron, weight: Tensor, product: Tensor, bias: Tensor) -> Tensor:
    """Spikes of a layer's neurons, after its weight, whose product with the input is given, was scaled."""

    def spikes(scale: float) -> Tensor:
        return scan(product * scale + bias, neuron)[0]

    low, high = _SCALES
    # Of inputs that are rarely active no weight makes every tenth step a spike.
    goal = min(RATE, float(spikes(high).mean()) / 2)
    while high / low > 1.02 and goal > 0:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if float(spikes(middle).mean()) >= goal else (middle, high)
    scale = float(f"{high:.2g}") if goal > 0 else 1.0  # rounded, so that other products change nothing
    weight.mul_(scale)
    return spikes(scale)
