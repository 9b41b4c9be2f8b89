"""Firing rates of a network's layers: measured, kept within bounds, and a diagnosis if a layer is silent."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastsnn.config import FitConfig
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.networks import is_spiking
from fastsnn.training.readouts import valid_steps

SATURATED = 0.99
"""Mean rate from which a layer is said to fire always."""


class SpikeRecorder:
    """While open it keeps the output of every spiking layer of a network, in the order in which they are called."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.spikes: list[Tensor] = []

    def __enter__(self) -> "SpikeRecorder":
        layers = [module for module in self.network.modules() if is_spiking(module)]
        self._hooks = [layer.register_forward_hook(self._keep) for layer in layers]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, layer: nn.Module, inputs: object, output: Tensor | PackedSpikes) -> None:
        self.spikes.append(output.unpack() if isinstance(output, PackedSpikes) else output)

    def rates(self, lengths: Tensor | None) -> Tensor:
        """Mean rate of each layer over the steps that count, [layers]."""
        return torch.stack([_mean(spikes, lengths) for spikes in self.spikes]) if self.spikes else torch.zeros(0)


def _mean(spikes: Tensor, lengths: Tensor | None) -> Tensor:
    spikes = spikes.detach().float()
    if lengths is None:
        return spikes.mean()
    per_step = spikes.flatten(2).mean(-1)
    valid = valid_steps(len(spikes), lengths)
    return (per_step * valid).sum() / valid.sum().clamp(min=1)


def layer_names(network: nn.Module) -> list[str]:
    """Path of each spiking layer in the network, as in ``named_modules``."""
    return [name or "0" for name, module in network.named_modules() if is_spiking(module)]


def rate_penalty(spikes: Sequence[Tensor], config: FitConfig) -> Tensor | None:
    """Mean square by which the neurons' rates over a batch miss their bounds, added up over the layers.

    ``spikes`` [T, B, ...] of each hidden layer. None if there is no bound or no layer.
    Source: F. Zenke and T. P. Vogels 2021, without their sum over spikes.
    """
    if not spikes or (config.rate_lower is None and config.rate_upper is None):
        return None
    total = spikes[0].new_zeros((), dtype=torch.float32)
    for layer in spikes:
        rates = layer.float().mean((0, 1))
        if config.rate_lower is not None:
            total = total + (config.rate_lower - rates).clamp(min=0).square().mean()
        if config.rate_upper is not None:
            total = total + (rates - config.rate_upper).clamp(min=0).square().mean()
    return total * config.rate_penalty


def diagnosis(names: Sequence[str], before: Sequence[Sequence[float]], rates: Sequence[float]) -> list[str]:
    """A line for each layer that is silent, or that always fires, and was neither in the epochs ``before``."""
    lines = []
    for i, rate in enumerate(rates):
        earlier = [row[i] for row in before if i < len(row)]
        name = f"layer {names[i]}" if i < len(names) else f"layer {i}"
        where = f"{name} ({i + 1} of {len(rates)})"
        if rate == 0 and 0 not in earlier:
            lines.append(
                f"no neuron of {where} fires, so nothing behind it learns: lower --v-threshold, raise --tau, give "
                "--no-decay-input or --bias, add bn to --net, or set --rate-lower 0.01"
            )
        if rate >= SATURATED and not any(value >= SATURATED for value in earlier):
            lines.append(
                f"every neuron of {where} fires at nearly every step ({rate:.1%}), so it tells nothing: raise "
                "--v-threshold, lower --lr, or set --rate-upper 0.5"
            )
    return lines
