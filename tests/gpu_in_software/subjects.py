"""What `performance.py` counts: each subject prepares its tensors on the card and returns what is counted."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fastsnn
from fastsnn import backends
from fastsnn.config import FitConfig
from fastsnn.kernels.rate_classifier.triton.step import RateStep
from fastsnn.sources import images
from fastsnn.sources.images import Images
from fastsnn.training.autograd_step import AutogradStep

CARD = torch.device("cuda", 0)
B, T = 64, 100
Run = Callable[[], object]


def mnist() -> images.DataSet:
    """The first batch of MNIST, on the card."""
    folder = os.environ.get("FASTSNN_DATA")
    if folder is None:
        raise SystemExit("FASTSNN_DATA is not set; allowed: the folder with MNIST's files")
    return images.load("mnist", Path(folder)).first(B, B).to(CARD)


def random(*shape: int, density: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if density < 1:
        return (torch.rand(shape, generator=generator) < density).float().to(CARD)
    return torch.randn(shape, generator=generator).to(CARD)


def whole_step() -> Run:
    data = mnist()
    weight = torch.nn.Parameter(0.05 * random(10, 784))
    step = RateStep(weight, None, torch.optim.Adam([weight]), T=T, seed=0, loss="mse", neuron=fastsnn.LIF())
    index, order = step.prepare(data.train_images, data.train_labels), torch.arange(B, device=CARD)
    return lambda: step.train(index, order, 1, B)


def encoding() -> Run:
    pixels = mnist().train_images
    return lambda: fastsnn.poisson_encode(pixels, T, packed=True)


def scan() -> Run:
    current = random(T, B, 1024).requires_grad_()
    return lambda: fastsnn.scan(current, fastsnn.LIF(), backend="triton")[0].sum().backward()  # type: ignore[no-untyped-call]


def linear() -> Run:
    spikes = fastsnn.PackedSpikes(fastsnn.poisson_encode(mnist().train_images[:4], T, packed=True), T)
    weight = (0.05 * random(800, 784)).requires_grad_()
    return lambda: fastsnn.linear(spikes, weight, backend="triton")[0].sum().backward()  # type: ignore[union-attr]


def recurrent(steps: int, batch: int, K: int, N: int) -> Run:
    x, weight = random(steps, batch, K, density=0.1), random(N, K).requires_grad_()
    back = (0.05 * random(N, N)).requires_grad_()
    return lambda: fastsnn.recurrent(x, weight, back, backend="triton")[0].sum().backward()  # type: ignore[union-attr]


def training_step(backend: str) -> Run:
    """784-800-10 layer by layer, with encoding and Adam; launches don't depend on sizes, so these are small."""
    network = fastsnn.networks.Layers(
        fastsnn.LinearLIF(784, 8, bias=False, backend=backend), fastsnn.LinearLIF(8, 10, bias=False, backend=backend),
        flat=True,
    ).to(CARD)  # fmt: skip
    step = AutogradStep(network, Images(mnist()), torch.optim.Adam(network.parameters()), FitConfig(T=4))
    order = torch.arange(4, device=CARD)
    step.train(order, 1, 4, [1e-3])
    return lambda: step.train(order, 2, 4, [1e-3])


SUBJECTS: dict[str, Callable[[], Run]] = {
    "training step of one layer, 784-10": whole_step,
    "Poisson encoding of a batch": encoding,
    "LIF scan [100, 64, 1024], forward and backward": scan,
    "linear layer 784-800 and LIF, B=4, forward and backward": linear,
    "recurrent layer, 8 steps, B=16, 140-256, forward and backward": lambda: recurrent(8, 16, 140, 256),
    "launches of a training step of two layers, backend triton, T=4, B=4, 784-8-10": lambda: training_step("triton"),
}
if backends.refusal("cupy", CARD) is None:
    SUBJECTS["launches of a training step of two layers, backend cupy, T=4, B=4, 784-8-10"] = lambda: training_step(
        "cupy"
    )
