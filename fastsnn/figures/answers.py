"""What the network answers: confusion, scores of the sample, labels over time, mistakes."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.patches import Patch
from torch import Tensor

from fastsnn.figures.parts import (
    MANY_CLASSES,
    Canvas,
    class_ticks,
    gallery,
    is_narrow,
    is_spikes,
    picture,
    roles,
    sample_title,
    slanted,
    time_axis,
)
from fastsnn.recording import Recording
from fastsnn.words import say

GALLERY = 12
"""Mistakes shown, at most."""
STRIPS = 6
"""Samples with labels per step that are shown, at most."""
UNITS = {
    "rate": ("Firing rates", "spikes per time step"),
    "max": ("Scores", "largest membrane potential"),
    "last": ("Scores", "last membrane potential"),
    "mean": ("Scores", "mean membrane potential"),
    "steps": ("Scores", "mean membrane potential"),
}
"""Readout -> title and unit of the scores."""


def scores(recording: Recording, figure: Canvas) -> None:
    """Score of each class, the label marked, beside the sample."""
    sample = recording.sample
    left, ax = figure.subplots(1, 2, width_ratios=[1, 2.6])
    seen = picture(sample.x, sample.picture)
    flat = sample.picture is None and sample.x.dim() < 4
    left.imshow(seen, cmap="gray", vmin=0, vmax=255, aspect="auto" if flat else "equal")
    left.set(xticks=[], yticks=[])
    if flat:
        left.set(xlabel=say("time"), ylabel=say("channel"))
    values, title = sample.scores.numpy(), UNITS[recording.readout]
    bars = ax.bar(
        range(len(values)),
        values,
        color=["C1" if roles(recording, neuron)[0] else "C0" for neuron in range(len(values))],
    )
    if len(values) <= MANY_CLASSES:
        ax.bar_label(
            bars, [f"{value:.2f}" for value in values], padding=2, fontsize=8 if is_narrow(figure) else "small"
        )
    figure.suptitle(sample_title(say(title[0]), recording))
    ax.set(ylabel=say(title[1]), xlabel=say("class"))
    if recording.readout == "rate":
        ax.set_ylim(0, 1.1)
    else:
        ax.margins(y=0.12)
    class_ticks(ax.xaxis, recording)


def steps(recording: Recording, figure: Canvas) -> None:
    """For labels per step: the input, the output of each class, and label and answer, over time."""
    sample, names = recording.sample, recording.class_names
    T, classes = len(sample.x), len(names)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[2, 3, 1.6])
    x = sample.x.flatten(1)
    if is_spikes(x):
        t, channel = x.numpy().nonzero()
        top.plot(
            t, channel, "|", color="C0", markersize=max(2.0, 45 / x.shape[1]), markeredgewidth=0.8, rasterized=True
        )
        top.set_ylim(-0.5, x.shape[1] - 0.5)
    else:
        top.plot(x.numpy(), linewidth=1, color="C0")
    top.set(ylabel=say("input"), yticks=[])
    for neuron in range(classes):
        middle.plot(sample.output.output[:, neuron].numpy(), linewidth=1.5, color=f"C{neuron % 7}")
    middle.set_ylabel(say("output"))
    _strips(bottom, sample.labels, sample.step_predictions, classes)
    bottom.set_yticks([0, 1], [say("label"), say("predicted")])
    time_axis(bottom, T)
    handles = [middle.lines[neuron] for neuron in range(classes)]
    figure.legend(handles, names, loc="outside right center", frameon=False, title=say("class"))
    top.set_title(sample_title(say("Labels and answers over time"), recording))


def confusion(recording: Recording, figure: Canvas) -> None:
    """How often each label (row) was taken for each class (column), and each label's accuracy at the right."""
    ax, outcome, names = figure.subplots(), recording.outcome, recording.class_names
    counts = outcome.confusion
    share = counts / counts.sum(1, keepdim=True).clamp(min=1) * 100
    image = ax.imshow(share.numpy(), aspect="auto", cmap="cividis", norm=PowerNorm(0.4, 0, 100))
    few = len(names) <= MANY_CLASSES
    for row, column in counts.nonzero().tolist() if few else ():
        colour = "#111111" if share[row, column] > 18 else "white"
        text = f"{int(counts[row, column])}"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize="small" if len(text) < 5 else 8)
    ax.set(xlabel=say("predicted class"), ylabel=say("label"), xticks=range(len(names)), yticks=range(len(names)))
    size = "small" if few else 6
    ax.set_yticklabels(names, fontsize=size)
    ax.set_xticklabels(names, fontsize=size, **(slanted(names) if few else {"rotation": 90}))
    right = ax.secondary_yaxis("right")
    accuracies = [f"{100 * share:.1f} %" if np.isfinite(share) else "" for share in outcome.class_accuracies.tolist()]
    right.set_yticks(range(len(names)), accuracies, fontsize=size)
    right.tick_params(length=0)
    right.set_ylabel(say("accuracy of the class"))
    unit = "labelled steps" if recording.source.per_step else f"{recording.kind} samples"
    total = say("{accuracy:.2%} of {count:,} " + unit, accuracy=outcome.accuracy, count=int(counts.sum()))
    ax.set_title(say("Confusion matrix: {total} are right", total=total))
    if not few:
        figure.colorbar(image, ax=ax, ticks=[0, 1, 5, 20, 50, 100]).set_label(say("share of the label's samples (%)"))


