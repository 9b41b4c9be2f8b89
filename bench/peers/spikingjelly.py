"""SpikingJelly: the single-step loop of its tutorial, its multi-step mode, and its CuPy kernels (0.0.0.0.14)."""

import importlib.metadata
import math
from typing import Any

import torch
from spikingjelly.activation_based import encoding, functional, layer, neuron, surrogate
from torch import Tensor, nn

from bench.cases import KEPT, Case
from bench.tasks import OverTime, Peer


class _Leaky(neuron.ParametricLIFNode):  # type: ignore[misc]
    """Its neuron with a learnt leak, with one for each neuron; as ``li`` it never fires, and its potential is read."""

    def __init__(self, kind: str, size: int, **options: Any) -> None:
        reading = {"v_threshold": math.inf, "v_reset": 0.0} if kind == "li" else {"v_reset": None}
        super().__init__(1 / (1 - KEPT), store_v_seq=kind == "li", **reading, **options)
        self.w = nn.Parameter(torch.full((size,), -math.log(1 / (1 - KEPT) - 1)))
        self.reads = kind == "li"

    def kept(self) -> Tensor:
        return 1 - self.w.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        spikes = super().forward(x)
        return (self.v_seq if self.step_mode == "m" else self.v) if self.reads else spikes


class _Recurrent(nn.Module):
    """LinearRecurrentContainer, whose one Linear holds both weights."""

    def __init__(self, K: int, N: int, node: nn.Module) -> None:
        super().__init__()
        self.weight, self.back = nn.Parameter(torch.empty(N, K)), nn.Parameter(torch.empty(N, N))
        # In a list, so that the container's own weight isn't a parameter of this module.
        self.container = [layer.LinearRecurrentContainer(node, K, N, bias=False, step_mode="m")]

    def forward(self, x: Tensor) -> Tensor:
        (container,) = self.container
        spikes = torch.func.functional_call(container, {"rc.weight": torch.cat([self.weight, self.back], 1)}, (x,))
        functional.reset_net(container)
        return spikes


class _Resetting(nn.Sequential):
    """A network that starts every call from its initial state."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        functional.reset_net(self)
        return outputs


class _Looped(nn.Sequential):
    """The network once per time step, as in the tutorial's training loop."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([self.step(step) for step in x])
        functional.reset_net(self)
        return outputs

    def step(self, x: Tensor) -> Tensor:
        return super().forward(x)


class MultiStep(Peer):
    """``step_mode="m"`` on torch."""

    name = "spikingjelly-multi"
    kinds: tuple[str, ...] = ("lif", "if", "leaky", "li")
    tasks = (*Peer.tasks, "recurrent")
    options: dict[str, str] = {"step_mode": "m"}  # noqa: RUF012 - never changed

    def __init__(self) -> None:
        self.encoder = encoding.PoissonEncoder(step_mode=self.options["step_mode"])

    def label(self) -> str:
        return f"SpikingJelly {importlib.metadata.version('spikingjelly')} multi-step"

    def neurons(self, kind: str, size: int) -> nn.Module:
        options = self.options | {"surrogate_function": surrogate.ATan()}
        if kind in ("leaky", "li"):
            return _Leaky(kind, size, **options)
        return neuron.LIFNode(2.0, **options) if kind == "lif" else neuron.IFNode(**options)

    def recurrent(self, K: int, N: int) -> nn.Module:
        return _Recurrent(K, N, neuron.LIFNode(2.0, surrogate_function=surrogate.ATan(), step_mode="s"))

    def network(self, case: Case) -> nn.Module:
        return _Resetting(super().network(case))

    def encode(self, pixels: Tensor, T: int) -> Tensor:
        return self.encoder(pixels.expand(T, *pixels.shape))


class CuPy(MultiStep):
    """``step_mode="m"`` on the CUDA kernels that it generates, through fastsnn's guards against today's libraries."""

    name = "spikingjelly-cupy"
    kinds = ("lif",)
    tasks = ("training", "scan", "layer")

    def label(self) -> str:
        return f"{super().label()} CuPy"

    def neurons(self, kind: str, size: int) -> nn.Module:
        import fastsnn

        return fastsnn.Spiking(fastsnn.LIF(), backend="cupy")


class Loop(MultiStep):
    """Single-step mode: encoder and network are called once per time step and their spikes are summed."""

    name = "spikingjelly-loop"
    # No csnn: a batch norm sees one time step at a time and computes something else.
    tasks = ("training", "scan", "layer", "inference", "encoding")
    options: dict[str, str] = {"step_mode": "s"}  # noqa: RUF012 - never changed

    def label(self) -> str:
        return f"SpikingJelly {importlib.metadata.version('spikingjelly')} single-step loop"

    def network(self, case: Case) -> nn.Module:
        parts = Peer.network(self, case)
        return _Looped(*(nn.Sequential(*part) if isinstance(part, OverTime) else part for part in parts.children()))

    def encode(self, pixels: Tensor, T: int) -> Tensor:
        return torch.stack([self.encoder(pixels) for _ in range(T)])

    def rates(self, network: nn.Module, pixels: Tensor, T: int) -> Tensor:
        assert isinstance(network, _Looped)
        total: Any = 0.0
        for _ in range(T):
            total += network.step(self.encoder(pixels))
        functional.reset_net(network)
        return total / T


PEERS = {peer.name: peer for peer in (Loop, MultiStep, CuPy)}
