"""A source, a module and options that a test trains in a moment."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastsnn.config import FitConfig
from fastsnn.sources import Arrays

STEPS, CHANNELS, CLASSES = 12, 6, 3


def arrays(per_step: bool = False, lengths: bool = False, **options: Any) -> Arrays:
    """60 samples; channel pair 2 c, 2 c + 1 is busier in samples (or at steps) of class c."""
    chance = np.random.default_rng(0)
    y = np.arange(60) % CLASSES
    steps = np.repeat(y[:, None], STEPS, 1)
    if per_step:
        steps = chance.integers(0, CLASSES, (60, STEPS))
        y = np.where(chance.random((60, STEPS)) < 0.2, -1, steps)
    busy = np.arange(CHANNELS)[None, None] // 2 == steps[..., None]
    x = (chance.random((60, STEPS, CHANNELS)) < np.where(busy, 0.8, 0.1)).astype(np.uint8)
    given = chance.integers(4, STEPS + 1, 60) if lengths else None
    return Arrays(x, y, given, test_fraction=0.2, name="made", **options)


class Own(nn.Module):
    """A module that knows nothing of fastsnn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x)
        return output


def options(out: Path, **more: Any) -> FitConfig:
    plain: dict[str, Any] = {"epochs": 4, "batch_size": 10, "lr": 0.05, "loss": "ce", "threads": 1, "device": "cpu"}
    return FitConfig(**plain | {"out": out} | more)
