"""The results file: one JSON document per machine, of one commit and one set of versions."""

import hashlib
import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 2
FOLDER = Path(__file__).parent / "results"


class SchemaError(ValueError):
    """A results file that this version does not read."""


@dataclass
class Row:
    """One implementation of one case; seconds are per training step or call."""

    implementation: str
    label: str
    case: dict[str, Any]
    data: str
    """mnist, digits or random."""
    status: str
    """measured, computed (from another row, see reason), refused (it computes something else), failed, or skipped."""
    reason: str = ""
    threads: int | None = None
    seconds: list[float] = field(default_factory=list)
    """Every round, in the order of fastsnn's."""
    first_seconds: float | None = None
    """The first call: compilation and warm-up included."""
    peak_memory: int | None = None
    """Bytes that a call adds."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.implementation.startswith("fastsnn")

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        return quartiles(self.seconds)


def quartiles(values: list[float]) -> tuple[float, float]:
    """First and third quartile; the values' range if there are fewer than four."""
    if len(values) < 4:
        return min(values), max(values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def ratios(row: Row, own: Row) -> list[float]:
    """How many times slower than fastsnn the row is, round by round: both ran in turn under the same load.

    A computed row has no rounds of its own: one ratio, of the medians.
    """
    if row.status == "computed":
        return [row.median / own.median]
    return [theirs / ours for theirs, ours in zip(row.seconds, own.seconds, strict=True)]


@dataclass
class Results:
    """A results file."""

    machine: dict[str, Any]
    environment: dict[str, str]
    """Commit and versions of all rows."""
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, case: str) -> list[Row]:
        return [row for row in self.rows if row.case["name"] == case]

    def find(self, case: str, implementation: str) -> Row | None:
        return next((row for row in self.of(case) if row.implementation == implementation), None)

    def ours(self, case: str) -> Row | None:
        """The row of fastsnn's fastest implementation here."""
        return next((row for row in self.of(case) if row.ours and row.seconds), None)

    def fastest_peer(self, case: str) -> Row | None:
        """By its median ratio."""
        own = self.ours(case)
        peers = [row for row in self.of(case) if row.seconds and not row.ours]
        return min(peers, key=lambda row: statistics.median(ratios(row, own)), default=None) if own else None

    def cases(self) -> list[str]:
        """Names of the cases, in order."""
        return list(dict.fromkeys(row.case["name"] for row in self.rows))

    def start_from(self, path: Path) -> None:
        """Take over what the same commit and versions have written on this machine: a run that was stopped."""
        if path.exists():
            before = load(path)
            if (before.machine["device"], before.environment) == (self.machine["device"], self.environment):
                self.rows = before.rows

    def replace(self, rows: list[Row]) -> None:
        """Put the rows of a case in the place of those that it has."""
        names = {row.case["name"] for row in rows}
        self.rows = [row for row in self.rows if row.case["name"] not in names] + rows

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The file's text."""
        content = {"schema": SCHEMA} | vars(self) | {"rows": [_plain(row) for row in self.rows]}
        return json.dumps(content, indent=1) + "\n"

    def digest(self) -> str:
        """What a chart is labelled with, to tell whether it was drawn from these results."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def load(path: Path) -> Results:
    """Read a results file; SchemaError that names the file if its schema is another one or it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SchemaError(f"{path} is not a results file: {type(error).__name__}: {error}") from error
    if schema != SCHEMA:
        raise SchemaError(
            f"{path} has schema {schema!r}; this version reads {SCHEMA}: measure again or use its version"
        )
    rows = [Row(**row) for row in content["rows"]]
    return Results(content["machine"], content["environment"], rows, content["notes"])


def _plain(row: Row) -> dict[str, Any]:
    plain = asdict(row)
    plain["seconds"] = [_rounded(value) for value in row.seconds]
    return {name: _rounded(value) for name, value in plain.items() if value not in (None, "", [], {})}


def _rounded(value: Any) -> Any:
    """A float with five significant digits; anything else as it is."""
    return float(f"{value:.5g}") if isinstance(value, float) else value
