"""What a network says: of all samples that it is judged by, and of one of them. Tests: ``tests/test_recording.py``."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastsnn.activity import Layer


@dataclass(frozen=True)
class Outcome:
    """What the network says of the D samples that it is judged by."""

    scores: Tensor
    """fp32 [D, classes]: the highest is the answer; firing rates or what the readout makes of potentials."""
    labels: Tensor
    """int64 [D]; -1 for samples that have a label at every step instead."""
    shares: Tensor
    """fp64 [D]: the part of each sample's labels that is answered rightly, 0 or 1 if it has one."""
    confusion: Tensor
    """int64 [classes, classes]: labels i (row) with the answer j (column); of samples, or of their labelled steps."""

    @property
    def accuracy(self) -> float:
        """Part of all labels that is answered rightly."""
        return float(self.confusion.diag().sum() / self.confusion.sum().clamp(min=1))

    @property
    def class_accuracies(self) -> Tensor:
        """fp64 [classes]: part of each class's labels that is answered rightly; NaN for a class without any."""
        return self.confusion.diag().double() / self.confusion.sum(1)

    @property
    def predictions(self) -> Tensor:
        """int64 [D]: the class with the highest score, in a tie the lowest class."""
        return self.scores.argmax(-1)

    @property
    def leads(self) -> Tensor:
        """fp32 [D]: score of the highest other class above that of the label; below 0 if the answer is right."""
        rows, labels = torch.arange(len(self.labels)), self.labels.clamp(min=0)
        others = self.scores.index_put((rows, labels), torch.tensor(-torch.inf))
        return others.amax(-1) - self.scores[rows, labels]


@dataclass(frozen=True)
class Sample:
    """One sample on its way through the network, over its own steps T."""

    index: int
    why: str
    """Why it was chosen, one of the texts in ``words.py``; empty if it was asked for."""
    labels: Tensor
    """int64 [] or, of steps, [T], where -1 is none."""
    x: Tensor
    """fp32 [T, *shape]: what the network is given."""
    picture: Tensor | None
    """uint8 [C, H, W] or [K], a still image or values as they are encoded; None for data with time steps."""
    layers: tuple[Layer, ...]
    """Those that spike, and the output."""
    scores: Tensor
    """fp32 [classes]."""

    @property
    def output(self) -> Layer:
        return self.layers[-1]

    @property
    def label(self) -> int | None:
        """None if it has a label at every step."""
        return int(self.labels) if self.labels.dim() == 0 else None

    @property
    def prediction(self) -> int:
        return int(self.scores.argmax())

    @property
    def step_predictions(self) -> Tensor:
        """int64 [T]: the class whose output is the highest at each step."""
        return self.output.output.argmax(-1)
