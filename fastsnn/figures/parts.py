"""What several figures have in common: titles, axes, and samples as pictures."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fastsnn.activity import Membrane
from fastsnn.recording import Recording
from fastsnn.words import say

Canvas = Figure | SubFigure
Picture = np.ndarray[Any, np.dtype[np.uint8]]
"""[H, W] grey or [H, W, 3]."""
FEW = 40
"""Up to so many points a line has markers: without them a single epoch or time step would be invisible."""
MANY_CLASSES = 20
"""From so many classes on, their names are written smaller and numbers in cells are left out."""
_EVENTS = ("#56B4E9", "#E69F00")
"""Colours of off and on events, on black."""


def sample_title(what: str, recording: Recording) -> str:
    """``what`` is shown, and under it of which sample."""
    return f"{what}\n{sample_in_words(recording)}"


def sample_in_words(recording: Recording) -> str:
    """Which sample is looked at, and what is said of it."""
    sample, names = recording.sample, recording.class_names
    which = say("test sample {index}" if recording.kind == "test" else "validation sample {index}", index=sample.index)
    if sample.why:
        which += say(" ({why})", why=say(sample.why))
    if sample.label is None:
        counted = sample.labels >= 0
        right = float((sample.step_predictions == sample.labels)[counted].double().mean()) if counted.any() else 0.0
        more = say("{share:.1%} of its steps right", share=right)
    else:
        label, predicted = names[sample.label], names[sample.prediction]
        more = say("label {label}, predicted {predicted}", label=label, predicted=predicted)
    return say("{which}: {more}", which=which, more=more)


def roles(recording: Recording, neuron: int) -> tuple[str, str]:
    """The words "label" and "predicted" if the neuron is that, else empty."""
    sample = recording.sample
    if sample.label is None:
        return "", ""
    return say("label") * (neuron == sample.label), say("predicted") * (neuron == sample.prediction)


def class_ticks(axis: Any, recording: Recording, most: int = 100) -> None:
    """Class names along an axis, ``most`` of them, with the label and the prediction marked."""
    names, vertical, own = recording.class_names, axis.axis_name == "y", recording.sample.label
    every = -(-len(names) // most)
    shown = [i for i in range(len(names)) if i == own or (i % every == 0 and (own is None or abs(i - own) >= every))]
    texts = []
    for neuron in shown:
        name, (label, predicted) = names[neuron], roles(recording, neuron)
        # Below each other along x: beside each other the words of neighbouring neurons would touch.
        texts.append(
            f"{label or predicted} {name}".strip() if vertical else "\n".join(filter(None, (name, label, predicted)))
        )
    size = "small" if len(shown) <= MANY_CLASSES else 7
    axis.set_ticks(shown, texts, fontsize=size, **({} if vertical else slanted(names)))
    if own is not None:
        axis.get_ticklabels()[shown.index(own)].set(color="C1", fontweight="bold")


def is_narrow(figure: Canvas) -> bool:
    """Whether there is room for few things side by side."""
    return bool(figure.bbox.width / figure.dpi < 7.5)


def slanted(names: Sequence[str]) -> dict[str, Any]:
    """How names are written along x if they are long."""
    return {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}


def time_axis(ax: Axes, T: int, label: bool = True) -> None:
    """Time steps along x."""
    ax.set_xlim(-0.5, T - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    if label:
        ax.set_xlabel(say("time step"))


def markers(points: int, series: int = 0) -> dict[str, Any]:
    """Markers if the points are few, or if there are more series than colours."""
    return {"marker": "osD^v"[series // 7 % 5], "markersize": 4} if points <= FEW or series >= 7 else {}


def ink() -> str:
    """The colour of text."""
    return str(matplotlib.rcParams["text.color"])


def is_spikes(x: Tensor) -> bool:
    """Whether all of it is 0 or 1."""
    return bool(((x == 0) | (x == 1)).all())


def picture(x: Tensor, still: Tensor | None) -> Picture:
    """A sample at a glance: its image, its events over all steps, or its channels (down) over time (right).

    x: [T, *shape]; still: [C, H, W] or [K] as bytes, if it is one.
    """
    if still is not None and still.dim() == 1:
        return still[:, None].numpy()
    if still is not None:
        return _colours(still.float() / 255)
    return _colours(_bright(x.mean(0))) if x.dim() == 4 else (255 * _scaled(x.flatten(1).T)).byte().numpy()


def frames(x: Tensor, most: int) -> list[tuple[int, int, Picture]]:
    """First step, last step and picture of up to ``most`` equal parts of the time of x [T, C, H, W]."""
    parts = [part for part in torch.arange(len(x)).tensor_split(most) if len(part)]
    summed = _bright(torch.stack([x[part].mean(0) for part in parts]))
    return [(int(part[0]), int(part[-1]), _colours(image)) for part, image in zip(parts, summed, strict=True)]


def _bright(x: Tensor) -> Tensor:
    """Rates of events from 0 to 1: the busiest pixel in 200 is 1."""
    busy = x.flatten()[x.flatten() > 0]
    return (x / busy.quantile(0.995)).clamp(0, 1) if 0 < len(busy) < 2**24 else x.clamp(0, 1)


def _scaled(x: Tensor) -> Tensor:
    span = float(x.max() - x.min())
    return (x - x.min()) / (span or 1.0)


def _colours(x: Tensor) -> Picture:
    """[C, H, W] from 0 to 1 as grey, as red, green and blue, or as off and on events."""
    if len(x) == 3:
        image = x.movedim(0, -1)
    elif len(x) == 2:
        image = torch.einsum("chw,cr->hwr", x, torch.tensor([to_rgb(colour) for colour in _EVENTS]))
    else:
        image = x.mean(0)
    return (255 * image.clamp(0, 1)).round().byte().numpy()


def gallery(
    ax: Axes, images: Sequence[Any], columns: int, above: Sequence[str], below: Sequence[str] = (), **options: Any
) -> AxesImage:
    """Images with captions, in rows; the unit of the axes is an image's larger side. Very long ones become squares."""
    rows, columns = -(-len(images) // columns), min(columns, len(images))
    width, height = 1.16, (1.7 if below else 1.26)
    ax.set_axis_off()
    for i, image in enumerate(images):
        x, y = i % columns * width, -(i // columns) * height
        ratio = image.shape[0] / image.shape[1]
        high, wide = (min(1.0, ratio), min(1.0, 1 / ratio)) if 0.3 < ratio < 3 else (1.0, 1.0)
        box = x + (1 - wide) / 2, x + (1 + wide) / 2, y + (1 - high) / 2, y + (1 + high) / 2
        shown = ax.imshow(image, extent=box, **options)
        ax.text(x + 0.5, box[3] + 0.03, above[i], ha="center", va="bottom", fontsize="small")
        if below:
            ax.text(x + 0.5, box[2] - 0.04, below[i], ha="center", va="top", fontsize="small")
    bottom = 1 - (rows - 1) * height - (1.46 if below else 1.06)
    ax.set(xlim=(-0.08, columns * width - 0.08), ylim=(bottom, 1.24), aspect="equal")
    return shown


def sawtooth(membrane: Membrane, spikes: Tensor | None, neuron: int | None = None) -> tuple[Any, Any]:
    """Steps and potentials of one neuron: where it fires there are two points, before and after the reset.

    ``neuron`` is its column; None if the tensors are [T].
    """
    if neuron is not None:
        membrane = Membrane(membrane.potential[:, neuron], membrane.after[:, neuron], None, ())
        spikes = None if spikes is None else spikes[:, neuron]
    h = membrane.potential
    points = torch.stack([h, membrane.after], 1)
    kept = torch.ones(len(h), 2, dtype=torch.bool)
    kept[:, 1] = False if spikes is None else spikes > 0
    steps = torch.arange(len(h))[:, None].expand(-1, 2)
    return steps[kept].numpy(), points[kept].numpy()


def evenly(rows: int, most: int) -> Tensor:
    """Up to ``most`` of so many rows, int64."""
    return torch.arange(rows) if rows <= most else torch.linspace(0, rows - 1, most).round().long()
