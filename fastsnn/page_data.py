"""What the report page is made of: figures that follow its colours, and the data of its raster."""

import re
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from torch import Tensor
from torch.nn import functional as F

from fastsnn import figures, plot
from fastsnn.figures.neurons import ROWS
from fastsnn.figures.parts import evenly, is_spikes
from fastsnn.look import Look
from fastsnn.outcome import Sample
from fastsnn.recording import Recording
from fastsnn.words import say

SIZE = (6.2, 4.4)
"""Inches of a figure on the page: on a phone, where it is half as wide, its text can still be read."""
_TALL = {"mistakes": 7.0, "frames": 4.0}
"""Height of those that need another."""
_MOST_BITS = 8_000_000
"""Of the input as pictures, one for each time step; more are left out, so that the page stays small."""
_COLOURS = {**plot.PAGE_COLOURS, "#0072b2": "var(--data)", "#d55e00": "var(--label)"}
"""Colour in a drawn figure -> the page's, which depends on light and dark."""


@dataclass(frozen=True)
class PageFigure:
    """A figure for the page."""

    name: str
    caption: str
    svg: Markup


def figure_of(name: str, recording: Recording) -> PageFigure:
    """A figure as SVG in the page's colours; its one title becomes the caption. ``plot.style("page")`` is in force."""
    size = (SIZE[0], _TALL.get(name, SIZE[1]))
    canvas = plot.canvas_of(
        lambda panel: figures.DRAWINGS[name](recording, panel), "", Look(no_title=True), size, dpi=144
    )
    (panel,) = canvas.subfigs
    titled = [ax for ax in canvas.axes if ax.get_title()]
    caption = panel.get_suptitle()
    if caption:
        panel.suptitle("")
    elif len(titled) == 1:
        caption = titled[0].get_title()
        titled[0].set_title("")
    svg = plot.render(canvas, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every figure
    for drawn, wanted in _COLOURS.items():
        svg = svg.replace(drawn, wanted)
    words = re.sub(r"\s+", " ", caption or say(name)).replace('"', "")
    svg = re.sub(r'width="[^"]*pt" height="[^"]*pt"', f'role="img" aria-label="{Markup.escape(words)}"', svg, count=1)
    return PageFigure(name, caption, Markup(svg))


def activity_of(recording: Recording) -> dict[str, Any]:
    """What the raster is drawn from: spikes packed eight to a byte, other numbers as bytes, potentials to 4 digits."""
    sample = recording.sample
    inside = sample.output.membrane
    potential = sample.output.output if inside is None else inside.potential
    threshold = None if inside is None or inside.threshold is None else inside.threshold
    per_step = sample.label is None
    return {
        "T": len(sample.x),
        "classes": recording.class_names,
        "label": sample.label,
        "labels": sample.labels.tolist() if per_step else None,
        "prediction": None if per_step else sample.prediction,
        "predictions": sample.step_predictions.tolist() if per_step else None,
        "threshold": None if threshold is None else float(f"{float(threshold.flatten()[0]):.4g}"),
        "layers": [_input(sample), *_layers(sample)],
        "frames": _frames(sample),
        "potential": [[float(f"{h:.4g}") for h in row] for row in potential.tolist()],
        "words": {
            word: say(word)
            for word in ("label", "predicted", "fires", "time step", "step {t} of {last}", "Play", "Pause")
        },
    }


def _input(sample: Sample) -> dict[str, Any]:
    x, note = sample.x.flatten(1), "{count} channels"
    if is_spikes(sample.x) and sample.x.dim() == 4:
        lit = x.any(0) if sample.picture is None else sample.picture.flatten() > 0
        x, note = x[:, lit], "{count} lit pixels" if sample.picture is not None else "{count} pixels with events"
    ground = x.median()
    if not is_spikes(x) and (x == ground).float().mean() > 0.5:
        x = (x - ground).abs()  # events with a sign: the ground stays white
    return _band(say("input"), say(note, count=x.shape[1]), x)


def _layers(sample: Sample) -> list[dict[str, Any]]:
    bands = []
    for i, layer in enumerate(sample.layers[:-1], 1):
        size = " x ".join(map(str, layer.shape))
        bands.append(_band(layer.name or say("hidden layer {i}", i=i), say("{size} neurons", size=size), layer.output))
    output = sample.output.output
    kind = {"kind": "spikes", "data": _packed(output)} if sample.output.spikes is not None else _levels(output)
    return [*bands, {"name": say("output"), "note": "", "size": output.shape[1], **kind}]


def _band(name: str, note: str, values: Tensor) -> dict[str, Any]:
    """A layer [T, N]; of a large one a row stands for several neurons."""
    spikes = is_spikes(values)
    if values.shape[1] > ROWS:
        values = F.adaptive_max_pool1d(values, ROWS) if spikes else values[:, evenly(values.shape[1], ROWS)]
    kind = {"kind": "spikes", "data": _packed(values)} if spikes else _levels(values)
    return {"name": name, "note": note, "size": values.shape[1], **kind}


def _levels(values: Tensor) -> dict[str, Any]:
    """Numbers from the smallest to the largest as 0 to 255."""
    low, high = float(values.min()), float(values.max())
    scaled = ((values - low) * (255 / ((high - low) or 1.0))).round()
    return {"kind": "levels", "data": _base64(scaled.byte().numpy().tobytes())}


def _frames(sample: Sample) -> dict[str, Any] | None:
    """The input spikes of each step as a picture, over all channels, and the still image beneath; None for others."""
    x = sample.x
    if x.dim() != 4 or not is_spikes(x) or x[:, 0].numel() > _MOST_BITS:
        return None
    T, _, height, width = x.shape
    still = None if sample.picture is None else _base64(sample.picture.amax(0).numpy().tobytes())
    return {"height": height, "width": width, "data": _packed(x.any(1).reshape(T, -1)), "still": still}


def _packed(spikes: Tensor) -> str:
    """Spikes [T, N] in base64: step after step, the first neuron of eight in a byte's highest bit."""
    return _base64(np.packbits(spikes.bool().numpy()).tobytes())


def _base64(content: bytes) -> str:
    return b64encode(content).decode()
