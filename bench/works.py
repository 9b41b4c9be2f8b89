"""How a peer does a case's work: the same loop around each, from its own LIF neurons and its own Poisson encoder.

A *work* has ``run``, the timed call, and ``outputs``, what the gate compares. Imports torch only (see ``cases``).
"""

import ctypes
import time
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.cases import LEARNING_RATE, Case

Outputs = dict[str, Tensor]


class Work(Protocol):
    """One implementation's way of doing a case."""

    threads: int
    """CPU threads that it is timed with."""

    def run(self) -> None:
        """The timed call, complete when it returns."""

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        """What it computes from the gate's inputs; starts from the initial weights."""

    def timed(self) -> float:
        """Seconds of one run."""


class Peer:
    """A library's LIF neurons and encoder. Subclasses override what their library does in another way."""

    name: ClassVar[str]
    forward_only: ClassVar[bool] = False
    """Its gradients are not those of the reference."""
    subjects: ClassVar[tuple[str, ...]] = ("rate_step", "scan", "linear", "mlp", "encoding")

    def label(self) -> str:
        """Name and version."""
        raise NotImplementedError

    def lif(self, current: Tensor) -> Tensor:
        """Currents [T, B, N] -> spikes [T, B, N], differentiable unless ``forward_only``."""
        raise NotImplementedError

    def encode(self, pixels: Tensor, T: int) -> Tensor:
        """Intensities [B, P] from 0 to 1 -> spikes [T, B, P]."""
        return torch.rand(T, *pixels.shape, device=pixels.device).le(pixels).to(pixels)

    def network(self, weights: list[Tensor]) -> nn.Module:
        """Linear and LIF layers with these weights [N, K]: spikes [T, B, K] -> spikes [T, B, N]."""
        return Layers(weights, self.lif)

    def rates(self, network: nn.Module, pixels: Tensor, T: int) -> Tensor:
        """Mean firing rates [B, N] of ``network`` on T steps of encoded ``pixels``."""
        return network(self.encode(pixels, T)).mean(0)


class Layers(nn.Module):
    """Each layer over all time steps before the next one."""

    def __init__(self, weights: list[Tensor], lif: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(weight.clone()) for weight in weights])
        self.lif = lif

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = self.lif(F.linear(x, weight))
        return x


class TorchWork:
    """What all works on torch share."""

    def __init__(self, peer: Peer, case: Case, x: dict[str, Tensor], device: torch.device) -> None:
        self.peer, self.case, self.device = peer, case, device
        self.x = {name: tensor.to(device) for name, tensor in x.items()}
        self.threads = torch.get_num_threads()
        self.build()

    def build(self) -> None:
        """Make what the timed call starts from."""

    def compute(self) -> None:
        raise NotImplementedError

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        raise NotImplementedError

    def run(self) -> None:
        self.compute()
        synchronize(self.device)

    def timed(self) -> float:
        torch.set_num_threads(self.threads)
        started = time.perf_counter()
        self.run()
        return time.perf_counter() - started


class ScanWork(TorchWork):
    """Spikes of given currents and, with backward, the gradient of the currents."""

    def compute(self) -> None:
        if not self.case.backward:
            with torch.no_grad():
                self.peer.lif(self.x["current"])
            return
        self.peer.lif(self.x["current"].detach().requires_grad_()).backward(self.x["grad"])

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        current = x["current"].to(self.device, copy=True).requires_grad_(self.case.backward)
        with torch.set_grad_enabled(self.case.backward):
            spikes = self.peer.lif(current)
        if not self.case.backward:
            return on_cpu(spikes=spikes)
        spikes.backward(x["grad"].to(self.device))
        return on_cpu(spikes=spikes, current=current.grad)


class LinearWork(TorchWork):
    """A linear layer and its neurons; the loss is the sum of the spikes, the gradient that of the weight."""

    def build(self) -> None:
        self.network = self.peer.network([self.x["weight0"]]).to(self.device)

    def compute(self) -> None:
        if not self.case.backward:
            with torch.no_grad():
                self.network(self.x["x"])
            return
        self.network.zero_grad(set_to_none=True)
        self.network(self.x["x"]).sum().backward()

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        network = self.peer.network([x["weight0"].to(self.device)]).to(self.device)
        with torch.set_grad_enabled(self.case.backward):
            spikes = network(x["x"].to(self.device))
        if not self.case.backward:
            return on_cpu(spikes=spikes)
        spikes.sum().backward()
        return on_cpu(spikes=spikes, **gradients(network))


class TrainingWork(TorchWork):
    """Training steps of a rate classifier: encode, forward, mean squared error of the rates, backward, Adam."""

    def build(self) -> None:
        self.network, self.optimizer = self._start(self.x)
        self.pixels = self.x["images"].float() / 255
        self.targets = F.one_hot(self.x["labels"], self.case.sizes[-1]).float()

    def compute(self) -> None:
        for pixels, target in zip(self.pixels.split(self.case.B), self.targets.split(self.case.B), strict=True):
            self._update(self.peer.rates(self.network, pixels, self.case.T), target, self.optimizer)

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        """One step on the spikes ``x["spikes"]`` [T, B, P] instead of its own encoder's."""
        network, optimizer = self._start(x)
        spikes = network(x["spikes"].to(self.device))
        target = F.one_hot(x["labels"], self.case.sizes[-1]).float().to(self.device)
        self._update(spikes.mean(0), target, optimizer)
        trained = {f"trained{i}": parameter for i, parameter in enumerate(network.parameters())}
        return on_cpu(spikes=spikes, **gradients(network), **trained)

    def _start(self, x: dict[str, Tensor]) -> tuple[nn.Module, torch.optim.Optimizer]:
        layers = range(len(self.case.sizes) - 1)
        network = self.peer.network([x[f"weight{i}"].to(self.device) for i in layers]).to(self.device)
        return network, torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)

    def _update(self, rates: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(rates, target).backward()
        optimizer.step()


class EncodingWork(TorchWork):
    """Spikes of images, as the next layer takes them."""

    def build(self) -> None:
        self.pixels = self.x["images"].float() / 255

    def compute(self) -> None:
        self.peer.encode(self.pixels, self.case.T)

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        return on_cpu(encoded=self.peer.encode(x["images"].float().to(self.device) / 255, self.case.T))


WORKS: dict[str, type[TorchWork]] = {
    "scan": ScanWork,
    "linear": LinearWork,
    "rate_step": TrainingWork,
    "mlp": TrainingWork,
    "encoding": EncodingWork,
}


def build(peer: Peer, case: Case, x: dict[str, Tensor], device: torch.device) -> Work:
    """``peer``'s work for ``case`` on inputs ``x``."""
    return WORKS[case.subject](peer, case, x, device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_cpu(**tensors: Any) -> Outputs:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {f"weight{i}": p.grad for i, p in enumerate(network.parameters()) if p.grad is not None}


def use_fastest_threads(work: Work, candidates: list[int]) -> None:
    """Set ``work.threads`` to the count that one run is fastest with."""
    seconds = {}
    for count in candidates:
        work.threads = count
        seconds[count] = work.timed()
        if seconds[count] < 0.2:  # the first run also makes the pool of threads
            seconds[count] = work.timed()
    work.threads = min(seconds, key=seconds.__getitem__)


def peak_memory(work: Work, device: torch.device) -> int | None:
    """Bytes that one run adds to what is allocated before it; None where the system can't tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work.run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed goes back to the system
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # VmHWM starts again from VmRSS
        before = _status("VmRSS")
        work.run()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):  # neither Linux nor glibc
        return None


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))
