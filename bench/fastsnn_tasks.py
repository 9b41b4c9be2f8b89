"""fastsnn's own implementations, through the functions that a user calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import fastsnn
from bench import tasks
from bench.cases import KEPT, LEARNING_RATE, Case
from bench.tasks import Outputs, Peer, Task
from fastsnn import backends
from fastsnn.config import FitConfig
from fastsnn.networks import Layers, SpatialSpiking, TimeDistributed
from fastsnn.sources.images import DataSet, Images
from fastsnn.training.autograd_step import AutogradStep

NAMES = tuple(f"fastsnn-{name}" for name in backends.names() if name != "cupy")
LIF = fastsnn.LIF(tau=2.0, surrogate="atan", alpha=2.0)
"""SpikingJelly's LIFNode(2.0, ATan())."""
NEURONS: dict[str, fastsnn.Neuron] = {
    "lif": LIF,
    "if": fastsnn.IF(surrogate="atan", alpha=2.0),
    "leaky": fastsnn.LIF(tau=1 / (1 - KEPT), v_reset=None, surrogate="atan", alpha=2.0),
    "li": fastsnn.LI(tau=1 / (1 - KEPT)),
    "cuba": fastsnn.CuBaLIF(surrogate="atan", alpha=2.0),
    "alif": fastsnn.ALIF(v_threshold=1.0),
    "seadlif": fastsnn.SEAdLIF(),
}
_LEARNT = ("leaky", "li")
_DOUBLING = 2.0**16
"""A learning rate that moves weights so far that the gradient is read back from them exactly."""


def refusal(name: str, device: torch.device) -> str | None:
    """Why this implementation can't run here; None where it can."""
    if name == "fastsnn-triton" and device.type == "cpu":
        return "it needs a CUDA GPU"  # Triton's interpreter is not a benchmark
    return backends.refusal(name.removeprefix("fastsnn-"), device)


class Fastsnn(Peer):
    """A backend of fastsnn."""

    kinds = tuple(NEURONS)

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name  # type: ignore[misc]
        self.backend = name.removeprefix("fastsnn-")
        self.device = device

    def label(self) -> str:
        return f"fastsnn {self.backend}" + " (the reference)" * (self.backend == "torch")

    def neurons(self, kind: str, size: int) -> nn.Module:
        return fastsnn.Spiking(NEURONS[kind], **self._options(kind, size))

    def recurrent(self, K: int, N: int) -> nn.Module:
        return fastsnn.Recurrent(K, N, NEURONS["lif"], bias=False, backend=self.backend)

    def network(self, case: Case) -> nn.Module:
        if case.task in ("recurrent", "scan"):
            return super().network(case)
        parts: list[nn.Module] = []
        for layer in case.layers():
            *before, last = layer.modules
            if isinstance(last, nn.Linear):
                parts += [TimeDistributed(nn.Sequential(*before))] if before else []
                neuron, options = NEURONS[layer.neuron], self._options(layer.neuron, layer.size)
                part = fastsnn.LinearLIF(last.in_features, last.out_features, bias=False, neuron=neuron, **options)
                parts.append(part)
                if layer.neuron in _LEARNT:
                    part.kept = lambda part=part: 1 - 1 / part.tau  # type: ignore[assignment, misc]
            else:
                neurons = SpatialSpiking(NEURONS[layer.neuron], **self._options(layer.neuron, layer.size))
                parts += [TimeDistributed(nn.Sequential(*layer.modules)), neurons]
        return Layers(*parts, flat=case.encodes)

    def _options(self, kind: str, size: int) -> dict[str, Any]:
        learnt: dict[str, Any] = {"learn": ("tau",), "size": (size,)} if kind in _LEARNT else {"learn": ()}
        return learnt | {"backend": self.backend}

    def encode(self, pixels: Tensor, T: int) -> Any:
        """Packed, as fastsnn's own data sets encode images."""
        return fastsnn.PackedSpikes(fastsnn.poisson_encode(pixels, T, packed=True), T)

    def task(self, case: Case, x: dict[str, Tensor], device: torch.device) -> Task:
        if case.task == "encoding":
            return Encoding(self, case, x, device)
        if case.task == "inference":
            return Inference(self, case, x, device)
        if not (case.encodes and case.trains):
            return tasks.TorchTask(self, case, x, device)
        return (FusedTraining if self.fuses(case) else ImageTraining)(self, case, x, device)

    def fuses(self, case: Case) -> bool:
        """Whether ``fastsnn.train`` does the case's step as a whole, in the kernels of its one-layer trainer."""
        one_layer = case.trains and case.encodes and len(case.sizes) == 2
        return one_layer and backends.load(self.backend).rate_classifier() is not None


