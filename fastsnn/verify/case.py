"""One case of ``fastsnn verify`` and its inputs, drawn on the CPU.

Shapes: T time steps, B samples, K inputs, N neurons.
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastsnn.kernels import reference
from fastsnn.kernels.neurons import LIF, Neuron


@dataclass(frozen=True)
class Case:
    """One check of one group; ``group`` names the row that it belongs to and the function that runs it."""

    name: str
    group: str
    neuron: Neuron = LIF()  # noqa: RUF009 - frozen
    T: int = 12
    B: int = 3
    K: int = 0
    N: int = 31
    dtype: torch.dtype = torch.float32
    """Of the current, or of x and weight; the neuron's state is fp32 always."""
    x_dtype: torch.dtype | None = None
    """Of x, where it is not ``dtype``: bool or uint8 spikes."""
    dyadic: bool = False
    """Weights are multiples of 1/8 and inputs 0 or 1: currents are exact in whatever order they are summed."""
    dense: bool = False
    """No input is 0."""
    bias: bool = False
    recurrent: bool = False
    """Outputs come back one step later."""
    diagonal: bool = False
    """Each neuron's to itself alone."""
    learn: tuple[str, ...] = ()
    """Parameters of the neuron that learn, one for each neuron of a layer."""
    hand_gradient: bool = False
    """Compare the gradient that the neuron brings with the one that its step has."""
    state: bool = False
    """Start from random states, not at rest."""
    strided: bool = False
    """The input is a transposed view."""
    loss: str = "mse"
    optimizer: str = "sgd"
    fused: bool = False
    """Train with the backend's fused step, not layer by layer."""
    batch_size: int = 0
    steps: int = 1
    quick: bool = False
    """Part of ``--quick``."""
    small: bool = True
    """Small enough for Triton's interpreter."""


class Inputs(NamedTuple):
    """The tensors of a case, on the CPU; ``x`` is the current [T, B, N] or the layer's input [T, B, K]."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    state: Tensor | None
    parameters: dict[str, Tensor]
    grad_output: Tensor
    grad_state: Tensor
    recurrent_weight: Tensor | None = None
    initial: Tensor | None = None
    """The output before the first step."""


def generator(case: Case) -> torch.Generator:
    """Random numbers that depend on the case's name alone."""
    return torch.Generator().manual_seed(zlib.crc32(case.name.encode()))


def draw(case: Case) -> Inputs:
    """Inputs under which neurons are neither silent nor saturated."""
    T, B, K, N = case.T, case.B, case.K, case.N
    random = generator(case)
    gain = _gain(case.neuron)
    weight = bias = None
    if K:
        density = 1.0 if case.dense else min(0.3, 12 / K)
        count = density * K  # inputs that spike at a time step
        x = torch.rand(T, B, K, generator=random) < density
        spikes = x.to(case.x_dtype or case.dtype)
        if case.dyadic:
            weight, bias = dyadic(random, N, K), dyadic(random, N)
        else:
            weight = _normal(random, N, K) * 1.2 / count**0.5 + 1.8 / count
            bias = _normal(random, N) * 0.3
        if not isinstance(case.neuron, LIF):
            weight, bias = weight * gain, bias * gain
        weight, bias = weight.to(case.dtype), bias.to(case.dtype) if case.bias else None
        inputs = spikes if case.dyadic or case.x_dtype else (spikes * (_normal(random, T, B, K) + 1)).to(case.dtype)
    else:
        inputs = ((_normal(random, T, B, N) * 1.5 + 1.0) * gain).to(case.dtype)
    if case.strided:
        inputs = inputs.transpose(0, 1).contiguous().transpose(0, 1)
    states = len(case.neuron.states)
    state = torch.rand(states, B, N, generator=random) - 0.2 if case.state else None
    grad_output, grad_state = _normal(random, T, B, N).to(case.dtype), _normal(random, states, B, N)
    values = case.neuron.parameters()
    parameters = {name: values[name] * (1 + 0.1 * torch.rand(N, generator=random)) for name in case.learn}
    back = initial = None
    if case.recurrent:
        back = _normal(random, *(() if case.diagonal else (N,)), N) / (1 + 0.3 * N) ** 0.5 * gain
        back = ((back * 8).round() / 8 if case.dyadic else back).to(case.dtype)
        initial = (torch.rand(B, N, generator=random) < 0.4).float() if case.state else None
    return Inputs(inputs, weight, bias, state, parameters, grad_output, grad_state, back, initial)


@lru_cache(maxsize=256)
def _gain(neuron: Neuron) -> float:
    """What currents of about 1 are multiplied by, so that about a third of the neurons fire.

    A power of two except for LIF, so that multiples of 1/8 stay exact under it.
    """
    if isinstance(neuron, LIF):
        return 1.0 if neuron.decay_input else 1 / neuron.tau
    if not neuron.spikes:
        return 1.0
    current = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)) * 1.5 + 1.0
    gains = [2.0**i for i in range(-8, 9)]
    rates = [float(reference.scan(current * gain, neuron)[0].mean()) for gain in gains]
    return min(zip(gains, rates, strict=True), key=lambda pair: abs(pair[1] - 0.3))[0]


def dyadic(random: torch.Generator, *shape: int) -> Tensor:
    """Multiples of 1/8 from -1/2 to 6/8."""
    return torch.randint(-4, 7, shape, generator=random) / 8


def _normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random)
