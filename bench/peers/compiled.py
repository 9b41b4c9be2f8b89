"""torch.compile of one step of the reference, called T times.

Compiling the loop over T itself takes a minute or more on a CPU. The graph is compiled once for all shapes, and once
more with gradients.
"""

import os
import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from bench.fastsnn_tasks import NEURONS
from bench.tasks import Peer, Stepwise
from fastsnn.kernels import reference


def _compiled(kind: str) -> Any:
    def step(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        output, after = reference.scan(x[None], NEURONS[kind], state)
        return output[0], *after

    return torch.compile(step, dynamic=True)


class _Flat(Stepwise):
    def forward(self, current: Tensor) -> Tensor:
        # One shape of rank 1, so that no other graph is compiled.
        return super().forward(current.flatten(1)).view_as(current)


class Compiled(Peer):
    """The reference's step through Inductor."""

    name = "torch-compile"
    kinds = ("lif", "if", "cuba", "alif", "seadlif")
    tasks = ("training", "scan", "layer", "csnn")

    def __init__(self) -> None:
        # A cache of its own, so that the first call always shows the compilation.
        self.cache = tempfile.TemporaryDirectory()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = self.cache.name
        self.steps: dict[str, Any] = {}

    def label(self) -> str:
        return f"torch.compile {torch.__version__.split('+')[0]}, one step called T times"

    def neurons(self, kind: str, size: int) -> nn.Module:
        step = self.steps.setdefault(kind, _compiled(kind))
        states = len(NEURONS[kind].states)

        # States always want a gradient while there are gradients, for the same reason.
        def start(x: Tensor) -> tuple[Tensor, ...]:
            grad = torch.is_grad_enabled()
            return tuple(torch.zeros(x.shape, device=x.device, requires_grad=grad) for _ in range(states))

        return _Flat(step, start)


PEERS = {Compiled.name: Compiled}
