"""The results file: one JSON document per machine, with a schema version, rows by case and implementation."""

import hashlib
import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.cases import Case

SCHEMA = 1
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
    """measured, computed (from another row, see reason), refused (by the gate), failed, or skipped."""
    reason: str = ""
    ours: bool = False
    dtype: str = "float32"
    threads: int | None = None
    seconds: list[float] = field(default_factory=list)
    """Every round, in the order of ours."""
    first_seconds: float | None = None
    """The first call: compilation and warm-up included."""
    peak_memory: int | None = None
    """Bytes that a call adds."""
    share_of_bandwidth: float | None = None
    share_of_flops: float | None = None
    environment: str = ""
    """Key into the file's environments."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        return quartiles(self.seconds)


def quartiles(values: list[float]) -> tuple[float, float]:
    """First and third quartile; the values' range where there are fewer than four."""
    if len(values) < 4:
        return min(values), max(values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def ratios(row: Row, ours: Row) -> list[float]:
    """How many times slower than ours the row is, round by round: both ran in turn under the same load.

    A computed row has no rounds of its own: one ratio, of the medians.
    """
    if row.status == "computed":
        return [row.median / ours.median]
    return [theirs / own for theirs, own in zip(row.seconds, ours.seconds, strict=True)]


@dataclass
class Results:
    """A results file."""

    machine: dict[str, Any]
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, case: str) -> list[Row]:
        return [row for row in self.rows if row.case["name"] == case]

    def find(self, case: str, implementation: str) -> Row | None:
        return next((row for row in self.of(case) if row.implementation == implementation), None)

    def ours(self, case: str) -> Row | None:
        """The row of our fastest implementation here."""
        return next((row for row in self.of(case) if row.ours and row.seconds), None)

    def cases(self) -> list[str]:
        """Names of the cases, in order."""
        return list(dict.fromkeys(row.case["name"] for row in self.rows))

    def environment(self, versions: dict[str, str]) -> str:
        """Key of ``versions`` in the file, added where it is new; the same in every file."""
        digest = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()
        key = f"{versions['commit']}-{digest[:8]}"
        self.environments[key] = versions
        return key

    def write(self, path: Path) -> None:
        """Write the file; rows of cases that did not run this time stay as they were, in their order."""
        rows, environments = list(self.rows), dict(self.environments)
        if path.exists() and (before := load(path)).machine["device"] == self.machine["device"]:
            measured = set(self.cases())
            rows = _merged(before.rows, [row for row in self.rows if row.case["name"] in measured])
            environments = before.environments | environments
        used = {row.environment for row in rows}
        environments = {key: value for key, value in environments.items() if key in used}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Results(self.machine, environments, rows, self.notes).to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The file's text."""
        content = {"schema": SCHEMA} | vars(self) | {"rows": [_plain(row) for row in self.rows]}
        return json.dumps(content, indent=1) + "\n"

    def digest(self) -> str:
        """What a chart is labelled with, to tell whether it was drawn from these results."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def load(path: Path) -> Results:
    """Read a results file; SchemaError that names the file where its schema is another one or it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SchemaError(f"{path} is not a results file: {type(error).__name__}: {error}") from error
    if schema != SCHEMA:
        raise SchemaError(
            f"{path} has schema {schema!r}; this version reads {SCHEMA}: measure again or use its version"
        )
    return Results(
        content["machine"], content["environments"], [Row(**row) for row in content["rows"]], content["notes"]
    )


def shares(case: Case, seconds: float, machine: dict[str, Any]) -> dict[str, float]:
    """Fractions of the machine's peaks that a case needs at least, from the bytes or operations that it can't avoid."""
    elements = case.T * case.B * case.sizes[-1]
    if case.subject == "scan":
        # Forward reads currents and writes spikes; backward reads both gradients' source and writes the currents'.
        moved = 4 * elements * (5 if case.backward else 2)
        return {"share_of_bandwidth": moved / seconds / machine["peak_bandwidth"]}
    if case.subject == "encoding":
        return {"share_of_bandwidth": 4 * elements / seconds / machine["peak_bandwidth"]}
    if case.subject == "rate_step":
        return {}  # most of its inputs are 0 and skipped
    products = [case.T * case.B * K * N for K, N in zip(case.sizes[:-1], case.sizes[1:], strict=True)]
    # Backward: the weights' gradients, and that of every layer's input but the first.
    operations = 2 * (sum(products) + (sum(products) + sum(products[1:]) if case.backward else 0))
    return {"share_of_flops": operations / seconds / machine["peak_flops"]}


def _merged(before: list[Row], new: list[Row]) -> list[Row]:
    """``new`` in place of the cases that it has; the other cases keep their place."""
    groups: dict[str, list[Row]] = {}
    for row in before:
        groups.setdefault(row.case["name"], []).append(row)
    for name in dict.fromkeys(row.case["name"] for row in new):
        groups[name] = [row for row in new if row.case["name"] == name]
    return [row for group in groups.values() for row in group]


def _plain(row: Row) -> dict[str, Any]:
    plain = asdict(row)
    plain["seconds"] = [_rounded(value) for value in row.seconds]
    return {name: _rounded(value) for name, value in plain.items() if value not in (None, "", [], {})}


def _rounded(value: Any) -> Any:
    """A float with five significant digits; anything else as it is."""
    return float(f"{value:.5g}") if isinstance(value, float) else value