class ImageTraining(tasks.TorchTask):
    """Training steps as ``fastsnn.train`` does them layer by layer, encoding included."""

    def build(self) -> None:
        self.network, self.optimizer = self.start(self.case, self.x)
        images, labels = self.x["images"], self.x["labels"]
        source = Images(DataSet("bench", images, labels, images, labels, tuple(images.shape[1:])))
        self.step: Any = AutogradStep(self.network, source.to(self.device), self.optimizer, FitConfig(T=self.case.T))
        self.order = torch.arange(len(images), device=self.device)
        self.rates = [LEARNING_RATE] * -(-len(self.order) // self.case.B)
        self.epoch = 0

    def compute(self) -> None:
        self.epoch += 1
        self.step.train(self.order, self.epoch, self.case.B, self.rates)


class FusedTraining(ImageTraining):
    """The same in the backend's whole-step kernels."""

    neuron = LIF

    def build(self) -> None:
        self.rate_step: Any = backends.load(self.peer.backend).rate_classifier()  # type: ignore[attr-defined]
        self.step = self._fused(self.x["weight0"].clone(), torch.optim.Adam, LEARNING_RATE, self.case.T)
        self.data = self.step.prepare(self.x["images"], self.x["labels"])
        self.order = torch.arange(len(self.x["images"]), device=self.device)
        self.epoch = 0

    def compute(self) -> None:
        self.epoch += 1
        self.step.train(self.data, self.order, self.epoch, self.case.B)

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        """The step's gradient, from the weights that SGD moves; Adam's weights; and the loss of each sample.

        The kernels keep their spikes to themselves; the losses tell them.
        """
        weight, adam, sgd = x["weight0"].to(self.device), torch.optim.Adam, torch.optim.SGD
        changed, _ = self._one_epoch(x, weight, sgd, _DOUBLING, len(x["images"]))
        trained, _ = self._one_epoch(x, weight, adam, LEARNING_RATE, len(x["images"]))
        _, losses = self._one_epoch(x, weight, sgd, 0.0, 1)
        gradient = ((weight.double() - changed.double()) / _DOUBLING).float()
        return tasks.on_cpu(sample_losses=losses, trained0=trained, **{"gradient of weight0": gradient})

    def _fused(self, weight: Tensor, optimizer: Any, lr: float, T: int) -> Any:
        parameter = nn.Parameter(weight)
        parameter.data = weight  # the step updates this very tensor
        return self.rate_step.RateStep(
            parameter, None, optimizer([parameter], lr=lr), T=T, seed=0, loss="mse", neuron=self.neuron
        )

    def _one_epoch(
        self, x: dict[str, Tensor], weight: Tensor, optimizer: Any, lr: float, batch: int
    ) -> tuple[Tensor, Tensor]:
        """The weights after it, and its losses."""
        weight = weight.clone()
        step = self._fused(weight, optimizer, lr, len(x["x"]))
        data = step.prepare(x["images"].to(self.device), x["labels"].to(self.device))
        losses, _ = step.train(data, torch.arange(len(x["images"]), device=self.device), int(x["epoch"]), batch)
        step.sync()
        return weight, losses


class Inference(tasks.TorchTask):
    """From the uint8 image."""

    def build(self) -> None:
        super().build()
        self.pixels = self.x["images"]


class Encoding(tasks.TorchTask):
    """Poisson encoding of the uint8 images themselves."""

    def build(self) -> None:
        self.epoch = 0

    def compute(self) -> None:
        self.epoch += 1
        fastsnn.poisson_encode(self.x["images"], self.case.T, epoch=self.epoch)

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        encoded = fastsnn.poisson_encode(x["images"].to(self.device), self.case.T)
        return tasks.on_cpu(encoded=encoded, philox=encoded)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on ``count`` CPU threads, in torch and in Numba."""
    before = torch.get_num_threads()
    _set_threads(count)
    try:
        yield
    finally:
        _set_threads(before)


def _set_threads(count: int) -> None:
    torch.set_num_threads(count)
    try:
        import numba
    except ImportError:
        return
    numba.set_num_threads(count)
