"""What SpikingJelly's layers become by ``accelerate``: the same objects, of a subclass whose many steps are fused.

A layer keeps its class as its base, its attributes, hooks, parameters and memories. What is set later is obeyed, and
what the fused kernels can't do runs in SpikingJelly's own loop, with a notice. Tests: ``tests/test_conversion.py``.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from fastsnn.arguments import state_dtype
from fastsnn.functional import linear, recurrent, scan
from fastsnn.hooks import has_hooks
from fastsnn.kernels.neurons import IF, LIF, PLIF, SURROGATES, Neuron
from fastsnn.notices import say_once

NODES: dict[type, Callable[..., Neuron]] = {neuron.LIFNode: LIF, neuron.IFNode: IF, neuron.ParametricLIFNode: PLIF}
"""SpikingJelly's neuron -> fastsnn's."""
_SURROGATES = {
    getattr(surrogate, row.spikingjelly): name
    for name, row in SURROGATES.items()
    if row.spikingjelly and hasattr(surrogate, row.spikingjelly)
}
_COSMETIC = {"__init__", "__repr__", "__str__", "extra_repr", "__doc__", "__module__", "__annotations__", "__dict__"}
_COSMETIC |= {"__weakref__", "__slots__", "__static_attributes__", "__firstlineno__", "__hash__"}


@cache
def known_base(cls: type, known: tuple[type, ...]) -> type | None:
    """The class of ``known`` whose methods ``cls`` has, all of them: itself or a subclass that overrides nothing."""
    for base in known:
        if issubclass(cls, base):
            parents = cls.__mro__[: cls.__mro__.index(base)]
            changed = {name for parent in parents for name in vars(parent)} - _COSMETIC
            if not any(hasattr(base, name) for name in changed):
                return base
    return None


def neuron_refusal(node: Any) -> str | None:
    """Why a SpikingJelly neuron, as it is now, can't run on the fused kernels, in one sentence; None if it can."""
    try:
        neuron_of(node)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def neuron_of(node: Any) -> tuple[Neuron, dict[str, Tensor]]:
    """The neuron with the attributes that ``node`` has now, and those that are tensors, by name.

    Raises TypeError or ValueError for what the fused kernels can't do.
    """
    original, function = original_class(type(node)), node.surrogate_function
    base, row = known_base(original, tuple(NODES)), known_base(function.__class__, tuple(_SURROGATES))
    if base is None:
        names = ", ".join(cls.__name__ for cls in NODES)
        own = " with methods of its own" if issubclass(original, tuple(NODES)) else ""
        raise ValueError(f"it is a {original.__name__}{own}; allowed: {names}{' as they are' if own else ''}")
    if row is None:
        names = ", ".join(cls.__name__ for cls in _SURROGATES)
        raise ValueError(f"its surrogate is {type(function).__name__}; allowed: {names} as they are")
    if not function.spiking:
        raise ValueError("its surrogate does not spike (spiking=False)")
    if node.store_v_seq:
        raise ValueError("it stores v_seq, which the fused kernels do not")
    if backend_of(node) != "torch":
        raise ValueError(f"its own backend is {backend_of(node)!r}; allowed: 'torch'")
    options = {name: getattr(node, name) for name in ("v_threshold", "v_reset", "detach_reset")}
    if base is not neuron.IFNode:
        options["decay_input"] = node.decay_input
    if base is neuron.LIFNode:
        options["tau"] = node.tau
    tensors = {name: value for name, value in options.items() if isinstance(value, Tensor)}
    if base is neuron.ParametricLIFNode:
        tensors["w"] = node.w
    # A tensor's place is taken by a value that is allowed: a look at it would wait for the device.
    stand_ins = {"v_threshold": 1.0 + max(0.0, node.v_reset or 0.0), "tau": 2.0}
    options |= {name: stand_ins[name] for name in tensors if name in stand_ins}
    options |= {"surrogate": _SURROGATES[row], "alpha": float(function.alpha)}
    return _made(NODES[base], tuple(options.items())), tensors


def backend_of(node: Any) -> str:
    """SpikingJelly's own backend of a neuron; its neurons of version 2 have none but torch."""
    return str(getattr(node, "backend", "torch"))


