"""A whole training step of a one-layer rate classifier on the CPU, in Numba: one call trains any number of steps.

    images uint8 [D, P] -> Poisson spikes [T, B, P] -> linear, LIF [T, B, N] -> loss of the mean rate -> Adam or SGD

It computes what ``poisson_encode``, a linear layer, LIF neurons, ``reference.rate_loss`` and a torch optimizer compute.
The bits of the result do not depend on the number of threads, which is ``numba.get_num_threads()`` at most:
one alone is taken while that is measured to be faster, as on a busy machine.
Kernels: ``kernels.py``, ``neurons.py``. Twin: ``rate_classifier/triton/step.py``. Reference: ``kernels/reference.py``.
Tests: ``tests/test_cpu_rate_step.py``, ``tests/test_cpu_training.py``.
"""

import time
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from fastsnn.kernels.neurons import Neuron
from fastsnn.kernels.numba.bits import LANES, aligned_empty
from fastsnn.kernels.numba.threads import MeasuredWorkers, meeting, spread
from fastsnn.kernels.rate_classifier.numba.kernels import Problem, run, workspaces
from fastsnn.kernels.rate_classifier.numba.neurons import sample_functions, scalars
from fastsnn.kernels.rate_classifier.parameters import Parameters, neuron_refusal, optimizer_refusal

MAX_T = 4096
MAX_CLASSES = 1024
MAX_MEMBRANE = 1 << 20
"""Most neurons times time steps of one sample: each worker holds two arrays of as many floats."""
MAX_WEIGHTS = 1 << 22
"""Most weights, classes rounded up to whole vectors: there are GROUPS + 3 arrays of as many floats."""
GROUPS = 16
"""Partial sums of the weight gradient, at most: they bound the number of threads that a step can use."""
TRAINING, EVALUATION = 0, 1
"""Streams of random numbers."""


def refusal(*, T: int, classes: int, pixels: int, loss: str, optimizer: Any, neuron: Neuron) -> str | None:
    """Why this case has no fused step, in one line that names the option; None where it has one."""
    if loss not in ("mse", "ce"):
        return f"loss is {loss!r}; the fused step has mse and ce"
    for name, value, most in (("T", T, MAX_T), ("classes", classes, MAX_CLASSES)):
        if not 1 <= value <= most:
            return f"{name} is {value}; the fused step has 1 to {most}"
    for name, value, most in (("T", T, MAX_MEMBRANE), ("pixels", pixels, MAX_WEIGHTS)):
        if not 1 <= value <= most // _columns(classes):
            return f"{name} is {value}; the fused step has 1 to {most // _columns(classes)} with {classes} classes"
    return neuron_refusal(neuron) or optimizer_refusal(optimizer)


