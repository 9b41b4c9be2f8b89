"""Where a run stands within an epoch: the losses and the correct answers of the steps done."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Progress:
    """The current epoch and the results of its steps, of which the last ones may still be on the device."""

    epoch: int = 1
    steps: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    correct_sum: int = 0
    losses: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, losses: Tensor, correct: Tensor) -> None:
        """Note the losses and correct answers [steps] of a call, without waiting for the device to compute them."""
        self.pending.append((losses, correct))
        self.steps += len(losses)

    def collect(self) -> Tensor:
        """Fetch what was added since the last time, which waits for the device; returns those losses."""
        if not self.pending:
            return torch.zeros(0)
        losses, correct = (torch.cat(parts).cpu() for parts in zip(*self.pending, strict=True))
        self.pending.clear()
        self.losses.append(losses)
        self.correct.append(correct)
        self.loss_sum += float(losses.double().sum())
        self.correct_sum += int(correct.sum())
        return losses

    def result(self, samples: int, batch_size: int) -> tuple[float, float]:
        """Mean loss and accuracy of a whole epoch over its samples; the last batch may be smaller."""
        return mean_over_samples(torch.cat(self.losses), torch.cat(self.correct), samples, batch_size)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "epoch": self.epoch,
            "losses": torch.cat(self.losses) if self.losses else torch.zeros(0),
            "correct": torch.cat(self.correct) if self.correct else torch.zeros(0, dtype=torch.int64),
            "seconds": self.seconds,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Progress":
        progress = cls(state["epoch"], seconds=state["seconds"])
        if len(state["losses"]):
            progress.add(state["losses"], state["correct"])
            progress.collect()
        return progress


def mean_over_samples(losses: Tensor, correct: Tensor, samples: int, batch_size: int) -> tuple[float, float]:
    """Mean loss and accuracy over all samples, from the mean loss and the correct answers of each batch [steps]."""
    sizes = torch.full((len(losses),), batch_size, dtype=torch.float64)
    sizes[-1] = samples - (len(sizes) - 1) * batch_size
    return float((losses.cpu().double() * sizes).sum() / samples), int(correct.sum()) / samples
