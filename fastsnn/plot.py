"""Figures of a run's folder, drawn without a display; ``figures.py`` says what each looks like.

Tests: ``tests/test_plot.py``.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.style
from cycler import cycler
from matplotlib import font_manager, pyplot
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from fastsnn import figures
from fastsnn.activity import Recording
from fastsnn.checkpoint import write_atomically
from fastsnn.errors import FastSNNError

DRAWINGS: dict[str, Callable[[Recording, figures.Canvas], None]] = {
    "summary": figures.summary,
    "curves": lambda recording, figure: figures.curves([recording], figure),
    "rates": figures.rates,
    "membrane": figures.membrane,
    "traces": figures.traces,
    "raster": figures.raster,
    "weights": figures.weights,
    "confusion": figures.confusion,
    "mistakes": figures.mistakes,
}
FORMATS = ("png", "svg", "pdf")

_SLIDE: dict[str, Any] = {"figsize": (12.0, 6.75), "dpi": 150}
_PAGE: dict[str, Any] = {"figsize": (18.0, 20.0), "dpi": 100}
"""Inches and pixels an inch: on a slide of 12 inches text of 13 points is readable from the last row."""

_THEMES = {
    "light": ("white", "black", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")),
    "dark": ("#14171c", "#e8e8e8", ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#ffffff")),
}
"""Name -> paper, ink, and Okabe and Ito's colours for data, which colour-blind readers can tell apart."""

_CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "SimHei")
"""Fonts for the names of runs that matplotlib's own can't write."""


def draw(
    runs: Sequence[Path],
    what: Sequence[str] | None = None,
    *,
    sample: int = 0,
    out: Path | None = None,
    format: str = "png",
    data_dir: Path | None = None,
    show: bool = False,
) -> list[Path]:
    """Draw figures of a run, or lay the training curves of several over each other; returns the files.

    Args:
        runs: run folders.
        what: names out of ``DRAWINGS``; default all for one run, curves for several, which have nothing else in common.
        sample: number of the test image that membrane, traces, raster and rates show.
        out: folder for the files; default RUN/plots, for several runs the current folder.
        format: png, svg or pdf.
        data_dir: folder of the data sets; default the run's.
        show: open a window for each figure as well.

    Raises:
        ValueError: a name, sample or format that does not exist (the message lists those that do), or there is no
            display to show on.
        FastSNNError: a folder is no run, has no checkpoint or can't be written; then no file has changed.
    """
    _check_names(what, len(runs))
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; allowed: {', '.join(FORMATS)}")
    if show and _is_headless():
        raise ValueError("show is True; allowed: False here, where matplotlib finds no display or no GUI toolkit")
    recordings = [Recording(run, sample, data_dir) for run in runs]
    every = len(runs) == 1 and recordings[0].is_linear
    names = what or (list(DRAWINGS) if every else ["curves"])
    folder = out or (Path() if len(runs) > 1 else recordings[0].path / "plots")
    with style():
        # All are drawn before the first is written: what fails leaves nothing behind.
        drawn = {
            folder / f"{name}.{format}": render(figure(name, recordings, show), format, small=name == "summary")
            for name in names
        }
        for path, content in drawn.items():
            write(path, content)
        if show:
            pyplot.show()
    return list(drawn)


def _check_names(what: Sequence[str] | None, runs: int) -> None:
    if not runs:
        raise ValueError("runs is empty; allowed: one run folder or more")
    allowed = list(DRAWINGS) if runs == 1 else ["curves"]
    for name in what or ():
        if name not in allowed:
            raise ValueError(f"what is {name!r}; allowed{' for several runs' * (runs > 1)}: {', '.join(allowed)}")


def _is_headless() -> bool:
    window = pyplot.figure()
    pyplot.close(window)
    return window.canvas.required_interactive_framework is None


@contextmanager
def style(theme: str = "light") -> Iterator[None]:
    """Draw in fastsnn's style, whatever the user's matplotlibrc says."""
    paper, ink, colours = _THEMES[theme]
    fonts = set(font_manager.get_font_names())
    options = {
        "font.family": ["DejaVu Sans", *(font for font in _CJK_FONTS if font in fonts)],
        "font.size": 13,
        "axes.titlesize": 14,
        "figure.titlesize": 14,
        "axes.prop_cycle": cycler(color=colours),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 2.5,
        "text.parse_math": False,  # a run may be called $x$
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.w_pad": 0.1,
        "figure.constrained_layout.h_pad": 0.06,
        "image.interpolation": "nearest",
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), paper),
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
    }
    with matplotlib.style.context(["default", options]), warnings.catch_warnings():
        # A name that no font can write appears as boxes, which is no reason to complain at every figure.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def figure(name: str, recordings: Sequence[Recording], show: bool = False, headline: bool = True) -> Figure:
    """One figure, by default under the headline of its run; ``style`` must be in force."""
    size = _PAGE if name == "summary" else _SLIDE
    canvas = pyplot.figure(**size) if show else Figure(**size)
    if len(recordings) > 1:
        figures.curves(recordings, canvas)
        canvas.suptitle(f"Training curves of {len(recordings)} runs", fontweight="bold", fontsize="x-large")
    else:
        DRAWINGS[name](recordings[0], canvas.subfigures(1, 1, squeeze=False)[0, 0])
        if headline:
            text = f"{recordings[0].name}: {recordings[0].result}"
            canvas.suptitle(text, fontweight="bold", fontsize="x-large")
    return canvas


def render(figure: Figure, format: str, small: bool = False) -> bytes:
    """The figure's file, with its headline as the file's title.

    ``small`` gives a PNG a palette of 256 colours, a third of the bytes.
    """
    buffer, title = io.BytesIO(), figure.get_suptitle()
    figure.savefig(buffer, format=format, metadata={"Title": title})
    if small and format == "png":
        image = Image.open(buffer).convert("RGB")
        image = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        metadata = PngImagePlugin.PngInfo()
        metadata.add_itxt("Title", title)
        buffer = io.BytesIO()
        image.save(buffer, format, optimize=True, pnginfo=metadata)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a file of a run's; FastSNNError where its folder can't be written, and the file is then as it was."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise FastSNNError(f"can't write {path}: {error.strerror or error}; name another place with --out") from error
