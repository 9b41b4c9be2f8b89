"""snnTorch's neurons in multi-step form: ``from_snntorch`` makes of a network one that runs all T steps at once.

Their steps are written here as neurons of fastsnn's own, since they differ from SpikingJelly's: they fire above the
threshold (not at it), and the reset of a spike comes one step later unless ``reset_delay=False``. Tests:
``tests/test_snntorch.py``. Source: snnTorch 1.0.0.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn.functional import linear, recurrent, scan
from fastsnn.kernels.neurons.language import Operand, Value, maximum, minimum, where
from fastsnn.kernels.neurons.neuron import Neuron

RESETS = ("subtract", "zero", "none")
SURROGATES = {"atan": "alpha", "sigmoid": "slope", "fast_sigmoid": "slope"}
"""snnTorch's surrogates that are rows here too -> what it calls their alpha."""


@dataclass(frozen=True)
class SnnTorchNeuron(Neuron):
    """What snnTorch's neurons have in common.

    reset    r = 1 if v > v_threshold before the step, else 0          without a gradient
    charge   h = charge(x, v), less r v_threshold, or (1 - r) times it
    fire     s = 1 if h > v_threshold, else 0
    v        h; without reset_delay the spike of this very step is taken off it as well
    """

    mem_decay: float = 0.9
    """beta, what is left of the membrane potential after a step; clamped to 0 to 1."""
    v_threshold: float = 1.0
    """The neuron fires if its membrane potential is above this."""
    reset: str = "subtract"
    """subtract, zero or none."""
    reset_delay: bool = True
    """Whether the reset comes a step after its spike."""
    potential: bool = False
    """Whether the output is the membrane potential after the step, not the spike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("reset", self.reset, ", ".join(RESETS), self.reset in RESETS)
        self.__dict__.update(spikes=not self.potential)

    def fired(self, v: Value) -> Value:
        """Whether the step before fired, which resets in this one."""
        return where(v - self.v_threshold > 0.0, 1.0, 0.0)

    def less_reset(self, h: Value, fired: Value) -> Value:
        """The charged potential after the reset of the step before."""
        if self.reset == "none":
            return h
        return h - fired * (self.v_threshold if self.reset == "subtract" else h)

    def fire(self, h: Value, fired: Value) -> tuple[Value, Value]:
        """The output, and the potential after the step."""
        distance = h - self.v_threshold
        # A potential at the threshold doesn't fire; what is taken off there has no gradient.
        s = self.spike(distance) - where(distance > 0.0, 0.0, where(distance < 0.0, 0.0, 1.0))
        if not self.reset_delay:
            h = self.less_reset(h, s - fired)
        return (h if self.potential else s), h


def clamped(decay: Operand) -> Value:
    return minimum(maximum(decay, 0.0), 1.0)


@dataclass(frozen=True)
class SnnTorchLeaky(SnnTorchNeuron):
    """snnTorch's ``Leaky`` and ``RLeaky``: h = beta v + x."""

    back: bool = False
    """Whether it is RLeaky, which resets to zero after it has charged; Leaky does it before."""

    def step(self, x: Value, v: Value) -> tuple[Value, Value]:  # type: ignore[override]
        fired, decay = self.fired(v), clamped(self.mem_decay)
        if self.reset == "zero" and not self.back:
            return self.fire(decay * ((1.0 - fired) * v) + x, fired)
        return self.fire(self.less_reset(decay * v + x, fired), fired)


@dataclass(frozen=True)
class SnnTorchSynaptic(SnnTorchNeuron):
    """snnTorch's ``Synaptic`` and ``RSynaptic``: i = alpha i + x, h = beta v + i."""

    states: ClassVar[tuple[str, ...]] = ("i", "v")

    syn_decay: float = 0.8
    """alpha, what is left of the synaptic current after a step; clamped to 0 to 1."""

    def step(self, x: Value, i: Value, v: Value) -> tuple[Value, Value, Value]:  # type: ignore[override]
        i = clamped(self.syn_decay) * i + x
        fired = self.fired(v)
        output, v = self.fire(self.less_reset(clamped(self.mem_decay) * v + i, fired), fired)
        return output, i, v


@dataclass(frozen=True)
class SnnTorchLapicque(SnnTorchNeuron):
    """snnTorch's ``Lapicque``: h = x R (1 / RC) time_step + (1 - time_step / RC) v."""

    R: float = 1.0
    C: float = 10.0
    time_step: float = 1.0

    def step(self, x: Value, v: Value) -> tuple[Value, Value]:  # type: ignore[override]
        product = self.R * self.C
        h = x * self.R * (1 / product) * self.time_step + (1 - self.time_step / product) * v
        fired = self.fired(v)
        return self.fire(self.less_reset(h, fired), fired)


