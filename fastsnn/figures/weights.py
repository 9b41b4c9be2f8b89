"""What the first layer looks for: its weights as images, or as a matrix."""

from typing import Any

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fastsnn.figures.parts import Canvas, class_ticks, gallery
from fastsnn.recording import Recording
from fastsnn.words import say

SHOWN = 18
"""Neurons whose weights are shown, at most."""


def weights(recording: Recording, figure: Canvas) -> None:
    """Input weights of each class, or of the neurons of the first layer with the largest, or its kernels."""
    weight = recording.input_weights
    assert weight is not None
    ax = figure.subplots()
    # A few weights are far larger than the rest, which would look like zeros beside them.
    largest = float(weight.flatten()[: 2**24].abs().quantile(0.995)) or 1.0
    scale: dict[str, Any] = {"cmap": "PuOr_r", "vmin": -largest, "vmax": largest}
    if weight.dim() == 2:
        image = ax.imshow(weight.numpy(), aspect="auto", interpolation="nearest", origin="lower", **scale)
        ax.set(title=say("Input weights of layer 1"), xlabel=say("input channel"), ylabel=say("neuron"))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(sample_layers := recording.sample.layers) == 1 and sample_layers[0].size == len(weight):
            class_ticks(ax.yaxis, recording)
    else:
        of_classes = len(recording.sample.layers) == 1 and len(weight) == recording.source.classes
        shown = torch.arange(len(weight))
        if len(weight) > SHOWN and not of_classes:
            shown = weight.flatten(1).norm(dim=1).argsort(descending=True)[:SHOWN].sort().values
        names = list(recording.class_names) if of_classes else [str(neuron) for neuron in shown.tolist()]
        images = [_side_by_side(row).numpy() for row in weight[shown]]
        columns = 6 if len(images) > 12 else max(1, -(-len(images) // 2))
        image = gallery(ax, images, columns, names, **scale)
        ax.set_title(_title(recording, weight, len(shown), of_classes))
    bar = figure.colorbar(image, ax=ax, pad=0.02, shrink=0.85, extend="both")
    bar.set_label(say("weight (current per input spike)"))


def _title(recording: Recording, weight: Tensor, shown: int, of_classes: bool) -> str:
    if of_classes:
        return say("Input weights of each class")
    if weight.shape[1:] != torch.Size(recording.source.shape):
        text = say("Kernels of the first convolution")
        return (
            text
            if shown == len(weight)
            else text + say(": the {shown} largest of {count}", shown=shown, count=len(weight))
        )
    return say(
        "Input weights of layer 1: the {shown} of {count} neurons with the largest", shown=shown, count=len(weight)
    )


def _side_by_side(row: Tensor) -> Tensor:
    """[C, H, W] -> [H, C W + C - 1]: the channels beside each other, apart by a pixel."""
    gap = torch.full((row.shape[1], 1), torch.nan)
    parts = [part for channel in row for part in (channel, gap)]
    return torch.cat(parts[:-1], 1)
