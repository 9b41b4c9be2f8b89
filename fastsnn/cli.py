"""The ``fastsnn`` command: this module and ``terminal`` are the only ones that print."""

import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import App, Parameter

import fastsnn
from fastsnn import settings
from fastsnn.comparison import runs_of, settings_of
from fastsnn.config import PLACE, RUN, Config
from fastsnn.errors import Interrupted
from fastsnn.inspection_commands import doctor, export_run, verify
from fastsnn.option_values import OptionalInteger
from fastsnn.options import read_yaml
from fastsnn.picture_commands import demo, plot_runs, report_run
from fastsnn.recorded import recorded_config
from fastsnn.records import RunFolder
from fastsnn.run_commands import compare, evaluate, runs, show
from fastsnn.sweep import plan, train_all
from fastsnn.terminal import FAILURE, NO_READER, HelpConsole, TerminalMonitor, errors, output
from fastsnn.text import printable

app = App(
    name="fastsnn",
    help="Train spiking neural networks at the speed of the machine.",
    help_epilogue="Start with `fastsnn train`; each command has examples in its --help. An error is one line; --debug "
    "shows where it came from.",
    help_format="plaintext",
    version=fastsnn.__version__,
    console=HelpConsole(),
)
app.register_install_completion_command()

_ERRORS = "An error is one line; --debug shows where it came from."


def _examples(*lines: str) -> str:
    """What stands below a command's options in its help."""
    return "\n".join(
        [f"Example{'s' if len(lines) > 1 else ''}:", *(f"  fastsnn {line}" for line in lines), "", _ERRORS]
    )


app.command(verify, help_epilogue=_examples("verify --quick", "verify --backend numba --json machine.json"))
app.command(doctor, help_epilogue=_examples("doctor"))
app.command(plot_runs, name="plot", help_epilogue=_examples("plot latest", "plot runs/digits --what curves,raster"))
app.command(report_run, name="report", help_epilogue=_examples("report latest", "report runs/digits --checkpoint best"))
app.command(evaluate, name="eval", help_epilogue=_examples("eval latest", "eval runs/digits --checkpoint best -T 20"))
demo.help_epilogue = _examples("demo neuron", 'demo neuron --neuron "lif(tau=20)" --current 0,1.2,2')
app.command(demo)
app.command(export_run, name="export", help_epilogue=_examples("export latest model.nir"))
app.command(runs, help_epilogue=_examples("runs", "runs runs/sweep"))
app.command(compare, help_epilogue=_examples("compare runs/a runs/b", "compare runs/sweep --out accuracy.png"))

USAGE_ERROR = 2

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


@app.command(
    help_epilogue=_examples(
        "train",
        "train --dataset digits --hidden 100 --epochs 40 --validation 0.1 --plot",
        "train --dataset digits --sweep tau=1.5,2,4 seed=0,1,2 --name tau",
    )
)
def train(
    *,
    config: Annotated[Config | None, Parameter(name="*")] = None,
    config_file: Annotated[Path | None, Parameter(name="--config"), RUN] = None,
    resume: Annotated[RunFolder | None, RUN] = None,
    sweep: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=()), RUN] = None,
    plot: Annotated[bool, Parameter(negative=()), RUN] = False,
    workers: Annotated[int | None, Parameter(name="-j"), RUN] = None,
) -> None:
    """Train a spiking neural network and save the run.

    Parameters
    ----------
    config_file
        YAML file of options, such as a run's config.yaml; options given here go on top.
    resume
        Run folder to go on with, or latest.
    sweep
        Train a run for each combination of values, as in tau=1.5,2,4 T=20,100 seed=0,1,2, and compare them.
    plot
        Draw the run's figures when it is done, as `fastsnn plot` does.
    workers
        Accepted for SpikingJelly's scripts; there are no data loading workers.
    """
    if workers is not None:
        output.print("-j is not needed: the data set lives on the device, and there are no worker processes")
    if os.environ.get("RANK", "0") != "0":
        output.quiet = True  # one process of a torchrun speaks
    if sweep:
        if resume or plot:
            raise ValueError(f"--sweep and --{'resume' if resume else 'plot'} exclude each other")
        _sweep(config or Config(), sweep)
        return
    with TerminalMonitor(output) as monitor:
        history = fastsnn.train(config, resume=resume, monitor=monitor)
    output.print(f"{history.dataset}: {_result(history)}; saved in {history.run}", markup=False, emoji=False)
    if plot and not output.quiet:
        _plot_after_training(history.run)