def _columns(classes: int) -> int:
    """Classes rounded up to whole vectors."""
    return -(-classes // LANES) * LANES


class Data(NamedTuple):
    """A data set as the kernels read it: uint8 [D, P] and int64 [D], which may be the caller's own memory."""

    images: np.ndarray
    labels: np.ndarray


class RateStep:
    """Trains ``weight`` [N, P] and ``bias`` [N] or None (fp32) in place of a torch module and its optimizer.

    ``optimizer`` is torch.optim's Adam or SGD over them, or None where nothing is trained. Steps are taken on copies:
    :meth:`sync` brings weight, bias and the optimizer's state up to date; a change that others make to them (a loaded
    checkpoint) is noticed at the next call. Raises ValueError where :func:`refusal` names a reason.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, optimizer: Any, *, T: int, seed: int, loss: str, neuron: Neuron
    ) -> None:
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None:
                _check(name, tensor, torch.float32)
        classes, pixels = weight.shape
        reason = refusal(T=T, classes=classes, pixels=pixels, loss=loss, optimizer=optimizer, neuron=neuron)
        if reason is not None:
            raise ValueError(reason)
        self.problem = Problem(
            T=T,
            classes=classes,
            columns=_columns(classes),
            cross_entropy=loss == "ce",
            bias=bias is not None,
            adam=isinstance(optimizer, torch.optim.Adam),
            seed=np.uint64(seed % 2**64),
            rest=np.float32(neuron.rest()[0]),
            forward_scalars=scalars(neuron)[0],
            backward_scalars=scalars(neuron)[1],
        )
        self.neuron_functions = sample_functions(neuron)
        self.pixels, self.trained = pixels, optimizer is not None
        self.parameters = Parameters(weight, bias, optimizer, self.problem.columns, exact=False)
        size = (pixels + 1) * self.problem.columns if self.trained else 0
        self._gradients = aligned_empty((GROUPS, size), np.float32)
        self._workers = MeasuredWorkers()

    def prepare(self, images: Tensor, labels: Tensor) -> Data:
        """Check ``images`` uint8 [D, ...] with ``labels`` int64 [D]; once per data set."""
        _check("images", images, torch.uint8)
        _check("labels", labels, torch.int64)
        flat = images.reshape(len(images), -1) if images.numel() else images.reshape(len(images), self.pixels)
        if flat.shape[1] != self.pixels:
            raise ValueError(f"images have {flat.shape[1]} pixels and weight {self.pixels}; allowed: the same number")
        if labels.shape != flat.shape[:1]:
            raise ValueError(f"labels has shape {list(labels.shape)}; allowed: [{len(flat)}], one per image")
        most = self.problem.classes - 1
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= most:
            raise ValueError(f"labels go from {int(labels.min())} to {int(labels.max())}; allowed: 0 to {most}")
        return Data(flat.contiguous().numpy(), labels.contiguous().numpy())

    def train(self, data: Data, order: Tensor, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Train on samples ``order`` int64 [S], ``batch_size`` a step.

        Returns each step's mean loss fp32 [steps] and its correct answers int64 [steps].
        """
        if not self.trained:
            raise ValueError("optimizer is None; allowed: an optimizer, or evaluation alone")
        _check("order", order, torch.int64)
        if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(data.images):
            found = f"{int(order.min())} to {int(order.max())}"
            raise ValueError(f"order holds samples {found}; allowed: 0 to {len(data.images) - 1}")
        return self._run(data, order, epoch, batch_size, TRAINING)

    def evaluate(self, data: Data, batch_size: int) -> tuple[Tensor, Tensor]:
        """The same two for all samples in order, forward only, on random numbers of their own."""
        return self._run(data, torch.arange(len(data.images)), 0, batch_size, EVALUATION)

    def sync(self) -> None:
        """Bring the tensors of weight, bias and optimizer up to date."""
        self.parameters.store()

    def _run(self, data: Data, order: Tensor, epoch: int, batch_size: int, stream: int) -> tuple[Tensor, Tensor]:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; allowed: 1 or more")
        parameters, problem, learn = self.parameters, self.problem, stream == TRAINING
        parameters.load()
        steps = -(-len(order) // batch_size)
        losses, correct = torch.empty(steps), torch.empty(steps, dtype=torch.int64)
        rates, constants = parameters.schedule(steps) if learn else (torch.empty(steps, 2), torch.empty(5))
        moments = parameters.moments if learn else [parameters.weight] * 2
        most, arrived = min(numba.get_num_threads(), GROUPS), meeting()
        workers = self._workers.choose(most) if learn else most
        weight, first, second = (tensor.reshape(-1).numpy() for tensor in (parameters.weight, *moments))
        started = time.perf_counter()
        spread(
            run, workers, arrived, *self.neuron_functions, *data, order.contiguous().numpy(), stream, epoch, batch_size,
            learn, weight, first, second, self._gradients, rates.numpy(), constants.numpy(), problem,
            workspaces(workers, self.pixels, problem.T, problem.columns),
            np.empty(batch_size), np.empty(batch_size, np.int64), losses.numpy(), correct.numpy(),
            arrived=arrived,
        )  # fmt: skip
        if learn:
            self._workers.note(workers, (time.perf_counter() - started) / max(1, len(order)))
            parameters.advance(steps)
        return losses, correct


def _check(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}; allowed: the CPU, where backend numba computes")
    if tensor.dtype != dtype:
        found, wanted = (str(kind).removeprefix("torch.") for kind in (tensor.dtype, dtype))
        raise TypeError(f"{name} has dtype {found}; backend numba allows: {wanted}")
