"""The charts of docs/benchmarks.md: logarithmic axes, ratios, and quartiles as error bars."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from bench import page
from bench.page import section_of, three, time_text
from bench.readme import headline, headline_cases
from bench.results import Results, Row, quartiles, ratios

mpl.use("Agg")

_DRAWN_FROM = "Source"
"""Key in a PNG's metadata: the digest of the results."""
COLOURS = {
    "fastsnn-triton": "#c1121f",
    "fastsnn-numba": "#c1121f",
    "fastsnn-torch": "#f4a261",
    "spikingjelly-loop": "#1d3557",
    "spikingjelly-multi": "#457b9d",
    "spikingjelly-cupy": "#76b5c5",
    "spikingjelly2": "#a8c5da",
    "snntorch": "#6a994e",
    "norse": "#b8bb26",
    "torch-compile": "#7b2cbf",
    "jax": "#6c757d",
}
SERIES = {
    "scaling-T": ("time steps T", "784 → 10, batch 64"),
    "scaling-B": ("batch", "784 → 10, T = 100"),
    "scaling-N": ("neurons N", "linear + LIF, 784 → N, T = 100, batch 16"),
    "scaling-threads": ("CPU threads", "784 → 10, T = 100, batch 64"),
}


def draw(found: Results, folder: Path) -> None:
    """Write the charts that there are results for, to where the page in ``folder`` shows them."""
    figures = {"ratios": _ratios, "linear": _linear, "scaling": _scaling}
    for name in page.charts(found):
        path = folder / page.chart_path(found, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the library's version in it the file changes only with the picture.
        metadata = {"Software": None, _DRAWN_FROM: found.digest()}
        figures[name](found).savefig(path, dpi=130, metadata=metadata)


def drawn_from(path: Path) -> str | None:
    """Digest of the results that a chart was drawn from; None where there is no chart."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        return str(image.info.get(_DRAWN_FROM))


def _ratios(found: Results) -> Figure:
    """A panel per main case, a bar per peer: how many times our time it needs."""
    cases = headline_cases(found)
    rows = -(-len(cases) // 2)
    figure = Figure(figsize=(11, 1.75 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, 2, sharex=True, squeeze=False).flatten()
    for axis, case in zip(panels, cases, strict=False):
        own = found.ours(case)
        assert own is not None
        _bars(axis, [row for row in found.of(case) if row.seconds and row is not own], own)
        axis.set_title(f"{headline(case)}: {own.label}, {time_text(own.median)}", fontsize=9, loc="right")
    for axis in panels[len(cases) :]:
        axis.remove()
    figure.supxlabel(
        f"times slower than fastsnn on {found.machine['device']} (bars: median; lines: quartiles; hatched: computed)",
        fontsize=9,
    )
    return figure


def _bars(axis: Axes, rows: Sequence[Row], own: Row) -> None:
    for position, row in enumerate(rows):
        found = ratios(row, own)
        median, (low, high) = statistics.median(found), quartiles(found)
        hatch = "///" if row.status == "computed" else None
        # From 1, our own time, in either direction: a logarithmic axis has no 0.
        axis.barh(position, median - 1, left=1, color=COLOURS[row.implementation], hatch=hatch, edgecolor="white")
        axis.plot([low, high], [position, position], color="black", linewidth=1)
        axis.annotate(f" {three(median)} x", (max(1, high, median), position), va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    axis.set_xscale("log")
    _number(axis.xaxis, (1, 3))
    axis.tick_params(labelsize=8, labelbottom=True)
    axis.invert_yaxis()
    axis.axvline(1, color=COLOURS["fastsnn-numba"], linewidth=1)
    axis.margins(x=0.15)
    axis.spines[["top", "right"]].set_visible(False)


def _linear(found: Results) -> Figure:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axis = figure.subplots()
    cases = [case for case in found.cases() if section_of(case) == "linear" and not case.endswith("-forward")]
    _lines(axis, found, cases)
    axis.set_title("linear + LIF, n → n, batch 16, T = 500", fontsize=10)
    axis.set(xlabel="n", ylabel="ms, forward + backward")
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _scaling(found: Results) -> Figure:
    series = [name for name in SERIES if any(section_of(case) == name for case in found.cases())]
    figure = Figure(figsize=(4.2 * min(2, len(series)), 3.2 * -(-len(series) // 2)), layout="constrained")
    panels = figure.subplots(-(-len(series) // 2), min(2, len(series)), squeeze=False).flatten()
    for axis, name in zip(panels, series, strict=False):
        _lines(axis, found, [case for case in found.cases() if section_of(case) == name])
        axis.set_xlabel(SERIES[name][0], fontsize=9)
        axis.set_ylabel("ms", fontsize=9)
        axis.set_title(SERIES[name][1], fontsize=9)
        axis.legend(fontsize=7, frameon=False)
    for axis in panels[len(series) :]:
        axis.remove()
    return figure


def _lines(axis: Axes, found: Results, cases: Sequence[str]) -> None:
    """Time over the number that ends a case's name, a line per implementation."""
    rows: dict[str, list[tuple[int, Row]]] = {}
    for case in cases:
        for row in found.of(case):
            if row.seconds:
                rows.setdefault(row.implementation, []).append((int(case.rsplit("-", 1)[-1]), row))
    for name, points in rows.items():
        x = [n for n, _ in points]
        median = [row.median * 1e3 for _, row in points]
        spread = [row.quartiles for _, row in points]
        below = [m - low * 1e3 for m, (low, _) in zip(median, spread, strict=True)]
        above = [high * 1e3 - m for m, (_, high) in zip(median, spread, strict=True)]
        width = 2.2 if name.startswith("fastsnn") else 1.2
        axis.errorbar(
            x, median, yerr=(below, above), marker="o", markersize=4, capsize=2, linewidth=width,
            color=COLOURS[name], label=points[0][1].label,
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    _number(axis.yaxis, (1, 2, 5))
    ticks = sorted({n for points in rows.values() for n, _ in points})
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _number(axis: Axis, digits: Sequence[int]) -> None:
    """Label a logarithmic axis with plain numbers that begin with these digits."""
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
