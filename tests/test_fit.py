"""fastsnn.fit: any module on any source, with the bits, the files and the resume of the command line's runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from made_data import STEPS, Own, arrays, options
from run_tools import Command, StopAfter, assert_same, metrics, small
from torch import Tensor, nn

import fastsnn
from fastsnn import checkpoint
from fastsnn.config import FitConfig
from fastsnn.errors import Interrupted, RunFolderError
from fastsnn.networks import network_of
from fastsnn.sources import Images
from fastsnn.sources.images import load


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
    for line in (["train", "--resume", fitted], ["eval", fitted]):
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
        (Own, {"optimizer": "adam2"}, r"optimizer is 'adam2' \(did you mean adam\?\); allowed: "),
    ],
)
def test_what_does_not_fit_is_one_line(make: Any, more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        fastsnn.fit(make(), arrays(), options(tmp_path / "run", **more))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="readout is 'rate'; allowed: steps"):
        fastsnn.fit(Own(), arrays(per_step=True), options(tmp_path / "run", readout="rate"))
