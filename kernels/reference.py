"""The equations of fastsnn in plain PyTorch: the oracle that every kernel is tested against.

A neuron's step runs as it is written (``kernels/neurons/``), once for each time step, under torch's autograd. Shapes:
time first, ``[T, ...]``. Any floating dtype, any device. Speed is not a goal here.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fastsnn.kernels.neurons.firing import firing
from fastsnn.kernels.neurons.language import Operand, Value, precision
from fastsnn.kernels.neurons.neuron import Neuron
from fastsnn.kernels.neurons.surrogates import Surrogate


def on_tensors(neuron: Neuron, like: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Neuron:
    """The neuron with tensors for parameters: those that learn as they are given, the rest as doubles of no axes.

    A double of no axes is rounded once, to the precision that it meets; and a division by one is an IEEE division on
    CUDA, where PyTorch turns a Python number into a multiplication by its reciprocal.
    """
    values: dict[str, Operand] = {
        name: torch.tensor(value, dtype=torch.float64, device=like.device)
        for name, value in neuron.parameters().items()
    }
    return neuron.with_values({**values, **(parameters or {})})


def step(bound: Neuron, x: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One time step of a neuron :func:`on_tensors`: its output and the states after it."""
    output, *after = bound.step(*cast("list[Value]", [x, *state]))
    return cast(Tensor, output), tuple(cast("list[Tensor]", after))


def rest(neuron: Neuron, like: Tensor) -> tuple[Tensor, ...]:
    """The states before the first step, of the shape and dtype of ``like``."""
    return tuple(torch.full_like(like, value) for value in neuron.rest())


def scan(
    current: Tensor,
    neuron: Neuron,
    state: Sequence[Tensor] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    smooth: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run neurons over ``current`` [T, ...] from ``state``, a tensor [...] for each state; default: at rest.

    ``parameters`` are those that learn, by name, of any shape that broadcasts to [...]. Returns the output [T, ...] and
    the last states. ``smooth`` replaces the Heaviside step by the surrogate's primitive: forward is then what backward
    differentiates.
    """
    bound = on_tensors(neuron, current, parameters)
    state = rest(neuron, current[0]) if state is None else tuple(state)
    outputs = []
    with in_precision_of(current), firing(_primitive) if smooth else nullcontext():
        for x in current:
            output, state = step(bound, x, state)
            outputs.append(output)
    return torch.stack(outputs), tuple(state)


def in_precision_of(current: Tensor) -> AbstractContextManager[None]:
    """Let steps compute in the currents' precision; torch.compile, which can't set it, takes torch's default dtype."""
    return nullcontext() if torch.compiler.is_compiling() else precision(current.dtype)


def _primitive(distance: Tensor, surrogate: Surrogate, alpha: Operand) -> Tensor:
    return surrogate.primitive(distance, float(alpha))  # type: ignore[arg-type]


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    neuron: Neuron,
    state: Sequence[Tensor] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Neurons driven by ``x @ weight.T + bias``: x [T, ..., K], weight [N, K], bias [N] or None; see :func:`scan`."""
    return scan(F.linear(x, weight, bias), neuron, state, parameters)


def recurrent(
    x: Tensor,
    weight: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    neuron: Neuron,
    state: Sequence[Tensor] | None = None,
    initial: Tensor | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Neurons driven by ``x[t] @ W.T + output[t - 1] @ V.T + b``; V [N, N] or its diagonal [N]; see :func:`scan`.

    ``initial`` [..., N] is the output before the first step, default zeros.
    """
    current = F.linear(x, weight, bias)
    bound = on_tensors(neuron, current, parameters)
    state = rest(neuron, current[0]) if state is None else tuple(state)
    output = torch.zeros_like(current[0]) if initial is None else initial
    outputs = []
    with in_precision_of(current):
        for row in current:
            output, state = step(bound, row + fed_back(output, recurrent_weight), state)
            outputs.append(output)
    return torch.stack(outputs), tuple(state)


def fed_back(output: Tensor, recurrent_weight: Tensor) -> Tensor:
    """What an output [..., N] adds to the next step's current, by V [N, N] or by its diagonal [N]."""
    return output * recurrent_weight if recurrent_weight.dim() == 1 else F.linear(output, recurrent_weight)


def rate_loss(spikes: Tensor, labels: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Loss of a rate classifier and its number of correct answers.

    ``spikes`` [T, B, N], ``labels`` int64 [B]. The output is the mean firing rate over T; ``mse`` compares it with the
    one-hot label, ``ce`` is its cross-entropy; both average over the batch. A tie goes to the lowest class.
    """
    rate = spikes.mean(0)
    if loss == "mse":
        value = F.mse_loss(rate, F.one_hot(labels, rate.shape[-1]).to(rate.dtype))
    elif loss == "ce":
        value = F.cross_entropy(rate, labels)
    else:
        raise ValueError(f"loss is {loss!r}; allowed: mse, ce")
    return value, (rate.argmax(-1) == labels).sum()
