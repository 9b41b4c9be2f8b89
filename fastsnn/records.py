"""What run folders recorded, read without torch: for lists and comparisons of runs, and for the name ``latest``."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from fastsnn.errors import RunFolderError
from fastsnn.options import read_yaml

RUNS = Path("runs")
"""Where `fastsnn train` puts its runs."""
LATEST = "latest"


@dataclass(frozen=True)
class Record:
    """A run folder: its options as resolved, and the lines of its metrics.csv, one for each epoch."""

    path: Path
    options: dict[str, Any]
    epochs: list[dict[str, float | None]]
    changed: float
    """When it was last written, in seconds since 1970."""

    @property
    def validated(self) -> bool:
        """Whether its best epoch was chosen on a validation set."""
        return bool(self.epochs) and self.epochs[-1].get("validation_accuracy") is not None

    @property
    def test_accuracy(self) -> float | None:
        """Of the epoch that a validation set chose, else of the last one; never of one that the test set chose."""
        if not self.epochs:
            return None
        if not self.validated:
            return self.epochs[-1].get("test_accuracy")
        tested = [epoch["test_accuracy"] for epoch in self.epochs if epoch.get("test_accuracy") is not None]
        return tested[-1] if tested else None


def read_record(path: Path) -> Record:
    """The record of a run folder; raises RunFolderError if it is none."""
    if not (path / "config.yaml").is_file():
        raise RunFolderError(f"{path} is not a run folder: it has no config.yaml")
    options = read_yaml(path / "config.yaml")
    metrics = path / "metrics.csv"
    try:
        changed = max(file.stat().st_mtime for file in (path / "config.yaml", metrics) if file.exists())
        with metrics.open(newline="", encoding="utf-8") as file:
            epochs = [
                {name: float(text) if text else None for name, text in row.items()} for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        epochs = []
    except (OSError, ValueError, TypeError) as error:
        raise RunFolderError(f"{metrics} can't be read: {error}") from error
    return Record(path, options, epochs, changed)


def find_runs(folder: Path = RUNS) -> list[Record]:
    """The runs in ``folder`` and one folder below, as of a sweep; the newest first, damaged ones left out."""
    found = []
    for config in (*folder.glob("*/config.yaml"), *folder.glob("*/*/config.yaml")):
        try:
            found.append(read_record(config.parent))
        except RunFolderError:
            continue
    return sorted(found, key=lambda record: record.changed, reverse=True)


def named_run(name: str) -> Path:
    """The run folder that ``name`` stands for: a path, or ``latest`` for the newest under runs/."""
    path = Path(name)
    if name != LATEST or path.exists():
        return path
    if not (runs := find_runs()):
        raise ValueError(f"there is no run in {RUNS.absolute()}; allowed: the path of a run folder")
    return runs[0].path


def _convert(type_: Any, tokens: Sequence[Token]) -> Path:
    return named_run(tokens[0].value)


RunFolder = Annotated[Path, Parameter(converter=_convert)]
"""An argument of a command that names a run: its folder, or ``latest``."""
