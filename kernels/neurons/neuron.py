"""What a neuron is: a frozen dataclass whose step is one function in the small language (``language.py``).

    @dataclass(frozen=True)
    class Mine(Neuron):
        tau: float = 2.0
        v_threshold: float = 1.0

        def step(self, x, v):
            h = v + (x - v) / self.tau
            s = self.spike(h - self.v_threshold)
            return s, (1 - s) * h

A field of floats is a parameter: a number, or a tensor that learns. Every other field is an option: it may decide by
``if``, and each combination of options is compiled once.
"""

import ast
import dataclasses
import importlib
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from fastsnn.kernels.neurons import language
from fastsnn.kernels.neurons.language import Operand, Value
from fastsnn.kernels.neurons.surrogates import ALIASES, SURROGATES, Surrogate
from fastsnn.kernels.suggestion import did_you_mean


@dataclass(frozen=True)
class Neuron:
    """Base of all neurons. A subclass is a frozen dataclass that defines ``step`` and, if it has more, ``states``.

    Raises TypeError or ValueError, naming the field, its value and what is allowed.
    """

    states: ClassVar[tuple[str, ...]] = ("v",)
    """Names of its states, in the order in which ``step`` takes and returns them."""
    learns: ClassVar[tuple[str, ...]] = ()
    """Parameters that a layer of these neurons learns if it isn't told otherwise."""
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Parameter -> the least and the largest value that it may learn; see ``fastsnn.nn.keep_in_bounds``."""
    spikes: ClassVar[bool] = True
    """Whether its output is 0 or 1; False for a read-out, whose output is a potential."""

    surrogate: str = dataclasses.field(default="atan", kw_only=True)
    """Derivative used for the spike, a row of ``fastsnn.kernels.neurons.surrogates``."""
    alpha: float | None = dataclasses.field(default=None, kw_only=True)
    """Sharpness of the surrogate; None takes the surrogate's own default (2 for atan)."""

    def __post_init__(self) -> None:
        for name, kind in fields_of(type(self)).items():  # type: ignore[arg-type]
            object.__setattr__(self, name, _checked(name, kind, getattr(self, name)))
        name = ALIASES.get(self.surrogate, self.surrogate)
        if name not in SURROGATES:
            allowed = [*SURROGATES, *ALIASES]
            hint = did_you_mean(self.surrogate, allowed)
            raise ValueError(f"surrogate is {self.surrogate!r}{hint}; allowed: {', '.join(allowed)}")
        object.__setattr__(self, "surrogate", name)
        if self.alpha is None:
            object.__setattr__(self, "alpha", SURROGATES[name].alpha)
        self.require("alpha", self.alpha, "more than 0", self.alpha is not None and self.alpha > 0)
        values = {name: getattr(self, name) for name in parameters_of(type(self))}
        # Attributes, since torch.compile can't trace what makes them.
        self.__dict__["_values"] = {name: value for name, value in values.items() if value is not None}
        self.__dict__["key"] = _key(self)

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.__dict__["key"] = _key(self)  # another process hasn't met it yet

    _values: ClassVar[dict[str, float]]
    key: ClassVar[str]
    """Text that names this very neuron, as an operator of torch takes it; :func:`neuron_of` is the way back."""

    def step(self, x: Value, *state: Value) -> tuple[Value, ...]:
        """One time step: the current and the states before it -> the output (a spike) and the states after it."""
        raise NotImplementedError(f"{type(self).__name__} has no step; define step(self, x, {', '.join(self.states)})")

    def rest(self) -> tuple[float, ...]:
        """The states before the first step; default zeros."""
        return (0.0,) * len(self.states)

    def spike(self, distance: Value) -> Value:
        """1 if ``distance``, the potential less the threshold, is at least 0, else 0; backward is the surrogate's."""
        return language.spike(distance, self.surrogate_row, self.alpha)  # type: ignore[arg-type]

    def gradient(self, *values: Value) -> tuple[Value, ...]:
        """The gradient of a step by hand, for a neuron that wants it so; default: derived from the step.

        ``gradient(self, x, *states, grad_output, *grad_states)`` returns the gradients of x and of the states before.
        """
        raise NotImplementedError

    @property
    def has_gradient(self) -> bool:
        """Whether it brings a gradient by hand."""
        return type(self).gradient is not Neuron.gradient

    @property
    def surrogate_row(self) -> Surrogate:
        return SURROGATES[self.surrogate]

    def slope(self, distance: Value) -> Value:
        """The surrogate derivative at ``distance``, for a gradient by hand."""
        return self.surrogate_row.derivative(distance, self.alpha)  # type: ignore[arg-type]

    def parameters(self) -> dict[str, float]:
        """Name -> value of its parameters: its fields of floats."""
        return self._values

    def learnable(self) -> tuple[str, ...]:
        """Parameters that may learn: those with a gradient."""
        return tuple(name for name in self.parameters() if name != "alpha")

    def with_values(self, values: Mapping[str, Operand]) -> "Neuron":
        """The same neuron on other operands: ``step`` sees ``values`` (tensors, or nodes of a graph) as its fields."""
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound.__dict__.update(values)
        return bound

    @staticmethod
    def require(name: str, value: object, allowed: str, holds: bool) -> None:
        """Raise ValueError unless the field's value is allowed."""
        if not holds:
            raise ValueError(f"{name} is {value}; allowed: {allowed}")


