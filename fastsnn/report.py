"""The report page of a run: one HTML file that holds all it shows and opens from disk, without a network.

``web/page.html`` is its text, ``web/page.css`` its look, ``web/page.js`` the raster that moves through time.
Tests: ``tests/test_report.py``, in a browser.
"""

from pathlib import Path
from typing import Any

import jinja2
import yaml
from torch import nn

import fastsnn
from fastsnn import figures, plot
from fastsnn.figures.neurons import threshold_of
from fastsnn.figures.parts import sample_in_words
from fastsnn.monitor import COLUMNS
from fastsnn.page_data import PageFigure, activity_of, figure_of
from fastsnn.recording import Recording
from fastsnn.sources import SPLITS, Source
from fastsnn.text import printable
from fastsnn.training.loop import describe
from fastsnn.words import current_language, language, say

SECTIONS = (
    ("Training", ("curves",)),
    ("What it learnt", ("confusion", "weights", "mistakes")),
    ("The sample in figures", ("scores", "steps", "frames", "membrane", "traces")),
)
"""Heading -> figures of ``figures.DRAWINGS``; the page's own raster takes the place of that one."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("fastsnn", "web"),
    autoescape=jinja2.select_autoescape(),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(
    run: Path,
    *,
    sample: int | None = None,
    out: Path | None = None,
    data_dir: Path | None = None,
    checkpoint: str = "last",
    title: str | None = None,
    lang: str = "en",
    network: nn.Module | None = None,
    source: Source | None = None,
) -> Path:
    """Write the page about a run; returns its file.

    Args:
        run: run folder.
        sample: number of the test sample whose spikes the page shows; default a right answer that was a close call.
        out: the file; default RUN/report.html.
        data_dir: folder of the data sets; default the run's.
        checkpoint: last or best.
        title: headline; default the run's name.
        lang: en or zh.
        network, source: for a run of ``fastsnn.fit`` those that it was given; without them the page has curves, numbers
            and options alone.

    Raises:
        ValueError: the test set has no sample of that number, or there is no such language.
        FastSNNError: the folder is no run, has no checkpoint or can't be written; then no file has changed.
    """
    recording = Recording(run, sample, data_dir, checkpoint, network, source)
    path = out or recording.path / "report.html"
    with language(lang):
        plot.write(path, page(recording, title).encode())
    return path


def page(recording: Recording, title: str | None = None) -> str:
    """The page's HTML, in the language in force."""
    recorded = yaml.safe_load((recording.path / "config.yaml").read_text(encoding="utf-8"))
    environment, given = recorded.pop("environment", {}), recorded.pop("given", {})
    return _TEMPLATES.get_template("page.html").render(
        t=say,
        lang=current_language(),
        title=recording.name if title is None else printable(title),
        recording=recording,
        facts=_facts(recording, environment, given),
        columns=list(dict.fromkeys([*COLUMNS, *(name for row in recording.history for name in row.columns())])),
        in_words=_number_in_words,
        options={name: _in_words(value) for name, value in recorded.items()},
        environment=environment,
        sections=_sections(recording),
        classes=_classes(recording),
        activity=activity_of(recording) if recording.has_network else None,
        sample_in_words=sample_in_words,
        steady=recording.has_network and not threshold_of(recording.sample.output)[1],
        version=fastsnn.__version__,
    )


def _facts(recording: Recording, environment: dict[str, Any], given: dict[str, str]) -> dict[str, str]:
    """What the run was, in a line each."""
    config, cpu = recording.config, recording.config.device == "cpu"
    machine = f"{config.step}, {config.device}"
    if cpu and config.threads:
        machine += ", " + say("{count} thread" if config.threads == 1 else "{count} threads", count=config.threads)
    backend = getattr(config, "backend", "")
    if backend == "triton" and cpu:
        backend += " (" + say("in Triton's interpreter") + ")"
    facts = {
        say("Step and device"): ", ".join(filter(None, (backend, machine))),
        say("Machine"): environment.get("device_name", say("not recorded")),
    }
    if not recording.has_network:
        return {say("Network"): given.get("network", ""), say("Data"): given.get("source", "")} | facts
    source = recording.source
    splits = [split for split in SPLITS if source.size(split)]
    sizes = [say("{count:,} " + split, count=source.size(split)) for split in splits]
    network = describe(recording.network).replace("->", "→")
    return {
        say("Network"): f"{network}, T = {recording.T}",
        say("Data"): f"{printable(source.name)}: {', '.join(sizes)}",
    } | facts


def _sections(recording: Recording) -> list[tuple[str, list[PageFigure]]]:
    """Heading and figures of each section that has some."""
    available = figures.available(recording)
    with plot.style("page", current_language(), recording.name):
        drawn = [
            (heading, [figure_of(name, recording) for name in names if name in available])
            for heading, names in SECTIONS
        ]
    return [(heading, shown) for heading, shown in drawn if shown]


def _classes(recording: Recording) -> list[dict[str, Any]]:
    """Name, count, right answers and accuracy of each class."""
    if not recording.has_network:
        return []
    confusion = recording.outcome.confusion
    rows = zip(recording.class_names, confusion.sum(1).tolist(), confusion.diag().tolist(), strict=True)
    return [
        {"name": name, "count": count, "right": right, "accuracy": right / count if count else None}
        for name, count, right in rows
    ]


def _number_in_words(column: str, value: float | None) -> str:
    """A number of an epoch as the page shows it."""
    if value is None:
        return ""
    if column.endswith("_accuracy"):
        return f"{100 * value:.2f} %"
    if column.endswith("_loss"):
        return f"{value:.5f}"
    if column.endswith("_seconds"):
        return f"{value:.2f}"
    return f"{value:.4f}" if column.startswith("firing_rate") else f"{value:,.0f}"


def _in_words(value: Any) -> str:
    """An option as a reader would write it."""
    if value is None or value == []:
        return say("none")
    if isinstance(value, bool):
        return say("yes") if value else say("no")
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))
