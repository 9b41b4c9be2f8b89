"""SpikingJelly: the single-step loop of its tutorial, its multi-step mode, and its CuPy kernels (0.0.0.0.14)."""

import importlib.metadata
from typing import Any

import torch
from spikingjelly.activation_based import encoding, functional, layer, neuron, surrogate
from torch import Tensor, nn

from bench.works import Peer


def _node(step_mode: str, **backend: str) -> Any:
    return neuron.LIFNode(2.0, surrogate_function=surrogate.ATan(), step_mode=step_mode, **backend)


def _linear(weight: Tensor, step_mode: str) -> nn.Module:
    linear = layer.Linear(weight.shape[1], weight.shape[0], bias=False, step_mode=step_mode)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return linear


class _Resetting(nn.Sequential):
    """A network that starts every call from its initial state."""

    def forward(self, x: Tensor) -> Tensor:
        spikes = super().forward(x)
        functional.reset_net(self)
        return spikes


class _Looped(nn.Sequential):
    """The network once per time step, as in the tutorial's training loop."""

    def forward(self, x: Tensor) -> Tensor:
        spikes = torch.stack([self.step(step) for step in x])
        functional.reset_net(self)
        return spikes

    def step(self, x: Tensor) -> Tensor:
        return super().forward(x)


class MultiStep(Peer):
    """``step_mode="m"`` on torch."""

    name = "spikingjelly-multi"
    backend: dict[str, str] = {}  # noqa: RUF012 - never changed

    def __init__(self) -> None:
        self.encoder = encoding.PoissonEncoder(step_mode="m")

    def label(self) -> str:
        return f"SpikingJelly {importlib.metadata.version('spikingjelly')} multi-step"

    def lif(self, current: Tensor) -> Tensor:
        return _node("m", **self.backend)(current)

    def encode(self, pixels: Tensor, T: int) -> Tensor:
        return self.encoder(pixels.expand(T, *pixels.shape))

    def network(self, weights: list[Tensor]) -> nn.Module:
        return _Resetting(*(part for w in weights for part in (_linear(w, "m"), _node("m", **self.backend))))


class CuPy(MultiStep):
    """``step_mode="m"`` on the CUDA kernels that it generates, through fastsnn's guards against today's libraries."""

    name = "spikingjelly-cupy"
    subjects = ("rate_step", "scan", "linear", "mlp")

    def label(self) -> str:
        return f"{super().label()} CuPy"

    def lif(self, current: Tensor) -> Tensor:
        import fastsnn

        return fastsnn.scan(current, backend="cupy")[0]

    def network(self, weights: list[Tensor]) -> nn.Module:
        return Peer.network(self, weights)


class Loop(MultiStep):
    """Single-step mode: encoder and network are called once per time step and their spikes are summed."""

    name = "spikingjelly-loop"

    def __init__(self) -> None:
        self.encoder = encoding.PoissonEncoder()

    def label(self) -> str:
        return f"SpikingJelly {importlib.metadata.version('spikingjelly')} single-step loop"

    def lif(self, current: Tensor) -> Tensor:
        node = _node("s")
        return torch.stack([node(x) for x in current])

    def encode(self, pixels: Tensor, T: int) -> Tensor:
        return torch.stack([self.encoder(pixels) for _ in range(T)])

    def network(self, weights: list[Tensor]) -> nn.Module:
        return _Looped(*(part for w in weights for part in (_linear(w, "s"), _node("s"))))

    def rates(self, network: nn.Module, pixels: Tensor, T: int) -> Tensor:
        assert isinstance(network, _Looped)
        total: Any = 0.0
        for _ in range(T):
            total += network.step(self.encoder(pixels))
        functional.reset_net(network)
        return total / T


PEERS = {peer.name: peer for peer in (Loop, MultiStep, CuPy)}
