"""Initial weights of deep networks, scaled so that every layer fires from the first step on.

nn.Linear's own initial weights drive a LIF neuron to about a tenth of its threshold: one layer learns to fire, but
behind a silent layer nothing learns. So in a network with hidden layers the weights keep their distribution, uniform in
(-b, b), but b is chosen for the neuron. K inputs x with mean rates r give a current that is nearly Gaussian, with

    variance K b^2 / 3 E[x^2], of which the part E[r^2] / E[x^2] stays over time and the rest is new at each step.

A thousand neurons are run on such currents, and their standard deviation is set where a neuron fires at
:data:`RATE`. What they fire is the input of the next layer. This takes no formula for the neuron, so it fits any.
The idea that fluctuations should reach the threshold: J. Rossbroich, J. Gygax, F. Zenke 2022, fluctuation-driven
initialization. A network of a single layer keeps nn.Linear's weights.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastsnn.kernels.packed import PackedSpikes
from fastsnn.layers import lif
from fastsnn.neuron import LIFParameters

RATE = 0.1
"""Spikes per step that a neuron should start with."""
_STEPS, _NEURONS = 64, 1000
_SCALES = 2.0**-8, 2.0**12
"""Standard deviations of the current between which the right one is looked for."""


class Activity(NamedTuple):
    """How active the inputs of a layer are."""

    square: float
    """E[x^2]: mean square of an input at a time step; of spikes it is the rate."""
    rate_square: float
    """E[r^2]: mean square of an input's mean over time."""


HIDDEN = Activity(0.1, 0.05)
"""Assumed of inputs of which nothing is known."""


def activity_of(x: Tensor | PackedSpikes) -> Activity:
    """Activity of the inputs [T, B, ...] of some samples, to two digits, so that every device finds the same."""
    values = (x.unpack() if isinstance(x, PackedSpikes) else x).double()
    square, rate_square = values.square().mean(), values.mean(0).square().mean()
    return Activity(*(float(f"{float(value):.2g}") for value in (square, rate_square)))


@lru_cache
def driving_current(neuron: LIFParameters, inputs: Activity) -> tuple[float, Activity]:
    """Standard deviation of the current at which ``neuron`` fires at RATE, and the activity that comes of it.

    The current's, if no current makes it fire so often, is 1.
    """
    share = min(1.0, inputs.rate_square / inputs.square) if inputs.square > 0 else 0.0
    random = torch.Generator().manual_seed(0)
    lasting = torch.randn(_NEURONS, generator=random)
    new = torch.randn(_STEPS, _NEURONS, generator=random)
    current = (math.sqrt(share) * lasting + math.sqrt(1 - share) * new)[:, None]
    low, high = _SCALES
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        fires = lif(middle * current, neuron, backend="torch")[0]
        low, high = (low, middle) if float(fires.mean()) >= RATE else (middle, high)
    if high == _SCALES[1]:
        return 1.0, HIDDEN
    scale = float(f"{high:.2g}")
    return scale, activity_of(lif(scale * current, neuron, backend="torch")[0])


@torch.no_grad()
def scale_weights(layers: Sequence[nn.Module], neuron: LIFParameters, inputs: Activity | None) -> None:
    """Scale the weights of a network's linear layers and convolutions in place.

    Args:
        layers: in order, with the batch norms (whose weights are set) and the average poolings between them.
        neuron: of every layer.
        inputs: activity of the first layer's inputs. Biases keep their values.
    """
    activity = inputs if inputs is not None and inputs.square > 0 else HIDDEN
    following = [*layers, None][1:]
    for layer, after in zip(layers, following, strict=True):
        if isinstance(layer, nn.AvgPool2d):
            activity = _averaged(activity, int(layer.kernel_size) ** 2)  # type: ignore[arg-type]
            continue
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if weight.dim() == 1:  # of a batch norm, whose currents have a variance of 1 whatever came before
            weight.fill_(driving_current(neuron, activity)[0])
        else:
            # b = scale sqrt(3 / (K E[x^2])); nn.Linear's and nn.Conv2d's own bound is 1 / sqrt(K).
            weight.mul_(driving_current(neuron, activity)[0] * math.sqrt(3 / activity.square))
        if not isinstance(after, (nn.BatchNorm1d, nn.BatchNorm2d)):
            _, activity = driving_current(neuron, activity)


def _averaged(spikes: Activity, count: int) -> Activity:
    """Activity of the means of ``count`` independent neurons; the mean of a spike is its mean square."""
    mean = spikes.square**2
    return Activity(mean + (spikes.square - mean) / count, mean + (spikes.rate_square - mean) / count)
