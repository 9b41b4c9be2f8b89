"""Call an operator without torch's dispatcher where nothing looks on.

An operator of ``torch.library`` costs some hundred microseconds with its backward pass, as long as a layer of a few
thousand neurons. Eager calls on plain tensors go straight to its implementation; whatever traces, transforms or
watches (torch.compile, torch.export, torch.jit.trace, a dispatch mode, a tensor subclass) gets the operator.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

Operator = Any
"""What ``torch.library.custom_op`` made."""


def call(
    operator: Operator, setup_context: Callable[..., None], backward: Callable[..., tuple[Any, ...]], *inputs: Any
) -> Any:
    """``operator(*inputs)``; ``setup_context`` and ``backward`` are those that are registered with it."""
    if _is_watched(inputs):
        return operator(*inputs)
    if not _needs_gradient(inputs):
        return _implementation(operator)(*inputs)
    return _Eager.apply(*_flat(inputs), (operator, setup_context, backward, inputs))


def run(operator: Operator, *inputs: Any) -> Any:
    """``operator(*inputs)`` of an operator without a gradient."""
    if _needs_gradient(inputs) or _is_watched(inputs):  # a backward pass with create_graph
        return operator(*inputs)
    return _implementation(operator)(*inputs)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Any:
        *_, (operator, setup_context, backward, inputs) = given
        outputs = _implementation(operator)(*inputs)
        setup_context(ctx, inputs, outputs)
        ctx.backward_of, ctx.count = backward, len(given) - 1  # tensors come first
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        found = [part for grad in ctx.backward_of(ctx, *grads) for part in (grad if isinstance(grad, list) else [grad])]
        return (*found[: ctx.count], None)


def _implementation(operator: Operator) -> Callable[..., Any]:
    """The function that an operator was made of; should torch hide it some day, the operator itself."""
    found: Callable[..., Any] | None = getattr(operator, "_init_fn", None)
    return found or operator


def _flat(inputs: Iterable[Any]) -> Iterator[Tensor | None]:
    """The leading tensors, of which some may be None, and those in lists; no operator has any behind what is none."""
    for value in inputs:
        parts = value if isinstance(value, list) else [value]
        if not all(part is None or isinstance(part, Tensor) for part in parts):
            return
        yield from parts


def _needs_gradient(inputs: Iterable[Any]) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in _flat(inputs))


def _is_watched(inputs: Iterable[Any]) -> bool:
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch._C._len_torch_dispatch_stack():
        return True
    return any(tensor is not None and type(tensor) not in (Tensor, Parameter) for tensor in _flat(inputs))
