"""Small classifiers, their training in plain torch, and the check of one step of the Triton kernels against it."""

from typing import Any

import pytest
import torch
from neuron_cases import kept_potentials
from torch import Tensor
from torch.nn import functional as F

from fastsnn import LIF
from fastsnn.kernels import philox
from fastsnn.kernels.contract import gradient_error, replay, require, same_bits
from fastsnn.kernels.rate_classifier.triton import step as rate_step
from fastsnn.kernels.rate_classifier.triton.launch import Plan
from fastsnn.kernels.rate_classifier.triton.step import TRAINING, RateStep
from fastsnn.kernels.reference import linear, rate_loss, scan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Case:
    """A small data set, a classifier and its optimizer, made from a seed."""

    def __init__(
        self, samples: int, pixels: int, classes: int, T: int, *, bias: bool = True, optimizer: Any = "adam",
        loss: str = "mse", seed: int = 7, dyadic: bool = False, **neuron: Any,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        bright = torch.rand(samples, pixels, generator=generator) < 0.7
        images = torch.randint(0, 256, (samples, pixels), generator=generator) * bright
        images[0, : min(2, pixels)] = 255
        self.images = images.to(torch.uint8).to(DEVICE)
        self.labels = torch.randint(0, classes, (samples,), generator=generator).to(DEVICE)
        scale = 4.0 / pixels**0.5
        weight = torch.randn(classes, pixels, generator=generator) * scale + 1.5 / pixels
        offset = torch.randn(classes, generator=generator) * 0.25
        if dyadic:
            weight, offset = (weight * 8).round() / 8, (offset * 8).round() / 8
        self.weight = torch.nn.Parameter(weight.to(DEVICE))
        self.bias = torch.nn.Parameter(offset.to(DEVICE)) if bias else None
        self.parameters = [self.weight] if self.bias is None else [self.weight, self.bias]
        self.optimizer: Any = {
            "adam": lambda: torch.optim.Adam(self.parameters, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
            "sgd": lambda: torch.optim.SGD(self.parameters, lr=0.5),
            "momentum": lambda: torch.optim.SGD(self.parameters, lr=0.5, momentum=0.75),
            None: lambda: None,
        }[optimizer]()
        self.T, self.seed, self.loss = T, seed, loss
        self.neuron = LIF(**neuron)

    def step(self, module: Any = rate_step) -> Any:
        options = {"T": self.T, "seed": self.seed, "loss": self.loss, "neuron": self.neuron}
        return module.RateStep(self.weight, self.bias, self.optimizer, **options)

    def spikes(self, ids: Tensor, epoch: int, stream: int) -> Tensor:
        """Input spikes [T, B, P] of samples ``ids``."""
        pixel = self.images[ids].long()
        q = torch.where(pixel == 255, philox.ALWAYS, 257 * pixel)
        return philox.unpack(philox.poisson_words(q, self.T, self.seed, epoch, stream, ids), self.T)

    def reference(self, ids: Tensor, epoch: int, stream: int) -> tuple[Tensor, Tensor]:
        """Mean loss and correct answers of one batch, under autograd."""
        spikes, _ = linear(self.spikes(ids, epoch, stream), self.weight, self.bias, self.neuron)
        return rate_loss(spikes, self.labels[ids], self.loss)

    def reference_train(self, order: Tensor, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
        results = []
        for ids in order.split(batch_size):
            self.optimizer.zero_grad()
            loss, correct = self.reference(ids, epoch, TRAINING)
            loss.backward()
            self.optimizer.step()
            results.append((loss.detach(), correct))
        losses, correct = zip(*results, strict=True)
        return torch.stack(losses), torch.stack(correct)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that training changes."""
        named = {f"parameter {i}": parameter.detach() for i, parameter in enumerate(self.parameters)}
        for i, parameter in enumerate(self.parameters):
            state = self.optimizer.state[parameter] if self.optimizer else {}
            named |= {f"{key} {i}": value for key, value in state.items() if isinstance(value, Tensor)}
        return {name: tensor.clone() for name, tensor in named.items()}


def plan_of(step: RateStep) -> Plan:
    """The buffers of the only data set, batch size and purpose that ``step`` ran."""
    (plans,) = step._plans.values()
    (plan,) = plans.values()
    return plan


def kept_by(plan: Plan, T: int, classes: int) -> Tensor:
    """What was kept of each step [T, programs, N] for the last sample of each program: a chunk's last step is first."""
    programs, _, block_n, _ = plan.h.shape
    return plan.h.flip(3).permute(1, 3, 0, 2).reshape(-1, programs, block_n)[:T, :, :classes]


def check_step(case: Case) -> None:
    """One step of SGD with momentum on all samples: what it keeps, loss, and the gradients that momentum keeps (C4)."""
    before = [parameter.detach().clone() for parameter in case.parameters]
    step = case.step()
    data = step.prepare(case.images, case.labels)
    ids = torch.arange(len(data), device=DEVICE)
    losses, correct = step.train(data, ids, 3, len(ids))
    step.sync()
    x, labels = case.spikes(ids, 3, TRAINING), case.labels
    current = F.linear(x, *before)
    recorded, _ = scan(current, case.neuron)
    plan = plan_of(step)
    if plan.group == 1:
        require(same_bits("kept", kept_by(plan, case.T, len(before[0])), kept_potentials(case.neuron, current)))

    def gradients(dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        parameters = [parameter.to(dtype).requires_grad_() for parameter in before]
        spikes, _ = replay(F.linear(x.to(dtype), *parameters), case.neuron, None, recorded)
        loss, _ = rate_loss(spikes, labels, case.loss)
        return loss.detach(), list(torch.autograd.grad(loss, parameters))

    loss, exact = gradients(torch.float64)
    _, eager = gradients(torch.float32)
    assert float(losses[0]) == pytest.approx(float(loss), abs=1e-6)
    assert int(correct[0]) == int(rate_loss(recorded, labels, case.loss)[1])
    for i, parameter in enumerate(case.parameters):
        assert exact[i].norm() > 0
        actual = case.optimizer.state[parameter]["momentum_buffer"]
        require(gradient_error(f"parameter {i}", actual, exact[i].cpu(), eager[i]))
