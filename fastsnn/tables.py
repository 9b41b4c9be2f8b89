"""What ``fastsnn verify`` and ``fastsnn doctor`` show."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastsnn.doctor import Row
from fastsnn.verify import Report

_COLORS = {"ok": "green", "note": "yellow", "problem": "red"}


def verification(output: Console, report: Report, with_traceback: bool) -> None:
    """A row for each group of cases, what did not run and why, and how to run a failure again."""
    columns = "backend", "device", "group", "cases", "worst / allowed", "explained", "verdict"
    table = Table(*columns, box=None, pad_edge=False, collapse_padding=True)
    for row in report.rows:
        if row.cases:
            device = "interpreter" if row.mode == "interpreter" else row.device
            verdict = "[green]ok[/]" if row.ok else "[red]FAIL[/]"
            table.add_row(row.backend, device, row.group, str(row.cases), row.summary(), str(row.explained), verdict)
    output.print(table)
    for skipped in report.skipped:
        output.print(f"{skipped.backend} did not run: {skipped.reason}", markup=False)
    for (name, reason), cases in report.refused().items():
        output.print(f"{name}: {cases} cases left out: {reason}", markup=False)
    for row in report.rows:
        for failure in row.failures:
            output.print(f"FAIL {row.backend} on {row.device}: {failure.case}: {failure.message}", markup=False)
            output.print(f"  again: {failure.command}", markup=False)
            if with_traceback and failure.traceback:
                output.print(failure.traceback, markup=False)
    cases, failed = sum(row.cases for row in report.rows), sum(len(row.failures) for row in report.rows)
    output.print(f"{failed} of {cases} cases failed" if failed else f"all {cases} cases are correct", end=" ")
    output.print(f"({sum(row.seconds for row in report.rows):.0f} s)")


def diagnosis(output: Console, rows: Sequence[Row]) -> None:
    """A line for each finding, and one with the advice that goes with it."""
    width = max(len(row.name) for row in rows)
    for row in rows:
        output.print(f"{row.name:<{width}}  [{_COLORS[row.verdict]}]{row.verdict:<7}[/]  {escape(row.value)}")
        if row.advice:
            # On a line of its own, however long: a pip command that is cut in two can't be copied.
            output.print(" " * (width + 11) + escape(row.advice))