@cache
def fields_of(kind: Any) -> dict[str, object]:
    """Field of a class of neurons -> its type."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def parameters_of(kind: type[Neuron]) -> tuple[str, ...]:
    """The fields that hold numbers."""
    hints = fields_of(kind).items()  # type: ignore[arg-type]
    return tuple(name for name, hint in hints if float in (hint, *get_args(hint)))


def _checked(name: str, hint: object, value: object) -> object:
    """``value`` as the type that the field's ``hint`` names."""
    optional = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if optional else [hint]
    if value is None and optional:
        return None
    if kinds == [bool] and not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; allowed: True or False")
    if kinds == [str] and not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; allowed: text")
    if kinds == [float]:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is {value!r}; allowed: a number")
        if math.isnan(value) or (math.isinf(value) and not (name == "v_threshold" and value > 0)):
            raise ValueError(f"{name} is {value}; allowed: a finite number")
        return float(value)
    return value


def _key(neuron: Neuron) -> str:
    """module:Class(field=value, ...); the neuron itself is remembered, for a class that no module holds."""
    kind = type(neuron)
    fields = ", ".join(f"{field.name}={getattr(neuron, field.name)!r}" for field in dataclasses.fields(neuron))
    key = f"{kind.__module__}:{kind.__qualname__}({fields})"
    known = _neurons.setdefault(key, neuron)
    if type(known) is not kind:  # defined again, as in a notebook
        key = f"{key}#{id(kind)}"
        _neurons.setdefault(key, neuron)
    return key


_neurons: dict[str, Neuron] = {}


def neuron_of(key: str) -> Neuron:
    """The neuron that ``key`` names; it was made in this process, or its class can be imported.

    Raises ValueError for any other text.
    """
    return _neurons.get(key) or _read(key)


def _read(key: str) -> Neuron:
    module, _, text = key.partition(":")
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("it has no fields")
        kind = attrgetter(ast.unparse(call.func))(importlib.import_module(module))
        if not (isinstance(kind, type) and issubclass(kind, Neuron)):
            raise ValueError(f"{ast.unparse(call.func)} is no neuron")
        fields = {str(field.arg): _literal(field.value) for field in call.keywords}
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        allowed = "module:Class(field=value, ...) of a neuron's class that can be imported"
        raise ValueError(f"neuron is {key!r}; allowed: {allowed} ({error})") from error
    return kind(**fields)  # type: ignore[arg-type]


def _literal(value: ast.expr) -> object:
    return math.inf if isinstance(value, ast.Name) and value.id == "inf" else ast.literal_eval(value)
