"""Run a SpikingJelly network on fastsnn's kernels: its layers stay, and their many steps are fused."""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch.fx
from torch import nn

from fastsnn import backends
from fastsnn.cupy_stack import SPIKINGJELLY_PIP, installed

try:
    with warnings.catch_warnings():
        # SpikingJelly calls torch.jit.script as it is imported, which torch warns of: nothing that a user could mend.
        warnings.filterwarnings("ignore", "`torch.jit.script`")
        from spikingjelly.activation_based import layer, neuron

        from fastsnn import accelerated
except (ImportError, AttributeError) as error:
    _found = installed("spikingjelly").get("spikingjelly", "none")
    raise ImportError(
        f"accelerate needs SpikingJelly with activation_based, and here is {_found} ({error}); run: {SPIKINGJELLY_PIP}"
    ) from error


@dataclass(frozen=True)
class Replacement:
    """What became of one spiking layer."""

    name: str
    """Its name in the network, as in ``named_modules``."""
    outcome: str
    """``fused`` (with the linear layer before it, or as a recurrent layer), ``replaced`` (the scan) or ``kept``."""
    reason: str = ""
    """What it was fused with, why it was kept, or what stays as it was."""

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}" + (f" ({self.reason})" if self.reason else "")


def accelerate(net: nn.Module, backend: str = "auto") -> tuple[nn.Module, list[Replacement]]:
    """Let the neurons of a SpikingJelly network run their many steps on fastsnn's kernels, in place.

    ``LIFNode``, ``IFNode`` and ``ParametricLIFNode`` become a subclass of themselves that computes a multi-step call by
    one fused scan, ``LinearRecurrentContainer`` over them by one recurrent layer. A linear layer whose output goes to
    such a neuron alone, in an ``nn.Sequential`` or in a module that ``torch.fx`` can trace, is computed with it. The
    objects stay: parameters and ``state_dict`` keys, attributes (what is set later is obeyed), ``v`` and reset values,
    hooks and monitors, ``functional.reset_net``, ``detach_net`` and ``set_step_mode``, single steps. Subclasses that
    override a method, and surrogates that fastsnn doesn't have, are kept as they are. What the kernels can't do
    (``store_v_seq``, say) runs in SpikingJelly's own loop, and a notice says so once.

    Args:
        net: the network. Everything is checked before anything is changed.
        backend: ``auto``, ``torch``, ``cupy``, ``triton`` or ``numba``.

    Returns:
        net, and what became of each spiking layer.

    Raises:
        ValueError: there is no such backend.

    Source of the semantics: SpikingJelly 0.0.0.0.14's neurons in multi-step mode. A half-precision network keeps its
    potentials in fp32 here.
    """
    if backend != "auto":
        backends.load(backend)
    names = {module: name for name, module in reversed(list(net.named_modules(remove_duplicate=False)))}
    containers = {module: accelerated.container_refusal(module) for module in names if _is_container(module)}
    inside = {node for module in containers for node in module.modules()} - set(containers)
    partners = {node: linear for module in names if module not in inside for linear, node in _pairs(module)}
    report, changed = [], dict[nn.Module, tuple[nn.Module, ...]]()
    for module, name in reversed(names.items()):
        if module in containers:
            reason = containers[module]
            report.append(Replacement(name, "kept" if reason else "fused", reason or "as a recurrent layer"))
            if reason is None:
                changed[module] = ()
        elif isinstance(module, neuron.BaseNode) and module not in inside:
            if reason := accelerated.neuron_refusal(module):
                report.append(Replacement(name, "kept", reason))
                continue
            changed[module] = ()
            if (linear := partners.get(module)) is None:
                single = "its step mode is 's': single steps stay SpikingJelly's" if module.step_mode == "s" else ""
                report.append(Replacement(name, "replaced", single))
            else:
                changed[linear] = (*changed.get(linear, ()), module)
                report.append(Replacement(name, "fused", f"with {names[linear]}"))
    for module, nodes in changed.items():
        module.__class__ = accelerated.accelerated_class(accelerated.original_class(type(module)))
        module.__dict__["accelerated_by"] = backend
        if isinstance(module, accelerated.DeferringLinear):
            module.__dict__["nodes"] = nodes  # not as children of the layer
    return net, report


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, layer.LinearRecurrentContainer)


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Linear layers among a module's descendants, each with the neuron that alone takes what it gives."""
    forward = type(module).forward
    if forward is nn.Sequential.forward:
        order = [part for part in module._modules.values() if part is not None]
        yield from ((one, other) for one, other in itertools.pairwise(order) if _fits(one, other))
        return
    kinds = [(accelerated.is_plain_linear(part), isinstance(part, neuron.BaseNode)) for part in module.modules()]
    if not (any(linear for linear, _ in kinds) and any(node for _, node in kinds)) or forward is nn.Module.forward:
        return
    try:
        graph = _Tracer().trace(module)
    except Exception:  # its forward depends on values, or does what can't be traced: nothing is certain
        return
    for call in graph.nodes:
        if call.op == "call_module" and len(call.users) == 1:
            (user,) = call.users
            if user.op == "call_module" and user.args == (call,) and not user.kwargs:
                linear, node = module.get_submodule(str(call.target)), module.get_submodule(str(user.target))
                if _fits(linear, node):
                    yield linear, node


def _fits(linear: nn.Module, node: nn.Module) -> bool:
    return accelerated.is_plain_linear(linear) and isinstance(node, neuron.BaseNode)


class _Tracer(torch.fx.Tracer):
    """Takes every module within as one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True
