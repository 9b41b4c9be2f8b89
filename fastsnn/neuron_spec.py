"""A neuron named in one line of text, as on the command line: ``lif``, ``plif(tau=3)``, ``file.py:Mine(beta=0.9)``.

Tests: ``tests/test_neuron_spec.py``.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import math
import sys
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from fastsnn.kernels.neurons import NEURONS, Neuron
from fastsnn.kernels.suggestion import did_you_mean

FORMS = "module:Class and file.py:Class, each with fields if need be, as in plif(tau=3)"
_CONSTANTS = {"inf": math.inf, "none": None, "true": True, "false": False}


def parse_neuron(text: str) -> Neuron:
    """The neuron that ``text`` names: NAME, ``module:Class`` or ``path/to/file.py:Class``, then ``(field=value, ...)``.

    NAME is a row of ``fastsnn.kernels.neurons.NEURONS``. A module is imported as Python does, from the current folder
    too. Values are Python literals and inf. Raises ValueError that says what is allowed.
    """
    target, bracket, rest = text.strip().partition("(")
    kind = _class_of(target.strip(), text)
    fields = _fields(f"({rest}" if bracket else "()", text)
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    for name in fields:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(
                f"neuron is {text!r}, which has no {name!r}{hint}; {kind.__name__} allows: {', '.join(known)}"
            )
    try:
        return kind(**fields)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"neuron is {text!r}: {error}; {kind.__name__} allows: {', '.join(known)}") from error
    except ValueError as error:
        raise ValueError(f"neuron is {text!r}: {error}") from error


def _class_of(target: str, text: str) -> type[Neuron]:
    place, colon, name = target.rpartition(":")
    if not colon:
        if target.lower() not in NEURONS:
            hint = did_you_mean(target, NEURONS)
            raise ValueError(f"neuron is {text!r}{hint}; allowed: {', '.join(NEURONS)}, {FORMS}")
        return NEURONS[target.lower()]
    module = _module_of(place, text)
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Neuron) and dataclasses.is_dataclass(found)):
        classes = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, Neuron) and value.__module__ == module.__name__
        ]
        has = ", ".join(classes) or "none; derive a frozen dataclass from fastsnn.Neuron"
        raise ValueError(f"neuron is {text!r}, but {place} has no neuron {name!r}; it has: {has}")
    return found


def _module_of(place: str, text: str) -> ModuleType:
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        if not path.is_file():
            raise ValueError(
                f"neuron is {text!r}, but there is no file {place}; allowed: {', '.join(NEURONS)}, {FORMS}"
            )
        return _loaded(path, path.stat().st_mtime_ns)
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not place.startswith(error.name):
            raise  # of something that the module itself imports
        raise ValueError(
            f"neuron is {text!r}, but there is no module {place} in {folder} or on Python's path; allowed: "
            f"{', '.join(NEURONS)}, {FORMS}"
        ) from error
    except (ValueError, TypeError) as error:  # ".", or nothing before the colon
        raise ValueError(f"neuron is {text!r}; allowed: {', '.join(NEURONS)}, {FORMS}") from error
    finally:
        sys.path.remove(folder)


@lru_cache
def _loaded(path: Path, changed: int) -> ModuleType:
    """The file as a module of its own; a file that has ``changed`` is read again."""
    name = f"neuron_file_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up, and so does a neuron's key.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _fields(call: str, text: str) -> dict[str, object]:
    """The fields of ``(field=value, ...)``."""
    try:
        parsed = ast.parse(f"f{call}", mode="eval").body
    except (SyntaxError, ValueError):  # ValueError: a null byte
        parsed = None
    plain = isinstance(parsed, ast.Call) and isinstance(parsed.func, ast.Name) and not parsed.args
    if not isinstance(parsed, ast.Call) or not plain or any(pair.arg is None for pair in parsed.keywords):
        raise ValueError(f"neuron is {text!r}; allowed: fields by name in brackets, as in plif(tau=3, v_reset=none)")
    return {str(pair.arg): _value(pair.value, text) for pair in parsed.keywords}


def _value(node: ast.expr, text: str) -> object:
    if isinstance(node, ast.Name) and node.id.lower() in _CONSTANTS:
        return _CONSTANTS[node.id.lower()]
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        if isinstance(node, ast.Name):  # surrogate=sigmoid: a shell eats quotes
            return node.id
        raise ValueError(
            f"neuron is {text!r}, where {ast.unparse(node)!r} is no value; allowed: numbers, inf, none, true, false"
        ) from error