class MultiStep(nn.Module):
    """A neuron of snnTorch over T steps: [T, B, ...] -> spikes [T, B, ...], or (spikes, potentials) with ``output``.

    Every call starts at rest. Parameters and buffers are the original's, under the same names.
    """

    def __init__(self, original: nn.Module, backend: str) -> None:
        super().__init__()
        _require(original)
        for name, parameter in original.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in original.named_buffers(recurse=False):
            persistent = name not in original._non_persistent_buffers_set
            if persistent:
                self.register_buffer(name, buffer)
        self.recurrent = getattr(original, "recurrent", None)
        self.kind, self.backend, self.output = type(original).__name__, backend, bool(original.output)
        self.neuron = _neuron_of(original)
        self.train(original.training)

    def forward(self, current: Tensor) -> Any:
        if self.recurrent is None:
            return self._run(lambda neuron: scan(current, neuron, **self._options())[0])
        N = current.shape[-1]
        eye = torch.eye(N, dtype=current.dtype, device=current.device)
        return self.driven(current, eye, None)

    def driven(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        """The neurons behind a linear layer, with it."""
        if self.recurrent is None:
            return self._run(lambda neuron: linear(x, weight, bias, neuron, **self._options())[0])
        back, more = _recurrent_weight(self.recurrent, len(weight))
        bias = more if bias is None else bias if more is None else bias + more
        spikes, _ = recurrent(x, weight, back, bias, self.neuron, **self._options())
        if not self.output:
            return spikes
        assert isinstance(spikes, Tensor)
        before = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
        fed_back = before * back if back.dim() == 1 else F.linear(before, back)
        current = F.linear(x, weight, bias) + fed_back
        return spikes, scan(current, replace(self.neuron, potential=True), **self._options())[0]

    def _run(self, call: Any) -> Any:
        spikes = call(self.neuron)
        return (spikes, call(replace(self.neuron, potential=True))) if self.output else spikes

    def _options(self) -> dict[str, Any]:
        """The parameters as they are now, for the functions."""
        names = {"mem_decay": "beta", "v_threshold": "threshold", "syn_decay": "alpha", "R": "R", "C": "C"}
        names |= {"time_step": "time_step"}
        if self.kind == "Lapicque":
            del names["mem_decay"]
        known = self.neuron.learnable()
        given = {name: getattr(self, there, None) for name, there in names.items() if name in known}
        # Numbers are the neuron's own fields; what learns, or differs from neuron to neuron, is given.
        learnt = {
            name: value.float()
            for name, value in given.items()
            if isinstance(value, Tensor) and (isinstance(value, nn.Parameter) or value.numel() > 1)
        }
        return {"parameters": learnt, "backend": self.backend}

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.neuron}, backend={self.backend!r}"


class MultiStepSequential(nn.Sequential):
    """The layers of a network over [T, B, ...]: neurons run all steps at once, a linear layer together with them."""

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        layers = list(self)
        place = 0
        while place < len(layers):
            layer = layers[place]
            following = layers[place + 1] if place + 1 < len(layers) else None
            if type(layer) is nn.Linear and isinstance(following, MultiStep) and not layer._forward_hooks:
                x, place = following.driven(x, layer.weight, layer.bias), place + 2
            elif isinstance(layer, (MultiStep, MultiStepSequential)):
                x, place = layer(x), place + 1
            else:
                steps = layer(x.flatten(0, 1))
                x, place = steps.unflatten(0, x.shape[:2]), place + 1
        return x