def _sweep(config: Config, texts: list[str]) -> None:
    """Train every combination, then show what `fastsnn compare` does."""
    folder, planned = plan(config, texts)
    train_all(folder, planned, lambda: TerminalMonitor(output), lambda text: output.print(text, markup=False))
    if not output.quiet:
        show(settings_of(runs_of([run.out for run in planned if run.out])), folder / "compare.png")


def _result(history: "fastsnn.History") -> str:
    """How good the run is, and what best.pt was chosen by."""
    best = history.best
    if best.held_out == "test":
        chosen = "chosen on the test set; --validation 0.1 holds out training samples for that"
        return f"best test accuracy {best.accuracy:.2%} (epoch {best.epoch}, {chosen})"
    tested = "no test set" if best.test_accuracy is None else f"test accuracy {best.test_accuracy:.2%}"
    return f"{tested}; best validation accuracy {best.accuracy:.2%} (epoch {best.epoch})"


@app.command(help_epilogue=_examples("predict latest --input images.npz --out classes.csv", "predict latest photo.png"))
def predict(
    run: RunFolder,
    /,
    *pictures: Path,
    input_file: Annotated[Path | None, Parameter(name="--input")] = None,
    out: Path | None = None,
    format: Literal["text", "csv", "json"] | None = None,
    T: Annotated[OptionalInteger, Parameter(name=("--T", "-T"))] = None,
    backend: Literal["auto", "torch", "cupy", "triton", "numba"] | None = None,
    device: str | None = None,
    checkpoint: Literal["last", "best"] = "last",
) -> None:
    """The class of each sample of a file, and the score of every class: firing rates, or membrane potentials.

    Parameters
    ----------
    run
        Run folder, or latest.
    pictures
        Pictures of your own, as .png or .jpg, for a run on images: each is made like those of the data set (for MNIST
        grey, inverted if its ground is light, scaled, centred by mass).
    input_file
        .npz file with an array x (or one array alone), or .npy file: [D, ...] still samples of the shape that the run
        was trained on, uint8 or in 0 to 1; or [D, T, ...] with time steps of their own, which are not encoded. An array
        lengths [D] says how many of the time steps count.
    out
        Write to this file; default print.
    format
        text: a line to read for each picture (their default); csv: a line per sample; json: one object with classes and
        scores.
    T
        Time steps per sample; default the run's.
    backend
        Implementation; default the one that the run was trained with.
    device
        cpu, cuda or cuda:N; default the run's.
    checkpoint
        Which checkpoint: last or best.
    """
    if (input_file is None) == (not pictures):
        raise ValueError("predict needs pictures or --input file.npz, one of the two")
    names = [file.name for file in pictures]
    with output.status("predicting"):
        found = fastsnn.predict(run, input_file or pictures, T=T, backend=backend, device=device, checkpoint=checkpoint)
    format = format or ("text" if pictures else "csv")
    text = json.dumps(found.to_dict()) + "\n" if format == "json" else found.as_csv()
    if format == "text":
        text = found.as_text(names)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    else:
        output.out(text, end="")


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
        recorded = recorded_config(run).to_dict() if (run / "config.yaml").is_file() else {}
        return {name: value for name, value in recorded.items() if name not in PLACE}  # a run goes on where it is
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
