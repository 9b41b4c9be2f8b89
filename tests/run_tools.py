"""Small runs for tests, and what it means that two of them are the same."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastsnn
from fastsnn import checkpoint

Command = Callable[..., tuple[Any, str, str]]
"""The fixture ``command``: arguments -> exit code, stdout, stderr."""

TIMES = ("train_seconds", "test_seconds", "samples_per_second")
"""The columns of metrics.csv that differ from run to run."""

SMALL: dict[str, Any] = {
    "dataset": "digits",
    "train_samples": 70,
    "test_samples": 20,
    "batch_size": 16,
    "T": 4,
    "lr": 0.05,
    "epochs": 3,
    "backend": "torch",
    "device": "cpu",
    "threads": 1,
}
"""Five steps an epoch, the last of them with a smaller batch; the weights move and the neurons fire."""


def small(out: Path, **options: Any) -> fastsnn.Config:
    return fastsnn.Config(**SMALL | {"out": out} | options)


def arguments(**options: Any) -> list[str]:
    """The same as command-line options."""
    return [part for name, value in (SMALL | options).items() for part in (f"--{name.replace('_', '-')}", str(value))]


class StopAfter(fastsnn.Monitor):
    """Asks for a stop once ``images`` of epoch ``epoch`` have been trained on."""

    def __init__(self, epoch: int, images: int, signal_number: int = 15) -> None:
        self.at, self.signal_number = (epoch, images), signal_number

    def batches(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        if (epoch, images) >= self.at:
            self.stop_signal = self.signal_number


def metrics(run: Path) -> list[dict[str, str]]:
    """The lines of metrics.csv, character by character, without their times."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: text for name, text in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Equal to the last bit, through dicts and lists; times apart."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, where
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected.keys() - {*TIMES, "seconds"}:
            assert_same(found[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    else:
        assert found == expected, where


def assert_same_run(run: Path, reference: Path) -> None:
    """The two folders hold the same weights, optimizer state, history and metrics."""
    assert_same(checkpoint.load(run / "best.pt"), checkpoint.load(reference / "best.pt"), "best.pt")
    assert_same_end(run, reference)


def assert_same_end(run: Path, reference: Path) -> None:
    """The same but for best.pt, which records how many epochs were asked for when it was written."""
    assert_same(checkpoint.load(run / "last.pt"), checkpoint.load(reference / "last.pt"), "last.pt")
    assert metrics(run) == metrics(reference)


def assert_refused(result: tuple[Any, str, str], code: int, *said: str) -> None:
    """What ``Command`` returned is that exit code and one line that says all of this."""
    found, stdout, stderr = result
    assert (found, stdout) == (code, ""), stderr
    assert stderr.startswith("fastsnn: ")
    assert stderr.count("\n") == 1, stderr
    assert len(stderr) < 1000
    assert "Traceback" not in stderr
    assert "codec" not in stderr
    for part in said:
        assert part in stderr
