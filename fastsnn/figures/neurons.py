"""What neurons do over time: spikes of every layer, potentials of the output neurons, and event data as frames."""

from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm, to_rgba
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional as F

from fastsnn.activity import Layer
from fastsnn.figures.parts import (
    Canvas,
    class_ticks,
    evenly,
    frames,
    gallery,
    ink,
    is_narrow,
    is_spikes,
    markers,
    roles,
    sample_title,
    sawtooth,
    time_axis,
)
from fastsnn.recording import Recording
from fastsnn.words import say

ROWS = 240
"""Rows of a layer in the raster, at most; of a larger one a row stands for several neurons."""
MARKS = 40
"""Up to so many neurons each spike is a mark of its own; more are drawn as an image."""
PANELS = 10
"""Output neurons that have a trace of their own, at most."""


def raster(recording: Recording, figure: Canvas) -> None:
    """Spikes of the input and of every layer: a mark where a neuron (down) spikes at a time step (right)."""
    sample = recording.sample
    heights = [1.0] * len(sample.layers) + [max(1.0, len(sample.layers) - 0.5)]
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _input_band(axes[0], sample.x, sample.picture)
    for i, (ax, layer) in enumerate(zip(axes[1:-1], sample.layers, strict=False), 1):
        name = say("hidden layer {i}", i=i) if not layer.name else layer.name
        size = " x ".join(map(str, layer.shape))
        _band(ax, layer.output, f"{name}\n" + say("{size} neurons", size=size))
    _band(axes[-1], sample.output.output, say("output"), sample.label)
    axes[0].set_title(sample_title(say("Spikes of the input and of every layer"), recording))
    class_ticks(axes[-1].yaxis, recording, most=10)
    time_axis(axes[-1], len(sample.x))


def _input_band(ax: Axes, x: Tensor, still: Tensor | None) -> None:
    rows = x.flatten(1)
    name = say("input\n{count} channels", count=rows.shape[1])
    if is_spikes(x) and x.dim() == 4:
        lit = still.flatten() > 0 if still is not None else rows.any(0)
        rows = rows[:, lit]
        text = (
            "input\n{count} pixels that\nare not black" if still is not None else "input\n{count} pixels\nwith events"
        )
        name = say(text, count=int(lit.sum()))
    _band(ax, rows, name)
    ax.invert_yaxis()  # the image's first row on top


def _band(ax: Axes, values: Tensor, name: str, label: int | None = None) -> None:
    """Spikes, or numbers as a heat map, [T, N]; the row ``label`` is of another colour."""
    count = int(values.count_nonzero())
    if is_spikes(values) and values.shape[1] > ROWS:
        # As of many marks on a place, one is seen.
        values = F.adaptive_max_pool1d(values, ROWS)
    values = values[:, evenly(values.shape[1], ROWS)]
    T, size = values.shape
    if is_spikes(values):
        if size > MARKS:
            ax.imshow(_spike_image(values), aspect="auto", origin="lower", extent=(-0.5, T - 0.5, -0.5, size - 0.5),
                      interpolation="auto")  # fmt: skip
        else:
            t, neuron = values.numpy().nonzero()
            own = neuron == label if label is not None else np.zeros(len(t), bool)
            style: dict[str, Any] = {
                "markersize": min(12.0, 130 / max(1, size)),
                "markeredgewidth": float(np.clip(200 / T, 0.4, 3)),
            }
            for which, colour in ((~own, "C0"), (own, "C1")):
                ax.plot(t[which], neuron[which], "|", color=colour, rasterized=True, **style)
        name += "\n" + say("1 spike" if count == 1 else "{count:,} spikes", count=count)
    else:
        ax.imshow(values.T.numpy(), aspect="auto", origin="lower", cmap="cividis", interpolation="nearest")
        name += "\n" + say("values")
    ax.set(ylim=(-0.5, max(1, size) - 0.5), yticks=[])
    ax.set_ylabel(name, rotation=0, ha="right", va="center", ma="center", fontsize="small")


