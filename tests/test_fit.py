"""fastsnn.fit: any module on any source, with the bits, the files and the resume of the command line's runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_tools import Command, StopAfter, arguments, assert_same, metrics, small
from torch import Tensor, nn

import fastsnn
from fastsnn import checkpoint
from fastsnn.config import FitConfig
from fastsnn.errors import Interrupted, RunFolderError
from fastsnn.networks import network_of
from fastsnn.sources import Arrays, Batch, Images
from fastsnn.sources.images import load
from fastsnn.training.firing_rates import diagnosis

STEPS, CHANNELS, CLASSES = 12, 6, 3


def arrays(per_step: bool = False, lengths: bool = False, **options: Any) -> Arrays:
    """60 samples; channel pair 2 c, 2 c + 1 is busier in samples (or at steps) of class c."""
    chance = np.random.default_rng(0)
    y = np.arange(60) % CLASSES
    steps = np.repeat(y[:, None], STEPS, 1)
    if per_step:
        steps = chance.integers(0, CLASSES, (60, STEPS))
        y = np.where(chance.random((60, STEPS)) < 0.2, -1, steps)
    busy = np.arange(CHANNELS)[None, None] // 2 == steps[..., None]
    x = (chance.random((60, STEPS, CHANNELS)) < np.where(busy, 0.8, 0.1)).astype(np.uint8)
    given = chance.integers(4, STEPS + 1, 60) if lengths else None
    return Arrays(x, y, given, test_fraction=0.2, name="made", **options)


class Own(nn.Module):
    """A module that knows nothing of fastsnn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x)
        return output


def options(out: Path, **more: Any) -> FitConfig:
    plain: dict[str, Any] = {"epochs": 4, "batch_size": 10, "lr": 0.05, "loss": "ce", "threads": 1, "device": "cpu"}
    return FitConfig(**plain | {"out": out} | more)


@pytest.mark.parametrize(
    ("source", "more"),
    [
        ({}, {}),
        ({}, {"readout": "max"}),
        ({"lengths": True}, {"readout": "last"}),
        ({"lengths": True}, {"readout": "mean", "loss": "mse", "validation": 0.2}),
        ({"per_step": True}, {"readout": "auto", "loss": "auto"}),
        ({"per_step": True, "lengths": True}, {"optimizer": "adamw"}),
    ],
    ids=str,
)
def test_a_module_of_ones_own_learns(source: dict[str, Any], more: dict[str, Any], tmp_path: Path) -> None:
    history = fastsnn.fit(Own(), arrays(**source), options(tmp_path / "run", **more))
    assert (history.step, history.backend, history.device) == ("autograd", "torch", "cpu")
    assert history.epochs[-1].train_loss < 0.8 * history.epochs[0].train_loss
    assert history.best.accuracy > 0.6
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    assert list(saved["model"]) == ["inner.weight", "inner.bias"]
    assert saved["config"]["T"] == STEPS
    assert len(metrics(tmp_path / "run")) == 4


@pytest.mark.parametrize("step", ["fused", "autograd"])
def test_it_is_what_the_command_line_runs(step: str, tmp_path: Path) -> None:
    config = small(tmp_path / "train", backend="numba", step=step)
    expected = fastsnn.train(config)
    images = Images(load("digits").first(config.train_samples, config.test_samples))
    own = {name: getattr(config, name) for name in FitConfig.__dataclass_fields__} | {"out": tmp_path / "fit"}
    network = network_of(config, images.shape, images.classes, "numba")
    found = fastsnn.fit(network, images, FitConfig(**own))
    assert found.step == step
    assert_same(checkpoint.load(found.run / "last.pt")["model"], checkpoint.load(expected.run / "last.pt")["model"])
    assert metrics(found.run) == metrics(expected.run)
    assert torch.equal(network[0].weight, checkpoint.load(found.run / "last.pt")["model"]["0.weight"])  # type: ignore[index]


def test_resume_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = fastsnn.fit(Own(), arrays(), options(tmp_path / "whole"))
    run = tmp_path / "run"
    with pytest.raises(Interrupted) as stopped:
        fastsnn.fit(Own(), arrays(), options(run), callbacks=[fastsnn.Monitor(), StopAfter(2, 20)])
    assert f"fastsnn.fit(network, source, resume='{run}')" in str(stopped.value)
    resumed = fastsnn.fit(Own(), arrays(), resume=run)
    for part in ("model", "optimizer", "history"):
        found, expected = (checkpoint.load(history.run / "last.pt")[part] for history in (resumed, whole))
        assert_same(found, expected, part)


def test_each_kind_of_run_goes_on_its_own_way(tmp_path: Path, run: Path, command: Command) -> None:
    fitted = fastsnn.fit(Own(), arrays(), options(tmp_path / "fit", epochs=1)).run
    for line in (["train", "--resume", fitted], ["eval", fitted], ["plot", fitted]):
        code, _, stderr = command(*line)
        assert (code, stderr.count("\n")) == (1, 1)
        assert f"give them to fastsnn.fit(network, source, resume='{fitted}')" in stderr
    with pytest.raises(RunFolderError, match=r"started by `fastsnn train`: go on with fastsnn\.train\(resume="):
        fastsnn.fit(Own(), arrays(), resume=run)


