"""Values of options: how the command line and YAML spell them, and what is refused. Imports nothing that is slow."""

from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import Parameter, Token

Tokens = list[Token] | tuple[Token, ...]


def _integer(type_: Any, tokens: Tokens) -> int:
    # Cyclopts would round 1.5 to 2.
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value} is not an integer") from None


def _sizes(type_: Any, tokens: Tokens) -> tuple[int, ...]:
    """800,400 -> (800, 400)."""
    text = ",".join(token.value for token in tokens)
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{text} is not a list of integers such as 800,400") from None


def _assignments(type_: Any, tokens: Tokens) -> tuple[str, ...]:
    """betas=0.9,0.99 (once or several times, or several in quotes) -> ("betas=0.9,0.99",)."""
    return tuple(part for token in tokens for part in token.value.split())


Integer = Annotated[int, Parameter(converter=_integer)]
OptionalInteger = Annotated[int | None, Parameter(converter=_integer)]
Sizes = Annotated[tuple[int, ...], Parameter(converter=_sizes, n_tokens=1, negative=(), accepts_keys=False)]
Assignments = Annotated[tuple[str, ...], Parameter(converter=_assignments, n_tokens=1, negative=(), accepts_keys=False)]


@dataclass(frozen=True)
class Options:
    """A frozen dataclass whose fields are options: each value is converted to its field's type and checked.

    Raises ValueError or TypeError that names the field, its value and what is allowed.
    """

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, checked(name, hint, getattr(self, name)))
        self._check()

    def _check(self) -> None:
        """Check what a type doesn't say; a subclass calls its parent's."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which YAML and checkpoints can hold."""
        plain = {}
        for field in fields(self):
            value = getattr(self, field.name)
            plain[field.name] = str(value) if isinstance(value, Path) else value
            if isinstance(value, tuple):
                plain[field.name] = list(value)
        return plain


_KINDS: dict[Any, tuple[type | UnionType, str]] = {
    int: (Integral, "an integer"),
    float: (Real, "a number"),
    bool: (bool, "true or false"),
    str: (str, "text"),
    Path: (str | Path, "a path"),
}
"""Type of a field -> what it may be given, and how that is called."""


def checked(name: str, hint: Any, value: Any) -> Any:
    """``value`` as the type that the field's ``hint`` names; raises ValueError or TypeError otherwise."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name} is {value!r}; allowed: {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        (kind, _) = get_args(hint)
        return tuple(checked(name, kind, item) for item in (value if isinstance(value, (list, tuple)) else [value]))
    kind, *optional = get_args(hint) or (hint,)
    if value is None and optional:
        return None
    accepted, called = _KINDS[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} is {value!r}; allowed: {called}{' or none' if optional else ''}")
    return kind(value)


def check_range(
    name: str,
    value: float | None,
    least: float,
    most: float = float("inf"),
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """Raise ValueError unless ``least <= value <= most``; ``above`` and ``below`` leave out the ends. None passes."""
    if value is None:
        return
    low = value > least if above else value >= least
    high = value < most if below else value <= most
    if low and high:
        return
    top = str(most) if isinstance(most, int) else f"{most:g}".replace("e+", "e")
    allowed = f"more than {least:g}" if above else f"{least:g} or more"
    if most < float("inf"):
        allowed += f" and less than {top}" if below else f", up to {top}"
    raise ValueError(f"{name} is {value}; allowed: {allowed}")


Value = float | int | bool | str | None | tuple[float, ...]
"""What the value of an assignment may be."""


def check_assignments(name: str, texts: tuple[str, ...]) -> None:
    """Raise ValueError unless each text is name=value."""
    for text in texts:
        if not all(part.strip() for part in text.partition("=")):
            raise ValueError(f"{name} is {text!r}; allowed: name=value")


def assignment(text: str) -> tuple[str, Value]:
    """The name and the value of name=value: a number, several with commas between, true, false, none, or text."""
    name, _, word = (part.strip() for part in text.partition("="))
    words: dict[str, Value] = {"true": True, "false": False, "none": None}
    if word.lower() in words:
        return name, words[word.lower()]
    try:
        return name, int(word)
    except ValueError:
        pass
    try:
        numbers = tuple(float(part) for part in word.split(","))
    except ValueError:
        return name, word
    return name, numbers if len(numbers) > 1 else numbers[0]


def from_yaml(name: str, hint: Any, value: Any) -> Any:
    """What is meant by words that YAML 1.1 reads otherwise: 1e-3 (text to it), off (false), none (text)."""
    if get_origin(hint) is Literal and value is False and "off" in get_args(hint):
        return "off"
    kinds = get_args(hint) or (hint,)
    if isinstance(value, str) and value.lower() == "none" and type(None) in kinds:
        return None
    if isinstance(value, str) and float in kinds:
        try:
            return float(value)
        except ValueError:
            return value
    return value