@lru_cache(maxsize=1024)
def _made(make: Callable[..., Neuron], options: tuple[tuple[str, Any], ...]) -> Neuron:
    return make(**dict(options))


class Accelerated:
    """What the subclasses have in common; ``accelerated_by`` is the backend of fastsnn that was asked for."""

    accelerated_by: str

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (original_class(type(self)),), self.__dict__

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, accelerated_by={self.accelerated_by!r}"  # type: ignore[misc]


class Node(Accelerated):
    """A neuron whose many steps are one fused scan."""

    def multi_step_forward(self: Any, x: Tensor) -> Tensor:
        deferred = x if isinstance(x, Deferred) and x.product is None else None
        shape = x.output_shape() if isinstance(x, Deferred) else x.shape
        try:
            chosen, tensors = neuron_of(self)
            if len(shape) < 2 or not x.is_floating_point():
                raise ValueError(f"its input is {x.dtype} {list(shape)}; allowed: floating point [T, ...]")
        except (TypeError, ValueError) as reason:
            if backend_of(self) == "torch":
                say_once(f"{type(self).__name__} runs in SpikingJelly's own loop: {reason}")
            return super().multi_step_forward(computed(x))  # type: ignore[misc,no-any-return]
        like = computed(x) if deferred is None else deferred.layer.weight
        state = state_of(self, shape[1:], like, chosen)
        options: dict[str, Any] = {"parameters": tensors, "backend": self.accelerated_by}
        if deferred is None:
            spikes, last = scan(like, chosen, state, **options)
        else:
            # A linear layer wants [T, B, K]; without a batch there is one sample.
            spikes, last = linear(
                deferred.input.reshape(shape[0], -1, deferred.input.shape[-1]), like, deferred.layer.bias, chosen,
                state and {name: value.reshape(-1, shape[-1]) for name, value in state.items()}, **options,
            )  # fmt: skip
            spikes = spikes.reshape(shape)
            last = {name: value.reshape(shape[1:]) for name, value in last.items()}
        self.v = last["v"].clone()  # of its own memory: detach_() works on no view
        return as_of_a_node(spikes)


class Recurrent(Accelerated):
    """A ``LinearRecurrentContainer`` whose many steps are one fused recurrent layer."""

    def multi_step_forward(self: Any, x: Tensor) -> Tensor:
        if reason := container_refusal(self):
            say_once(f"{type(self).__name__} runs in SpikingJelly's own loop: {reason}")
            return super().multi_step_forward(x)  # type: ignore[misc,no-any-return]
        inner, node = contained(self)
        weight, bias = self.rc.weight, self.rc.bias
        if inner is not None:  # one product after the other is one
            bias = inner.bias if bias is None else F.linear(bias, inner.weight, inner.bias)
            weight = inner.weight @ weight
        K = weight.shape[1] - self.sub_module_out_features
        chosen, tensors = neuron_of(node)
        shape = (*x.shape[1:-1], len(weight))
        state = state_of(node, shape, weight, chosen)
        if self.y is not None or state is not None:
            zeros = torch.zeros(shape, dtype=state_dtype(weight), device=x.device)
            rest = dict(zip(chosen.states, chosen.rest(), strict=True))
            state = state or {name: torch.full_like(zeros, value) for name, value in rest.items()}
            state = {**state, "output": zeros if self.y is None else self.y.to(zeros.dtype)}
        spikes, last = recurrent(
            x, weight[:, :K], weight[:, K:], bias, chosen, state, parameters=tensors, backend=self.accelerated_by
        )
        assert isinstance(spikes, Tensor)
        node.v, self.y = last["v"].clone(), last["output"].to(spikes.dtype).clone()
        return as_of_a_node(spikes)


def container_refusal(container: Any) -> str | None:
    """Why a recurrent container can't be one fused layer, in one sentence; None if it can."""
    original = original_class(type(container))
    if known_base(original, (layer.LinearRecurrentContainer,)) is None:
        return f"it is a {original.__name__} with methods of its own"
    _, node = contained(container)
    if node is None:
        return "it holds other modules than a linear layer and a neuron in step mode 's'"
    if any(has_hooks(module) for module in container.modules() if module is not container):
        return "a module within it has hooks, which see each step"
    return neuron_refusal(node)


