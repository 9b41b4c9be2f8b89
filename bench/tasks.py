"""How a peer does a case's task: the same loop around each, from its own neurons and its own Poisson encoder.

Imports torch only (see ``cases``).
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


class Task(Protocol):
    """One implementation's way of doing a case."""

    threads: int
    """CPU threads that it is timed with."""

    def run(self) -> None:
        """The timed call, complete when it returns."""

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        """What it computes from the check's inputs; starts from the initial weights."""

    def timed(self) -> float:
        """Seconds of one run."""


class Peer:
    """A library's neurons and encoder. Subclasses override what their library does in another way."""

    name: ClassVar[str]
    kinds: tuple[str, ...] = ("lif",)
    """The neurons that it has (``Case.neuron``; li is the read-out)."""
    forward_only: ClassVar[bool] = False
    """Its gradients are not those of the reference."""
    tasks: tuple[str, ...] = ("training", "scan", "layer", "csnn", "inference", "encoding")

    def label(self) -> str:
        """Name and version."""
        raise NotImplementedError

    def neurons(self, kind: str, size: int) -> nn.Module:
        """Currents [T, B, ...] -> spikes [T, B, ...]. One whose leak learns tells it: ``kept()``, in each step."""
        raise NotImplementedError

    def recurrent(self, K: int, N: int) -> nn.Module:
        """[T, B, K] -> spikes [T, B, N] that come back; its parameters are the weights [N, K] and [N, N]."""
        raise NotImplementedError

    def network(self, case: Case) -> nn.Module:
        """[T, B, ...] -> outputs [T, B, N], each layer over all time steps before the next one."""
        if case.task == "recurrent":
            return self.recurrent(*case.sizes)
        parts: list[nn.Module] = []
        for layer in case.layers():
            if layer.modules:
                parts.append(OverTime(*layer.modules))
            parts.append(self.neurons(layer.neuron, layer.size))
        return nn.Sequential(*parts)

    def encode(self, pixels: Tensor, T: int) -> Tensor:
        """Intensities [B, P] from 0 to 1 -> spikes [T, B, P]."""
        return torch.rand(T, *pixels.shape, device=pixels.device).le(pixels).to(pixels)

    def rates(self, network: nn.Module, pixels: Tensor, T: int) -> Tensor:
        """Mean firing rates [B, N] of ``network`` on T steps of encoded ``pixels``."""
        return network(self.encode(pixels, T)).mean(0)


class OverTime(nn.Sequential):
    """Layers without a state, on all time steps at once."""

    def forward(self, x: Tensor) -> Tensor:
        if len(self) == 1 and isinstance(self[0], nn.Linear):
            return self[0](x)
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Stepwise(nn.Module):
    """A function of one current and states, called once per time step; ``start`` makes the states."""

    def __init__(self, step: Callable[..., Any], start: Callable[[Tensor], tuple[Any, ...]]) -> None:
        super().__init__()
        self.step, self.start = step, start

    def forward(self, current: Tensor) -> Tensor:
        state, outputs = self.start(current[0]), []
        for x in current:
            output, *state = self.step(x, *state)
            outputs.append(output)
        return torch.stack(outputs)


