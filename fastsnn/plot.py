"""Figures of a run's folder, drawn without a display; ``figures/`` says what each looks like.

Tests: ``tests/test_plot.py``.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from PIL import Image, PngImagePlugin
from torch import nn

from fastsnn import figures
from fastsnn.checkpoint import write_atomically
from fastsnn.errors import FastSNNError
from fastsnn.figures import DRAWINGS
from fastsnn.figures.neuron_demo import headline, neuron_demo
from fastsnn.fonts import chinese_fonts, require_chinese
from fastsnn.look import Look
from fastsnn.neuron_demo import NeuronDemo
from fastsnn.recording import Recording
from fastsnn.sources import Source
from fastsnn.words import language, say

SLIDE = (9.0, 5.0)
"""Inches of a figure without its headline: text of 13 points is then readable from the last row."""
_DPI, _HEADLINE = 200, 0.42

_THEMES = {
    "light": ("white", "black", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")),
    "dark": ("#14171c", "#e8e8e8", ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#ffffff")),
    "page": ("#fefdfc", "#010203", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f")),
}
"""Name -> paper, ink, and Okabe and Ito's colours for data, which colour-blind readers can tell apart."""

PAGE_COLOURS = {"#fefdfc": "var(--paper)", "#010203": "var(--ink)"}
"""Paper and ink of the theme "page", which are nothing else's colours, and what they are on the report page."""


def draw(
    runs: Sequence[Path],
    what: Sequence[str] | None = None,
    *,
    sample: int | None = None,
    out: Path | None = None,
    look: Look | None = None,
    data_dir: Path | None = None,
    checkpoint: str = "last",
    network: nn.Module | None = None,
    source: Source | None = None,
) -> list[Path]:
    """Draw figures of a run, or lay the training curves of several over each other; returns the files.

    Args:
        runs: run folders.
        what: names out of ``DRAWINGS``; default all that the run has something for, curves for several runs, which have
            nothing else in common.
        sample: number of the test sample to look at; default a right answer that was a close call.
        out: folder for the files; default RUN/plots, for several runs the current folder.
        look: format, headline, language; default ``Look()``.
        data_dir: folder of the data sets; default the run's.
        checkpoint: last or best.
        network, source: for a run of ``fastsnn.fit`` those that it was given; without them there are curves alone.

    Raises:
        ValueError: a name, sample or format that does not exist (the message lists those that do), or there is no
            display to show on.
        FastSNNError: a folder is no run, has no checkpoint or can't be written; then no file has changed.
    """
    _check_names(what, len(runs))
    look = look or Look()
    _check_display(look)
    recordings = [Recording(run, sample, data_dir, checkpoint, network, source) for run in runs]
    allowed = figures.available(recordings[0]) if len(runs) == 1 else ["curves"]
    if missing := [name for name in what or () if name not in allowed]:
        raise ValueError(
            f"what is {missing[0]!r}, which {recordings[0].path} has nothing for; allowed: {', '.join(allowed)}"
        )
    folder = out or (Path() if len(runs) > 1 else recordings[0].path / "plots")
    with style(lang=look.lang, names=" ".join([*(recording.name for recording in recordings), look.title or ""])):
        # All are drawn before the first is written: what fails leaves nothing behind.
        drawn = _rendered(list(what or allowed), recordings, look)
        files = {folder / f"{name}.{look.format}": content for name, content in drawn.items()}
        for path, content in files.items():
            write(path, content)
        if look.show:
            _show()
    return list(files)


def _rendered(names: list[str], recordings: Sequence[Recording], look: Look) -> dict[str, bytes]:
    """Name -> the file of each figure."""
    if look.format != "png" or look.show:
        return {name: render(figure(name, recordings, look), look.format) for name in names}
    panels = names if "summary" not in names else figures.available(recordings[0])
    pictures = {name: Picture.of(figure(name, recordings, look)) for name in panels if name != "summary"}
    if "summary" in names:
        pictures = {"summary": _summary(list(pictures.values()))} | pictures
    return {name: pictures[name].png() for name in names}


def _check_names(what: Sequence[str] | None, runs: int) -> None:
    if not runs:
        raise ValueError("runs is empty; allowed: one run folder or more")
    allowed = list(DRAWINGS) if runs == 1 else ["curves"]
    for name in what or ():
        if name not in allowed:
            raise ValueError(f"what is {name!r}; allowed{' for several runs' * (runs > 1)}: {', '.join(allowed)}")


def draw_neuron(demo: NeuronDemo, out: Path, look: Look) -> Path:
    """Draw a neuron under a current; returns the file.

    Raises ValueError if there is no display to show on, FastSNNError if the file can't be written.
    """
    _check_display(look)
    with style(lang=look.lang, names=look.title or ""):
        canvas = canvas_of(lambda panel: neuron_demo(demo, panel), headline(demo), look)
        write(out, render(canvas, look.format))
        if look.show:
            _show()
    return out


def _show() -> None:
    from matplotlib import pyplot

    pyplot.show()


def _check_display(look: Look) -> None:
    if not look.show:
        return
    from matplotlib import pyplot

    window = pyplot.figure()
    pyplot.close(window)
    if window.canvas.required_interactive_framework is None:
        raise ValueError("show is True; allowed: False here, where matplotlib finds no display or no GUI toolkit")


