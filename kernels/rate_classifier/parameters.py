"""Weights and optimizer state of a one-layer classifier in the layout of the training step's kernels.

The kernels read rows of [P + 1, BLOCK_N]: row p holds the weights from pixel p to every class, row P the bias, and
columns past the classes are 0. For tensor cores the weights are also kept as three bf16 parts whose sum they are.
Steps are taken on these copies; :meth:`Parameters.store` brings torch's own tensors up to date, :meth:`Parameters.load`
follows them where they were changed.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels.neurons import Neuron
from fastsnn.kernels.neurons.program import compile_neuron

_MOMENTS = {torch.optim.Adam: ("exp_avg", "exp_avg_sq"), torch.optim.SGD: ("momentum_buffer",)}
_UNSUPPORTED_OPTIONS = ("weight_decay", "dampening", "nesterov", "amsgrad", "maximize", "differentiable")


def neuron_refusal(neuron: Neuron) -> str | None:
    """Why the kernels can't train such neurons, in one line; None if they can."""
    name = type(neuron).__name__
    if not neuron.spikes:
        return f"neuron is {name}, which doesn't spike, and the fused step trains firing rates"
    if neuron.learns:
        return f"neuron is {name}, which learns {', '.join(neuron.learns)}; the fused step trains weights alone"
    if len(neuron.states) > 1 or compile_neuron(neuron).kept > 1:
        return f"neuron is {name}, and the fused step has neurons of one state, such as lif"
    return None


def optimizer_refusal(optimizer: Any) -> str | None:
    """Why the kernels can't do what ``optimizer`` (or the name of one) does, in one line; None where they can."""
    if optimizer is None or optimizer in ("adam", "sgd"):
        return None
    if type(optimizer) not in _MOMENTS:
        name = optimizer if isinstance(optimizer, str) else type(optimizer).__name__
        return f"optimizer is {name}; the fused step has torch.optim's Adam and SGD"
    if len(optimizer.param_groups) != 1:
        return f"the optimizer has {len(optimizer.param_groups)} parameter groups; the fused step takes one"
    for option in _UNSUPPORTED_OPTIONS:
        if optimizer.param_groups[0].get(option):
            return f"the optimizer's {option} is {optimizer.param_groups[0][option]}; the fused step has none"
    return None


class Parameters:
    """``weight`` [N, P], ``bias`` [N] or None, and the state of ``optimizer`` (None where nothing is trained)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, optimizer: Any, block_n: int, exact: bool) -> None:
        self._tensors = [weight] if bias is None else [weight, bias]
        self._optimizer, self._exact = optimizer, exact
        self.adam = isinstance(optimizer, torch.optim.Adam)
        shape = (weight.shape[1] + 1, block_n)
        self.weight = torch.zeros(shape, device=weight.device)
        self.parts = torch.zeros(3, *shape if exact else (1, 1), dtype=torch.bfloat16, device=weight.device)
        self.moments = [torch.zeros_like(self.weight) for _ in range(0 if optimizer is None else 2)]
        self.steps = 0
        self.learning_rates: Sequence[float] | None = None
        """The rate of each step of the next call; None takes the optimizer's for all."""
        self._ahead = False
        self._seen: list[tuple[int, int]] | None = None
        self.load()

    @torch.no_grad()
    def load(self) -> None:
        """Take over the values of torch's tensors, if these were changed since the last load or store."""
        if self._versions() == self._seen:
            return
        self._pack(self._tensors, self.weight)
        if self._exact:
            rest = self.weight.clone()
            for part in self.parts:
                part.copy_(rest)
                rest -= part
        steps = [int(state.get("step", 0)) for state in self._states()]
        if len(set(steps)) > 1:
            raise ValueError(f"the optimizer took {steps} steps on weight and bias; the fused step takes them together")
        self.steps = steps[0] if steps else 0
        for name, moment in zip(self._names(), self.moments, strict=False):
            values = [state.get(name) for state in self._states()]
            self._pack([value for value in values if value is not None], moment)
        self._ahead, self._seen = False, self._versions()

    @torch.no_grad()
    def store(self) -> None:
        """Bring torch's tensors up to date, making the optimizer's entries where there are none."""
        if not self._ahead:
            return
        self._unpack(self.weight, self._tensors)
        for state in self._states():
            if self.adam:
                state.setdefault("step", torch.tensor(0.0)).fill_(float(self.steps))
        for name, moment in zip(self._names(), self.moments, strict=False):
            for state, tensor in zip(self._states(), self._tensors, strict=True):
                if state.get(name) is None:
                    state[name] = torch.zeros_like(tensor)
            self._unpack(moment, [state[name] for state in self._states()])
        self._ahead, self._seen = False, self._versions()

    def advance(self, steps: int) -> None:
        """The kernels took this many steps."""
        self.steps += steps
        self._ahead |= steps > 0

    def schedule(self, steps: int) -> tuple[Tensor, Tensor]:
        """The tables of the next steps on the CPU, made in double: fp32 [steps, 2] and [5]."""
        reason = optimizer_refusal(self._optimizer)
        if reason is not None:
            raise ValueError(reason)
        group = self._optimizer.param_groups[0]
        rates = self.learning_rates or [float(group["lr"])] * steps
        lr = torch.tensor(rates, dtype=torch.float64)
        if not self.adam:
            momentum = float(group["momentum"])
            table = torch.stack([lr, torch.ones_like(lr)], 1)
            return table.float(), torch.tensor([momentum, 0.0, 0.0, 0.0, 0.0])
        beta1, beta2 = (float(beta) for beta in group["betas"])
        step = torch.arange(self.steps + 1, self.steps + steps + 1, dtype=torch.float64)
        table = torch.stack([lr / (1 - beta1**step), (1 - beta2**step).sqrt()], 1)
        return table.float(), torch.tensor([beta1, 1 - beta1, beta2, 1 - beta2, float(group["eps"])])

    def _names(self) -> tuple[str, ...]:
        """The optimizer's moments; SGD without momentum keeps none."""
        if self._optimizer is None or (not self.adam and not self._optimizer.param_groups[0]["momentum"]):
            return ()
        return _MOMENTS[type(self._optimizer)]

    def _states(self) -> list[dict[str, Any]]:
        return [] if self._optimizer is None else [self._optimizer.state[tensor] for tensor in self._tensors]

    def _versions(self) -> list[tuple[int, int]]:
        """Identity and version of every tensor of torch's: equal lists mean unchanged values."""

        def tensors() -> Iterator[Tensor]:
            yield from self._tensors
            for state in self._states():
                yield from (value for value in state.values() if isinstance(value, Tensor))

        return [(id(tensor), tensor._version) for tensor in tensors()]

    def _pack(self, tensors: list[Tensor], packed: Tensor) -> None:
        """[N, P] and [N] to [P + 1, BLOCK_N]; none at all to 0."""
        packed.zero_()
        for tensor, rows in zip(tensors, (packed[:-1], packed[-1:]), strict=False):
            rows[:, : len(tensor)] = tensor.reshape(len(tensor), -1).T

    def _unpack(self, packed: Tensor, tensors: list[Tensor]) -> None:
        for tensor, rows in zip(tensors, (packed[:-1], packed[-1:]), strict=False):
            tensor.copy_(rows[:, : len(tensor)].T.reshape(tensor.shape))
