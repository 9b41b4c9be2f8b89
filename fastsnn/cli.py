"""The ``fastsnn`` command: this module and ``terminal`` are the only ones that print."""

import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import App, Parameter

import fastsnn
from fastsnn import settings
from fastsnn.config import Config, recorded_config
from fastsnn.errors import Interrupted
from fastsnn.options import read_yaml
from fastsnn.terminal import NO_READER, HelpConsole, Output, TerminalMonitor
from fastsnn.text import printable

app = App(
    name="fastsnn",
    help="Train spiking neural networks of LIF neurons at the speed of the machine.",
    help_epilogue="An error is one line; --debug shows where it came from.",
    version=fastsnn.__version__,
    console=HelpConsole(),
)
app.register_install_completion_command()

output = Output(highlight=False, soft_wrap=True)
errors = Output(stderr=True, highlight=False, soft_wrap=True)

USAGE_ERROR, FAILURE = 2, 1

# SpikingJelly's scripts spell their options with one dash.
_SPIKINGJELLY = {
    "-lr": "--lr",
    "-tau": "--tau",
    "-amp": "--amp",  # a flag there: fp16
    "-opt": "--optimizer",
    "-momentum": "--momentum",
    "-resume": "--resume",
    "-data-dir": "--data-dir",
    "-out-dir": "--out",
    "-epochs": "--epochs",
    "-device": "--device",
}


def _names(type_: Any, tokens: Sequence[cyclopts.Token]) -> list[str]:
    """curves,rates -> ["curves", "rates"]."""
    return [name for token in tokens for name in token.value.split(",") if name]


@app.command
def train(
    *,
    config: Annotated[Config | None, Parameter(name="*")] = None,
    config_file: Annotated[Path | None, Parameter(name="--config")] = None,
    resume: Path | None = None,
    plot: Annotated[bool, Parameter(negative=())] = False,
    workers: Annotated[int | None, Parameter(name="-j")] = None,
) -> None:
    """Train a network of LIF neurons and save the run.

    Parameters
    ----------
    config_file
        YAML file of options, such as a run's config.yaml; options given here go on top.
    resume
        Run folder to go on with.
    plot
        Draw the run's figures when it is done, as `fastsnn plot` does.
    workers
        Accepted for SpikingJelly's scripts; there are no data loading workers.
    """
    if workers is not None:
        output.print("-j is not needed: the data set lives on the device, and there are no worker processes")
    if os.environ.get("RANK", "0") != "0":
        output.quiet = True  # one process of a torchrun speaks
    with TerminalMonitor(output) as monitor:
        history = fastsnn.train(config, resume=resume, monitor=monitor)
    best = max(history.epochs, key=lambda row: (row.test_accuracy, row.epoch))
    text = f"best test accuracy {best.test_accuracy:.2%} (epoch {best.epoch}); saved in {history.run}"
    output.print(text, markup=False, emoji=False)
    if plot and not output.quiet:
        _plot_after_training(history.run)


