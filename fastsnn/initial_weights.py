"""Initial weights of deep networks, scaled so that every layer fires from the first step on.

nn.Linear's own initial weights drive a LIF neuron to about a tenth of its threshold: one layer learns to fire, but behind
a silent layer nothing learns. Weights keep their distribution, uniform in (-b, b); b is chosen so that the standard
deviation of the membrane potential, without reset, is its distance from the resting potential to the threshold: then
about one neuron in six stands above it at any time.

    variance of v = K b^2 / 3 (E[r^2] G^2 + (E[x^2] - E[r^2]) F)

for K inputs x that fire with rates r. G is the gain of the membrane for a constant current (1, or tau without
``decay_input``), F = G^2 / (2 tau - 1) for one that is random at each step. Source: fluctuation-driven initialization
(J. Rossbroich, J. Gygax, F. Zenke 2022), with xi = 1. A single layer keeps nn.Linear's weights.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastsnn.kernels.packed import PackedSpikes
from fastsnn.neuron import LIFParameters


class Activity(NamedTuple):
    """How active the inputs of a layer are."""

    square: float
    """E[x^2]: mean square of an input at a time step; of spikes it is the rate."""
    rate_square: float
    """E[r^2]: mean square of an input's mean over time."""


HIDDEN = Activity(0.1, 0.03)
"""Assumed of hidden layers: a rate of 0.1, spread over few neurons."""


def activity_of(x: Tensor | PackedSpikes) -> Activity:
    """Activity of the inputs [T, B, ...] of some samples, to two digits, so that every device finds the same."""
    values = (x.unpack() if isinstance(x, PackedSpikes) else x).double()
    square, rate_square = values.square().mean(), values.mean(0).square().mean()
    return Activity(*(float(f"{float(value):.2g}") for value in (square, rate_square)))


def weight_bound(fan_in: int, inputs: Activity, neuron: LIFParameters) -> float:
    """b for a layer of ``fan_in`` inputs in front of ``neuron``."""
    gain = 1.0 if neuron.decay_input else neuron.tau
    random_gain = gain**2 / (2 * neuron.tau - 1)
    power = inputs.rate_square * gain**2 + max(0.0, inputs.square - inputs.rate_square) * random_gain
    distance = neuron.v_threshold - (neuron.v_reset or 0.0)
    return distance * math.sqrt(3 / (fan_in * power)) if power > 0 else 1 / math.sqrt(fan_in)


@torch.no_grad()
def scale_weights(layers: Sequence[nn.Module], neuron: LIFParameters, inputs: Activity | None) -> None:
    """Scale the weights of linear layers and convolutions in place; a batch norm in front of neurons gets the gain.

    ``inputs`` is the activity of the first layer's inputs; the others' are assumed. Biases keep their values.
    """
    activity = inputs or HIDDEN
    for layer in layers:
        layer = getattr(layer, "module", layer)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if weight.dim() == 1:
            # Behind a batch norm currents have a variance of 1 whatever the weights are.
            gain = 1.0 if neuron.decay_input else neuron.tau
            weight.fill_((neuron.v_threshold - (neuron.v_reset or 0.0)) / gain)
        else:
            fan_in = weight[0].numel()
            # nn.Linear's and nn.Conv2d's own bound is 1 / sqrt(fan_in).
            weight.mul_(weight_bound(fan_in, activity, neuron) * math.sqrt(fan_in))
            activity = HIDDEN
