"""What a caller may watch of a run. Imports nothing that is slow: the command line needs it before torch is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EpochMetrics:
    """An epoch of a run; losses are means over what has a label, accuracies from 0 to 1."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    """None for an epoch that the test set was not used after: with a validation set only the best one is tested."""
    test_accuracy: float | None
    train_seconds: float
    test_seconds: float
    """Seconds of the evaluation after the epoch, on the validation or the test set."""
    samples_per_second: float
    """Training samples per second."""
    validation_loss: float | None = None
    """None without a validation set."""
    validation_accuracy: float | None = None
    firing_rates: tuple[float, ...] = ()
    """Mean firing rate of each layer, in spikes per neuron and time step, on the first samples that were evaluated."""

    @property
    def held_out(self) -> str:
        """The part of the data that the epoch was judged on: validation or test."""
        return "test" if self.validation_loss is None else "validation"

    @property
    def loss(self) -> float:
        """Loss on that part."""
        return float(getattr(self, f"{self.held_out}_loss"))

    @property
    def accuracy(self) -> float:
        """Accuracy on that part."""
        return float(getattr(self, f"{self.held_out}_accuracy"))

    def columns(self) -> dict[str, Any]:
        """Name -> value, as in a line of metrics.csv: firing_rate_1 is the first layer's, the last one the output's."""
        values = dict(vars(self))
        rates = values.pop("firing_rates")
        if self.validation_loss is None:
            del values["validation_loss"], values["validation_accuracy"]
        return values | {f"firing_rate_{i}": rate for i, rate in enumerate(rates, 1)}


COLUMNS = tuple(EpochMetrics(0, 0, 0, 0, 0, 0, 0, 0).columns())
"""Columns of metrics.csv that every run has."""


def best_epoch(epochs: Sequence[EpochMetrics]) -> EpochMetrics:
    """The epoch that best.pt holds: the highest accuracy on the validation set, else on the test set; of several the
    last.
    """
    return max(epochs, key=lambda row: (row.accuracy, row.epoch))


class Monitor:
    """What a caller may watch and stop; this one does nothing. The command line's draws the progress bar."""

    stop_signal: int | None = None
    """Set to a signal's number, training saves after the current batch and raises Interrupted."""

    def message(self, text: str) -> None:
        """One line worth knowing: a choice that was made, a compilation that takes a while."""

    def start(self, run: Path, data: str, samples: int, epochs: int, done: int) -> None:
        """Training begins, on what the source calls itself: samples per epoch, epochs in all, epochs done before."""

    def batches(self, epoch: int, samples: int, loss: float, accuracy: float) -> None:
        """Samples of this epoch so far, and their mean loss and accuracy."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch ended and is saved."""

    def tested(self, metrics: EpochMetrics) -> None:
        """The best epoch was tested, once, after the last one; only with a validation set."""


class Monitors(Monitor):
    """Several monitors as one; a stop that any of them asks for counts."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        self.monitors = monitors

    @property
    def stop_signal(self) -> int | None:  # type: ignore[override]
        return next((monitor.stop_signal for monitor in self.monitors if monitor.stop_signal), None)

    def message(self, text: str) -> None:
        for monitor in self.monitors:
            monitor.message(text)

    def start(self, run: Path, data: str, samples: int, epochs: int, done: int) -> None:
        for monitor in self.monitors:
            monitor.start(run, data, samples, epochs, done)

    def batches(self, epoch: int, samples: int, loss: float, accuracy: float) -> None:
        for monitor in self.monitors:
            monitor.batches(epoch, samples, loss, accuracy)

    def epoch(self, metrics: EpochMetrics) -> None:
        for monitor in self.monitors:
            monitor.epoch(metrics)

    def tested(self, metrics: EpochMetrics) -> None:
        for monitor in self.monitors:
            monitor.tested(metrics)
