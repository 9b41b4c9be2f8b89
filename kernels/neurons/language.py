"""The small language that a neuron's step is written in: plain arithmetic over membrane potentials and currents.

    + - * /  < <= > >=  where  select  minimum  maximum  absolute  exp  sqrt  sigmoid  reciprocal  detach  Neuron.spike

The same text runs on two kinds of operands. On torch tensors it computes, and autograd differentiates it: that is the
oracle (``kernels/reference.py``). On :class:`Value`, a node of an expression graph, it records what it computes: from
the graph come the gradient (``differentiate.py``) and the code for Triton and Numba (``program.py``).

An expression of parameters alone, such as ``1 - 1 / self.tau``, is evaluated once ahead, in double precision, and
rounded once. ``/`` is the IEEE division, and nothing is contracted to fma.
"""

import linecache
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, Union, cast

import torch
from torch import Tensor

from fastsnn.kernels.neurons.firing import firing_rule

if TYPE_CHECKING:
    from fastsnn.kernels.neurons.surrogates import Surrogate

Operand = Union["Value", Tensor, float]
"""What the functions take. They say that they return a Value; given tensors, they return a tensor."""

CONDITIONS = ("lt", "le", "gt", "ge")
MAX_OPERATIONS = 2000
_OURS = (__file__, str(Path(__file__).with_name("neuron.py")))
"""Files whose lines are no step's."""
ALLOWED = (
    "allowed: + - * / < <= > >=, where, select, minimum, maximum, absolute, exp, sqrt, sigmoid, reciprocal, detach "
    "and self.spike, of fastsnn.neurons"
)


class StepError(TypeError):
    """A step says what the small language can't express; the message names the line and what is allowed."""


class Graph:
    """The nodes of one recording; the same operation on the same operands is one node."""

    def __init__(self) -> None:
        self.nodes: list[Value] = []
        self.operations = 0
        self._known: dict[tuple[object, ...], Value] = {}

    def node(self, op: str, *args: "Value", data: object = None) -> "Value":
        key = (op, data, *(arg.index for arg in args))
        if key not in self._known:
            self._known[key] = Value(self, op, args, data, len(self.nodes))
            self.nodes.append(self._known[key])
        return self._known[key]

    def number(self, value: float) -> "Value":
        return self.node("number", data=float(value))

    def input(self, name: str) -> "Value":
        """What differs from neuron to neuron or from step to step: the current, a state, a gradient."""
        return self.node("input", data=name)

    def parameter(self, name: str) -> "Value":
        """What is the same at every step: a parameter of the neuron."""
        return self.node("parameter", data=name)