def mistakes(recording: Recording, figure: Canvas) -> None:
    """The samples whose answers are wrong by most."""
    outcome, names = recording.outcome, recording.class_names
    worst, potentials = recording.mistakes(GALLERY)
    shown, ax = worst.tolist(), figure.subplots()
    ax.set_axis_off()
    count = int((outcome.shares < 1).sum())
    where = say("{count:,} {kind} samples", count=len(outcome.shares), kind=say(recording.kind))
    if not shown:
        ax.set_title(say("No mistakes among {where}", where=where))
        return
    if recording.source.per_step:
        ax.remove()
        _worst_steps(recording, figure, shown[:STRIPS], where)
        return
    number = [say("sample {index}", index=index) for index in shown]
    above = [
        say("{label} taken for {taken}", label=names[int(outcome.labels[i])], taken=names[int(outcome.predictions[i])])
        for i in shown
    ]
    leads = outcome.leads[shown].tolist()
    if potentials is None:
        below = [say("lead {lead:.2f}", lead=lead) for lead in leads]
        what = "lead: score of the wrong class above the label's"
    else:
        text = "{lead:+.2f}, h {potential:+.1f}"
        below = [say(text, lead=lead, potential=h) for lead, h in zip(leads, potentials.tolist(), strict=True)]
        what = "rate and mean potential h of the wrong class above the label's"
    below = [f"{text}\n{name}" for text, name in zip(below, number, strict=True)]
    seen = [picture(x, still) for x, still in recording.samples(shown)]
    gallery(ax, seen, 4 if is_narrow(figure) else 6, above, below, cmap="gray", vmin=0, vmax=255)
    title = say("The {shown} clearest of {wrong:,} mistakes among {where}", shown=len(shown), wrong=count, where=where)
    ax.set_title(f"{title}\n{say(what)}")


def _worst_steps(recording: Recording, figure: Canvas, shown: list[int], where: str) -> None:
    """For labels per step: label and answer over time, sample by sample."""
    axes = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    for ax, index, (labels, answers) in zip(axes, shown, recording.step_answers(shown), strict=True):
        _strips(ax, labels, answers, recording.source.classes)
        share = say("{share:.1%} right", share=float(recording.outcome.shares[index]))
        ax.set_ylabel(
            say("sample {index}", index=index) + f"\n{share}", rotation=0, ha="right", va="center", fontsize="small"
        )
        ax.set_yticks([0, 1], [say("label"), say("predicted")], fontsize=9)
    time_axis(axes[-1], len(recording.sample.x))
    axes[-1].set_xlim(-0.5, recording.T - 0.5)
    axes[0].set_title(say("The {shown} worst of {where}", shown=len(shown), where=where))
    patches = [Patch(color=f"C{neuron % 7}") for neuron in range(recording.source.classes)]
    figure.legend(patches, recording.class_names, loc="outside right center", frameon=False, title=say("class"))


def _strips(ax: Axes, labels: Tensor, answers: Tensor, classes: int) -> None:
    """Label and answer [T] as two rows of colours; white: no label."""
    colours = ListedColormap([f"C{neuron % 7}" for neuron in range(classes)])
    rows = np.ma.masked_less(np.stack([labels.numpy(), answers.numpy()]), 0)
    ax.imshow(rows, aspect="auto", cmap=colours, vmin=-0.5, vmax=classes - 0.5, interpolation="nearest")
