"""The learning rate as a function of the step alone, so that a resumed run goes on with the same bits."""

import math

from fastsnn.config import FitConfig


def learning_rate(config: FitConfig, step: int, steps_per_epoch: int) -> float:
    """The rate of optimizer step ``step``, counted from 0 over all epochs.

    After a linear warm-up: constant; half a cosine that reaches 0 after the last epoch (Loshchilov and Hutter 2017,
    without restarts); or ``lr_step_factor`` times itself every ``lr_step_epochs`` epochs (torch's StepLR).
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.lr_schedule == "cosine":
        total = config.epochs * steps_per_epoch
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return config.lr * (1 + math.cos(math.pi * done)) / 2
    if config.lr_schedule == "step":
        return config.lr * config.lr_step_factor ** (step // steps_per_epoch // config.lr_step_epochs)
    return config.lr
