"""The commands that measure and list runs: eval, runs and compare."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.markup import escape
from rich.table import Table

from fastsnn.comparison import Setting, draw, runs_of, settings_of, text
from fastsnn.option_values import OptionalInteger
from fastsnn.records import RUNS, Record, RunFolder, find_runs
from fastsnn.terminal import output


def evaluate(
    run: RunFolder,
    /,
    *,
    T: Annotated[OptionalInteger, Parameter(name=("--T", "-T"))] = None,
    backend: Literal["auto", "torch", "cupy", "triton", "numba"] | None = None,
    device: str | None = None,
    data_dir: Path | None = None,
    checkpoint: Literal["last", "best"] = "last",
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Loss and accuracy of a run's checkpoint on the test set.

    Parameters
    ----------
    run
        Run folder, or latest.
    T
        Time steps per sample; default the run's.
    backend
        Implementation; default the one that the run was trained with.
    device
        cpu, cuda or cuda:N; default the run's.
    data_dir
        Folder of the data sets; default the run's.
    checkpoint
        last.pt, or best.pt: the best epoch, as chosen on the validation set if there is one.
    as_json
        Print one JSON object.
    """
    import fastsnn

    with output.status("evaluating"):
        result = fastsnn.evaluate(run, T=T, backend=backend, device=device, data_dir=data_dir, checkpoint=checkpoint)
    if as_json:
        output.out(json.dumps(result))
        return
    steps = f" and {result['steps']} steps of the next" if result["steps"] else ""
    output.print(
        f"epoch {result['epoch']}{steps}: test loss {result['test_loss']:.5f}, test accuracy "
        f"{result['test_accuracy']:.2%} ({result['backend']} on {result['device']}, {result['test_seconds']:.2f} s)"
    )


def runs(folder: Path = RUNS, /, *, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False) -> None:
    """List the runs in a folder, the newest first; every command that takes a RUN knows that one as `latest`.

    Parameters
    ----------
    folder
        Folder of the runs, or of sweeps.
    as_json
        Print one JSON object for each run, on a line.
    """
    found = find_runs(folder)
    if as_json:
        for record in found:
            row = {"run": str(record.path), "changed": record.changed, "test_accuracy": record.test_accuracy}
            output.out(json.dumps(row | {"epochs": len(record.epochs), "options": record.options}, default=str))
        return
    if not found:
        output.print(f"no runs in {folder}; fastsnn train makes one", markup=False)
        return
    table = Table("run", "data", "network", "epochs", "test accuracy", "changed", box=None, pad_edge=False)
    for record in found:
        table.add_row(*map(escape, _row(record)))
    output.print(table)


def _row(record: Record) -> list[str]:
    options = record.options
    network = options.get("net") or options.get("network") or text(options.get("hidden") or [])
    return [
        str(record.path),
        Path(str(options.get("dataset", options.get("given", {}).get("source", "")))).name,
        f"{network} {options.get('neuron', '')}".removeprefix("none ") if "given" not in options else "of Python",
        f"{len(record.epochs)}/{options.get('epochs', '?')}",
        "-" if record.test_accuracy is None else f"{record.test_accuracy:.2%}",
        time.strftime("%d %b %H:%M", time.localtime(record.changed)),
    ]


def compare(
    *runs: RunFolder,
    out: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Compare runs: a table of the options in which they differ and of their accuracy, and one chart.

    Runs that differ in their seed alone are one row, with mean and standard deviation. The accuracy is the test set's,
    after the last epoch, or after the one that a validation set chose.

    Parameters
    ----------
    runs
        Run folders, or folders of them, such as a sweep's.
    out
        The chart; default compare.png in the folder, if one is given, else in the current folder.
    as_json
        Print one JSON object for each row, on a line, instead of the table.
    """
    if not runs:
        raise ValueError("runs is empty; allowed: run folders, or a folder of them")
    settings = settings_of(runs_of(runs))
    one_folder = len(runs) == 1 and not (runs[0] / "config.yaml").is_file()
    show(settings, out or (runs[0] if one_folder else Path()) / "compare.png", as_json)


def show(settings: Sequence[Setting], chart: Path, as_json: bool = False) -> None:
    """Print the table and draw the chart."""
    if as_json:
        for setting in settings:
            output.out(json.dumps(setting.to_dict()))
    else:
        names = list(settings[0].values) or ["run"]
        table = Table(*map(escape, names), "seeds", "test accuracy", "deviation", box=None, pad_edge=False)
        for setting in settings:
            values = list(map(text, setting.values.values())) or [setting.name]
            accuracy = "-" if setting.mean is None else f"{setting.mean:.2%}"
            deviation = "-" if setting.deviation is None else f"{setting.deviation:.2%}"
            table.add_row(*map(escape, values), str(len(setting.runs)), accuracy, deviation)
        output.print(table)
    draw(settings, chart)
    if not as_json:
        output.print(str(chart), markup=False, emoji=False)
