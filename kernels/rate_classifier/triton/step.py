"""A whole training step of a one-layer rate classifier on a GPU, in Triton: three launches, replayed as a CUDA graph.

    images uint8 [D, P] -> Poisson spikes [T, B, P] -> linear, LIF [T, B, N] -> loss of the mean rate -> Adam or SGD

A block of steps is one launch of ``encode_kernel``, then one of ``step_kernel`` and of ``update_kernel`` for each step.
What changes from step to step is in device memory (the step counter, the order of the samples, the step sizes), so a
CUDA graph of a block trains a whole epoch by being replayed, and nothing waits for the host. Without CUDA, in Triton's
interpreter, the same launches are made one by one.

It computes what ``poisson_encode``, a linear layer, LIF neurons, ``reference.rate_loss`` and a torch optimizer compute.
Kernels: ``encode.py``, ``kernels.py``, ``update.py``. Launches: ``launch.py``.
Twin: ``rate_classifier/numba/step.py``. Reference: ``kernels/reference.py``. Tests: ``tests/test_rate_step.py``.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastsnn.kernels.neurons import Neuron
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.rate_classifier.parameters import Parameters, neuron_refusal, optimizer_refusal
from fastsnn.kernels.rate_classifier.triton.encode import PixelIndex, index_pixels
from fastsnn.kernels.rate_classifier.triton.launch import Plan, Problem
from fastsnn.kernels.triton import bf16_split, check_device, check_dtype, device_guard

MAX_T = 1024
MAX_CLASSES = 32
MAX_PIXELS = 65535
TRAINING, EVALUATION = 0, 1
"""Streams of random numbers."""


def refusal(*, T: int, classes: int, pixels: int, loss: str, optimizer: Any, neuron: Neuron) -> str | None:
    """Why this case has no fused step, in one line that names the option; None where it has one."""
    if loss not in ("mse", "ce"):
        return f"loss is {loss!r}; the fused step has mse and ce"
    for name, value, most in (("T", T, MAX_T), ("classes", classes, MAX_CLASSES), ("pixels", pixels, MAX_PIXELS)):
        if not 1 <= value <= most:
            return f"{name} is {value}; the fused step has 1 to {most}"
    return neuron_refusal(neuron) or optimizer_refusal(optimizer)


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
                check_device(name, tensor)
                check_dtype(name, tensor, (torch.float32,))
        classes, pixels = weight.shape
        reason = refusal(T=T, classes=classes, pixels=pixels, loss=loss, optimizer=optimizer, neuron=neuron)
        if reason is not None:
            raise ValueError(reason)
        self.problem = Problem(
            T=T,
            classes=classes,
            pixels=pixels,
            seed=(seed + 2**63) % 2**64 - 2**63,
            cross_entropy=loss == "ce",
            has_bias=bias is not None,
            exact=_has_bf16_products(weight.device),
            neuron=compile_neuron(neuron),
        )
        self.parameters = Parameters(weight, bias, optimizer, self.problem.block_n, self.problem.exact)
        self.trained = optimizer is not None
        self.use_graph = weight.is_cuda
        """Whether launches are replayed as a CUDA graph or made one by one; both give the same bits."""
        self._plans: WeakKeyDictionary[PixelIndex, dict[tuple[int, int], Plan]] = WeakKeyDictionary()

    def prepare(self, images: Tensor, labels: Tensor) -> PixelIndex:
        """Index ``images`` uint8 [D, ...] with ``labels`` int64 [D], on the weights' device; once per data set."""
        check_dtype("images", images, (torch.uint8,))
        check_dtype("labels", labels, (torch.int64,))
        device, pixels, classes = self.parameters.weight.device, self.problem.pixels, self.problem.classes
        for name, tensor in (("images", images), ("labels", labels)):
            if tensor.device != device:
                raise ValueError(f"{name} is on {tensor.device} and weight on {device}; allowed: one device")
        flat = images.reshape(len(images), -1) if images.numel() else images.reshape(len(images), pixels)
        if flat.shape[1] != pixels:
            raise ValueError(f"images have {flat.shape[1]} pixels and weight {pixels}; allowed: the same number")
        if labels.shape != flat.shape[:1]:
            raise ValueError(f"labels has shape {list(labels.shape)}; allowed: [{len(flat)}], one per image")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"labels go from {int(labels.min())} to {int(labels.max())}; allowed: 0 to {classes - 1}")
        return index_pixels(flat, labels)

    def train(self, data: PixelIndex, order: Tensor, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Train on samples ``order`` int64 [S], ``batch_size`` a step; nothing waits for the device.

        Returns each step's mean loss fp32 [steps] and its correct answers int64 [steps], on the device.
        """
        if not self.trained:
            raise ValueError("optimizer is None; allowed: an optimizer, or evaluation alone")
        if order.device.type == "cpu" and len(order):  # elsewhere looking would wait for the device
            first, last = int(order.min()), int(order.max())
            if first < 0 or last >= len(data):
                raise ValueError(f"order holds samples {first} to {last}; allowed: 0 to {len(data) - 1}")
        return self._run(data, order, epoch, batch_size, TRAINING)

    def evaluate(self, data: PixelIndex, batch_size: int) -> tuple[Tensor, Tensor]:
        """The same two for all samples in order, forward only, on random numbers of their own."""
        return self._run(data, torch.arange(len(data), device=data.labels.device), 0, batch_size, EVALUATION)

    def sync(self) -> None:
        """Bring the tensors of weight, bias and optimizer up to date."""
        self.parameters.store()

    def _run(self, data: PixelIndex, order: Tensor, epoch: int, batch_size: int, stream: int) -> tuple[Tensor, Tensor]:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; allowed: 1 or more")
        steps = -(-len(order) // batch_size)
        plans = self._plans.setdefault(data, {})
        with device_guard(self.parameters.weight), torch.no_grad():
            self.parameters.load()
            plan = plans.get((batch_size, stream))
            if plan is None or plan.steps < steps:
                plan = Plan(self.problem, self.parameters, data, batch_size, max(1, steps), stream == TRAINING)
                plans[batch_size, stream] = plan
            return plan.run(order, epoch, stream, self.use_graph)


def _has_bf16_products(device: torch.device) -> bool:
    """Whether the device's tensor cores multiply bf16; the interpreter's stand-ins do."""
    return bf16_split.capability(device) >= 80
