"""A small data set and classifier for the CPU's training step, and their training by the reference and autograd."""

from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels import contract, philox, reference
from fastsnn.kernels.neurons import LIF
from fastsnn.kernels.rate_classifier.numba.step import TRAINING, RateStep

SAMPLES, PIXELS, CLASSES, SEED = 70, 97, 5, 2**40 + 3
DEFAULTS: dict[str, Any] = {"T": 33, "loss": "mse", "epoch": 3, "batch_size": 16}


def dataset(pixels: int = PIXELS, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Images uint8 [70, pixels], mostly black and some white, whose labels are to be seen in them; one is all black."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (SAMPLES, pixels), generator=generator, dtype=torch.uint8)
    labels = torch.randint(classes, (SAMPLES,), generator=generator)
    images[torch.rand(SAMPLES, pixels, generator=generator) < 0.5] = 0
    images[torch.rand(SAMPLES, pixels, generator=generator) < 0.1] = 255
    images[torch.arange(SAMPLES), labels] = 255
    images[7] = 0
    return images, labels


def parameters(pixels: int = PIXELS, classes: int = CLASSES, has_bias: bool = True) -> list[Tensor]:
    """Weight and bias, multiples of 1/64: any order of summation gives the same currents, and so the same spikes."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-8, 16, (classes, pixels), generator=generator) / 64
    bias = torch.randint(-8, 16, (classes,), generator=generator) / 64
    return [tensor.requires_grad_() for tensor in ([weight, bias] if has_bias else [weight])]


def encoded(images: Tensor, ids: Tensor, T: int, epoch: int, stream: int) -> Tensor:
    return philox.unpack(philox.poisson_words(philox.thresholds(images[ids]), T, SEED, epoch, stream, ids), T)


def train_reference(
    trained: list[Tensor], optimizer: Any, order: Tensor, data: tuple[Tensor, Tensor], *, T: int, loss: str,
    epoch: int, batch_size: int, neuron: LIF,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What :meth:`RateStep.train` computes, by the reference and autograd."""
    images, labels = data
    losses, correct = [], []
    for ids in order.split(batch_size):
        spikes = by_reference(encoded(images, ids, T, epoch, TRAINING), trained, neuron)
        value, right = reference.rate_loss(spikes, labels[ids], loss)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.detach())
        correct.append(right)
    return torch.stack(losses), torch.stack(correct)


def by_reference(x: Tensor, trained: list[Tensor], neuron: LIF) -> Tensor:
    """Spikes [T, B, N] of neurons driven by x [T, B, K]."""
    weight, bias = trained if len(trained) == 2 else (*trained, None)
    return reference.linear(x, weight, bias, neuron)[0]


def fused(trained: list[Tensor], optimizer: Any, *, T: int, loss: str, neuron: LIF) -> RateStep:
    weight, bias = trained if len(trained) == 2 else (*trained, None)
    return RateStep(weight, bias, optimizer, T=T, seed=SEED, loss=loss, neuron=neuron)


def require_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    named = enumerate(zip(actual, expected, strict=True))
    contract.require(*(contract.same_bits(f"tensor {i}", *pair, "C6") for i, pair in named))
