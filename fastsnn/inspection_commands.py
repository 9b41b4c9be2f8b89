"""The commands that look at machines and runs: verify, doctor, plot, report and export."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, Token

from fastsnn.records import RunFolder
from fastsnn.terminal import FAILURE, output


def _names(type_: object, tokens: list[Token] | tuple[Token, ...]) -> list[str]:
    """curves,rates -> ["curves", "rates"]."""
    return [name for token in tokens for name in token.value.split(",") if name]


def verify(
    *,
    backend: Literal["torch", "cupy", "triton", "numba"] | None = None,
    device: str | None = None,
    quick: Annotated[bool, Parameter(negative=())] = False,
    case: str | None = None,
    neuron: str | None = None,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """Show that every backend of this machine computes the same thing as eager PyTorch.

    Parameters
    ----------
    backend
        Verify this one alone; default all that run here.
    device
        cpu, cuda or cuda:N; default the CPU and the first GPU.
    quick
        Run a part of the cases.
    case
        Run one case alone, by the name that a failure shows.
    neuron
        Verify this neuron alone, as module:Class, file.py:Class or "plif(tau=3)"; a gradient that it brings is compared
        with the one of its step.
    json_file
        Write what was found to this file, in the form that docs/gpus keeps.
    """
    from fastsnn import tables
    from fastsnn import verify as harness

    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ValueError(f"json is {json_file}; allowed: a file in a folder that exists")
    with output.status("") as status:
        report = harness.verify(
            backend,
            device,
            quick,
            case,
            lambda row: status.update(f"{row.backend} on {row.device}: {row.group}"),
            neuron=neuron,
        )
    tables.verification(output, report, with_traceback=case is not None)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    if not report.ok:
        sys.exit(FAILURE)


def doctor(*, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False) -> None:
    """Show what this machine has, which backends run on it, and the line to run for what is wrong.

    Parameters
    ----------
    as_json
        Print the findings as JSON.
    """
    from fastsnn import tables
    from fastsnn.doctor import diagnose
    from fastsnn.environment import read_environment

    rows = diagnose(read_environment())
    if as_json:
        output.out(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        tables.diagnosis(output, rows)
    if any(row.verdict == "problem" for row in rows):
        sys.exit(FAILURE)


def plot_runs(
    *runs: RunFolder,
    what: Annotated[list[str] | None, Parameter(negative=(), converter=_names)] = None,
    sample: int = 0,
    out: Path | None = None,
    format: Literal["png", "svg", "pdf"] = "png",
    data_dir: Path | None = None,
    show: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Draw what a run learnt and how its neurons fire, or the training curves of several runs in one figure.

    Parameters
    ----------
    runs
        Run folders, or latest.
    what
        Figures, as in curves,rates: summary, curves, rates, membrane, traces, raster, weights, confusion, mistakes;
        default all, and curves for several runs.
    sample
        Number of the test image that rates, membrane, traces and raster show.
    out
        Folder for the files; default plots in the run folder, and the current folder for several runs.
    format
        Format of the files.
    data_dir
        Folder of the data sets; default the run's.
    show
        Open a window for each figure as well.
    """
    from fastsnn import plot

    with output.status("computing and drawing"):
        files = plot.draw(runs, what, sample=sample, out=out, format=format, data_dir=data_dir, show=show)
    for file in files:
        output.print(str(file), markup=False, emoji=False)


def report_run(
    run: RunFolder,
    /,
    *,
    sample: int = 0,
    out: Path | None = None,
    data_dir: Path | None = None,
) -> None:
    """Write one HTML file about a run: figures, numbers, options, and a spike raster to move through in time.

    Parameters
    ----------
    run
        Run folder, or latest.
    sample
        Number of the test image whose spikes are shown.
    out
        The file; default report.html in the run folder.
    data_dir
        Folder of the data sets; default the run's.
    """
    from fastsnn.report import write_report

    with output.status("computing and drawing"):
        file = write_report(run, sample=sample, out=out, data_dir=data_dir)
    output.print(str(file), markup=False, emoji=False)


def export_run(
    run: RunFolder,
    file: Path,
    /,
    *,
    dt: float = 1e-4,
    checkpoint: Literal["last", "best"] = "last",
) -> None:
    """Write the trained network of a run as a NIR graph, which other tools and chips read.

    Parameters
    ----------
    run
        Run folder, or latest.
    file
        The graph, as model.nir.
    dt
        Seconds of a time step; the graph's time constants are in seconds.
    checkpoint
        last.pt or best.pt.
    """
    from fastsnn.nir import write_run

    write_run(run, file, dt=dt, best=checkpoint == "best")
    output.print(str(file), markup=False, emoji=False)
