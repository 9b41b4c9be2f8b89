"""What ``fastsnn train`` shows while it runs, and how signals stop it."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fastsnn.errors import Interrupted
from fastsnn.monitor import EpochMetrics, Monitor
from fastsnn.text import printable

FAILURE = 1
"""Exit code of what fails, but for wrong usage."""
SHOW_CURSOR = b"\x1b[?25h\n"
WIDE = 90
"""Columns of a terminal that the whole progress bar needs; in a narrower one it leaves out loss and speed."""
NO_READER = 13
"""The number of SIGPIPE, which Windows lacks."""


class Output(Console):
    """A stream of lines; raises OSError once where nobody reads it any more, as in ``fastsnn train | head``."""

    def on_broken_pipe(self) -> None:
        self.drop()
        raise  # rich calls this where it caught the error

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(part, keep="\n") if isinstance(part, str) else part for part in objects), **options)

    def drop(self) -> None:
        """Write no more, nor what is still in the buffer when the process ends."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class HelpConsole(Console):
    """Where --help and --version are written; a reader may take the first lines only."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        sys.exit(0)


output = Output(highlight=False, soft_wrap=True)
errors = Output(stderr=True, highlight=False, soft_wrap=True)


class TerminalMonitor(Monitor):
    """A progress bar on a terminal, a plain line per epoch anywhere else; a signal stops the run after the batch.

    The signals are Ctrl-C, SIGTERM and SIGHUP (the terminal was closed), but for those that the caller has ignored, as
    nohup does. A second one ends the process at once. Output that nobody reads any more stops the run likewise.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        wide = [TextColumn("loss {task.fields[loss]:.4f}"), TextColumn("{task.fields[speed]:,.0f} samples/s")]
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None if output.width < WIDE else 40),
            TextColumn("{task.percentage:3.0f}%  accuracy {task.fields[accuracy]:.1%}"),
            *(wide if output.width >= WIDE else []),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            expand=output.width < WIDE,
            console=output,
            transient=True,
            disable=not output.is_terminal,
        )
        self.data, self.samples, self.epochs = "", 0, 0
        self.headed = False
        self.started = False

    def __enter__(self) -> "TerminalMonitor":
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._request_stop)
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # the terminal is gone
            self.bar.stop()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        # Nothing here may print: the signal may have come in the middle of a print.
        # torchrun passes a Ctrl-C on as a second signal; there only torchrun ends a process at once.
        if self.stop_signal is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
            if self.output.is_terminal:
                os.write(1, SHOW_CURSOR)
            os._exit(128 + number)
        self.stop_signal = number
        if not self.started:
            raise Interrupted("stopped before training began", number)
        if sys.stderr.isatty():
            os.write(2, b"\nstopping after this batch; the same again stops at once\n")

    def _print(self, text: str, style: str | None = None) -> None:
        try:
            self.output.print(printable(text), style=style, markup=False, emoji=False)
        except OSError:
            self.output.drop()
            self.stop_signal = self.stop_signal or NO_READER

    def message(self, text: str) -> None:
        self._print(text, style="bold")

    def start(self, run: Path, data: str, samples: int, epochs: int, done: int) -> None:
        self.data, self.samples, self.epochs = data, samples, epochs
        self._print(f"run folder {run}: epochs {done + 1} to {epochs}, {samples:,} samples each")
        self.bar.start()
        self.task = self.bar.add_task(
            "", total=samples * epochs, completed=samples * done, epoch=done + 1, loss=0.0, accuracy=0.0, speed=0.0
        )
        self.started = True

    def batches(self, epoch: int, samples: int, loss: float, accuracy: float) -> None:
        done = (epoch - 1) * self.samples + samples
        speed = self.bar.tasks[0].speed or 0.0
        self.bar.update(self.task, completed=done, epoch=epoch, loss=loss, accuracy=accuracy, speed=speed)

    def epoch(self, metrics: EpochMetrics) -> None:
        place = max(5, 2 * len(str(self.epochs)) + 1)
        data = printable(Path(self.data).name)[: 18 - place].ljust(4)  # a line has at most 80 columns
        if not self.headed:
            held_out = metrics.held_out.replace("validation", "val.")
            head = f"{'data':<{len(data)}}  {'epoch':>{place}}  train loss accuracy  {held_out} loss accuracy"
            self._print(f"{head}     time samples/s")
            self.headed = True
        self._print(
            f"{data}  {f'{metrics.epoch}/{self.epochs}':>{place}}"
            f"  {metrics.train_loss:>10.5f} {metrics.train_accuracy:>8.2%}"
            f"  {metrics.loss:>9.5f} {metrics.accuracy:>8.2%}"
            f"  {metrics.train_seconds:>5.1f} s {metrics.samples_per_second:>9,.0f}"
        )

    def tested(self, metrics: EpochMetrics) -> None:
        self._print(
            f"test of epoch {metrics.epoch}: loss {metrics.test_loss:.5f}  accuracy {metrics.test_accuracy:.2%}"
        )
