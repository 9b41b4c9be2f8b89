"""The names in a table of another module, read from its text: importing it would import torch, which takes seconds."""

import ast
from functools import cache
from pathlib import Path

import fastsnn


@cache
def names_in(module: str, table: str) -> tuple[str, ...]:
    """Names of the rows of a dict of ``fastsnn.<module>``: its keys, or the first argument of each row's call.

    ``names_in("kernels.neurons.surrogates", "SURROGATES")`` are the surrogates.
    """
    for node in ast.parse(_source(module)).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == table for target in targets):
            return tuple(_texts(node))
    raise LookupError(f"fastsnn.{module} has no table {table}")


def _source(module: str) -> str:
    place = Path(*module.split("."))
    for folder in map(Path, fastsnn.__path__):
        for path in (folder / place / "__init__.py", (folder / place).with_suffix(".py")):
            if path.is_file():
                return path.read_text(encoding="utf-8")
    raise LookupError(f"there is no module fastsnn.{module}")


def _texts(table: ast.stmt) -> list[str]:
    found: list[ast.expr | None] = []
    for node in ast.walk(table):
        if isinstance(node, ast.Dict):
            found += node.keys
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            found.append(node.args[0])
    return [node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)]
