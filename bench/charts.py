"""The charts of docs/benchmarks.md, readable on a slide: logarithmic axes, ratios, and quartiles as lines."""

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
from bench.readme import headline, headlines
from bench.results import Results, Row, quartiles, ratios

mpl.use("Agg")

_DRAWN_FROM = "Source"
"""Key in a PNG's metadata: the digest of the results."""
_RED, _GREY = "#c1121f", "#6c757d"
COLOURS = {"spikingjelly": "#1d3557", "snntorch": "#6a994e", "norse": "#b8bb26", "torch": "#7b2cbf", "jax": "#e09f3e"}
"""By the first letters of a peer's name."""


def draw(found: Results, folder: Path) -> None:
    """Write the charts that there are results for, to where the page in ``folder`` shows them."""
    figures = {"ratios": _ratios, "time-steps": _time_steps}
    for name in page.charts(found):
        path = folder / page.chart_path(found, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the library's version in it the file changes only with the picture.
        metadata = {"Software": None, _DRAWN_FROM: found.digest()}
        with mpl.rc_context({"font.size": 15}):
            figures[name](found).savefig(path, dpi=100, metadata=metadata)


def drawn_from(path: Path) -> str | None:
    """Digest of the results that a chart was drawn from; None if there is no chart."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        return str(image.info.get(_DRAWN_FROM))


def _ratios(found: Results) -> Figure:
    """A row for each main case, a mark for each peer: how many times fastsnn's time it needs."""
    cases = headlines(found)
    figure = Figure(figsize=(14, 0.55 * max(4, len(cases)) + 2.2), layout="constrained")
    axis = figure.subplots()
    labelled: set[str] = set()
    for position, case in enumerate(cases.values()):
        own = found.ours(case)
        assert own is not None
        rows = [row for row in found.of(case) if row.seconds and not row.ours]
        for row in rows:
            kind = next(kind for kind in COLOURS if row.implementation.startswith(kind))
            values = ratios(row, own)
            median = statistics.median(values)
            axis.plot(quartiles(values), [position] * 2, color=COLOURS[kind], linewidth=2)
            face = "white" if row.status == "computed" else COLOURS[kind]
            label = (
                None
                if kind in labelled
                else {"torch": "torch.compile", "jax": "JAX, jaxpike"}.get(kind, row.label.split()[0])
            )
            labelled.add(kind)
            axis.plot(median, position, "o", color=COLOURS[kind], markersize=11, label=label, markerfacecolor=face)
        if best := found.fastest_peer(case):
            least = f"{three(statistics.median(ratios(best, own)))} x"
            axis.text(1.01, position, least, transform=axis.get_yaxis_transform(), va="center")
    texts = [f"{headline(name, case)}: {time_text(_own(found, case).median)}" for name, case in cases.items()]
    axis.set_yticks(range(len(cases)), texts)
    axis.set_xscale("log")
    axis.set_xlim(left=min(0.7, axis.get_xlim()[0]))
    _number(axis.xaxis, (1, 3))
    axis.set_ylim(len(cases) - 0.5, -0.5)
    axis.axvline(1, color=_RED, linewidth=3)
    axis.text(1.01, -0.75, "fastest", transform=axis.get_yaxis_transform())
    title = f"Peers in multiples of fastsnn's time (red) on {found.machine['device']}"
    figure.suptitle(f"{title}\nmedians; lines from quartile to quartile; hollow: computed")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _own(found: Results, case: str) -> Row:
    own = found.ours(case)
    assert own is not None
    return own


def _time_steps(found: Results) -> Figure:
    """Time of the training step of 784-10 against T, which the case without a number has at 100."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axis = figure.subplots()
    cases = [case for case in found.cases() if section_of(case) == "rate_step-T"]
    peers = {row.implementation for case in cases for row in found.of(case)}
    cases += ["rate_step"] if "rate_step" in found.cases() else []
    lines: dict[str, list[tuple[int, Row]]] = {}
    for row in (row for case in cases for row in found.of(case) if row.implementation in peers and row.seconds):
        lines.setdefault(row.implementation, []).append((int(row.case["T"]), row))
    for name, unsorted in lines.items():
        points = sorted(unsorted, key=lambda point: point[0])
        label = points[0][1].label
        colour = _RED if name.startswith("fastsnn") else _GREY
        x, median = [T for T, _ in points], [row.median * 1e3 for _, row in points]
        axis.plot(x, median, "o-", color=colour, linewidth=3, markersize=9, label=label)
        axis.annotate(label, (x[-1], median[-1]), xytext=(0, 14), textcoords="offset points", ha="right", color=colour)
    _plain_axes(axis, sorted({T for points in lines.values() for T, _ in points}))
    axis.set(xlabel="time steps T", ylabel="ms", title=f"Training step, 784-10, batch 64, {found.machine['device']}")
    return figure


def _plain_axes(axis: Axes, ticks: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.margins(y=0.15)
    _number(axis.yaxis, (1, 3))
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _number(axis: Axis, digits: Sequence[int]) -> None:
    """Label a logarithmic axis with plain numbers that begin with these digits."""
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
