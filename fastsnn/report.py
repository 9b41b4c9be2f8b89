"""The report page of a run: one HTML file that holds all it shows and opens from disk, without a network.

``web/page.html`` is its text, ``web/page.css`` its look, ``web/page.js`` the raster that moves through time.
Tests: ``tests/test_report.py``, in a browser.
"""

from base64 import b64encode
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from torch import Tensor

import fastsnn
from fastsnn import plot
from fastsnn.activity import Recording
from fastsnn.monitor import COLUMNS
from fastsnn.text import printable

FIGURES = ("curves", "confusion", "weights", "mistakes", "rates", "membrane", "traces")
"""Those of ``plot.DRAWINGS`` that the page shows; its own raster takes the place of that one."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("fastsnn", "web"),
    autoescape=jinja2.select_autoescape(),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(run: Path, *, sample: int = 0, out: Path | None = None, data_dir: Path | None = None) -> Path:
    """Write the page about a run; returns its file.

    Args:
        run: run folder.
        sample: number of the test image whose spikes the page shows.
        out: the file; default RUN/report.html.
        data_dir: folder of the data sets; default the run's.

    Raises:
        ValueError: the test set has no image of that number.
        FastSNNError: the folder is no run, has no checkpoint or can't be written; then no file has changed.
    """
    recording = Recording(run, sample, data_dir)
    path = out or recording.path / "report.html"
    plot.write(path, page(recording).encode())
    return path


def page(recording: Recording) -> str:
    """The page's HTML."""
    recorded = yaml.safe_load((recording.path / "config.yaml").read_text(encoding="utf-8"))
    environment = recorded.pop("environment", {})
    return _TEMPLATES.get_template("page.html").render(
        recording=recording,
        sizes=[len(recording.sample.image.flatten()), *(len(weight) for weight, _ in recording.layers)],
        columns=list(dict.fromkeys([*COLUMNS, *(name for row in recording.history for name in row.columns())])),
        in_words=_number_in_words,
        options={name: _in_words(value) for name, value in recorded.items()},
        environment=environment,
        figures=_figures(recording),
        activity=_activity(recording),
        version=fastsnn.__version__,
    )


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
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _figures(recording: Recording) -> dict[str, dict[str, str]]:
    """Name -> theme -> the figure as a data URL."""
    figures: dict[str, dict[str, str]] = {name: {} for name in FIGURES}
    for theme in ("light", "dark"):
        with plot.style(theme):
            for name in FIGURES:
                drawn = plot.figure(name, [recording], headline=False)
                figures[name][theme] = f"data:image/png;base64,{_base64(plot.render(drawn, 'png', small=True))}"
    return figures


def _activity(recording: Recording) -> dict[str, Any]:
    """What the raster is drawn from: spikes packed eight to a byte, potentials to four digits."""
    sample = recording.sample
    names = ["input", *(f"hidden {i}" for i in range(1, len(sample.layers))), "output"]
    spikes = [sample.spikes, *(layer.spikes for layer in sample.layers)]
    return {
        "image": sample.image.tolist(),
        "label": sample.label,
        "prediction": sample.prediction,
        "classes": recording.class_names,
        "threshold": recording.config.v_threshold,
        "layers": [
            {"name": name, "size": layer.shape[1], "spikes": _packed(layer)}
            for name, layer in zip(names, spikes, strict=True)
        ],
        "potential": [[float(f"{h:.4g}") for h in row] for row in sample.layers[-1].potential.tolist()],
    }


def _packed(spikes: Tensor) -> str:
    """Spikes [T, N] in base64: step after step, the first neuron of eight in a byte's highest bit."""
    return _base64(np.packbits(spikes.bool().numpy()).tobytes())


def _base64(content: bytes) -> str:
    return b64encode(content).decode()
