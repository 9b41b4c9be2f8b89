"""Write docs/api.md from the docstrings of what ``import fastsnn`` offers: ``python docs/make_api.py``."""

import dataclasses
import inspect
import re
import textwrap
from pathlib import Path
from typing import get_type_hints

import fastsnn

PAGE = Path(__file__).with_name("api.md")


def page() -> str:
    """The page's text."""
    entries = [_entry(name, getattr(fastsnn, name)) for name in sorted(fastsnn.__all__, key=str.lower)]
    head = (
        "# The Python API\n\nMade from the docstrings by `python docs/make_api.py`. "
        "Shapes: T time steps, B samples, K inputs, N neurons.\n"
    )
    return "\n".join([head, *entries])


def _entry(name: str, thing: object) -> str:
    docstring = inspect.getdoc(thing) or ""
    lines = [f"## fastsnn.{name}", "", "```python", _signature(name, thing), "```", "", _markdown(docstring), ""]
    if dataclasses.is_dataclass(thing):
        lines += _fields(thing)
    if inspect.isclass(thing):
        lines += _methods(thing)
    return "\n".join(lines)


def _signature(name: str, thing: object) -> str:
    if dataclasses.is_dataclass(thing):
        return f"{name}(...)"
    try:
        signature = str(inspect.signature(thing))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return name
    # Classes without their modules; lines are broken after commas alone.
    signature = re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", signature)
    signature = re.sub(r"-> '(\w+)'", r"-> \1", signature).replace(" ", "\xa0").replace(",\xa0", ", ")
    lines = textwrap.wrap(f"{name}{signature}", 110, subsequent_indent="    ", break_long_words=False)
    return "\n".join(lines).replace("\xa0", " ")


def _fields(thing: object) -> list[str]:
    """A table of a dataclass's fields, with the docstring that follows each in the source."""
    assert isinstance(thing, type)
    classes = [base for base in thing.__mro__ if dataclasses.is_dataclass(base)]
    source = "\n".join(inspect.getsource(base) for base in classes)
    hints = get_type_hints(thing, include_extras=True)
    extras = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    rows = ["| field | default | |", "| --- | --- | --- |"]
    for field in dataclasses.fields(thing):  # type: ignore[arg-type]
        match = re.search(rf'^    {field.name}: .*?(?:\n    """(.+?)"""|\n    \w)', source, re.DOTALL | re.MULTILINE)
        text = " ".join(_markdown(match[1] or "").split()) if match else ""
        text = text or next((extra.help for extra in extras[field.name] if getattr(extra, "help", None)), "")
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        rows.append(f"| `{field.name}` | {default} | {text} |")
    return [*rows, ""]


def _methods(thing: type) -> list[str]:
    """A list of a class's own public methods and properties, with what they are for."""
    rows = []
    for name, member in vars(thing).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        signature = name if isinstance(member, property) else _signature(name, getattr(thing, name))
        signature = re.sub(r"\(self(?:, )?", "(", signature)
        rows.append(f"- `{signature}`: {' '.join(_markdown(inspect.getdoc(function) or '').split())}")
    return [*rows, ""] if rows else []


def _markdown(docstring: str) -> str:
    """Sphinx roles and Google-style sections as plain Markdown."""
    text = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", docstring).replace("``", "`")
    text = re.sub(r"^(Args|Returns|Raises):$", r"**\1**\n", text, flags=re.MULTILINE)
    text = re.sub(r"^    (\w[\w, ]*): ", r"- `\1`: ", text, flags=re.MULTILINE)
    return re.sub(r"^    (?=\S)|^      (?=  \S)", "", text, flags=re.MULTILINE)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