def contained(container: Any) -> tuple[nn.Linear | None, Any]:
    """The linear layer, if there is one, and the neuron of a recurrent container; no neuron if it holds others."""
    module = container.sub_module
    parts = list(module) if type(module) is nn.Sequential else [module]
    if isinstance(parts[-1], neuron.BaseNode) and parts[-1].step_mode == "s":
        if len(parts) == 1:
            return None, parts[0]
        first = parts[0]
        if len(parts) == 2 and isinstance(first, nn.Linear) and is_plain_linear(first):
            return first, parts[1]
    return None, None


class DeferringLinear(Accelerated):
    """A linear layer that leaves its product to the neuron behind it; whatever else takes its output computes it."""

    nodes: tuple[nn.Module, ...]

    def forward(self: Any, x: Tensor) -> Tensor:
        hooked = has_hooks(self) or any(has_hooks(node) or node.step_mode != "m" for node in self.nodes)
        if hooked or torch.compiler.is_compiling() or type(x) is not Tensor or x.dim() < 2:
            return super().forward(x)  # type: ignore[misc,no-any-return]
        return Deferred(x, self)


class Deferred(Tensor):
    """The product of ``input`` and ``layer``, which is computed when something other than a neuron asks for it."""

    input: Tensor
    layer: nn.Linear
    product: Tensor | None

    @staticmethod
    def __new__(cls, x: Tensor, layer: nn.Linear) -> "Deferred":
        made: Deferred = Tensor._make_subclass(cls, torch.empty(0))
        made.input, made.layer, made.product = x, layer, None
        return made

    def output_shape(self) -> torch.Size:
        """The product's shape, without the product."""
        return torch.Size((*self.input.shape[:-1], self.layer.out_features))

    def is_floating_point(self) -> bool:
        return self.input.is_floating_point()

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Deferred, computed, (args, kwargs or {}))
        return func(*args, **kwargs)


def computed(x: Tensor) -> Tensor:
    """The tensor itself, which may have been deferred."""
    if not isinstance(x, Deferred):
        return x
    if x.product is None:
        x.product = F.linear(x.input, x.layer.weight, x.layer.bias)
    return x.product


def is_plain_linear(module: object) -> bool:
    """Whether a module computes what ``nn.Linear`` computes; SpikingJelly's ``layer.Linear`` adds a step mode."""
    return known_base(original_class(type(module)), (layer.Linear, nn.Linear)) is not None


def state_of(node: Any, shape: tuple[int, ...], like: Tensor, chosen: Neuron) -> dict[str, Tensor] | None:
    """The potential of a SpikingJelly neuron as a state [*shape]; None at rest. Raises ValueError for another shape."""
    dtype = state_dtype(like)
    if not isinstance(node.v, Tensor):
        if node.v == chosen.rest()[0]:
            return None
        return {"v": torch.full(tuple(shape), node.v, dtype=dtype, device=like.device)}
    if node.v.shape != torch.Size(shape):
        found, wanted = list(node.v.shape), list(shape)
        raise ValueError(
            f"the membrane potential has shape {found} from the call before, the input asks for {wanted}; "
            "call functional.reset_net(net) between batches"
        )
    return {"v": node.v.to(dtype)}


def as_of_a_node(spikes: Tensor) -> Tensor:
    """Spikes in the dtype that a SpikingJelly neuron gives them: under autocast fp32."""
    half = spikes.dtype in (torch.float16, torch.bfloat16)
    return spikes.float() if half and torch.is_autocast_enabled(spikes.device.type) else spikes


def original_class(cls: type) -> type:
    """SpikingJelly's (or the user's) class of an accelerated one."""
    return next((base for base in cls.__mro__ if not issubclass(base, Accelerated)), cls)


@cache
def accelerated_class(cls: type) -> type:
    """The accelerated subclass of a neuron's, a recurrent container's or a linear layer's class."""
    if issubclass(cls, neuron.BaseNode):
        kind: type = Node
    else:
        kind = Recurrent if issubclass(cls, layer.LinearRecurrentContainer) else DeferringLinear
    return type(cls.__name__, (kind, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


def _rebuilt(cls: type) -> Any:
    return object.__new__(accelerated_class(cls))