def from_snntorch(net: nn.Module, backend: str = "auto") -> nn.Module:
    """The multi-step form of a network of snnTorch's: [T, B, ...] -> what the loop over T steps would stack.

    ``Leaky``, ``Synaptic``, ``RLeaky``, ``RSynaptic`` and ``Lapicque`` become :class:`MultiStep`, an ``nn.Sequential``
    a :class:`MultiStepSequential`; other layers are applied to all steps at once, and are the same objects. Keys of
    ``state_dict`` and parameters stay. A network with a loop of its own is converted neuron by neuron, and its loop
    goes: ``self.lif1 = fastsnn.from_snntorch(self.lif1)``. Every call starts at rest, as after ``utils.reset(net)``.

    Args:
        net: a neuron, or an ``nn.Sequential`` (of ``nn.Sequential``s) of layers and neurons.
        backend: see ``fastsnn.scan``.

    Raises:
        ValueError: what snnTorch's neuron does can't be done here, or ``net`` is another module; the message names it.

    Source: snnTorch 1.0.0; spikes and gradients are those of its loop.
    """
    if _is_neuron(net):
        return MultiStep(net, backend)
    if type(net) is not nn.Sequential:
        raise ValueError(
            f"net is a {type(net).__name__}; allowed: a neuron of snnTorch, or an nn.Sequential of layers and neurons. "
            "Convert the neurons of a network with a forward of its own one by one"
        )
    made = MultiStepSequential()
    for name, layer in net.named_children():
        inner = isinstance(layer, nn.Sequential) or _is_neuron(layer)
        made.add_module(name, from_snntorch(layer, backend) if inner else layer)
    return made.train(net.training)


KINDS: Mapping[str, type[SnnTorchNeuron]] = {
    "Leaky": SnnTorchLeaky,
    "RLeaky": SnnTorchLeaky,
    "Synaptic": SnnTorchSynaptic,
    "RSynaptic": SnnTorchSynaptic,
    "Lapicque": SnnTorchLapicque,
}


def _is_neuron(module: nn.Module) -> bool:
    return any(
        base.__name__ == "SpikingNeuron" and base.__module__.startswith("snntorch") for base in type(module).__mro__
    )


def _require(module: Any) -> None:
    """Raise ValueError, naming it, for what a neuron of snnTorch does and the kernels can't."""
    kind = type(module)
    name = kind.__name__
    factor = getattr(module, "graded_spikes_factor", torch.tensor(1.0))
    wrong = None
    if not kind.__module__.startswith("snntorch") or name not in KINDS:
        wrong = f"it is a {name}; allowed: snnTorch's own {', '.join(KINDS)}"
    elif module.inhibition:
        wrong = "inhibition is True, which lets one neuron of a sample fire; allowed: False"
    elif module.state_quant:
        wrong = "state_quant is set; allowed: False"
    elif isinstance(factor, nn.Parameter) or bool((factor != 1).any()):
        wrong = "graded_spikes_factor is not 1; allowed: spikes of 0 and 1"
    elif name == "RSynaptic" and not module.reset_delay:
        wrong = "reset_delay is False, which snnTorch's own RSynaptic can't compute; allowed: True"
    elif isinstance(getattr(module, "recurrent", None), nn.Conv2d):
        wrong = "its recurrent layer is a convolution; allowed: linear_features or all_to_all=False"
    if wrong:
        raise ValueError(f"{name} can't be converted: {wrong}")


def _neuron_of(module: Any) -> SnnTorchNeuron:
    name = type(module).__name__
    surrogate, alpha = _surrogate_of(module.spike_grad, name)
    options: dict[str, Any] = {
        "v_threshold": _number(module.threshold), "reset": module.reset_mechanism,
        "reset_delay": getattr(module, "reset_delay", True), "surrogate": surrogate, "alpha": alpha,
    }  # fmt: skip
    if name == "Lapicque":
        options |= {"R": _number(module.R), "C": _number(module.C), "time_step": _number(module.time_step)}
    else:
        options["mem_decay"] = _number(module.beta)
    if "Synaptic" in name:
        options["syn_decay"] = _number(module.alpha)
    if name == "RLeaky":
        options["back"] = True
    return KINDS[name](**options)


def _number(value: Tensor) -> float:
    """A parameter's first value; one that differs from neuron to neuron is given at each call."""
    return float(value.detach().flatten()[0])


def _surrogate_of(function: Any, name: str) -> tuple[str, float]:
    """The row, and its alpha, of what one of snnTorch's factories returned."""
    made_by = getattr(function, "__qualname__", "").partition(".")[0]
    if getattr(function, "__module__", "") != "snntorch.surrogate" or made_by not in SURROGATES:
        allowed = ", ".join(f"surrogate.{row}" for row in SURROGATES)
        raise ValueError(f"{name} can't be converted: spike_grad is {made_by or repr(function)}; allowed: {allowed}")
    return made_by, float(inspect.getclosurevars(function).nonlocals[SURROGATES[made_by]])


def _recurrent_weight(module: Any, N: int) -> tuple[Tensor, Tensor | None]:
    """V [N, N] and its bias, or V's diagonal [N]."""
    if isinstance(module, nn.Linear):
        return module.weight, module.bias
    return torch.as_tensor(module.V).expand(N), None
