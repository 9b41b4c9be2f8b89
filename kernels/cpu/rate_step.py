"""A whole training step of a one-layer rate classifier on the CPU: encode, currents, LIF, loss, gradients, optimizer.

It computes what ``poisson_encode``, a linear layer, LIF neurons, ``reference.rate_loss`` and a torch optimizer compute.
Kernels: ``kernels/cpu/rate_kernels.py``. Reference: ``kernels/reference.py``. Tests: ``tests/test_cpu_rate_step.py``.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from fastsnn.kernels.cpu import SERIAL
from fastsnn.kernels.cpu.bits import LANES, aligned_empty
from fastsnn.kernels.cpu.neuron import neuron_arguments
from fastsnn.kernels.cpu.rate_kernels import Optimizer, Problem, run, workspaces

GROUPS = 16
"""Partial sums of the weight gradient, at most: they bound the number of threads that a step can use."""
MAX_T = 4096
MAX_CLASSES = 1024
MAX_MEMBRANE = 1 << 20
MAX_WEIGHTS = 1 << 22

_OPTIMIZERS = {torch.optim.Adam: ("exp_avg", "exp_avg_sq"), torch.optim.SGD: ("momentum_buffer",)}
_UNSUPPORTED_OPTIONS = ("weight_decay", "amsgrad", "maximize", "nesterov", "dampening", "differentiable")


def unsupported(*, T: int, classes: int, pixels: int, loss: str, optimizer: Any, **neuron: Any) -> str | None:
    """Why this case has no fused step, in one line that names the option; None where it has one."""
    if loss not in ("mse", "ce"):
        return f"loss is {loss!r}; the fused CPU step has mse and ce"
    if T > MAX_T:
        return f"T is {T}; the fused CPU step goes up to {MAX_T}"
    if classes > MAX_CLASSES:
        return f"classes is {classes}; the fused CPU step goes up to {MAX_CLASSES}"
    if T * _columns(classes) > MAX_MEMBRANE:
        return f"T is {T} with {classes} classes; the fused CPU step goes up to T * classes = {MAX_MEMBRANE}"
    if pixels * _columns(classes) > MAX_WEIGHTS:
        return f"pixels is {pixels} with {classes} classes; the fused CPU step goes up to pixels * classes = {MAX_WEIGHTS}"
    return None if optimizer is None else _unsupported_optimizer(optimizer)


_NO_OPTIMIZER = Optimizer(False, 0, 0.0, 0.0, 0.0, 0.0)


def _unsupported_optimizer(optimizer: Any) -> str | None:
    if type(optimizer) not in _OPTIMIZERS:
        return f"optimizer is {type(optimizer).__name__}; the fused CPU step has torch.optim's Adam and SGD"
    if len(optimizer.param_groups) != 1:
        return f"the optimizer has {len(optimizer.param_groups)} parameter groups; the fused CPU step takes one"
    for name in _UNSUPPORTED_OPTIONS:
        if optimizer.param_groups[0].get(name):
            return f"the optimizer's {name} is {optimizer.param_groups[0][name]}; the fused CPU step has none"
    return None


def _columns(classes: int) -> int:
    """Classes rounded up to whole vectors."""
    return -(-classes // LANES) * LANES


class Data(NamedTuple):
    """A data set as the kernels read it: uint8 [D, P] and int64 [D]."""

    images: np.ndarray
    labels: np.ndarray


class RateStep:
    """Trains ``weight`` [N, P] and ``bias`` [N] or None (float32, CPU) in place of a torch module and its optimizer.

    ``optimizer`` is torch.optim's Adam or SGD over them, or None where nothing is trained. Weights and optimizer state are
    read here, kept in the kernels' layout, and written back by :meth:`sync`; the learning rate and the optimizer's other
    options are read at each :meth:`train`. ValueError where :func:`unsupported` names a reason.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, optimizer: Any, *, T: int, seed: int, loss: str, **neuron: Any
    ) -> None:
        for name, parameter in (("weight", weight), ("bias", bias)):
            if parameter is not None and (parameter.device.type != "cpu" or parameter.dtype != torch.float32):
                raise ValueError(f"{name} is {parameter.dtype} on {parameter.device}; the numba step takes float32 on cpu")
        classes, pixels = weight.shape
        reason = unsupported(T=T, classes=classes, pixels=pixels, loss=loss, optimizer=optimizer, **neuron)
        if reason is not None:
            raise ValueError(reason)
        columns = _columns(classes)
        self.weight, self.bias, self.optimizer = weight, bias, optimizer
        self._problem = Problem(
            T=T,
            classes=classes,
            columns=columns,
            cross_entropy=loss == "ce",
            bias=bias is not None,
            seed=np.uint64(seed % 2**64),
            neuron=neuron_arguments(**neuron),
        )
        self._steps = 0
        self._parameters = self._pack(weight, bias)
        self._moments = aligned_empty((2, self._parameters.size), np.float32)
        self._moments[:] = 0
        self._gradients = aligned_empty((GROUPS, self._parameters.size), np.float32)
        self._load_optimizer()

    def prepare(self, images: Tensor, labels: Tensor) -> Data:
        """The data set that ``images`` uint8 [D, ...] and ``labels`` int64 [D] make; it may share their memory."""
        classes, pixels = self.weight.shape
        flat = images.reshape(len(images), -1).contiguous()
        if flat.dtype != torch.uint8 or flat.device.type != "cpu" or flat.shape[1] != pixels:
            raise ValueError(f"images are {flat.dtype} {tuple(flat.shape)} on {flat.device}; expected uint8 [D, {pixels}] on cpu")
        if labels.shape != flat.shape[:1] or len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels must be {len(flat)} integers from 0 to {classes - 1}")
        return Data(flat.numpy(), labels.to(torch.int64).contiguous().numpy())

    def train(self, data: Data, order: Tensor, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Train on samples ``order`` int64 [S], ``batch_size`` a step; returns losses float32 [steps] and correct int64 [steps]."""
        if self.optimizer is None:
            raise ValueError("optimizer is None: this step can only evaluate")
        if len(order) and not 0 <= order.min() <= order.max() < len(data.images):
            raise ValueError(f"order must hold sample numbers from 0 to {len(data.images) - 1}")
        learned = self._parameters.size - (self._problem.columns if self.bias is None else 0)
        losses, correct = self._run(data, order, 0, epoch, batch_size, learned, self._optimizer())
        self._steps += len(losses)
        return losses, correct

    def evaluate(self, data: Data, batch_size: int) -> tuple[Tensor, Tensor]:
        """The same two for all samples in order, forward only, on spikes of their own (stream 1, epoch 0)."""
        return self._run(data, torch.arange(len(data.images)), 1, 0, batch_size, 0, _NO_OPTIMIZER)

    def _run(
        self, data: Data, order: Tensor, stream: int, epoch: int, batch_size: int, learned: int, optimizer: Optimizer
    ) -> tuple[Tensor, Tensor]:
        """Losses and correct answers of each batch; ``learned`` weights are trained."""
        steps = -(-len(order) // batch_size)
        losses, correct = torch.empty(steps), torch.empty(steps, dtype=torch.int64)
        workers, problem = min(numba.get_num_threads(), GROUPS), self._problem
        work = workspaces(workers, data.images.shape[1], problem.T, problem.columns)
        with SERIAL:
            run(
                *data, order.contiguous().numpy(), stream, epoch, batch_size, self._parameters, learned, self._moments,
                self._gradients, tuple(optimizer), problem.flat(), work, workers, np.empty(batch_size),
                np.empty(batch_size, np.int64), losses.numpy(), correct.numpy(),
            )  # fmt: skip
        return losses, correct

    @torch.no_grad()
    def sync(self) -> None:
        """Write weights and optimizer state back to the tensors that torch knows."""
        self._unpack(self._parameters, self.weight, self.bias)
        if self.optimizer is None or not self._steps:
            return
        names = self._state_names()
        for parameter in self._trained():
            state = self.optimizer.state[parameter]
            if isinstance(self.optimizer, torch.optim.Adam):
                state["step"] = torch.tensor(float(self._steps))
            for name in names:
                if state.get(name) is None:
                    state[name] = torch.zeros_like(parameter)
        for name, moment in zip(names, self._moments, strict=False):
            tensors = [self.optimizer.state[parameter][name] for parameter in self._trained()]
            self._unpack(moment, *tensors)

    def _trained(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def _state_names(self) -> tuple[str, ...]:
        """Names of the optimizer's moments; SGD without momentum keeps none."""
        if isinstance(self.optimizer, torch.optim.SGD) and not self.optimizer.param_groups[0]["momentum"]:
            return ()
        return _OPTIMIZERS[type(self.optimizer)]

    def _load_optimizer(self) -> None:
        if self.optimizer is None:
            return
        state = self.optimizer.state.get(self.weight, {})
        self._steps = int(state.get("step", 0))
        for name, moment in zip(self._state_names(), self._moments, strict=False):
            if state.get(name) is not None:
                tensors = [self.optimizer.state[parameter][name] for parameter in self._trained()]
                moment[:] = self._pack(*tensors)

    def _optimizer(self) -> Optimizer:
        reason = _unsupported_optimizer(self.optimizer)
        if reason is not None:
            raise ValueError(reason)
        group = self.optimizer.param_groups[0]
        if isinstance(self.optimizer, torch.optim.Adam):
            beta1, beta2 = group["betas"]
            return Optimizer(True, self._steps, float(group["lr"]), beta1, beta2, group["eps"])
        return Optimizer(False, self._steps, float(group["lr"]), float(group["momentum"]), 0.0, 0.0)

    def _pack(self, weight: Tensor, bias: Tensor | None = None) -> np.ndarray:
        """[N, P] and [N] to the kernels' flat float32 [(P + 1) * columns]."""
        classes, pixels = weight.shape
        packed = aligned_empty((pixels + 1, _columns(classes)), np.float32)
        packed[:] = 0
        packed[:-1, :classes] = weight.detach().numpy().T
        if bias is not None:
            packed[-1, :classes] = bias.detach().numpy()
        return packed.reshape(-1)

    def _unpack(self, packed: np.ndarray, weight: Tensor, bias: Tensor | None = None) -> None:
        """The inverse of ``_pack``, in place."""
        classes, pixels = weight.shape
        rows = torch.from_numpy(packed).reshape(pixels + 1, -1)[:, :classes]
        weight.copy_(rows[:-1].T)
        if bias is not None:
            bias.copy_(rows[-1])
