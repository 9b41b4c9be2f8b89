"""Where neurons on torch tensors fire, and what the gradient of a spike is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastsnn.kernels.neurons.language import Operand
    from fastsnn.kernels.neurons.surrogates import Surrogate

FiringRule = Callable[[Tensor, "Surrogate", "Operand"], Tensor]


class _Fire(torch.autograd.Function):
    """Heaviside step forward (1 at 0), surrogate derivative backward."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, surrogate: "Surrogate", alpha: "Operand"
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate, ctx.alpha = surrogate, alpha  # type: ignore[attr-defined]
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        slope = ctx.surrogate.derivative(x, ctx.alpha)  # type: ignore[attr-defined]
        return grad * slope.to(x.dtype), None, None


class _FireTransformed(torch.autograd.Function):
    """The same in the form that torch.func needs, and that torch.compile before 2.8 can't trace."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, surrogate: "Surrogate", alpha: "Operand") -> Tensor:
        return (x >= 0).to(x.dtype)

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: "tuple[Tensor, Surrogate, Operand]", output: Tensor
    ) -> None:
        x, surrogate, alpha = inputs
        ctx.save_for_backward(x)
        ctx.surrogate, ctx.alpha = surrogate, alpha  # type: ignore[attr-defined]

    backward = _Fire.backward


def _fire(distance: Tensor, surrogate: "Surrogate", alpha: "Operand") -> Tensor:
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return _FireTransformed.apply(distance, surrogate, alpha)  # type: ignore[no-any-return]
    return _Fire.apply(distance, surrogate, alpha)  # type: ignore[no-any-return]


_firing_rule: ContextVar[FiringRule] = ContextVar("firing_rule", default=_fire)


def firing_rule() -> FiringRule:
    """How neurons on torch tensors fire now."""
    return _firing_rule.get()


@contextmanager
def firing(rule: FiringRule) -> Iterator[None]:
    """Let neurons on torch tensors fire by ``rule(distance, surrogate, alpha)`` instead of where distance >= 0."""
    token = _firing_rule.set(rule)
    try:
        yield
    finally:
        _firing_rule.reset(token)
