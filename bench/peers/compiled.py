"""torch.compile of one step of the reference, called T times.

Compiling the loop over T itself takes a minute or more on a CPU. The graph is compiled once for all shapes, and once
more with gradients.
"""

import os
import tempfile

import torch
from torch import Tensor

from bench.cases import NEURON
from bench.works import Peer
from fastsnn.kernels import reference
from fastsnn.kernels.neurons import LIF


def _step(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    spikes, (v,) = reference.scan(x[None], LIF(**NEURON), (v,))
    return spikes[0], v


class Compiled(Peer):
    """The reference's step through Inductor."""

    name = "torch-compile"
    subjects = ("rate_step", "scan", "linear", "mlp")

    def __init__(self) -> None:
        # A cache of its own, so that the first call always shows the compilation.
        self.cache = tempfile.TemporaryDirectory()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = self.cache.name
        self.step = torch.compile(_step, dynamic=True)

    def label(self) -> str:
        return f"torch.compile {torch.__version__.split('+')[0]}, one step called T times"

    def lif(self, current: Tensor) -> Tensor:
        # One shape of rank 1, and a potential that always wants a gradient, so that no other graph is compiled.
        v = torch.zeros(current[0].numel(), device=current.device, requires_grad=torch.is_grad_enabled())
        spikes = []
        for x in current.flatten(1):
            s, v = self.step(x, v)
            spikes.append(s)
        return torch.stack(spikes).view_as(current)


PEERS = {Compiled.name: Compiled}