def test_all_callbacks_are_told(tmp_path: Path) -> None:
    class Count(fastsnn.Monitor):
        def __init__(self) -> None:
            self.epochs = self.seen = 0

        def batches(self, *_: Any) -> None:
            self.seen += 1

        def epoch(self, metrics: Any) -> None:
            self.epochs += 1

    counts = Count(), Count()
    fastsnn.fit(Own(), arrays(), options(tmp_path / "run"), callbacks=counts)
    assert [(count.epochs, count.seen) for count in counts] == [(4, 20)] * 2


def test_modules_with_a_state_are_reset_before_each_batch(tmp_path: Path) -> None:
    class Stateful(Own):
        last: Tensor | None = None

        def reset(self) -> None:
            self.last = None

        def forward(self, x: Tensor) -> Tensor:
            assert self.last is None, "it was not reset"
            self.last = x
            return super().forward(x)

    fastsnn.fit(Stateful(), arrays(), options(tmp_path / "run", epochs=1))


# Validation.


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
        *_, epoch, tested, result = stdout.splitlines()
        assert "validation loss" in epoch
        assert tested.startswith("test of epoch ")
        assert "test accuracy " in result
        assert "; best validation accuracy " in result
        results.append([float(row["validation_loss"]) for row in metrics(run)])
        code, stdout, _ = command("eval", run, "--best", "--json")
        row = next(row for row in metrics(run) if row["test_loss"])
        assert f'"test_loss": {row["test_loss"]},' in stdout
    assert results[0] == pytest.approx(results[1], abs=3e-5)


# Firing rates.


def test_firing_rates_are_those_of_the_layers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = small(run, hidden=(12,), epochs=2)
    history = fastsnn.train(config)
    network, images = fastsnn.load(run), Images(load("digits").first(70, 20))
    x = images.batch("test", torch.arange(20), config.T or 0).x.unpack().flatten(2)  # type: ignore[union-attr]
    expected = []
    for layer in network.children():
        x = layer(x)
        expected.append(x.mean().item())
    assert all(expected)
    assert history.epochs[-1].firing_rates == pytest.approx(expected, rel=1e-5)
    last = metrics(run)[-1]
    assert [float(last[f"firing_rate_{i}"]) for i in (1, 2)] == pytest.approx(expected, rel=1e-5)


def test_a_silent_layer_is_diagnosed_once(tmp_path: Path) -> None:
    said: list[str] = []

    class Listener(fastsnn.Monitor):
        def message(self, text: str) -> None:
            said.append(text)

    torch.manual_seed(0)
    silent = nn.Sequential(
        fastsnn.LinearLIF(CHANNELS, 5, neuron=fastsnn.LIFParameters(v_threshold=0.1)),
        fastsnn.LinearLIF(5, CLASSES, neuron=fastsnn.LIFParameters(v_threshold=1e6)),
    )
    fastsnn.fit(silent, arrays(), options(tmp_path / "run"), callbacks=[Listener()])
    found = [text for text in said if "fires" in text]
    assert len(found) == 1
    assert found[0].startswith("no neuron of layer 1 (2 of 2) fires")
    assert "lower --v-threshold" in found[0]


def test_diagnosis() -> None:
    assert diagnosis(["0"], [], [0.5]) == []
    (line,) = diagnosis(["0", "3.neuron"], [], [0.5, 0.995])
    assert line.startswith("every neuron of layer 3.neuron (2 of 2) fires at nearly every step (99.5%)")
    assert diagnosis(["0"], [[0.0]], [0.0]) == diagnosis(["0"], [[0.999]], [1.0]) == []


def test_bounds_of_firing_rates_move_them(tmp_path: Path) -> None:
    rates = {}
    for name, more in {"free": {}, "low": {"rate_upper": 0.01}, "high": {"rate_lower": 0.5}}.items():
        bounds = more | {"rate_penalty": 100.0}
        config = small(tmp_path / name, hidden=(12,), lr=0.02, **bounds)
        rates[name] = fastsnn.train(config).epochs[-1].firing_rates[0]
    assert rates["low"] < 0.5 * rates["free"]
    assert rates["high"] > 1.5 * rates["free"]


# What doesn't fit.


@pytest.mark.parametrize(
    ("make", "more", "said"),
    [
        (lambda: nn.Linear(5, 3), {}, r"the network does not take x of shape \[T, B, 6\]: mat1 and mat2"),
        (
            lambda: nn.Linear(6, 2),
            {},
            r"has shape \[12, 1, 2\]; allowed: \[12, 1, 3\], time steps, samples and classes",
        ),
        (lambda: nn.Flatten(0), {}, r"has shape \[72\]; allowed"),
        (Own, {"T": 9}, "T is 9; allowed: 12, the time steps of made"),
        (Own, {"step": "fused"}, "step fused does not cover this run: the network is not one LinearLIF"),
        (Own, {"optimizer": "adam2"}, "optimizer is 'adam2'; allowed: "),
    ],
)
def test_what_does_not_fit_is_one_line(make: Any, more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        fastsnn.fit(make(), arrays(), options(tmp_path / "run", **more))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="readout is 'rate'; allowed: steps"):
        fastsnn.fit(Own(), arrays(per_step=True), options(tmp_path / "run", readout="rate"))
