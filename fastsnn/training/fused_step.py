"""The whole training step of a one-layer rate classifier on images, in a backend's fused kernels."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from fastsnn import backends
from fastsnn.config import FitConfig
from fastsnn.kernels.rate_classifier.parameters import Parameters
from fastsnn.nn import LinearLIF
from fastsnn.sources import Source, StoredSource
from fastsnn.training.autograd_step import AutogradStep
from fastsnn.training.readouts import Objective
from fastsnn.training.step import StepResults


class RateKernels(Protocol):
    """A backend's ``RateStep``: see ``fastsnn.kernels.rate_classifier``."""

    parameters: Parameters

    def prepare(self, images: Tensor, labels: Tensor) -> object:
        """The data as the kernels read them."""

    def train(self, data: object, order: Tensor, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Losses and correct answers of each batch."""

    def evaluate(self, data: object, batch_size: int) -> tuple[Tensor, Tensor]:
        """The same, forward only."""

    def sync(self) -> None:
        """Bring torch's tensors up to date."""


class FusedStep:
    """A :class:`Step` by the kernels of ``fastsnn.kernels.rate_classifier``; raises ValueError if they can't do it.

    What they have no kernels for (samples held out of the training set, outputs) is computed layer by layer.
    """

    name = "fused"

    def __init__(
        self,
        network: nn.Module,
        source: Source,
        optimizer: torch.optim.Optimizer | None,
        config: FitConfig,
        objective: Objective,
        T: int,
    ) -> None:
        self.layer = single_layer(network)
        assert self.layer is not None
        device = self.layer.weight.device
        self.batches_per_call = 64 if device.type == "cuda" else 8
        self.layered = AutogradStep(network, source, optimizer, config, objective, T=T)
        self.optimizer = optimizer
        module = backends.resolve(self.layer.backend, device).rate_classifier()
        assert module is not None
        self._kernels: RateKernels = module.RateStep(
            self.layer.weight,
            self.layer.bias,
            optimizer,
            T=T,
            seed=config.seed,
            loss=objective.loss,
            neuron=self.layer.neuron,
        )
        self._data: dict[str, tuple[object, int]] = {}
        for split in ("train", "test") if optimizer is not None else ("test",):
            if source.size(split):
                found = poisson_images(source, split)
                assert found is not None
                self._data[split] = self._kernels.prepare(*found), len(found[1])

    def train(self, ids: Tensor, epoch: int, batch_size: int, learning_rates: Sequence[float]) -> StepResults:
        """Train on the samples ``ids`` int64 [S] of the training set; ``learning_rates`` has one entry per batch."""
        assert self.optimizer is not None
        (group,) = self.optimizer.param_groups
        group["lr"] = learning_rates[-1]
        changing = len(set(learning_rates)) > 1
        self._kernels.parameters.learning_rates = learning_rates if changing else None
        data, _ = self._data["train"]
        losses, correct = self._kernels.train(data, ids, epoch, batch_size)
        return self._results(losses, correct, len(ids), batch_size)

    def evaluate(self, split: str, ids: Tensor, batch_size: int) -> StepResults:
        """Forward only, over the samples ``ids`` int64 [S] of ``split``."""
        data, size = self._data.get(split, (None, 0))
        if split == "train" or len(ids) != size:
            self.sync()
            return self.layered.evaluate(split, ids, batch_size)
        losses, correct = self._kernels.evaluate(data, batch_size)
        return self._results(losses, correct, size, batch_size)

    def sync(self) -> None:
        """Bring the tensors of network and optimizer up to date."""
        self._kernels.sync()

    def _results(self, losses: Tensor, correct: Tensor, samples: int, batch_size: int) -> StepResults:
        counted = torch.full_like(correct, batch_size)
        counted[-1:] = samples - (len(counted) - 1) * batch_size
        return StepResults(losses, correct, counted)


def single_layer(network: nn.Module) -> LinearLIF | None:
    """The layer of a network that is one linear layer of LIF neurons; None for any other network."""
    modules = list(network.children()) if isinstance(network, nn.Sequential) else [network]
    modules = [module for module in modules if not isinstance(module, (nn.Flatten, nn.Identity))]
    return modules[0] if len(modules) == 1 and type(modules[0]) is LinearLIF else None


def poisson_images(source: Source, split: str) -> tuple[Tensor, Tensor] | None:
    """Images uint8 [D, ...] and labels [D] of ``split`` if the source's spikes are their Poisson code.

    The kernels draw the same spikes by themselves.
    """
    if not isinstance(source, StoredSource) or source.encoder != "poisson" or source.per_step or source.on_host(split):
        return None
    part = source.parts.get(split)
    return (part.x, part.y) if part is not None and part.x.dtype == torch.uint8 else None


def fused_refusal(
    network: nn.Module,
    source: Source,
    optimizer: torch.optim.Optimizer | None,
    config: FitConfig,
    objective: Objective,
    T: int,
    device: torch.device,
    processes: int,
) -> str | None:
    """Why the fused step doesn't cover a run, in one line; None if it does."""
    layer = single_layer(network)
    if layer is None:
        return "the network is not one LinearLIF, and the fused step trains one layer"
    if config.amp != "off":
        return f"amp is {config.amp}, and the fused step computes in fp32"
    if processes > 1:
        return f"there are {processes} processes, and the fused step trains in one"
    backend = backends.resolve(layer.backend, device)
    module = backend.rate_classifier()
    if module is None:
        return f"backend is {backend.name}; backends with a fused step: numba, triton"
    if objective.readout != "rate":
        return f"readout is {objective.readout}, and the fused step has rate"
    if config.clip_grad_norm is not None:
        return f"clip_grad_norm is {config.clip_grad_norm:g}, and the fused step doesn't clip"
    images = poisson_images(source, "train" if optimizer is not None else "test")
    if images is None:
        return f"{source.name} is no set of Poisson coded images"
    reason: str | None = module.refusal(
        T=T,
        classes=layer.out_features,
        pixels=layer.in_features,
        loss=objective.loss,
        optimizer=optimizer,
        neuron=layer.neuron,
    )
    return reason
