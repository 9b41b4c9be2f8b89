"""What the training loop asks of a step, and what a step answers: ``AutogradStep`` for any network, ``FusedStep``."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class StepResults(NamedTuple):
    """One entry per batch, on the step's device."""

    losses: Tensor
    """Mean loss over what has a label, fp32 [steps]."""
    correct: Tensor
    """Correct answers, int64 [steps]."""
    counted: Tensor
    """Labels that count, int64 [steps]: samples, or labelled time steps if every step has a label."""


class Step(Protocol):
    """Trains and evaluates one network on one source, a batch after the other."""

    name: str
    """fused or autograd."""
    batches_per_call: int
    """Batches that :meth:`train` should be given at once; between calls progress is shown and a signal is answered."""

    def train(self, ids: Tensor, epoch: int, batch_size: int, learning_rates: Sequence[float]) -> StepResults:
        """Train on the samples ``ids`` int64 [S] of the training set; ``learning_rates`` has one entry per batch."""

    def evaluate(self, split: str, ids: Tensor, batch_size: int) -> StepResults:
        """Forward only, over the samples ``ids`` int64 [S] of ``split``."""

    def sync(self) -> None:
        """Bring the tensors of network and optimizer up to date."""


def stacked(results: Sequence[tuple[Tensor, Tensor, Tensor]]) -> StepResults:
    """Scalars of each batch as one StepResults."""
    losses, correct, counted = (torch.stack(column) for column in zip(*results, strict=True))
    return StepResults(losses.float(), correct, counted)


def mean(results: StepResults) -> tuple[float, float]:
    """Mean loss and accuracy over all that was counted; batches may differ in size."""
    sizes = results.counted.cpu().double()
    total = int(results.counted.sum())
    if not total:
        return 0.0, 0.0
    return float((results.losses.cpu().double() * sizes).sum() / total), int(results.correct.sum()) / total
