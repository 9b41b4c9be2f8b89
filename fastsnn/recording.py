"""A run opened for looking at: the numbers behind the figures of ``plot`` and behind the report page.

They come from a checkpoint of the run, on the CPU, through the network, data and batches that ``evaluate`` uses.
Tests: ``tests/test_recording.py``.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn.activity import LayerRecorder, membrane_of
from fastsnn.checkpoint import load_named
from fastsnn.config import Config, FitConfig
from fastsnn.errors import FastSNNError, RunFolderError
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.monitor import EpochMetrics, Monitor
from fastsnn.options import read_yaml
from fastsnn.outcome import Outcome, Sample
from fastsnn.sources import Batch, Source, StoredSource
from fastsnn.text import printable
from fastsnn.training.command import TrainedRun
from fastsnn.training.epoch_results import EpochResults
from fastsnn.training.loop import EVALUATION_BATCH
from fastsnn.training.process_group import ProcessGroup
from fastsnn.training.readouts import valid_steps
from fastsnn.training.run_folder import Run
from fastsnn.training.setup import Setup
from fastsnn.training.splits import Part, split_source
from fastsnn.words import say

CLASS_NAMES = {
    "fashion-mnist": (
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )
}  # fmt: skip
"""Data set -> what its classes are called, if not by their number."""


class Recording:
    """A run folder opened for looking at, and one sample; what takes a while is computed when first asked for.

    Args:
        path: the run folder.
        sample: number of the sample to look at, in the test set (or what the run was judged by); default a right answer
            that was a close call.
        data_dir: folder of the data sets; default the run's.
        checkpoint: last or best.
        network, source: for a run of ``fastsnn.fit`` those that it was given; without them it has curves alone.

    Raises:
        RunFolderError: the folder is no run or has no checkpoint.
        DataUnavailable: the data can't be had.
        ValueError: there is no sample of that number.
    """

    def __init__(
        self,
        path: Path,
        sample: int | None = None,
        data_dir: Path | None = None,
        checkpoint: str = "last",
        network: nn.Module | None = None,
        source: Source | None = None,
    ) -> None:
        self.path, self._data_dir, self._index = Path(path), data_dir, sample
        self._checkpoint, self._given = checkpoint, (network, source)
        kind = FitConfig if _is_fit(self.path) else Config
        run = Run.reopen(self.path, kind=kind, writable=False)
        if run.checkpoint is None:
            raise RunFolderError(f"{path} has no checkpoint yet: it has no last.pt")
        self.config: Any = run.config
        self.history = [EpochMetrics(**row) for row in run.checkpoint["history"]]
        self._state = run.checkpoint if checkpoint == "last" else load_named(self.path, checkpoint)

    @property
    def has_network(self) -> bool:
        """Whether network and data are at hand; else there are only curves."""
        return isinstance(self.config, Config) or None not in self._given

    @property
    def name(self) -> str:
        return printable(self.path.resolve().name)

    @property
    def result(self) -> str:
        """How good the run is, in words."""
        shown = self.history[: len(self._state["history"])]
        if not shown:
            return say("no epoch finished yet")
        last, steps = shown[-1], EpochResults.from_state(self._state["progress"]).steps
        text = "{part} accuracy {accuracy:.2%} after epoch {epoch}"
        more = say(" (here {steps} steps of the next are done)", steps=steps) if steps else ""
        return say(text, part=say(last.held_out), accuracy=last.accuracy, epoch=last.epoch) + more

    @cached_property
    def setup(self) -> Setup:
        """The network with its weights, the data, and the step that evaluates."""
        network, source = self._given
        if network is not None and source is not None:
            made = Setup(network, source, self.config, torch.device("cpu"), Monitor(), ProcessGroup(), trains=False)
            made.restore(self._state, self.path)
        elif self.has_network:
            on_cpu = self.config.device == "cpu" and self.config.backend not in ("triton", "cupy")
            made = TrainedRun.open(
                self.path, device=None if on_cpu else "cpu", data_dir=self._data_dir, checkpoint=self._checkpoint
            ).setup
        else:
            raise FastSNNError(
                f"{self.path} was trained by fastsnn.fit, and holds neither network nor data; allowed: --what "
                "curves, or from Python with network= and source="
            )
        made.network.eval()
        return made

    @property
    def network(self) -> nn.Module:
        return self.setup.network

    @property
    def source(self) -> Source:
        return self.setup.source

    @property
    def T(self) -> int:
        """Time steps per sample."""
        return self.setup.T

    @property
    def readout(self) -> str:
        return self.setup.objective.readout

    @cached_property
    def part(self) -> Part:
        """The samples that are looked at: the test set, without one what the run was judged by."""
        parts = split_source(self.source, self.config.validation, self.config.seed)
        return parts.test or parts.held_out

    @property
    def kind(self) -> str:
        """Of the samples that are looked at: test or validation."""
        return "test" if self.part.split == "test" else "validation"

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES.get(self.source.name) or tuple(map(str, range(self.source.classes)))

    @cached_property
    def outcome(self) -> Outcome:
        """What the network says of those samples."""
        classes = self.source.classes
        scores, labels, shares = [], [], []
        confusion = torch.zeros(classes**2, dtype=torch.int64)
        for batch, output in self.setup.layered.forward(self.part.split, self.part.ids, EVALUATION_BATCH):
            scores.append(self.setup.objective.scores(output, batch.lengths))
            if batch.y.dim() == 2:
                y = batch.y if batch.lengths is None else batch.y.masked_fill(~valid_steps(self.T, batch.lengths), -1)
                answers, counted = output.argmax(-1), y >= 0
                shares.append(((answers == y) & counted).sum(0).double() / counted.sum(0).clamp(min=1))
                labels.append(torch.full_like(y[0], -1))
            else:
                y, answers = batch.y, scores[-1].argmax(-1)
                counted = torch.ones_like(y, dtype=torch.bool)
                shares.append((answers == y).double())
                labels.append(y)
            confusion += torch.bincount((y * classes + answers)[counted], minlength=classes**2)
        return Outcome(torch.cat(scores), torch.cat(labels), torch.cat(shares), confusion.reshape(classes, classes))

    def mistakes(self, most: int) -> tuple[Tensor, Tensor | None]:
        """Numbers of up to ``most`` samples with wrong answers, the worst first, int64.

        With a label per sample the worst is the one whose wrong class leads the label by most. Rates often can't tell:
        two neurons fire at every step. Of equal leads that of the mean membrane potential decides, which comes second
        if it is known. With labels per step the worst has the smallest part of right answers.
        """
        outcome = self.outcome
        if self.source.per_step:
            return outcome.shares.argsort(stable=True)[: min(most, int((outcome.shares < 1).sum()))], None
        wrong = (outcome.predictions != outcome.labels).nonzero().squeeze(1)
        leads = outcome.leads[wrong]
        if len(wrong) > most:
            wrong = wrong[leads >= leads.sort(descending=True).values[most - 1]]
        potentials = self._potential_leads(wrong)
        order = torch.arange(len(wrong))
        if potentials is not None:
            order = potentials.argsort(descending=True, stable=True)
        order = order[outcome.leads[wrong[order]].argsort(descending=True, stable=True)][:most]
        return wrong[order], None if potentials is None else potentials[order]

    @torch.no_grad()
    def _potential_leads(self, numbers: Tensor) -> Tensor | None:
        """How far the mean potential of the predicted class leads the label's, of samples by number."""
        found = []
        for group in numbers.split(EVALUATION_BATCH) if len(numbers) else ():
            with LayerRecorder(self.network) as recorder:
                ((_, output),) = self.setup.layered.forward(self.part.split, self.part.ids[group], len(group))
            if not recorder.calls or recorder.calls[-1][2].shape != output.shape or self.readout != "rate":
                return None
            mean = membrane_of(*recorder.calls[-1]).potential.mean(0)
            own = torch.arange(len(group))
            found.append(mean[own, self.outcome.predictions[group]] - mean[own, self.outcome.labels[group]])
        return torch.cat(found) if found else None

    def _chosen(self) -> tuple[int, str]:
        """Number of the sample to look at, and why."""
        if self._index is not None:
            if not 0 <= self._index < len(self.part):
                raise ValueError(
                    f"sample is {self._index}; allowed: 0 to {len(self.part) - 1}, the {self.kind} set of {self.path}"
                )
            return self._index, ""
        outcome = self.outcome
        if self.source.per_step:
            middle = outcome.shares.argsort(stable=True)[len(outcome.shares) // 2]
            return int(middle), "median accuracy"
        leads = outcome.leads.masked_fill(outcome.predictions != outcome.labels, -torch.inf)
        leads = leads.masked_fill(leads >= 0, -torch.inf)  # a tie is no answer
        if not leads.isfinite().any():
            return 0, "the first"
        return int(leads.argmax()), "closest right answer"

    @cached_property
    def sample(self) -> Sample:
        """The sample to look at."""
        index, why = self._chosen()
        # A matrix product rounds by its shape: the sample is computed within the batch that it is evaluated in.
        start = index // EVALUATION_BATCH * EVALUATION_BATCH
        ids = self.part.ids[start : start + EVALUATION_BATCH]
        own = index - start
        with LayerRecorder(self.network) as recorder:
            ((batch, output),) = self.setup.layered.forward(self.part.split, ids, EVALUATION_BATCH)
        steps = self.T if batch.lengths is None else int(batch.lengths[own])
        named = bool(getattr(self.config, "network", None)) or not isinstance(self.config, Config)
        return Sample(
            index,
            why,
            batch.y[own] if batch.y.dim() == 1 else batch.y[:steps, own],
            inputs(batch)[:steps, own],
            self.still(ids[own]),
            tuple(recorder.layers(output, own, steps, named)),
            self.setup.objective.scores(output, batch.lengths)[own],
        )

    def still(self, id: Tensor) -> Tensor | None:
        """The sample before it is encoded, [*shape] as bytes; None for data with time steps."""
        source = self.source
        if not isinstance(source, StoredSource) or source.encoder is None:
            return None
        x = source.parts[self.part.split].x[id].float()
        return x.to(torch.uint8) if x.max() > 1 else (255 * x.clamp(0, 1)).to(torch.uint8)

    def samples(self, numbers: Sequence[int]) -> list[tuple[Tensor, Tensor | None]]:
        """x [T, *shape] over its own steps and the still image of samples by number."""
        ids = self.part.ids[torch.tensor(numbers, dtype=torch.int64)]
        batch = self.source.batch(self.part.split, ids, self.T, seed=self.config.seed)
        lengths = [self.T] * len(ids) if batch.lengths is None else batch.lengths.tolist()
        x = inputs(batch)
        return [(x[: lengths[i], i], self.still(ids[i])) for i in range(len(ids))]

    def step_answers(self, numbers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """For labels per step: labels (-1: none) and answers [T] of samples by number, over their own steps."""
        ids = self.part.ids[torch.tensor(numbers, dtype=torch.int64)]
        ((batch, output),) = self.setup.layered.forward(self.part.split, ids, max(1, len(ids)))
        lengths = [self.T] * len(ids) if batch.lengths is None else batch.lengths.tolist()
        answers = output.argmax(-1)
        return [(batch.y[:length, i], answers[:length, i]) for i, length in enumerate(lengths)]

    @cached_property
    def input_weights(self) -> Tensor | None:
        """Weights of the first layer that has some, [N, *shape of its input]; None if none can be shown."""
        for module in self.network.modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, nn.Conv2d):
                return module.weight.detach()
            if isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding):
                fits = weight.shape[1] == torch.Size(self.source.shape).numel()
                return weight.detach().unflatten(1, self.source.shape) if fits else None
        return None


def inputs(batch: Batch) -> Tensor:
    """x [T, B, *shape] of a batch, as numbers."""
    return (batch.x.unpack() if isinstance(batch.x, PackedSpikes) else batch.x).float()


def _is_fit(path: Path) -> bool:
    """Whether a run was made by ``fastsnn.fit``; a folder that is no run is told by who opens it."""
    file = path / "config.yaml"
    return file.is_file() and "given" in read_yaml(file)