@contextmanager
def style(theme: str = "light", lang: str = "en", names: str = "") -> Iterator[None]:
    """Draw in fastsnn's style and in a language, whatever the user's matplotlibrc says.

    ``names``: what is written besides, by which fonts are chosen: looking for many takes matplotlib longer.
    """
    paper, ink, colours = _THEMES[theme]
    chinese = chinese_fonts()[:1] if lang == "zh" or not names.isascii() else ()
    options = {
        "font.family": ["DejaVu Sans", *chinese],
        "font.size": 13,
        "axes.titlesize": 14,
        "figure.titlesize": 14,
        "axes.prop_cycle": cycler(color=colours),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 2.5,
        "svg.hashsalt": "fastsnn",  # the same run gives the same file
        "text.parse_math": False,  # a run may be called $x$
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.w_pad": 0.08,
        "figure.constrained_layout.h_pad": 0.06,
        "image.interpolation": "nearest",
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), paper),
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
    }
    with language(lang), matplotlib.style.context(["default", options]), warnings.catch_warnings():
        if lang == "zh":
            require_chinese()
        # Few Chinese fonts have a bold face; the normal one will do.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        # A name that no font can write appears as boxes, which is no reason to complain at every figure.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def figure(name: str, recordings: Sequence[Recording], look: Look | None = None) -> Figure:
    """One figure, by default under the headline of its run; ``style`` must be in force."""
    look = look or Look()
    if len(recordings) > 1:
        title = say("Training curves of {count} runs", count=len(recordings))
        return canvas_of(lambda canvas: figures.curves(recordings, canvas), title, look)
    (recording,) = recordings
    rows = -(-len(figures.available(recording)[1:]) // 2) if name == "summary" else 0
    size = (2 * SLIDE[0], rows * SLIDE[1]) if rows else SLIDE
    title = f"{recording.name}: {recording.result}"
    return canvas_of(lambda canvas: DRAWINGS[name](recording, canvas), title, look, size, _DPI // 2 if rows else _DPI)


def canvas_of(
    drawing: Callable[[figures.Canvas], None],
    title: str,
    look: Look,
    size: tuple[float, float] = SLIDE,
    dpi: int = _DPI,
) -> Figure:
    """A figure of ``size`` inches, filled by ``drawing``, below its headline."""
    above = look.headline(title)
    height = size[1] + (_HEADLINE if above else 0)
    options: dict[str, Any] = {"figsize": (size[0], height), "dpi": dpi}
    if look.show:
        from matplotlib import pyplot

        canvas = pyplot.figure(**options)
    else:
        canvas = Figure(**options)
    if not above:
        drawing(canvas.subfigures(1, 1, squeeze=False)[0, 0])
        return canvas
    top, panel = canvas.subfigures(2, 1, squeeze=False, hspace=0, height_ratios=[_HEADLINE, size[1]])[:, 0]
    top.suptitle(above, fontweight="bold", fontsize="large", y=0.6, va="center")
    drawing(panel)
    return canvas


def headline_of(canvas: Figure) -> str:
    """What stands above a figure."""
    parts = canvas.subfigs
    return str(parts[0].get_suptitle()) if len(parts) == 2 else ""


@dataclass
class Picture:
    """A drawn figure as pixels."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    """[H, W, 3]."""
    top: int
    """Rows that the headline takes."""
    title: str

    @classmethod
    def of(cls, figure: Figure) -> "Picture":
        """Draw a figure."""
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        panel: SubFigure = figure.subfigs[-1]
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        return cls(pixels, round(len(pixels) - panel.bbox.height), headline_of(figure))

    def png(self) -> bytes:
        """A PNG file, with the headline as its title."""
        metadata, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
        metadata.add_itxt("Title", self.title)
        image = Image.fromarray(self.pixels)
        if image.height > image.width:  # the summary: with a palette it takes a third of the bytes
            image = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        image.save(buffer, "png", pnginfo=metadata, dpi=(_DPI, _DPI))
        return buffer.getvalue()


def _summary(parts: list[Picture]) -> Picture:
    """The figures at half their size, two in a row, below one headline."""
    panels = [Image.fromarray(part.pixels[part.top :]).reduce(2) for part in parts]
    (width, height), paper = panels[0].size, tuple(parts[0].pixels[0, 0].tolist())
    head = Image.fromarray(parts[0].pixels[: parts[0].top]).reduce(2) if parts[0].top else Image.new("RGB", (1, 0))
    page = Image.new("RGB", (2 * width, head.height + -(-len(panels) // 2) * height), paper)
    page.paste(head, (width // 2, 0))
    for i, panel in enumerate(panels):
        page.paste(panel, (i % 2 * width, head.height + i // 2 * height))
    return Picture(np.asarray(page), head.height, parts[0].title)


def render(figure: Figure, format: str) -> bytes:
    """The figure's file, with its headline as the file's title."""
    if format == "png":
        return Picture.of(figure).png()
    buffer = io.BytesIO()
    metadata = {"Title": headline_of(figure)} | ({"Date": None} if format == "svg" else {})
    figure.savefig(buffer, format=format, dpi=figure.dpi, metadata=metadata)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a file of a run's; FastSNNError where its folder can't be written, and the file is then as it was."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise FastSNNError(f"can't write {path}: {error.strerror or error}; name another place with --out") from error