class Value:
    """A number that is known only when the neuron runs: a node of the expression graph."""

    __slots__ = ("args", "data", "graph", "index", "op", "uniform")

    def __init__(self, graph: Graph, op: str, args: "tuple[Value, ...]", data: object, index: int) -> None:
        self.graph, self.op, self.args, self.data, self.index = graph, op, args, data, index
        self.uniform: bool = op in ("number", "parameter") or (bool(args) and all(arg.uniform for arg in args))
        """Whether it is made of parameters and numbers alone."""

    def __add__(self, other: Operand) -> "Value":
        return arithmetic("add", self, other)

    def __radd__(self, other: Operand) -> "Value":
        return arithmetic("add", other, self)

    def __sub__(self, other: Operand) -> "Value":
        return arithmetic("sub", self, other)

    def __rsub__(self, other: Operand) -> "Value":
        return arithmetic("sub", other, self)

    def __mul__(self, other: Operand) -> "Value":
        return arithmetic("mul", self, other)

    def __rmul__(self, other: Operand) -> "Value":
        return arithmetic("mul", other, self)

    def __truediv__(self, other: Operand) -> "Value":
        return arithmetic("div", self, other)

    def __rtruediv__(self, other: Operand) -> "Value":
        return arithmetic("div", other, self)

    def __neg__(self) -> "Value":
        return arithmetic("neg", self)

    def __lt__(self, other: Operand) -> "Value":
        return arithmetic("lt", self, other)

    def __le__(self, other: Operand) -> "Value":
        return arithmetic("le", self, other)

    def __gt__(self, other: Operand) -> "Value":
        return arithmetic("gt", self, other)

    def __ge__(self, other: Operand) -> "Value":
        return arithmetic("ge", self, other)

    def __repr__(self) -> str:
        operands = [str(arg.index) for arg in self.args] + ([] if self.data is None else [repr(self.data)])
        return f"{self.index} = {self.op}({', '.join(operands)})"

    def __bool__(self) -> NoReturn:
        _refuse("decides by a value that is known only when the neuron runs; write where(condition, a, b)")

    def __float__(self) -> NoReturn:
        _refuse("makes a Python number of a value that is known only when the neuron runs")

    __int__ = __index__ = __complex__ = __float__

    def __iter__(self) -> NoReturn:
        _refuse("loops over one neuron's value")

    __len__ = __getitem__ = __iter__

    def __abs__(self) -> "Value":
        return arithmetic("absolute", self)

    def __pow__(self, exponent: object) -> NoReturn:
        _refuse("uses **; write a product")

    def __mod__(self, other: object) -> NoReturn:
        _refuse("uses %")

    def __floordiv__(self, other: object) -> NoReturn:
        _refuse("uses //")

    def __matmul__(self, other: object) -> NoReturn:
        _refuse("uses @")

    def __eq__(self, other: object) -> NoReturn:
        _refuse("uses ==; write two comparisons")

    def __ne__(self, other: object) -> NoReturn:
        _refuse("uses !=; write two comparisons")

    __rpow__, __rmod__, __rfloordiv__, __rmatmul__ = __pow__, __mod__, __floordiv__, __matmul__
    __hash__ = object.__hash__

    def __array_ufunc__(self, function: object, *_: object, **__: object) -> NoReturn:
        _refuse(f"calls numpy's {getattr(function, '__name__', function)}")

    @classmethod
    def __torch_function__(cls, function: object, *_: object, **__: object) -> NoReturn:
        _refuse(f"calls torch's {getattr(function, '__name__', function)}")


