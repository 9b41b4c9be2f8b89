"""The commands that draw: plot, report and demo."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, Token

from fastsnn.look import FORMATS, Look
from fastsnn.option_values import Integer, OptionalInteger
from fastsnn.records import RunFolder
from fastsnn.terminal import output

demo = App(name="demo", help="Draw something that needs no training: fastsnn demo neuron.")


def _names(type_: object, tokens: list[Token] | tuple[Token, ...]) -> list[str]:
    """curves,scores -> ["curves", "scores"]."""
    return [name for token in tokens for name in token.value.split(",") if name]


def _numbers(type_: object, tokens: list[Token] | tuple[Token, ...]) -> list[float]:
    """0,0.5,2 -> [0.0, 0.5, 2.0]."""
    parts = [part for token in tokens for part in token.value.split(",")]
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        given = ",".join(parts)
        raise ValueError(f"current is {given}; allowed: numbers with commas between them, as in 0,0.5,2") from error


def plot_runs(
    *runs: RunFolder,
    what: Annotated[list[str] | None, Parameter(negative=(), converter=_names)] = None,
    sample: OptionalInteger = None,
    out: Path | None = None,
    checkpoint: Literal["last", "best"] = "last",
    data_dir: Path | None = None,
    look: Annotated[Look | None, Parameter(name="*")] = None,
) -> None:
    """Draw what a run learnt and how its neurons fire, or the training curves of several runs in one figure.

    Parameters
    ----------
    runs
        Run folders, or latest.
    what
        Figures, as in curves,scores: summary, curves, confusion, scores, steps (labels per step), frames (events),
        raster, membrane, traces, weights, mistakes; default all that the run has something for, and curves for several
        runs.
    sample
        Number of the test sample to look at; default the right answer that was the closest call.
    out
        Folder for the files; default plots in the run folder, and the current folder for several runs.
    checkpoint
        Whose weights: last or best.
    data_dir
        Folder of the data sets; default the run's.
    """
    from fastsnn import plot

    with output.status("computing and drawing"):
        files = plot.draw(runs, what, sample=sample, out=out, look=look, data_dir=data_dir, checkpoint=checkpoint)
    for file in files:
        output.print(str(file), markup=False, emoji=False)


def report_run(
    run: RunFolder,
    /,
    *,
    sample: OptionalInteger = None,
    out: Path | None = None,
    checkpoint: Literal["last", "best"] = "last",
    data_dir: Path | None = None,
    title: str | None = None,
    lang: Literal["en", "zh"] = "en",
) -> None:
    """Write one HTML file about a run: figures, numbers, options, and a spike raster to move through in time.

    Parameters
    ----------
    run
        Run folder, or latest.
    sample
        Number of the test sample whose spikes are shown; default the right answer that was the closest call.
    out
        The file; default report.html in the run folder.
    checkpoint
        Whose weights: last or best.
    data_dir
        Folder of the data sets; default the run's.
    title
        Headline of the page; default the run's name.
    lang
        Language of its words: English or Chinese.
    """
    from fastsnn.report import write_report

    with output.status("computing and drawing"):
        file = write_report(
            run, sample=sample, out=out, data_dir=data_dir, checkpoint=checkpoint, title=title, lang=lang
        )
    output.print(str(file), markup=False, emoji=False)


@demo.command(name="neuron")
def demo_neuron(
    *,
    neuron: str = "lif(tau=10)",
    current: Annotated[list[float] | None, Parameter(negative=(), converter=_numbers)] = None,
    T: Annotated[Integer, Parameter(name=("--T", "-T"))] = 100,
    out: Path | None = None,
    look: Annotated[Look | None, Parameter(name="*")] = None,
) -> None:
    """Draw one neuron under a current: how its membrane charges, fires and is reset.

    Parameters
    ----------
    neuron
        Any neuron, as in lif, alif, "plif(tau=3, v_reset=none)" or file.py:Class.
    current
        Input current in equal parts of the time, as in 0,0.5,2; default one that stays below, above and far above what
        makes the neuron fire.
    T
        Time steps.
    out
        The file; default neuron.png (.svg, .pdf) in the current folder.
    """
    from dataclasses import replace

    from fastsnn import plot
    from fastsnn.neuron_demo import demonstrate
    from fastsnn.neuron_spec import parse_neuron

    look = look or Look()
    if out is not None and (suffix := out.suffix.lower().lstrip(".")) in FORMATS:
        look = replace(look, format=suffix)  # type: ignore[arg-type]
    found = demonstrate(parse_neuron(neuron), current or (), T)
    with output.status("drawing"):
        file = plot.draw_neuron(found, out or Path(f"neuron.{look.format}"), look)
    output.print(str(file), markup=False, emoji=False)