@app.command(name="eval")
def evaluate(
    run: Path,
    /,
    *,
    backend: Literal["auto", "torch", "cupy", "triton", "numba"] | None = None,
    device: str | None = None,
    data_dir: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Loss and accuracy of a run's last checkpoint on the test set.

    Parameters
    ----------
    run
        Run folder.
    backend
        Implementation; default the one that the run was trained with.
    device
        cpu, cuda or cuda:N; default the run's.
    data_dir
        Folder of the data sets; default the run's.
    as_json
        Print one JSON object.
    """
    with output.status("evaluating"):
        result = fastsnn.evaluate(run, backend=backend, device=device, data_dir=data_dir)
    if as_json:
        output.out(json.dumps(result))
        return
    steps = f" and {result['steps']} steps of the next" if result["steps"] else ""
    output.print(
        f"epoch {result['epoch']}{steps}: test loss {result['test_loss']:.5f}, test accuracy "
        f"{result['test_accuracy']:.2%} ({result['backend']} on {result['device']}, {result['test_seconds']:.2f} s)"
    )


@app.command
def verify(
    *,
    backend: Literal["torch", "cupy", "triton", "numba"] | None = None,
    device: str | None = None,
    quick: Annotated[bool, Parameter(negative=())] = False,
    case: str | None = None,
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
    json_file
        Write what was found to this file, in the form that docs/gpus keeps.
    """
    from fastsnn import tables
    from fastsnn import verify as harness

    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ValueError(f"json is {json_file}; allowed: a file in a folder that exists")
    with output.status("") as status:
        report = harness.verify(
            backend, device, quick, case, lambda row: status.update(f"{row.backend} on {row.device}: {row.group}")
        )
    tables.verification(output, report, with_traceback=case is not None)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    if not report.ok:
        sys.exit(FAILURE)


@app.command
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


@app.command(name="plot")
def plot_runs(
    *runs: Path,
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
        Run folders.
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


@app.command(name="report")
def report_run(
    run: Path,
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
        Run folder.
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


def _plot_after_training(run: Path) -> None:
    """Draw a run that is trained and saved, which a figure that fails must not make look lost."""
    try:
        plot_runs(run)
    except Exception as error:
        text = f"the run is saved, but its figures could not be drawn: {error}; try: fastsnn plot {run}"
        _complain(text)


def main() -> None:
    """Entry point: run the command; one line on stderr and exit 2 for wrong usage, 1 for what else fails."""
    arguments = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # in a terminal that isn't UTF-8
    if arguments[:1] == ["train"]:
        arguments = [_respelled(*pair) for pair in zip(arguments, [*arguments[1:], ""], strict=True)]
    with _one_line_errors("--debug" in arguments):
        _run([argument for argument in arguments if argument != "--debug"])


def _run(arguments: list[str]) -> None:
    settings.check()
    app.config = ()
    command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    if command is train and (base := _base_options(bound.arguments)):
        # Options of a file or of the run to resume stand behind those of the command line.
        app.config = (cyclopts.config.Dict({"train": base}),)
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    command(*bound.args, **bound.kwargs)


def _base_options(arguments: dict[str, Any]) -> dict[str, Any]:
    run, file = arguments.get("resume"), arguments.get("config_file")
    if run and file:
        raise ValueError("--config and --resume exclude each other: a run goes on with its own config.yaml")
    if run:
        return recorded_config(run).to_dict() if (run / "config.yaml").is_file() else {}
    if not file:
        return {}
    try:
        options = read_yaml(file)
        if "overwrite" in options:
            raise ValueError(f"{file} sets overwrite; give --overwrite on the command line, where it is seen")
        return Config.from_dict(options, str(file)).to_dict()
    except (ValueError, TypeError) as error:
        raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from error


def _respelled(argument: str, following: str) -> str:
    """An option of SpikingJelly's scripts in fastsnn's spelling; anything else as it is."""
    if argument == "-amp" and following not in ("off", "fp16", "bf16"):
        return "--amp=fp16"
    name, equals, value = argument.partition("=")
    return _SPIKINGJELLY.get(name, name) + equals + value


@contextmanager
def _one_line_errors(debug: bool) -> Iterator[None]:
    try:
        yield
    except cyclopts.CycloptsError as error:
        _fail(USAGE_ERROR, error, debug)
    except Interrupted as stopped:
        _complain(str(stopped))
        sys.exit(128 + stopped.signal_number)
    except BrokenPipeError:
        sys.exit(128 + NO_READER)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(128 + signal.SIGINT)
    except (ValueError, TypeError) as error:
        _fail(USAGE_ERROR, error, debug)
    except Exception as error:
        _fail(FAILURE, error, debug)


def _fail(code: int, error: Exception, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    else:
        named = isinstance(error, (ValueError, TypeError, fastsnn.FastSNNError, cyclopts.CycloptsError))
        _complain(f"fastsnn: {'' if named else type(error).__name__ + ': '}{error}")
    sys.exit(code)


def _complain(text: str) -> None:
    """One line on stderr; lost where nobody reads it, which must not change the exit code."""
    try:
        errors.print(printable(" ".join(text.split())), markup=False, emoji=False)
    except OSError:
        errors.drop()
