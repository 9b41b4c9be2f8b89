"""snnTorch: its Leaky neuron on half the current, which makes its charge beta v + x that of decay_input at tau = 2.

It fires above the threshold where the reference fires at or above it.
"""

import importlib.metadata

import snntorch
import torch
from snntorch import spikegen, surrogate
from torch import Tensor

from bench.works import Peer


class SnnTorch(Peer):
    """Leaky called once per time step, after a linear layer over all time steps."""

    name = "snntorch"

    def label(self) -> str:
        return f"snnTorch {importlib.metadata.version('snntorch')}"

    def lif(self, current: Tensor) -> Tensor:
        leaky = snntorch.Leaky(beta=0.5, reset_mechanism="zero", reset_delay=False, spike_grad=surrogate.atan(2.0))
        leaky, v, spikes = leaky.to(current.device), torch.zeros_like(current[0]), []
        for x in current * 0.5:
            s, v = leaky(x, v)
            spikes.append(s)
        return torch.stack(spikes)

    def encode(self, pixels: Tensor, T: int) -> Tensor:
        return spikegen.rate(pixels, num_steps=T)


PEERS = {SnnTorch.name: SnnTorch}
