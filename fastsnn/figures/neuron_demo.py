"""One neuron under a current: how it charges, fires and is reset."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from fastsnn.figures.parts import Canvas, ink, sawtooth, time_axis
from fastsnn.neuron_demo import NeuronDemo
from fastsnn.words import say


def neuron_demo(demo: NeuronDemo, figure: Canvas) -> None:
    """Input current, membrane potential with its threshold and reset, the neuron's other states, and its spikes."""
    T, inside = len(demo.current), demo.membrane
    others = [(i, name) for i, name in enumerate(demo.neuron.states) if name != "v" and len(demo.neuron.states) > 1]
    heights = [1.0, 2.2, *[1.0] * len(others), *([0.45] if demo.spikes is not None else [])]
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    axes[0].step(range(T), demo.current.numpy(), where="mid", color="C2", linewidth=2)
    axes[0].set_ylabel(say("input\ncurrent"))
    if inside.threshold is not None:
        axes[1].plot(inside.threshold.numpy(), color=ink(), linestyle=":", linewidth=1.5, label=say("threshold"))
        # Above the axes, where no potential and no threshold runs through it.
        axes[1].legend(loc="lower right", bbox_to_anchor=(1, 0.98), frameon=False, fontsize="small", borderaxespad=0)
    axes[1].plot(*sawtooth(inside, demo.spikes), color="C0", linewidth=1.8)
    axes[1].margins(y=0.12)
    axes[1].set_ylabel(say("membrane\npotential"))
    for ax, (i, name) in zip(axes[2:], others, strict=False):
        ax.plot(inside.states[i].numpy(), color="C4", linewidth=1.8)
        ax.set_ylabel(say("state {name}", name=name))
    if demo.spikes is not None:
        (t,) = np.nonzero(demo.spikes.numpy())
        axes[-1].vlines(t, 0, 1, color="C1", linewidth=1.5)
        axes[-1].set(yticks=[], ylim=(0, 1))
        axes[-1].set_ylabel(say("spikes"), rotation=0, ha="right", va="center")
    for ax in axes[: 2 + len(others)]:
        ax.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    time_axis(axes[-1], T)
    figure.align_ylabels(axes[: 2 + len(others)])


def headline(demo: NeuronDemo) -> str:
    """What stands above it."""
    if demo.spikes is None:
        return say("{neuron} does not fire: its output is its potential", neuron=demo.name)
    count = int(demo.spikes.sum())
    text = "{neuron}: 1 spike in {T} time steps" if count == 1 else "{neuron}: {count} spikes in {T} time steps"
    return say(text, neuron=demo.name, count=count, T=len(demo.current))
