"""What each figure looks like. A drawing function fills a Figure or a SubFigure: ``summary`` is made of the others.

Colours come from the style in force (``plot.style``): C0 is what the network says, C1 what is true or learnt from, and
text has the ink's colour. Every quantity carries its unit: time in steps, rates in spikes per step, potentials beside
the threshold, which is what they are measured against.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm, TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from fastsnn.activity import Recording, Sample

Canvas = Figure | SubFigure
GALLERY = 12
"""Mistakes shown, at most."""
RECEPTIVE_FIELDS = 18
"""Hidden neurons whose weights are shown, at most."""
FEW = 40
"""Up to so many points a line has markers: without them a single epoch or time step would be invisible."""


def curves(recordings: Sequence[Recording], figure: Canvas) -> None:
    """Loss and accuracy of every epoch, on the training and the test set, of one run or of several."""
    axes = figure.subplots(1, 2)
    losses = sorted({recording.config.loss for recording in recordings})
    last = max([1, *(len(recording.history) for recording in recordings)])
    for ax, quantity, unit in zip(axes, ("loss", "accuracy"), (", ".join(losses), "% of samples"), strict=True):
        for i, recording in enumerate(recordings):
            epochs = [row.epoch for row in recording.history]
            for part, style in (("train", "--"), ("test", "-")):
                judged = part == "test"
                values = [getattr(row, quantity if judged else f"{part}_{quantity}") for row in recording.history]
                colour = f"C{i}" if len(recordings) > 1 or part == "test" else "C1"
                ax.plot(epochs, values, style, color=colour, **_markers(len(epochs), i))
        ax.set(title=quantity.capitalize(), xlabel="epoch", ylabel=f"{quantity} ({unit})", xlim=(0.5, last + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(alpha=0.3)
    axes[1].yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    _legend(recordings, figure)


def _legend(recordings: Sequence[Recording], figure: Canvas) -> None:
    """What line styles mean and, of several runs, which colour is whose."""
    colours = ["C0", "C1"] if len(recordings) == 1 else [_ink(), _ink()]
    lines = [Line2D([], [], color=colours[0]), Line2D([], [], color=colours[1], linestyle="--")]
    held_out = sorted({row.held_out for recording in recordings for row in recording.history} or {"test"})
    texts = [f"{' or '.join(held_out)}, after the epoch", "training, mean over the epoch"]
    if len(recordings) > 1:
        lines += [Line2D([], [], color=f"C{i}", **_markers(1, i)) for i in range(len(recordings))]
        names = [recording.name for recording in recordings]
        if len(set(names)) < len(names):
            names = [str(recording.path) for recording in recordings]
        # Matplotlib leaves texts with a leading underscore out; a space before it keeps them.
        texts += [f" {name}: {recording.result}" for name, recording in zip(names, recordings, strict=True)]
    figure.legend(lines, texts, loc="outside lower center", ncols=2, frameon=False)


def membrane(recording: Recording, figure: Canvas) -> None:
    """Membrane potential of the output neurons as a heat map, neuron x time, with their spikes."""
    ax = figure.subplots()
    output, threshold = recording.sample.layers[-1], recording.config.v_threshold
    h = output.potential.numpy()
    # White is the threshold: whatever is of the upper colour fires, however deep the others are.
    below, above = min(float(h.min()), threshold - 1e-3), max(float(h.max()), threshold + 1e-3)
    image = ax.imshow(h.T, aspect="auto", origin="lower", cmap="PuOr_r", norm=TwoSlopeNorm(threshold, below, above))
    t, neuron = output.spikes.numpy().nonzero()
    ax.scatter(t, neuron, s=_dot(len(h)), c="white", edgecolors="black", linewidths=0.5)
    ax.set(title=_title("Membrane potential of the output neurons; dots are spikes", recording))
    ax.set_ylabel("output neuron")
    _class_ticks(ax.yaxis, recording)
    _time_axis(ax, len(h))
    around = *np.linspace(below, threshold, 5)[:-1], threshold, *np.linspace(threshold, above, 3)[1:]
    ticks = [tick for tick in (float(f"{level:.2g}") for level in around) if below <= tick <= above]
    bar = figure.colorbar(image, ax=ax, pad=0.02, ticks=ticks, format="%g")
    bar.set_label(f"potential h before firing (white: threshold {threshold:g})")


def traces(recording: Recording, figure: Canvas) -> None:
    """Membrane potential of each output neuron as a line, with the threshold and its spikes."""
    sample, names = recording.sample, recording.class_names
    potential, spikes = sample.layers[-1].potential.numpy(), sample.layers[-1].spikes.numpy()
    T, classes = potential.shape
    axes = figure.subplots(-(-classes // 2), 2, sharex=True, squeeze=False)
    for ax in axes.T.flat[classes:]:
        ax.set_axis_off()
    for neuron, ax in zip(range(classes), axes.T.flat, strict=False):
        colour = "C1" if neuron == sample.label else "C0"
        ax.axhline(recording.config.v_threshold, color=_ink(), linestyle=":", linewidth=1.5)
        ax.plot(potential[:, neuron], color=colour, linewidth=1.5, **_markers(T))
        # Spikes stand on the upper edge, whatever the potential was.
        (t,) = spikes[:, neuron].nonzero()
        ax.vlines(t, 0.86, 1, transform=ax.get_xaxis_transform(), color=_ink(), linewidth=1)
        ax.margins(y=0.25)
        ax.yaxis.set_major_locator(MaxNLocator(3, prune="both"))
        ax.tick_params(labelsize="small")
        label, predicted = _roles(sample, neuron)
        name = f"{names[neuron]} {label or predicted}"
        weight = "bold" if neuron == sample.label else "normal"
        ax.text(1.01, 0.5, name, transform=ax.transAxes, va="center", color=colour, fontweight=weight)
        _time_axis(ax, T, label=ax.get_subplotspec().is_last_row())
    figure.supylabel("membrane potential h, before firing", fontsize="medium")
    title = f"Output neurons: threshold {recording.config.v_threshold:g} dotted, spikes as ticks on the upper edge"
    figure.suptitle(_title(title, recording))


def raster(recording: Recording, figure: Canvas) -> None:
    """Spikes of the input and of every layer: a mark where a neuron (down) spikes at a time step (right)."""
    sample = recording.sample
    lit = sample.image.flatten().nonzero().squeeze(1)
    layers = [sample.spikes[:, lit]] + [layer.spikes for layer in sample.layers]
    names = [f"input\n{len(lit)} pixels that\nare not black"]
    names += [f"hidden layer {i}\n{size} neurons" for i, size in enumerate(recording.config.hidden, 1)]
    names += ["output"]
    heights = [1] * (len(layers) - 1) + [max(1, len(layers) - 1.5)]
    axes = figure.subplots(len(layers), 1, sharex=True, height_ratios=heights)
    for ax, spikes, name in zip(axes, layers, names, strict=True):
        T, size = spikes.shape
        t, neuron = spikes.numpy().nonzero()
        half = max(0.4, size / 300)  # of a row, but not too low to be seen
        width = float(np.clip(250 / T, 0.4, 5))
        colours = np.where((neuron == sample.label) & (ax is axes[-1]), "C1", "C0").tolist()
        ax.vlines(t, neuron - half, neuron + half, colors=colours, linewidth=width, rasterized=True)
        ax.set(ylim=(-0.5, size - 0.5), yticks=[])
        text = f"{name}\n{len(t):,} spike{'s' * (len(t) != 1)}"
        ax.set_ylabel(text, rotation=0, ha="right", va="center", ma="center", fontsize="small")
    axes[0].set_title(_title("Spikes of the input and of every layer", recording))
    axes[0].invert_yaxis()  # the image's first row on top
    _class_ticks(axes[-1].yaxis, recording)
    _time_axis(axes[-1], len(sample.spikes))


def rates(recording: Recording, figure: Canvas) -> None:
    """Firing rate of each output neuron, the label marked, beside the image."""
    sample = recording.sample
    left, ax = figure.subplots(1, 2, width_ratios=[1, 2.6])
    left.imshow(sample.image.numpy(), cmap="gray", vmin=0, vmax=255)
    left.set(title=f"test image {sample.index}", xticks=[], yticks=[])
    bars = ax.bar(
        range(len(sample.rates)),
        sample.rates.numpy(),
        color=["C1" if neuron == sample.label else "C0" for neuron in range(len(sample.rates))],
    )
    ax.bar_label(bars, [f"{rate:.2f}" for rate in sample.rates], padding=2, fontsize="small")
    ax.set(title=_title("Firing rates", recording), ylabel="spikes per time step", ylim=(0, 1.1))
    ax.set_xlabel("output neuron")
    _class_ticks(ax.xaxis, recording)


def weights(recording: Recording, figure: Canvas) -> None:
    """Weights of each class as an image; with hidden layers, those of the first layer's neurons with the largest."""
    weight = recording.layers[0][0]
    shape = recording.dataset.image_shape
    if recording.config.hidden:
        shown = weight.norm(dim=1).argsort(descending=True)[:RECEPTIVE_FIELDS].sort().values
        columns, names = 6, [f"neuron {neuron}" for neuron in shown.tolist()]
        title = (
            f"Input weights of hidden layer 1: the {len(shown)} of {len(weight)} neurons with the largest\n"
            "(the classes themselves see hidden neurons, not pixels)"
        )
    else:
        columns, shown, names = 5, torch.arange(len(weight)), list(recording.class_names)
        title = "Input weights of each class"
    # A few weights are far larger than the rest, which would look like zeros beside them.
    largest = float(weight[shown].abs().quantile(0.995)) or 1.0
    ax = figure.subplots()
    image = _gallery(ax, weight[shown].reshape(-1, *shape), columns, names, cmap="PuOr_r", vmin=-largest, vmax=largest)
    ax.set_title(title)
    figure.colorbar(image, ax=ax, pad=0.02, shrink=0.85, extend="both").set_label("weight (current per input spike)")


