"""What the terminal shows when the benchmarks end."""

import statistics
from pathlib import Path

import pytest

from bench.results import Results, ratios

RESULTS = pytest.StashKey[tuple[Results, Path | None]]()


def lines(results: Results, path: Path | None) -> list[str]:
    """A table per case: median, ratio to ours, and who did not take part and why."""
    found = [f"fastsnn bench on {results.machine['device']}"] + [f"  {note}" for note in results.notes]
    for case in results.cases():
        own = results.ours(case)
        found.append(case)
        for row in results.of(case):
            if not row.seconds:
                found.append(f"  {row.label:44} {row.status}: {row.reason}")
                continue
            ratio = f"{statistics.median(ratios(row, own)):7.2f} x" if own and row is not own else ""
            found.append(f"  {row.label:44} {row.median * 1e3:11.3f} ms {ratio} {row.status if row.reason else ''}")
    return [*found, f"results: {path}" if path else "no results file (the quick grid writes one with --results PATH)"]