def _spike_image(spikes: Tensor) -> Any:
    """[N, width, 4]: ink where there is a spike; if there is room, steps stand apart, and no spike is wide."""
    T = len(spikes)
    step = max(1, round(1200 / T)) if T <= 400 else 1
    mark = min(max(1, round(0.6 * step)), 9)
    ink_at = F.pad(spikes.T[..., None].expand(-1, -1, mark), ((step - mark) // 2, step - mark - (step - mark) // 2))
    colour = torch.tensor(to_rgba(matplotlib.rcParams["axes.prop_cycle"].by_key()["color"][0]))
    image = colour.expand(*ink_at.flatten(1).shape, 4).clone()
    image[..., 3] = ink_at.flatten(1)
    return image.numpy()


def membrane(recording: Recording, figure: Canvas) -> None:
    """Membrane potential of the output neurons as a heat map, neuron x time, with their spikes."""
    ax, output = figure.subplots(), recording.sample.output
    h = output.output if output.membrane is None else output.membrane.potential
    threshold, moving = threshold_of(output)
    centre = 0.0 if threshold is None or moving else float(threshold.flatten()[0])
    shown = (h - threshold if moving and threshold is not None else h).numpy()
    # White is the threshold: whatever is of the upper colour fires, however deep the others are.
    below, above = min(float(shown.min()), centre - 1e-3), max(float(shown.max()), centre + 1e-3)
    image = ax.imshow(shown.T, aspect="auto", origin="lower", cmap="PuOr_r", norm=TwoSlopeNorm(centre, below, above))
    what = say("Membrane potential of the output neurons")
    if output.spikes is not None:
        t, neuron = output.spikes.numpy().nonzero()
        ax.scatter(t, neuron, s=_dot(len(h)), c="white", edgecolors="black", linewidths=0.5, rasterized=len(t) > 2000)
        what = say("Membrane potential of the output neurons; dots are spikes")
    ax.set(title=sample_title(what, recording), ylabel=say("output neuron"))
    class_ticks(ax.yaxis, recording)
    time_axis(ax, len(h))
    bar = figure.colorbar(image, ax=ax, pad=0.02, ticks=_round_ticks(below, centre, above), format="%g")
    if moving:
        label = say("potential h less the threshold, before firing")
    elif threshold is None:
        label = say("potential")
    else:
        label = say("potential h before firing (white: threshold {threshold:g})", threshold=centre)
    bar.set_label(label, fontsize="small" if is_narrow(figure) else None)


def threshold_of(output: Layer) -> tuple[Tensor | None, bool]:
    """Threshold [T, N] of the output neurons, None if they don't fire or it isn't known, and whether it moves."""
    threshold = None if output.membrane is None else output.membrane.threshold
    if threshold is None:
        return None, False
    return threshold, float(threshold.max() - threshold.min()) > 1e-5 * float(threshold.abs().max())


def _round_ticks(below: float, centre: float, above: float) -> list[float]:
    """The centre, and round numbers at either side of it that leave room for each other."""
    locator = MaxNLocator(3, steps=[1, 2, 5, 10])
    low = [tick for tick in locator.tick_values(below, centre) if below <= tick < centre - (centre - below) / 7]
    high = [tick for tick in locator.tick_values(centre, above) if centre + (above - centre) / 7 < tick <= above]
    return [*low, centre, *high]


def traces(recording: Recording, figure: Canvas) -> None:
    """Membrane potential of output neurons as lines on one scale, with threshold, reset and spikes."""
    sample = recording.sample
    classes, T = sample.output.size, len(sample.x)
    shown = list(range(classes))
    if classes > PANELS:
        keep = sample.scores.argsort(descending=True, stable=True)[:PANELS].tolist()
        if sample.label is not None and sample.label not in keep:
            keep[-1] = sample.label
        shown = sorted(keep)
    axes = figure.subplots(-(-len(shown) // 2), 2, sharex=True, sharey=True, squeeze=False)
    for ax in axes.T.flat[len(shown) :]:
        ax.set_axis_off()
    low, high = _scale(sample.output)
    axes[0, 0].set_ylim(low - 0.06 * (high - low), high + 0.3 * (high - low))
    axes[0, 0].yaxis.set_major_locator(MaxNLocator(2 if len(shown) > 6 else 4, steps=[1, 2, 5, 10], min_n_ticks=2))
    for neuron, ax in zip(shown, axes.T.flat, strict=False):
        _trace(ax, recording, neuron)
        time_axis(ax, T, label=ax.get_subplotspec().is_last_row())
    figure.supylabel(say("membrane potential"), fontsize="medium")
    title = say("Output neurons")
    if len(shown) < classes:
        title = say("The {shown} of {count} output neurons with the highest scores", shown=len(shown), count=classes)
    if sample.output.spikes is not None and sample.output.membrane is not None:
        title += say(": threshold dotted, a drop is the reset, spikes on the upper edge")
    figure.suptitle(sample_title(title, recording))


def _scale(output: Layer) -> tuple[float, float]:
    """The scale of all traces: that of the neurons that fire, if some do; others may be far below, and are cut off."""
    h = output.membrane.potential if output.membrane is not None else output.output
    low, high = float(h.min()), float(h.max())
    if output.spikes is None or output.membrane is None or not output.spikes.any():
        return low, high
    fires = output.spikes.any(0)
    least = min(float(h[:, fires].min()), float(output.membrane.after[:, fires].min()))
    top = float(output.membrane.threshold.max()) if output.membrane.threshold is not None else high
    return max(low, min(least, -0.5 * abs(top))), high


def _trace(ax: Axes, recording: Recording, neuron: int) -> None:
    """One output neuron, with its class at the right."""
    sample = recording.sample
    label, predicted = roles(recording, neuron)
    colour = "C1" if label else "C0"
    inside, output = sample.output.membrane, sample.output
    if sample.labels.dim():
        own = (sample.labels == neuron).numpy()
        ax.fill_between(range(len(own)), 0, 1, where=own, step="mid", transform=ax.get_xaxis_transform(), color="C1",
                        alpha=0.2, linewidth=0)  # fmt: skip
    if inside is not None and inside.threshold is not None:
        ax.plot(inside.threshold[:, neuron].numpy(), color=ink(), linestyle=":", linewidth=1.2)
    ax.plot(*_line(output, neuron), color=colour, linewidth=1.2, **markers(2 * len(output.output)))
    if output.spikes is not None:
        # Spikes stand on the upper edge, whatever the potential was.
        (t,) = output.spikes[:, neuron].numpy().nonzero()
        ax.vlines(t, 0.86, 1, transform=ax.get_xaxis_transform(), color=ink(), linewidth=1)
    ax.tick_params(labelsize="small")
    lowest, least = float(_line(output, neuron)[1].min()), ax.get_ylim()[0]
    if lowest < least - 0.05 * abs(least):
        ax.text(0.01, 0.8, say("down to {value:.1f}", value=lowest), transform=ax.transAxes, fontsize=9)
    name = f"{recording.class_names[neuron]} {label or predicted}"
    weight = "bold" if label else "normal"
    ax.text(1.01, 0.5, name, transform=ax.transAxes, va="center", color=colour, fontweight=weight, fontsize="small")


def _line(output: Layer, neuron: int) -> tuple[Any, Any]:
    """Steps and potentials of an output neuron."""
    if output.membrane is None or output.spikes is None:
        return np.arange(len(output.output)), output.output[:, neuron].numpy()
    return sawtooth(output.membrane, output.spikes, neuron)


def event_frames(recording: Recording, figure: Canvas) -> None:
    """Events of the sample as pictures, in equal parts of its time."""
    parts = frames(recording.sample.x, 10)
    names = [f"{first}-{last}" if last > first else f"{first}" for first, last, _ in parts]
    ax = figure.subplots()
    gallery(ax, [image for _, _, image in parts], 5, names, cmap="gray", vmin=0, vmax=255)
    channels = recording.sample.x.shape[1]
    what = "Events in each part of the time steps"
    if channels == 2:
        what = "Events in each part of the time steps (blue: off, orange: on)"
    ax.set_title(sample_title(say(what), recording))


def _dot(T: int) -> float:
    """Marker area, in points^2, that leaves neighbouring time steps apart."""
    return float(np.clip(1400 / T, 3, 50))
