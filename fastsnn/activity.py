"""What a run's network does on its test set: the numbers behind the figures of ``plot`` and of the report page.

They come from the run's last checkpoint through the reference equations on the CPU, over the very spikes and batches
that ``evaluate`` uses, whatever backend the run was trained with; a fused backend may differ from them where a membrane
potential lies within rounding of the threshold. Tests: ``tests/test_plot.py``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fastsnn.config import DEFAULT_T, Config
from fastsnn.encoding import poisson_encode
from fastsnn.errors import FastSNNError, RunFolderError
from fastsnn.kernels import contract, reference
from fastsnn.monitor import EpochMetrics
from fastsnn.sources import images as data
from fastsnn.sources.store import STREAMS
from fastsnn.text import printable
from fastsnn.training.epoch_results import EpochResults
from fastsnn.training.loop import EVALUATION_BATCH
from fastsnn.training.run_folder import Run

CLASS_NAMES = {
    "fashion-mnist": (
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )
}  # fmt: skip
"""Data set -> what its classes are called, where not by their number."""


@dataclass(frozen=True)
class Activity:
    """One layer over time: spikes [T, N], 0 or 1, and the membrane potential before firing, h [T, N]."""

    spikes: Tensor
    potential: Tensor


@dataclass(frozen=True)
class Sample:
    """A test image on its way through the network: image uint8 [H, W], its spikes [T, P], and every layer."""

    index: int
    label: int
    image: Tensor
    spikes: Tensor
    layers: tuple[Activity, ...]

    @property
    def rates(self) -> Tensor:
        """Firing rate of each output neuron, in spikes per time step, [N]."""
        return self.layers[-1].spikes.mean(0)

    @property
    def prediction(self) -> int:
        return int(self.rates.argmax())


class Recording:
    """A run folder opened for looking at, and one test image; what takes a while is computed when first asked for.

    Raises RunFolderError where the folder is no run or has no checkpoint, DataUnavailable where the test set can't be
    had, ValueError where it has no image of that number.
    """

    def __init__(self, path: Path, sample: int = 0, data_dir: Path | None = None) -> None:
        run = Run.reopen(path, writable=False)
        if run.checkpoint is None:
            raise RunFolderError(f"{path} has no checkpoint yet: it has no last.pt")
        assert isinstance(run.config, Config)
        self.path, self.config = Path(path), run.config
        self._index, self._data_dir = sample, data_dir
        self.history = [EpochMetrics(**row) for row in run.checkpoint["history"]]
        self._steps = EpochResults.from_state(run.checkpoint["progress"]).steps
        self._model = run.checkpoint["model"]
        if self.is_linear:
            _ = self.layers

    @property
    def is_linear(self) -> bool:
        """Whether these are linear layers of spiking neurons over Poisson coded images; else there are only curves."""
        config = self.config
        layers = not (config.net or config.network or config.recurrent) and config.readout in ("auto", "rate")
        poisson = config.dataset in data.NAMES and config.encoder in ("none", "poisson")
        return layers and poisson and not config.layer_neuron().learns

    @cached_property
    def layers(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight [N, K] and bias [N] of each layer."""
        if not self.is_linear:
            raise FastSNNError(f"{self.path} is not linear layers over Poisson coded images; allowed: --what curves")
        model = self._model
        try:
            return [(model[f"{i}.weight"], model.get(f"{i}.bias")) for i in range(len(self.config.hidden) + 1)]
        except KeyError as error:
            raise RunFolderError(f"the checkpoint in {self.path} is of another network: it has no {error}") from error

    @property
    def name(self) -> str:
        return printable(self.path.resolve().name)

    @property
    def T(self) -> int:
        """Time steps per sample."""
        return self.config.T or DEFAULT_T

    @property
    def result(self) -> str:
        """How good the run is, in words."""
        if not self.history:
            return "no epoch finished yet"
        last = self.history[-1]
        more = f" (here {self._steps} steps of the next are done)" if self._steps else ""
        return f"{last.held_out} accuracy {last.accuracy:.2%} after epoch {last.epoch}{more}"

    @cached_property
    def dataset(self) -> data.DataSet:
        """The run's data, on the CPU."""
        loaded = data.load(self.config.dataset, self._data_dir or self.config.data_dir)
        return loaded.first(self.config.train_samples, self.config.test_samples)

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES.get(self.dataset.name) or tuple(str(label) for label in range(self.dataset.classes))

    @property
    def labels(self) -> Tensor:
        """int64 [D]."""
        return self.dataset.test_labels

    @cached_property
    def rates(self) -> Tensor:
        """Firing rates of the output neurons for every test sample, in spikes per time step, [D, N]."""
        starts = range(0, len(self.labels), EVALUATION_BATCH)
        return torch.cat([self._activities(start)[1][-1].spikes.mean(0) for start in starts])

    @cached_property
    def predictions(self) -> Tensor:
        """The class with the highest rate, the lowest of them in a tie, int64 [D]."""
        return self.rates.argmax(-1)

    @property
    def accuracy(self) -> float:
        """Fraction of the test set that ``predictions`` get right."""
        return float((self.predictions == self.labels).double().mean())

    @property
    def confusion(self) -> Tensor:
        """Number of test samples with label i (row) and prediction j (column), int64 [N, N]."""
        classes = self.dataset.classes
        pairs = self.labels * classes + self.predictions
        return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    @property
    def confidences(self) -> Tensor:
        """Rate of the predicted class above that of the label, [D]: 0 where the prediction is right."""
        of = torch.arange(len(self.labels))
        return self.rates[of, self.predictions] - self.rates[of, self.labels]

    def mistakes(self) -> Tensor:
        """Numbers of the misclassified test samples, the most confident first, int64."""
        wrong = (self.predictions != self.labels).nonzero().squeeze(1)
        return wrong[self.confidences[wrong].argsort(descending=True, stable=True)]

    @cached_property
    def sample(self) -> Sample:
        """The test image that was asked for."""
        index = self._index
        if not 0 <= index < len(self.labels):
            raise ValueError(f"sample is {index}; allowed: 0 to {len(self.labels) - 1}, the test set of {self.path}")
        # A matrix product rounds by its shape: the sample is computed within the batch that it is evaluated in.
        start = index // EVALUATION_BATCH * EVALUATION_BATCH
        x, activities = self._activities(start)
        own = index - start
        return Sample(
            index,
            int(self.labels[index]),
            self.dataset.test_images[index].reshape(self.dataset.image_shape),
            x[:, own],
            tuple(Activity(layer.spikes[:, own], layer.potential[:, own]) for layer in activities),
        )

    @torch.no_grad()
    def _activities(self, start: int) -> tuple[Tensor, list[Activity]]:
        """The evaluation batch that begins at sample ``start``: its spikes [T, B, P] and each layer, [T, B, N]."""
        images = self.dataset.test_images[start : start + EVALUATION_BATCH]
        ids = torch.arange(start, start + len(images))
        x = poisson_encode(images, self.T, self.config.seed, 0, STREAMS["test"], ids)
        return x, list(self._propagate(x))

    def _propagate(self, x: Tensor) -> Iterator[Activity]:
        for weight, bias in self.layers:
            current = torch.nn.functional.linear(x, weight, bias)
            x, _ = reference.scan(current, neuron := self.config.layer_neuron())
            distance = contract.trajectory(current, neuron, None, x).distance
            yield Activity(x, (distance + neuron.parameters().get("v_threshold", 0.0)).float())
