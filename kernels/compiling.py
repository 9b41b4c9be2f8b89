"""Marks for torch.compile that don't import it: torch's own decorators do so, which takes more than a second."""

from collections.abc import Callable
from typing import TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])


def called_while_traced(function: FunctionT) -> FunctionT:
    """Let torch.compile call ``function`` itself and take its result as constant.

    What ``torch.compiler.assume_constant_result`` does.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
