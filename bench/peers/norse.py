"""Norse: its LIF box neuron, whose step dt / tau_mem is 1 / tau. It has no arctangent surrogate: forward only."""

import importlib.metadata
import warnings

import torch
from torch import Tensor, nn

from bench.tasks import Peer, Stepwise

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it scripts functions with torch.jit when it is imported
    from norse.torch.functional.encode import poisson_encode
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters, lif_box_feed_forward_step

_DT = 0.001


class Norse(Peer):
    """One functional step per time step."""

    name = "norse"
    forward_only = True

    def label(self) -> str:
        return f"Norse {importlib.metadata.version('norse')}"

    def neurons(self, kind: str, size: int) -> nn.Module:
        neuron = LIFBoxParameters(tau_mem_inv=torch.tensor(0.5 / _DT))
        return Stepwise(
            lambda x, state: lif_box_feed_forward_step(x, state, neuron, _DT),
            lambda x: (LIFBoxFeedForwardState(v=torch.zeros_like(x)),),
        )

    def encode(self, pixels: Tensor, T: int) -> Tensor:
        return poisson_encode(pixels, T, f_max=1 / _DT, dt=_DT)


PEERS = {Norse.name: Norse}
