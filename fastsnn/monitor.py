"""What a caller may watch of a run. Imports nothing that is slow: the command line needs it before torch is loaded."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EpochMetrics:
    """A line of metrics.csv; losses are means over the samples, accuracies from 0 to 1."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    train_seconds: float
    test_seconds: float
    images_per_second: float


class Monitor:
    """What a caller may watch and stop; this one does nothing. The command line's draws the progress bar."""

    stop_signal: int | None = None
    """Set to a signal's number, training saves after the current batch and raises Interrupted."""

    def message(self, text: str) -> None:
        """One line worth knowing: a choice that was made, a compilation that takes a while."""

    def start(self, run: Path, images: int, epochs: int, done: int) -> None:
        """Training begins: images per epoch, epochs in all, epochs done before."""

    def batches(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        """Images of this epoch so far, and their mean loss and accuracy."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch ended and is saved."""
