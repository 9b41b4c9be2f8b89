"""The commands that look at the machine and hand a run on: verify, doctor and export."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fastsnn.records import RunFolder
from fastsnn.terminal import FAILURE, output


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
        Whose weights: last or best.
    """
    from fastsnn.nir import write_run

    write_run(run, file, dt=dt, checkpoint=checkpoint)
    output.print(str(file), markup=False, emoji=False)
