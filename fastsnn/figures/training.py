"""Loss and accuracy over the epochs, of one run or of several."""

from collections.abc import Sequence

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fastsnn.figures.parts import Canvas, ink, is_narrow, markers
from fastsnn.recording import Recording
from fastsnn.words import say


def curves(recordings: Sequence[Recording], figure: Canvas) -> None:
    """Loss and accuracy of every epoch, in training and on the validation or the test set."""
    axes = figure.subplots(1, 2)
    losses = sorted({recording.config.loss for recording in recordings})
    last = max([1, *(len(recording.history) for recording in recordings)])
    several = len(recordings) > 1
    for ax, quantity, unit in zip(axes, ("loss", "accuracy"), (", ".join(losses), say("% of samples")), strict=True):
        for i, recording in enumerate(recordings):
            epochs = [row.epoch for row in recording.history]
            trained = [getattr(row, f"train_{quantity}") for row in recording.history]
            held_out = [getattr(row, quantity) for row in recording.history]
            ax.plot(epochs, trained, "--", color=f"C{i}" if several else "C1", **markers(len(epochs), i))
            ax.plot(epochs, held_out, "-", color=f"C{i}" if several else "C0", **markers(len(epochs), i))
        ax.set(title=say(quantity.capitalize()), xlabel=say("epoch"), xlim=(0.5, last + 0.5))
        ax.set_ylabel(f"{say(quantity)} ({unit})")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        ax.grid(alpha=0.3)
    axes[1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.5g}"))
    _legend(recordings, figure)


def _legend(recordings: Sequence[Recording], figure: Canvas) -> None:
    """What line styles mean and, of several runs, which colour is whose."""
    colours = ["C0", "C1"] if len(recordings) == 1 else [ink(), ink()]
    lines = [Line2D([], [], color=colours[0]), Line2D([], [], color=colours[1], linestyle="--")]
    held_out = sorted({row.held_out for recording in recordings for row in recording.history} or {"test"})
    judged = say(" or ").join(say(part) for part in held_out)
    texts = [say("{part}, after the epoch", part=judged), say("training, mean over the epoch")]
    if len(recordings) > 1:
        lines += [Line2D([], [], color=f"C{i}", **markers(1, i)) for i in range(len(recordings))]
        names = [recording.name for recording in recordings]
        if len(set(names)) < len(names):
            names = [str(recording.path) for recording in recordings]
        # Matplotlib leaves texts with a leading underscore out; a space before it keeps them.
        texts += [f" {name}: {recording.result}" for name, recording in zip(names, recordings, strict=True)]
    figure.legend(lines, texts, loc="outside lower center", ncols=1 if is_narrow(figure) else 2, frameon=False)
