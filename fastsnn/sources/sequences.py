"""Sequential MNIST: an image as a sequence of its pixels, row by row (smnist) or in a fixed random order (psmnist)."""

from collections.abc import Callable
from pathlib import Path

import torch

from fastsnn.sources import images
from fastsnn.sources.store import Part, StoredSource

PIXELS = 28 * 28


def open_sequence(
    name: str,
    folder: Path,
    T: int | None,
    encoder: str | None,
    say: Callable[[str], None],
    *,
    pixels_per_step: int = 1,
    permutation_seed: int = 0,
) -> StoredSource:
    """MNIST as sequences of currents from 0 to 1, [T, B, pixels_per_step] with T = 784 / pixels_per_step.

    Source: Le, Jaitly and Hinton 2015. ``permutation_seed`` gives psmnist's order, the same for all images.
    """
    if encoder is not None and encoder != "direct":
        raise ValueError(
            f"encoder is {encoder!r}; allowed for {name}: direct, a pixel's value as the current of its step"
        )
    if not isinstance(pixels_per_step, int) or pixels_per_step < 1 or PIXELS % pixels_per_step:
        divisors = ", ".join(str(n) for n in range(1, PIXELS + 1) if PIXELS % n == 0)
        raise ValueError(f"pixels_per_step is {pixels_per_step}; allowed: {divisors}")
    steps = PIXELS // pixels_per_step
    if T is not None and steps != T:
        raise ValueError(
            f"T is {T}, and {name} has {steps} steps of {pixels_per_step} pixel(s); allowed: {steps}, or leave T out"
        )
    data = images.load("mnist", folder, say)
    order = torch.arange(PIXELS)
    if name == "psmnist":
        order = torch.randperm(PIXELS, generator=torch.Generator().manual_seed(permutation_seed))
    parts = {}
    for split, pixels, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        x = pixels.T[order].reshape(steps, pixels_per_step, len(labels)).transpose(1, 2)
        parts[split] = Part(x.contiguous(), labels)
    return StoredSource(name, parts, (pixels_per_step,), data.classes, T=steps, scale=1 / 255)
