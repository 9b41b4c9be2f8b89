"""Samples that are held out to choose best.pt: drawn from the seed, never trained on, and the test set is used once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_data import STEPS, Own, arrays, options
from run_tools import Command, arguments, metrics
from torch import Tensor

import fastsnn
from fastsnn import checkpoint
from fastsnn.sources import Arrays, Batch


class Watched(Arrays):
    """Notes which samples of which split are asked for."""

    def batch(self, split: str, ids: Tensor, T: int, *, seed: int = 0, epoch: int = 0) -> Batch:
        self.asked.append((split, epoch, ids.tolist()))
        return super().batch(split, ids, T, seed=seed, epoch=epoch)


def watched() -> Any:
    source: Any = arrays()
    source.__class__ = Watched
    source.asked = []
    return source


def test_the_test_set_is_used_once_with_a_validation_split(tmp_path: Path) -> None:
    tested: list[Any] = []

    class Listener(fastsnn.Monitor):
        def tested(self, metrics: Any) -> None:
            tested.append(metrics)

    source = watched()
    history = fastsnn.fit(Own(), source, options(tmp_path / "run", validation=0.25), callbacks=[Listener()])
    assert [split for split, _, _ in source.asked if split == "test"] == ["test"]
    assert source.asked[-1][0] == "test"
    training = {i for split, epoch, ids in source.asked if split == "train" and epoch for i in ids}
    held_out = {i for split, epoch, ids in source.asked[1:] if split == "train" and not epoch for i in ids}
    assert (len(training), len(held_out)) == (36, 12)
    assert not training & held_out
    best = history.best
    assert tested == [best]
    assert best.test_accuracy is not None
    assert all(row.test_loss is None for row in history.epochs if row is not best)
    assert best.accuracy == best.validation_accuracy == max(row.accuracy for row in history.epochs)
    assert len(checkpoint.load(tmp_path / "run" / "best.pt")["history"]) == best.epoch
    rows = metrics(tmp_path / "run")
    assert [row["test_loss"] != "" for row in rows] == [row.epoch == best.epoch for row in history.epochs]
    assert all(float(row["validation_loss"]) > 0 for row in rows)
    again = watched()
    fastsnn.fit(Own(), again, resume=tmp_path / "run")
    assert not any(split == "test" for split, _, _ in again.asked), "it is tested already"


def test_the_validation_split_depends_on_the_seed(tmp_path: Path) -> None:
    found = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        source = watched()
        fastsnn.fit(Own(), source, options(tmp_path / name, epochs=1, validation=0.25, seed=seed))
        found.append([ids for split, epoch, ids in source.asked[1:] if split == "train" and not epoch])
    assert found[0] == found[1] != found[2]


def test_a_validation_set_of_the_data_is_used(tmp_path: Path) -> None:
    made = arrays()
    x, y = (
        np.asarray(part) for part in (made.batch("train", torch.arange(48), STEPS).x.unpack(), made.parts["train"].y)
    )  # type: ignore[union-attr]
    x = x.transpose(1, 0, 2)
    source = Arrays(x[:30], y[:30], x_validation=x[30:], y_validation=y[30:], name="with validation")
    history = fastsnn.fit(Own(), source, options(tmp_path / "run"))
    assert history.best.held_out == "validation"
    assert history.best.test_accuracy is None, "there is no test set"
    with pytest.raises(ValueError, match=r"validation is 0\.1; allowed: 0, for with validation has a validation set"):
        fastsnn.fit(Own(), source, options(tmp_path / "other", validation=0.1))
    with pytest.raises(ValueError, match="only train has no test set; allowed: a validation of 0"):
        fastsnn.fit(Own(), Arrays(x, y, name="only train"), options(tmp_path / "third"))


def test_validation_on_the_command_line(tmp_path: Path, command: Command) -> None:
    """Fused and layer by layer choose by the same samples."""
    results = []
    for step in ("fused", "autograd"):
        run = tmp_path / step
        line = [*arguments(epochs=2, backend="numba", step=step, train_samples=200), "--validation", 0.2]
        code, stdout, stderr = command("train", *line, "--out", run)
        assert (code, stderr) == (0, "")
        *_, head, _, _, tested, result = stdout.splitlines()
        assert "val. loss" in head
        assert tested.startswith("test of epoch ")
        assert "test accuracy " in result
        assert "; best validation accuracy " in result
        results.append([float(row["validation_loss"]) for row in metrics(run)])
        code, stdout, _ = command("eval", run, "--checkpoint", "best", "--json")
        row = next(row for row in metrics(run) if row["test_loss"])
        assert f'"test_loss": {row["test_loss"]},' in stdout
    assert results[0] == pytest.approx(results[1], abs=3e-5)