def confusion(recording: Recording, figure: Canvas) -> None:
    """How often each label (row) was taken for each class (column)."""
    ax = figure.subplots()
    counts = recording.confusion
    share = counts / counts.sum(1, keepdim=True).clamp(min=1) * 100
    image = ax.imshow(share.numpy(), aspect="auto", cmap="cividis", norm=PowerNorm(0.4, 0, 100))
    for row, column in counts.nonzero().tolist():
        text = str(int(counts[row, column]))
        colour = "black" if share[row, column] > 18 else "white"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize="small")
    names = recording.class_names
    ax.set(xlabel="predicted class", ylabel="label", xticks=range(len(names)), yticks=range(len(names)))
    ax.set_yticklabels(names)
    ax.set_xticklabels(names, **_slanted(names))
    right = f"{recording.accuracy:.2%} of {len(recording.labels):,} test images are right"
    ax.set_title(f"Confusion matrix: {right}")
    bar = figure.colorbar(image, ax=ax, pad=0.02, ticks=[0, 1, 5, 20, 50, 100])
    bar.set_label("share of the label's images (%)")


def mistakes(recording: Recording, figure: Canvas) -> None:
    """The misclassified test images whose wrong class leads the label by most."""
    wrong, names = recording.mistakes().tolist(), recording.class_names
    shown = wrong[:GALLERY]
    ax = figure.subplots()
    if shown:
        labels, predictions = recording.labels[shown].tolist(), recording.predictions[shown].tolist()
        above = [f"{names[label]} taken for {names[taken]}" for label, taken in zip(labels, predictions, strict=True)]
        leads = recording.confidences[shown].tolist()
        below = [f"lead {lead:.2f}\nsample {index}" for lead, index in zip(leads, shown, strict=True)]
        images = recording.dataset.test_images[shown].reshape(-1, *recording.dataset.image_shape)
        _gallery(ax, images, 6, above, below, cmap="gray", vmin=0, vmax=255)
    what = f"The {len(shown)} most confident of {len(wrong):,} mistakes" if shown else "No mistakes"
    unit = "\nlead: rate of the wrong class above the label's, in spikes per time step" if shown else ""
    ax.set_title(f"{what} among {len(recording.labels):,} test images{unit}")
    ax.set_axis_off()


