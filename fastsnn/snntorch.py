"""``from_snntorch`` makes of a network of snnTorch's one that runs all T steps at once.

The steps of its neurons are in ``snntorch_neurons.py``. Tests: ``tests/test_snntorch.py``. Source: snnTorch 1.0.0.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fastsnn.functional import linear, recurrent, scan
from fastsnn.hooks import has_hooks
from fastsnn.snntorch_neurons import SnnTorchLapicque, SnnTorchLeaky, SnnTorchNeuron, SnnTorchSynaptic

SURROGATES = {"atan": "alpha", "sigmoid": "slope", "fast_sigmoid": "slope"}
"""snnTorch's surrogates that are rows here too -> what it calls their alpha."""


NAMES = {"mem_decay": "beta", "v_threshold": "threshold", "syn_decay": "alpha"}
"""A neuron's field -> what snnTorch calls it; the others have one name."""


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
        self._read = self._versions()
        self.train(original.training)

    def forward(self, current: Tensor) -> Any:
        self._read_numbers()
        if self.recurrent is None:
            return self._run(lambda neuron: scan(current, neuron, **self._options())[0])
        N = current.shape[-1]
        eye = torch.eye(N, dtype=current.dtype, device=current.device)
        return self.driven(current, eye, None)

    def driven(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        """The neurons behind a linear layer, with it."""
        self._read_numbers()
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

    def _tensors(self) -> dict[str, Tensor]:
        """The original's tensors by the names of the neuron's fields."""
        known = self.neuron.learnable()
        if self.kind == "Lapicque":
            known = tuple(name for name in known if name != "mem_decay")
        found = {name: getattr(self, NAMES.get(name, name), None) for name in known}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def _options(self) -> dict[str, Any]:
        """The parameters as they are now, for the functions: what learns, or differs from neuron to neuron."""
        given = {name: value.float() for name, value in self._tensors().items() if not _is_number(value)}
        return {"parameters": given, "backend": self.backend}

    def _read_numbers(self) -> None:
        """Buffers of one number are fields of the neuron, read again when they have changed."""
        if torch.compiler.is_compiling() or (versions := self._versions()) == self._read:
            return
        numbers: dict[str, Any] = {name: _number(value) for name, value in self._tensors().items() if _is_number(value)}
        self.neuron, self._read = replace(self.neuron, **numbers), versions

    def _versions(self) -> list[tuple[int, int]]:
        return [(id(buffer), buffer._version) for buffer in self.buffers(recurse=False)]

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
            neurons = following if isinstance(following, MultiStep) and not has_hooks(following) else None
            if neurons is not None and type(layer) is nn.Linear and not has_hooks(layer):
                x, place = neurons.driven(x, layer.weight, layer.bias), place + 2
            elif isinstance(layer, (MultiStep, MultiStepSequential)):
                x, place = layer(x), place + 1
            elif any(isinstance(module, _BatchNorm) and module.training for module in layer.modules()):
                # Of each step's own statistics, as in snnTorch's loop.
                x, place = torch.stack([layer(step) for step in x]), place + 1
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


def _is_number(value: Tensor) -> bool:
    return not isinstance(value, nn.Parameter) and value.numel() == 1


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
