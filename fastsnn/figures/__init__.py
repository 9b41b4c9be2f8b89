"""What each figure looks like. A drawing function fills a Figure or a SubFigure: ``summary`` is made of the others.

Colours come from the style in force (``plot.style``): C0 is what the network says, C1 what is true or learnt from, and
text has the ink's colour. Every quantity carries its unit: time in steps, rates in spikes per step, potentials beside
the threshold, which is what they are measured against. Tests: ``tests/test_plot.py``.
"""

from collections.abc import Callable

from fastsnn.figures.answers import confusion, mistakes, scores, steps
from fastsnn.figures.neurons import event_frames, membrane, raster, traces
from fastsnn.figures.parts import Canvas
from fastsnn.figures.training import curves
from fastsnn.figures.weights import weights
from fastsnn.recording import Recording


def summary(recording: Recording, figure: Canvas) -> None:
    """All the others on one page."""
    names = available(recording)[1:]
    cells = figure.subfigures(-(-len(names) // 2), 2, squeeze=False).flat
    for cell, name in zip(cells, names, strict=False):
        DRAWINGS[name](recording, cell)


DRAWINGS: dict[str, Callable[[Recording, Canvas], None]] = {
    "summary": summary,
    "curves": lambda recording, figure: curves([recording], figure),
    "confusion": confusion,
    "scores": scores,
    "steps": steps,
    "frames": event_frames,
    "raster": raster,
    "membrane": membrane,
    "traces": traces,
    "weights": weights,
    "mistakes": mistakes,
}


def available(recording: Recording) -> list[str]:
    """The figures that a run has something for."""
    if not recording.has_network:
        return ["curves"]
    source, output = recording.source, recording.sample.output
    left_out = {"scores"} if source.per_step else {"steps"}
    if source.T is None or len(source.shape) != 3:
        left_out.add("frames")
    if output.spikes is not None and output.membrane is None:
        left_out |= {"membrane", "traces"}
    if recording.input_weights is None:
        left_out.add("weights")
    return [name for name in DRAWINGS if name not in left_out]


__all__ = ["DRAWINGS", "Canvas", "available", "curves"]
