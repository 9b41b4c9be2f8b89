"""Where a run stands within an epoch: the results of the steps done."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastsnn.training.step import StepResults, mean


@dataclass
class EpochResults:
    """The current epoch and the results of its steps, of which the last ones may still be on the device."""

    epoch: int = 1
    steps: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    correct_sum: int = 0
    counted_sum: int = 0
    collected: list[StepResults] = field(default_factory=list)
    pending: list[StepResults] = field(default_factory=list)

    def add(self, results: StepResults) -> None:
        """Note the results of a call, without waiting for the device to compute them."""
        self.pending.append(results)
        self.steps += len(results.losses)

    def collect(self) -> Tensor:
        """Fetch what was added since the last time, which waits for the device; returns those losses."""
        if not self.pending:
            return torch.zeros(0)
        fetched = _joined(self.pending)
        self.pending.clear()
        self.collected.append(fetched)
        self.loss_sum += float(fetched.losses.double().sum())
        self.correct_sum += int(fetched.correct.sum())
        self.counted_sum += int(fetched.counted.sum())
        return fetched.losses

    def result(self) -> tuple[float, float]:
        """Mean loss and accuracy of the steps done."""
        return mean(_joined(self.collected))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        none = torch.zeros(0, dtype=torch.int64)
        joined = _joined(self.collected) if self.collected else StepResults(torch.zeros(0), none, none)
        return {"epoch": self.epoch, "seconds": self.seconds} | joined._asdict()

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "EpochResults":
        """The inverse of :meth:`state`."""
        restored = cls(state["epoch"], seconds=state["seconds"])
        if len(state["losses"]):
            restored.add(StepResults(state["losses"], state["correct"], state["counted"]))
            restored.collect()
        return restored


def _joined(parts: list[StepResults]) -> StepResults:
    return StepResults(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))
