"""fastsnn's own implementations, through the functions that a user calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import fastsnn
from bench import works
from bench.cases import LEARNING_RATE, NEURON, Case
from bench.works import Outputs, Peer, Work
from fastsnn import LIF, backends
from fastsnn.config import FitConfig
from fastsnn.networks import Layers
from fastsnn.sources.images import DataSet, Images
from fastsnn.training.autograd_step import AutogradStep

NAMES = tuple(f"fastsnn-{name}" for name in backends.names() if name != "cupy")
_DOUBLING = 2.0**16
"""A learning rate that moves weights so far that the gradient is read back from them exactly."""


def refusal(name: str, device: torch.device) -> str | None:
    """Why this implementation can't run here; None where it can."""
    if name == "fastsnn-triton" and device.type == "cpu":
        return "it needs a CUDA GPU"  # Triton's interpreter is not a benchmark
    return backends.refusal(name.removeprefix("fastsnn-"), device)


class Ours(Peer):
    """A backend of fastsnn."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name  # type: ignore[misc]
        self.backend = name.removeprefix("fastsnn-")
        self.device = device

    def label(self) -> str:
        reference = " (the reference)" if self.backend == "torch" else ""
        return f"fastsnn {self.backend}{reference}"

    def lif(self, current: Tensor) -> Tensor:
        return fastsnn.scan(current, LIF(**NEURON), backend=self.backend)[0]

    def network(self, weights: list[Tensor]) -> nn.Module:
        layers = Layers(
            *(fastsnn.LinearLIF(w.shape[1], w.shape[0], bias=False, backend=self.backend) for w in weights), flat=True
        )
        layers.load_state_dict({f"{i}.weight": weight for i, weight in enumerate(weights)})
        return layers

    def work(self, case: Case, x: dict[str, Tensor], device: torch.device) -> Work:
        if case.subject == "encoding":
            return Encoding(self, case, x, device)
        if case.subject not in ("rate_step", "mlp"):
            return works.build(self, case, x, device)
        fused = case.subject == "rate_step" and backends.load(self.backend).rate_classifier() is not None
        return (FusedTraining if fused else Training)(self, case, x, device)


class Training(works.TrainingWork):
    """Training steps as ``fastsnn.train`` does them layer by layer, encoding included."""

    def build(self) -> None:
        self.network, self.optimizer = self._start(self.x)
        images, labels = self.x["images"], self.x["labels"]
        source = Images(DataSet("bench", images, labels, images, labels, tuple(images.shape[1:])))
        self.step: Any = AutogradStep(self.network, source.to(self.device), self.optimizer, FitConfig(T=self.case.T))
        self.order = torch.arange(len(self.x["images"]), device=self.device)
        self.rates = [LEARNING_RATE] * -(-len(self.order) // self.case.B)
        self.epoch = 0

    def compute(self) -> None:
        self.epoch += 1
        self.step.train(self.order, self.epoch, self.case.B, self.rates)


class FusedTraining(Training):
    """The same in the backend's whole-step kernels."""

    def build(self) -> None:
        self.rate_step: Any = backends.load(self.peer.backend).rate_classifier()  # type: ignore[attr-defined]
        self.step = self._fused(self.x["weight0"].clone(), torch.optim.Adam, LEARNING_RATE)
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
        weight = x["weight0"].to(self.device)
        changed, trained, kept = weight.clone(), weight.clone(), weight.clone()
        self._one_epoch(x, self._fused(changed, torch.optim.SGD, _DOUBLING), len(x["images"]))
        self._one_epoch(x, self._fused(trained, torch.optim.Adam, LEARNING_RATE), len(x["images"]))
        losses = self._one_epoch(x, self._fused(kept, torch.optim.SGD, 0.0), 1)
        gradient = (weight.double() - changed.double()) / _DOUBLING
        return works.on_cpu(sample_losses=losses, weight0=gradient.float(), trained0=trained)

    def _fused(self, weight: Tensor, optimizer: Any, lr: float) -> Any:
        parameter = nn.Parameter(weight)
        parameter.data = weight  # the step updates this very tensor
        return self.rate_step.RateStep(
            parameter, None, optimizer([parameter], lr=lr), T=self.case.T, seed=0, loss="mse", neuron=LIF(**NEURON)
        )

    def _one_epoch(self, x: dict[str, Tensor], step: Any, batch_size: int) -> Tensor:
        data = step.prepare(x["images"].to(self.device), x["labels"].to(self.device))
        order = torch.arange(len(x["images"]), device=self.device)
        losses, _ = step.train(data, order, int(x["epoch"]), batch_size)
        step.sync()
        return losses


class Encoding(works.EncodingWork):
    """Poisson encoding of the uint8 images themselves."""

    def build(self) -> None:
        self.epoch = 0

    def compute(self) -> None:
        self.epoch += 1
        fastsnn.poisson_encode(self.x["images"], self.case.T, epoch=self.epoch)

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        encoded = fastsnn.poisson_encode(x["images"].to(self.device), self.case.T)
        return works.on_cpu(encoded=encoded, philox=encoded)


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
