"""Run a SpikingJelly 0.0.0.0.14 network on fastsnn's kernels: replace its LIF layers, keep everything else."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from fastsnn.cupy_stack import SPIKINGJELLY_PIP, installed
from fastsnn.functional import linear, scan
from fastsnn.kernels.neurons import LIF, SURROGATES

try:
    from spikingjelly.activation_based.base import MemoryModule
except ModuleNotFoundError as error:
    _found = installed("spikingjelly").get("spikingjelly", "none")
    raise ImportError(
        f"accelerate needs SpikingJelly with activation_based, and here is {_found} ({error}); run: {SPIKINGJELLY_PIP}"
    ) from error

_SURROGATES = {row.spikingjelly: name for name, row in SURROGATES.items() if row.spikingjelly}
"""SpikingJelly's surrogate class -> ours."""


@dataclass(frozen=True)
class Replacement:
    """What became of one neuron layer: ``fused`` with the linear layer before it, ``replaced``, or ``kept`` and why."""

    name: str
    """Its name in the network, as in ``named_modules``."""
    outcome: str
    """fused, replaced or kept."""
    reason: str = ""
    """Why it was kept."""

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}" + (f" ({self.reason})" if self.reason else "")


def accelerate(net: nn.Module, backend: str = "auto") -> tuple[nn.Module, list[Replacement]]:
    """Replace the LIF layers of a SpikingJelly network by fastsnn's, in place.

    In every ``nn.Sequential``, however deeply nested, a linear layer followed by a ``LIFNode`` becomes one fused layer
    (and an ``nn.Identity`` where the neuron stood); every other ``LIFNode`` becomes a layer over given currents.
    Parameters stay the same objects under the same ``state_dict`` keys, so checkpoints load and optimizers go on.
    Membrane potentials are kept, and carry over between calls until ``functional.reset_net(net)``, as before.

    Args:
        net: a network in multi-step mode (``functional.set_step_mode(net, 'm')``).
        backend: ``auto``, ``torch``, ``cupy``, ``triton`` or ``numba``.

    Returns:
        net (or its replacement, where net is itself a LIFNode) and what became of each neuron layer.

    Source of the semantics: SpikingJelly's ``neuron.LIFNode`` in multi-step mode.
    """
    report: list[Replacement] = []
    holder = nn.ModuleDict({"net": net})
    places = Counter(id(module) for _, module in net.named_modules(remove_duplicate=False))
    _convert(holder, "", backend, report, places)
    return holder["net"], report


def _convert(module: nn.Module, prefix: str, backend: str, report: list[Replacement], places: Counter[int]) -> None:
    children = [(name, child) for name, child in module._modules.items() if child is not None]
    in_order = type(module).forward is nn.Sequential.forward
    for position, (name, child) in enumerate(children):
        full_name = f"{prefix}{name}".removeprefix("net.")
        if not _is_neuron(child):
            _convert(child, f"{prefix}{name}.", backend, report, places)
            continue
        if reason := _unconvertible(child, places[id(child)]):
            report.append(Replacement(full_name, "kept", reason))
            continue
        before_name, before = children[position - 1] if position else ("", None)
        if in_order and _is_plain_linear(before):
            setattr(module, before_name, _Fused(before, child, backend))
            setattr(module, name, nn.Identity().train(child.training))
            report.append(Replacement(full_name, "fused", f"with {prefix}{before_name}".replace("net.", "", 1)))
        else:
            setattr(module, name, _Stateful(child, backend))
            report.append(Replacement(full_name, "replaced"))


def _is_neuron(module: nn.Module) -> bool:
    return any(base.__name__ == "BaseNode" for base in type(module).__mro__)


def _is_plain_linear(module: Any) -> TypeGuard[nn.Linear]:
    # SpikingJelly's layer.Linear is a subclass that adds a step mode; anything else may compute something else.
    plain = isinstance(module, nn.Linear) and type(module).__name__ == "Linear"
    return plain and not module._forward_hooks and not module._forward_pre_hooks


def _unconvertible(node: Any, places: int) -> str | None:
    """Why a SpikingJelly neuron that stands in so many places can't be replaced, or None."""
    if type(node).__name__ != "LIFNode":
        return f"it is a {type(node).__name__}, not a LIFNode"
    if node.step_mode != "m":
        return "its step mode is 's'; call functional.set_step_mode(net, 'm') first"
    if getattr(node, "store_v_seq", False):
        return "it stores v_seq, which the fused kernels do not"
    surrogate = node.surrogate_function
    if type(surrogate).__name__ not in _SURROGATES:
        return f"its surrogate {type(surrogate).__name__} is none of {', '.join(_SURROGATES)}"
    if not surrogate.spiking:
        return "its surrogate function does not spike (spiking=False)"
    if node._forward_hooks or node._forward_pre_hooks:
        return "it has forward hooks"
    if places > 1:
        return f"it stands in {places} places, which share its membrane potential"
    return None


def _parameters_of(node: Any) -> LIF:
    return LIF(
        tau=node.tau,
        v_threshold=node.v_threshold,
        v_reset=node.v_reset,
        decay_input=node.decay_input,
        detach_reset=node.detach_reset,
        surrogate=_SURROGATES[type(node.surrogate_function).__name__],
        alpha=node.surrogate_function.alpha,
    )


class _Stateful(MemoryModule):  # type: ignore[misc]
    """A LIFNode's neurons; their potential ``v`` carries over from call to call until ``functional.reset_net``."""

    def __init__(self, node: Any, backend: str) -> None:
        super().__init__()
        self.neuron, self.implementation = _parameters_of(node), backend
        self.v: Tensor | None
        self.register_memory("v", None)
        if isinstance(node.v, Tensor):
            self.v = node.v
        self.train(node.training)

    def forward(self, current: Tensor) -> Tensor:
        spikes, state = scan(current, self.neuron, self._state(), backend=self.implementation)
        self.v = state["v"]
        return _as_of_a_node(spikes)

    def _state(self) -> dict[str, Tensor] | None:
        return None if self.v is None else {"v": self.v}

    def extra_repr(self) -> str:
        return f"{self.neuron}, backend={self.implementation!r}"


class _Fused(_Stateful):
    """A linear layer and its LIF neurons; it holds the linear layer's own parameters."""

    def __init__(self, linear: nn.Linear, node: Any, backend: str) -> None:
        super().__init__(node, backend)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        spikes, state = linear(x, self.weight, self.bias, self.neuron, self._state(), backend=self.implementation)
        self.v = state["v"]
        return _as_of_a_node(spikes)


def _as_of_a_node(spikes: Tensor) -> Tensor:
    """Spikes in the dtype that a LIFNode gives them: under autocast fp32."""
    half = spikes.dtype in (torch.float16, torch.bfloat16)
    return spikes.float() if half and torch.is_autocast_enabled(spikes.device.type) else spikes