def _refuse(what: str) -> NoReturn:
    """Raise StepError for the line of the step that is being recorded."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in _OURS:
        frame = frame.f_back
    assert frame is not None
    name, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(name, line).strip()  # none of what was typed into Python's prompt
    raise StepError(f"{name}, line {line}: {f'`{text}`' if text else 'the step'} {what}; {ALLOWED}")


def arithmetic(op: str, *operands: Operand) -> Value:
    """The node of ``op``; numbers alone are folded, and operations that change nothing are left out."""
    graph = next(operand.graph for operand in operands if isinstance(operand, Value))
    graph.operations += 1  # also those that make no node of their own
    if graph.operations > MAX_OPERATIONS:
        _refuse(f"makes more than {MAX_OPERATIONS} operations, as a loop without an end does")
    args = []
    for operand in operands:
        if isinstance(operand, Value):
            args.append(operand)
        elif isinstance(operand, (int, float)) and not isinstance(operand, bool):
            args.append(graph.number(operand))
        else:
            _refuse(f"mixes a value of the neuron with {type(operand).__name__}")
    for arg in args[1:] if op == "where" else args:
        _refuse_condition(arg)
    if all(arg.op == "number" for arg in args) and op not in CONDITIONS:
        numbers = [torch.tensor(cast(float, arg.data), dtype=torch.float64) for arg in args]
        return graph.number(TORCH[op](*numbers).item())
    if op in ("mul", "div") and _is(args[1], 1.0):
        return args[0]
    if op == "mul" and _is(args[0], 1.0):
        return args[1]
    return graph.node(op, *args)


def _refuse_condition(value: Value) -> None:
    if value.op in CONDITIONS:
        _refuse("computes with a condition; write where(condition, 1.0, 0.0)")


def _is(value: Value, number: float) -> bool:
    return value.op == "number" and value.data == number


def where(condition: Operand, a: Operand, b: Operand) -> Value:
    """a if the condition holds, else b; the gradient reaches the one that was taken."""
    if isinstance(condition, Value):
        if condition.op not in CONDITIONS:
            _refuse("asks where() for something that is no comparison")
        return arithmetic("where", condition, a, b)
    yes, no = (torch.as_tensor(x, dtype=None if isinstance(x, Tensor) else torch.float64) for x in (a, b))
    assert isinstance(condition, Tensor)
    chosen = torch.where(condition, yes, no)
    # Doubles of no axes give way to the precision of an operand with axes; between two of them none is said.
    wanted = chosen if yes.dim() or no.dim() else chosen.to(_precision.get() or torch.get_default_dtype())
    return wanted  # type: ignore[return-value]


def select(spike: Operand, on: Operand, off: Operand) -> Value:
    """``on`` if the neuron fired, else ``off``: (1 - spike) * off + spike * on; its gradient reaches the spike too."""
    if isinstance(spike, Value):
        return arithmetic("select", spike, on, off)
    return (1 - spike) * off + spike * on  # type: ignore[operator, return-value]


def detach(x: Operand) -> Value:
    """x, through which no gradient flows."""
    return _applied("detach", x)


def minimum(a: Operand, b: Operand) -> Value:
    return _applied("minimum", a, b)


def maximum(a: Operand, b: Operand) -> Value:
    return _applied("maximum", a, b)


def absolute(x: Operand) -> Value:
    return _applied("absolute", x)


def exp(x: Operand) -> Value:
    return _applied("exp", x)


def sqrt(x: Operand) -> Value:
    return _applied("sqrt", x)


def sigmoid(x: Operand) -> Value:
    return _applied("sigmoid", x)


def reciprocal(x: Operand) -> Value:
    """1 / x of x > 0 within 4e-7, for a fraction of an IEEE division's time on a GPU: good enough for a gradient."""
    return _applied("reciprocal", x)


def _applied(op: str, *operands: Operand) -> Value:
    if any(isinstance(operand, Value) for operand in operands):
        return arithmetic(op, *operands)
    like = next((x for x in operands if isinstance(x, Tensor)), None)
    if like is None:  # of numbers alone it is a number
        if op == "sqrt":  # torch's may be off by a bit, where a vector library makes it
            return math.sqrt(*operands)  # type: ignore[arg-type, return-value]
        return TORCH[op](*(torch.tensor(x, dtype=torch.float64) for x in operands)).item()  # type: ignore[return-value]
    return TORCH[op](*(x if isinstance(x, Tensor) else like.new_tensor(x) for x in operands))  # type: ignore[return-value]


def _sqrt(x: Tensor) -> Tensor:
    # torch's own of fp32 isn't IEEE's where a vector library makes it; by way of double it is.
    return torch.sqrt(x.double()).to(x.dtype)


TORCH: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "where": torch.where,
    "select": lambda s, on, off: (1 - s) * off + s * on,
    "detach": torch.detach,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "absolute": torch.abs,
    "exp": torch.exp,
    "sqrt": _sqrt,
    "sigmoid": torch.sigmoid,
    "reciprocal": torch.reciprocal,
}
"""What each operation is in torch."""

_precision: ContextVar[torch.dtype | None] = ContextVar("precision", default=None)


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Let steps on torch tensors compute in ``dtype`` if only numbers and parameters say in what."""
    token = _precision.set(dtype)
    try:
        yield
    finally:
        _precision.reset(token)


def spike(distance: Operand, surrogate: "Surrogate", alpha: Operand) -> Value:
    """1 if ``distance``, potential less threshold, is 0 or more, else 0; its derivative is the surrogate's."""
    if isinstance(distance, Value):
        _refuse_condition(distance)
        graph = distance.graph
        sharpness = alpha if isinstance(alpha, Value) else graph.number(cast(float, alpha))
        return graph.node("spike", distance, sharpness, data=surrogate.name)
    return firing_rule()(distance, surrogate, alpha)  # type: ignore[arg-type, return-value]
