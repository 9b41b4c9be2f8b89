"""From a network's output over time to scores of classes, a loss and correct answers.

    output [T, B, N], labels int64 [B] or [T, B] (-1: no label), lengths int64 [B] or None (all T steps count)

The output is spikes, whose mean is a firing rate, or membrane potentials of neurons that don't spike
(``fastsnn.LI``). Steps at or past a sample's length count nowhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Readout = Callable[[Tensor, Tensor | None], Tensor]


def valid_steps(T: int, lengths: Tensor) -> Tensor:
    """bool [T, B]: the steps that count."""
    return torch.arange(T, device=lengths.device)[:, None] < lengths


def mean_over_time(output: Tensor, lengths: Tensor | None) -> Tensor:
    """[T, B, N] -> [B, N]: the mean over the steps that count; of spikes it is the firing rate."""
    if lengths is None:
        return output.mean(0)
    valid = valid_steps(len(output), lengths)[..., None]
    return output.masked_fill(~valid, 0).sum(0) / lengths.clamp(min=1)[:, None]


def max_over_time(output: Tensor, lengths: Tensor | None) -> Tensor:
    """[T, B, N] -> [B, N]: the largest value over the steps that count (Cramer et al. 2022)."""
    if lengths is not None:
        valid = valid_steps(len(output), lengths)[..., None]
        output = output.masked_fill(~valid, torch.finfo(output.dtype).min)
    return output.amax(0)


def last_step(output: Tensor, lengths: Tensor | None) -> Tensor:
    """[T, B, N] -> [B, N]: the last step that counts."""
    if lengths is None:
        return output[-1]
    return output[lengths - 1, torch.arange(output.shape[1], device=output.device)]


READOUTS: dict[str, Readout] = {
    "rate": mean_over_time,
    "max": max_over_time,
    "last": last_step,
    "mean": mean_over_time,
    "steps": mean_over_time,
}
"""Readout -> the scores of a whole sample; with ``steps`` the loss looks at each step by itself."""
SPIKING = ("rate",)
"""Readouts of output spikes; the others are of membrane potentials."""
LOSSES = ("mse", "ce")


class Outcome(NamedTuple):
    """Of one batch: 0-dim tensors."""

    loss: Tensor
    """Mean over what has a label."""
    correct: Tensor
    """int64; in a tie the lowest class is the answer."""
    counted: Tensor
    """int64: samples, or labelled steps if labels are [T, B]."""


@dataclass(frozen=True)
class Objective:
    """What is minimized: a readout and a loss."""

    readout: str = "rate"
    loss: str = "mse"

    def __post_init__(self) -> None:
        if self.readout not in READOUTS:
            raise ValueError(f"readout is {self.readout!r}; allowed: {', '.join(READOUTS)}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; allowed: {', '.join(LOSSES)}")

    def scores(self, output: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scores of the classes [B, N], the highest of which is the answer."""
        return READOUTS[self.readout](output, lengths)

    def __call__(self, output: Tensor, labels: Tensor, lengths: Tensor | None = None) -> Outcome:
        check_labels(output, labels)
        if labels.dim() == 2:
            return self._per_step(output, labels, lengths)
        scores = self.scores(output, lengths)
        correct = (scores.argmax(-1) == labels).sum()
        counted = torch.tensor(len(labels), device=correct.device)
        if self.readout == "steps":
            # The same label at every step: the temporal efficient training of Deng et al. 2022.
            loss = self._per_step(output, labels.expand(len(output), -1), lengths).loss
        else:
            loss = self._loss(scores, labels)
        return Outcome(loss, correct, counted)

    def _per_step(self, output: Tensor, labels: Tensor, lengths: Tensor | None) -> Outcome:
        if lengths is not None:
            labels = labels.masked_fill(~valid_steps(len(labels), lengths), -1)
        labelled = labels >= 0
        # Indexing with a mask would wait for the GPU: unlabelled steps take part with a weight of 0.
        counted = labelled.sum()
        target = labels.clamp(min=0)
        if self.loss == "ce":
            values = F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none").view_as(labels)
        else:
            one_hot = F.one_hot(target, output.shape[-1]).to(output.dtype)
            values = (output - one_hot).square().mean(-1)
        loss = (values * labelled).sum() / counted.clamp(min=1)
        correct = ((output.argmax(-1) == labels) & labelled).sum()
        return Outcome(loss, correct, counted)

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self.loss == "ce":
            return F.cross_entropy(scores, labels)
        return F.mse_loss(scores, F.one_hot(labels, scores.shape[-1]).to(scores.dtype))


def check_labels(output: Tensor, labels: Tensor) -> None:
    """Raise ValueError for labels that the output has no class for; on a GPU a look at them would wait for it."""
    T, B, classes = output.shape
    if labels.shape not in ((B,), (T, B)):
        raise ValueError(f"labels have shape {list(labels.shape)}; allowed: [{B}] or [{T}, {B}]")
    if labels.device.type != "cpu" or not labels.numel():
        return
    least, most = (0 if labels.dim() == 1 else -1), classes - 1
    low, high = int(labels.min()), int(labels.max())
    if low < least or high > most:
        raise ValueError(f"labels go from {low} to {high}; allowed: {least} to {most}, one for each of the outputs")


def objective_for(readout: str, loss: str, per_step: bool) -> Objective:
    """Options with ``auto`` in them -> the objective; raises ValueError if the readout doesn't fit labels per step."""
    if readout == "auto":
        readout = "steps" if per_step else "rate"
    if per_step and readout != "steps":
        raise ValueError(f"readout is {readout!r}; allowed: steps (or auto), for the data have a label at every step")
    if loss == "auto":
        loss = "mse" if readout in SPIKING else "ce"
    return Objective(readout, loss)