class TorchTask:
    """A task on torch."""

    def __init__(self, peer: Peer, case: Case, x: dict[str, Tensor], device: torch.device) -> None:
        self.peer, self.case, self.device = peer, case, device
        self.x = {name: tensor.to(device) for name, tensor in x.items()}
        self.threads = torch.get_num_threads()
        self.build()

    def build(self) -> None:
        """Make what the timed call starts from."""
        if "images" in self.x:
            self.pixels = self.x["images"].float() / 255
        if self.case.task != "encoding":
            self.network, self.optimizer = self.start(self.case, self.x)

    def start(self, case: Case, x: dict[str, Tensor]) -> tuple[nn.Module, Any]:
        """The network with its first weights, and its optimizer if it trains."""
        network = self.peer.network(case).to(self.device)
        load(network, x)
        parameters = list(network.parameters())
        return network, torch.optim.Adam(parameters, lr=LEARNING_RATE) if case.trains else None

    def compute(self) -> None:
        case, x = self.case, self.x
        with torch.set_grad_enabled(case.backward):
            if case.task == "encoding":
                self.peer.encode(self.pixels, case.T)
            elif case.task == "inference":
                self.peer.rates(self.network, self.pixels, case.T).argmax(1)
            elif not case.trains:
                self.forward_backward(self.network, x)
            elif case.encodes:
                for pixels, labels in zip(self.pixels.split(case.B), x["labels"].split(case.B), strict=True):
                    self.update(self.peer.rates(self.network, pixels, case.T), labels, self.optimizer)
            else:
                self.update(self.network(x["x"]).mean(0), x["labels"], self.optimizer)

    def forward_backward(self, network: nn.Module, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A layer's outputs; its gradients are those of their sum, or of ``grad`` for neurons alone."""
        network.zero_grad(set_to_none=True)
        current = x["x"].detach().requires_grad_(self.case.task == "scan" and self.case.backward)
        output = network(current)
        if self.case.backward:
            output.backward(x["grad"].to(output) if "grad" in x else torch.ones_like(output))
        return output, current

    def update(self, answer: Tensor, labels: Tensor, optimizer: Any) -> None:
        """Gradients and Adam."""
        optimizer.zero_grad(set_to_none=True)
        self.backward(answer, labels)
        optimizer.step()

    def backward(self, answer: Tensor, labels: Tensor) -> None:
        """From the squared error of firing rates, or the cross entropy of a read-out's mean potential."""
        if self.case.readout:
            loss = F.cross_entropy(answer, labels)
        else:
            loss = F.mse_loss(answer, F.one_hot(labels, answer.shape[1]).to(answer))
        loss.backward()

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        """Outputs, gradients and weights after one step, on ``x["x"]`` instead of its own encoder's spikes."""
        if self.case.task == "encoding":
            return on_cpu(encoded=self.peer.encode(x["images"].float().to(self.device) / 255, self.case.T))
        x = {name: tensor.to(self.device) for name, tensor in x.items()}
        network, optimizer = self.start(self.case.smaller(), x)
        with torch.set_grad_enabled(self.case.backward):
            if not self.case.trains:
                output, current = self.forward_backward(network, x)
                found = on_cpu(**{"gradient of current": current.grad}) if current.grad is not None else {}
                return on_cpu(output=output) | found | gradients(network)
            output = network(x["x"])
            self.backward(output.mean(0), x["labels"])
            found = on_cpu(output=output) | gradients(network)  # before leaks move
            optimizer.step()
        return found | on_cpu(**{f"trained{i}": weight for i, weight in enumerate(weights(network))})

    def run(self) -> None:
        self.compute()
        synchronize(self.device)

    def timed(self) -> float:
        torch.set_num_threads(self.threads)
        started = time.perf_counter()
        self.run()
        return time.perf_counter() - started


def build(peer: Any, case: Case, x: dict[str, Tensor], device: torch.device) -> Task:
    """The peer's own kind of task where it has one, else the common one on torch."""
    return peer.task(case, x, device) if hasattr(peer, "task") else TorchTask(peer, case, x, device)


def weights(network: nn.Module) -> list[nn.Parameter]:
    """The weights of all layers in order, without leaks and what batch norms have."""
    return [parameter for parameter in network.parameters() if parameter.dim() > 1]


def load(network: nn.Module, x: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for i, weight in enumerate(weights(network)):
            weight.copy_(x[f"weight{i}"])


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """Of the weights, and of what each leaky neuron keeps of its potential, whatever its library learns for it."""
    found = {f"gradient of weight{i}": w.grad for i, w in enumerate(weights(network)) if w.grad is not None}
    leaky = [module for module in network.modules() if hasattr(module, "kept")]
    for i, module in enumerate(leaky):
        (leak,) = (parameter for parameter in module.parameters() if parameter.dim() == 1)
        if leak.grad is not None:
            (slope,) = torch.autograd.grad(module.kept().sum(), leak)  # type: ignore[operator]
            found[f"gradient of leak{i}"] = leak.grad / slope
    return on_cpu(**found)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_cpu(**tensors: Any) -> Outputs:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def use_fastest_threads(task: Task, candidates: list[int]) -> None:
    """Set ``task.threads`` to the count that one run is fastest with."""
    seconds = {}
    for count in candidates:
        task.threads = count
        seconds[count] = task.timed()
        if seconds[count] < 0.2:  # the first run also makes the pool of threads
            seconds[count] = task.timed()
    task.threads = min(seconds, key=seconds.__getitem__)


def peak_memory(task: Task, device: torch.device) -> int | None:
    """Bytes that one run adds to what is allocated before it; None where the system can't tell."""
    if hasattr(task, "peak_memory"):
        return task.peak_memory()  # type: ignore[no-any-return]
    return memory_of(task, device)


def memory_of(task: Task, device: torch.device = torch.device("cpu")) -> int | None:  # noqa: B008
    """Of a task in this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        task.run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed goes back to the system
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # VmHWM starts again from VmRSS
        before = _status("VmRSS")
        task.run()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):  # neither Linux nor glibc
        return None


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))