def _gallery(
    ax: Axes, images: Tensor, columns: int, above: Sequence[str], below: Sequence[str] = (), **options: Any
) -> AxesImage:
    """Images [M, H, W] with captions, in rows; the unit of the axes is an image's width."""
    width, height = 1.16, 1.7 if below else 1.26
    ax.set_axis_off()
    for i, image in enumerate(images.numpy()):
        x, y = i % columns * width, -(i // columns) * height
        shown = ax.imshow(image, extent=(x, x + 1, y, y + 1), **options)
        ax.text(x + 0.5, y + 1.03, above[i], ha="center", va="bottom")
        if below:
            ax.text(x + 0.5, y - 0.04, below[i], ha="center", va="top")
    rows = -(-len(images) // columns)
    bottom = 1 - (rows - 1) * height - (1.46 if below else 1.06)
    ax.set(xlim=(-0.08, min(columns, len(images)) * width - 0.08), ylim=(bottom, 1.24), aspect="equal")
    return shown


def summary(recording: Recording, figure: Canvas) -> None:
    """All the others on one page."""
    drawings = (_curves_of_one, confusion, rates, raster, membrane, traces, weights, mistakes)
    for cell, drawing in zip(figure.subfigures(4, 2, squeeze=False).flat, drawings, strict=True):
        drawing(recording, cell)


def _curves_of_one(recording: Recording, figure: Canvas) -> None:
    curves([recording], figure)


def _title(what: str, recording: Recording) -> str:
    names, sample = recording.class_names, recording.sample
    return f"{what}\ntest image {sample.index}: label {names[sample.label]}, predicted {names[sample.prediction]}"


def _roles(sample: Sample, neuron: int) -> tuple[str, str]:
    """The words "label" and "predicted" where the neuron is that, else empty."""
    return "label" * (neuron == sample.label), "predicted" * (neuron == sample.prediction)


def _class_ticks(axis: Any, recording: Recording) -> None:
    """Class names along an axis, with the label and the prediction marked."""
    sample, names = recording.sample, recording.class_names
    vertical = axis.axis_name == "y"
    texts = []
    for neuron, name in enumerate(names):
        label, predicted = _roles(sample, neuron)
        # Below each other along x: beside each other the words of neighbouring neurons would touch.
        texts.append(f"{label or predicted} {name}" if vertical else "\n".join(filter(None, (name, label, predicted))))
    axis.set_ticks(range(len(names)), texts, fontsize="small", **({} if vertical else _slanted(names)))
    axis.get_ticklabels()[sample.label].set(color="C1", fontweight="bold")


def _slanted(names: Sequence[str]) -> dict[str, Any]:
    return {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}


def _time_axis(ax: Axes, T: int, label: bool = True) -> None:
    ax.set_xlim(-0.5, T - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if label:
        ax.set_xlabel("time step")


def _markers(points: int, series: int = 0) -> dict[str, Any]:
    """Markers where the points are few, and where there are more series than colours."""
    return {"marker": "osD^v"[series // 7 % 5], "markersize": 4} if points <= FEW or series >= 7 else {}


def _dot(T: int) -> float:
    """Marker area, in points^2, that leaves neighbouring time steps apart."""
    return float(np.clip(2400 / T, 4, 60))


def _ink() -> str:
    return str(matplotlib.rcParams["text.color"])
