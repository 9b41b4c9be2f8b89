"""Optimizers by name, learning rates over the steps, clipping: against torch's own, and the same bits on resume."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tools import Command, StopAfter, arguments, assert_same_end, assert_same_run, small

import fastsnn
from fastsnn import checkpoint
from fastsnn.config import FitConfig
from fastsnn.errors import Interrupted
from fastsnn.networks import network_of
from fastsnn.training.learning_rate import learning_rate
from fastsnn.training.optimizer import make_optimizer

STEPS = 7
"""Optimizer steps per epoch."""


def rates(config: FitConfig) -> list[float]:
    return [learning_rate(config, step, STEPS) for step in range(config.epochs * STEPS)]


def torchs(schedule: Any, config: FitConfig, every: int = 1) -> list[float]:
    """The rates of a scheduler of torch's that is stepped every so many steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler, found = schedule(optimizer), []
    for step in range(config.epochs * STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    return found


def test_schedules_are_torchs() -> None:
    schedulers = torch.optim.lr_scheduler
    cosine = FitConfig(lr=0.3, lr_schedule="cosine", epochs=5)
    expected = torchs(lambda optimizer: schedulers.CosineAnnealingLR(optimizer, 5 * STEPS), cosine)
    assert rates(cosine) == pytest.approx(expected, abs=1e-12)
    step = FitConfig(lr=0.3, lr_schedule="step", lr_step_epochs=2, lr_step_factor=0.5, epochs=5)
    expected = torchs(lambda optimizer: schedulers.StepLR(optimizer, 2, 0.5), step, every=STEPS)
    assert rates(step) == pytest.approx(expected, abs=1e-12)
    assert set(rates(FitConfig(lr=0.3, epochs=2))) == {0.3}


def test_warm_up() -> None:
    found = rates(FitConfig(lr=1.0, lr_schedule="cosine", warmup_epochs=0.5, epochs=3))
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert all(before > after for before, after in pairwise(found[4:]))
    assert found[-1] < 0.05


OPTIMIZERS = [
    ("adamw", ("betas=0.8,0.95", "amsgrad=true")),
    ("sgd", ("nesterov=true",)),
    ("rmsprop", ("alpha=0.9", "momentum=0.5", "centered=True")),
    ("adagrad", ()),
    ("nadam", ("eps=1e-5",)),
]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=[name for name, _ in OPTIMIZERS])
def test_an_optimizer_by_name_is_torchs(name: str, options: tuple[str, ...]) -> None:
    config = FitConfig(optimizer=name, optimizer_args=options, lr=0.02, weight_decay=0.1)
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(config, [parameter])
    assert type(optimizer).__name__.lower() == name
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.1)
    if name == "adamw":
        assert (group["betas"], group["amsgrad"]) == ((0.8, 0.95), True)
    if name == "rmsprop":
        assert (group["alpha"], group["momentum"], group["centered"]) == (0.9, 0.5, True)


def test_every_optimizer_of_torch_that_fits_is_known() -> None:
    with pytest.raises(ValueError, match="optimizer is 'best'; allowed: ") as refused:
        make_optimizer(FitConfig(optimizer="best"), [])
    allowed = str(refused.value).partition("allowed: ")[2].split(", ")
    assert {"adam", "adamw", "adamax", "sgd", "rmsprop", "radam", "nadam", "adagrad", "rprop"} <= set(allowed)
    for name in allowed:
        make_optimizer(FitConfig(optimizer=name.upper()), [torch.nn.Parameter(torch.ones(2, 2))])


SCHEDULED: dict[str, dict[str, Any]] = {
    "cosine": {"lr_schedule": "cosine", "warmup_epochs": 0.5},
    "fused cosine": {"lr_schedule": "cosine", "warmup_epochs": 0.5, "backend": "numba", "step": "fused"},
    "fused sgd": {"lr_schedule": "cosine", "backend": "numba", "step": "fused", "optimizer": "sgd", "batch_size": 4},
    "step": {"lr_schedule": "step", "lr_step_epochs": 1, "optimizer": "adamw", "weight_decay": 0.1},
    "clipped": {"clip_grad_norm": 0.01, "optimizer": "rmsprop", "hidden": (12,)},
}


@pytest.mark.parametrize("options", SCHEDULED.values(), ids=SCHEDULED)
def test_an_interrupted_run_ends_with_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    one, other = tmp_path / "uninterrupted", tmp_path / "interrupted"
    history = fastsnn.train(small(one, **options))
    assert history.epochs[0].train_loss > history.epochs[-1].train_loss
    config = small(other, **options)
    resume = None
    for epoch, images in ((1, 16), (2, 70)):
        with pytest.raises(Interrupted):
            fastsnn.train(config, resume=resume, monitor=StopAfter(epoch, images))
        resume = other
    fastsnn.train(config, resume=other)
    assert_same_run(other, one)


def test_a_schedule_is_the_same_fused_and_layer_by_layer(tmp_path: Path) -> None:
    options = {"lr_schedule": "cosine", "warmup_epochs": 1.0, "backend": "numba", "batch_size": 4, "lr": 0.01}
    fused, layered, constant = (
        fastsnn.train(small(tmp_path / name, **options | more)).epochs
        for name, more in (("f", {}), ("l", {"step": "autograd"}), ("c", {"lr_schedule": "none", "warmup_epochs": 0}))
    )
    for one, other in zip(fused, layered, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=3e-5)
    assert abs(fused[0].train_loss - constant[0].train_loss) > 3e-4


@pytest.mark.parametrize("options", [{}, {"backend": "numba"}], ids=str)
def test_the_learning_rate_may_change_on_resume(options: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    fastsnn.train(small(run, epochs=1, **options))
    before = checkpoint.load(run / "last.pt")["model"]
    fastsnn.train(small(run, epochs=2, lr=1e-30, **options), resume=run)
    after = checkpoint.load(run / "last.pt")
    assert all(torch.equal(before[name], after["model"][name]) for name in before)
    assert after["optimizer"]["param_groups"][0]["lr"] == after["config"]["lr"] == 1e-30
    fastsnn.train(small(tmp_path / "same", epochs=1, **options))
    fastsnn.train(small(tmp_path / "same", epochs=2, **options), resume=tmp_path / "same")
    fastsnn.train(small(tmp_path / "whole", epochs=2, **options))
    assert_same_end(tmp_path / "same", tmp_path / "whole")


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    """A step of SGD moves the weights by the gradient times the rate."""
    config = small(tmp_path / "run", optimizer="sgd", momentum=0.0, lr=1.0, train_samples=16, epochs=1)
    clipped = replace(config, clip_grad_norm=1e-4, out=tmp_path / "clipped")
    moved = []
    for options in (config, clipped):
        fastsnn.train(options)
        weight = checkpoint.load(options.out / "last.pt")["model"]["0.weight"]  # type: ignore[operator]
        start = network_of(options, (64,), 10, "torch").state_dict()["0.weight"]
        moved.append(weight - start)
    assert moved[0].norm() > 1e-2
    assert moved[1].norm() == pytest.approx(1e-4, rel=1e-3)
    torch.testing.assert_close(moved[1] / moved[1].norm(), moved[0] / moved[0].norm(), rtol=1e-2, atol=1e-3)


def test_options_of_the_command_line(tmp_path: Path, command: Command) -> None:
    line = "--optimizer adamw --optimizer-args betas=0.9,0.99 --optimizer-args eps=1e-7 --weight-decay 0.02"
    options = [*arguments(epochs=1), *line.split(), "--lr-schedule", "cosine", "--out", tmp_path / "run"]
    code, _, stderr = command("train", *options)
    assert code == 0, stderr
    (group,) = checkpoint.load(tmp_path / "run" / "last.pt")["optimizer"]["param_groups"]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.99), 1e-7, 0.02)
    code, _, _ = command("train", "--resume", tmp_path / "run", "--epochs", 2, "--lr", "0.01")
    assert code == 0
    code, _, stderr = command("train", "--resume", tmp_path / "run", "--epochs", 3, "--optimizer", "adam")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "optimizer is 'adam', but this run was started with 'adamw'; --resume can change epochs, lr" in stderr


def test_what_the_fused_step_has_not_is_done_layer_by_layer(tmp_path: Path) -> None:
    said: list[str] = []

    class Listener(fastsnn.Monitor):
        def message(self, text: str) -> None:
            said.append(text)

    for options, reason in (
        ({"optimizer": "adamw"}, "optimizer is AdamW"),
        ({"clip_grad_norm": 1.0}, "clip_grad_norm is 1"),
        ({"weight_decay": 0.1}, "weight_decay is 0.1"),
    ):
        run = tmp_path / str(len(said))
        history = fastsnn.train(small(run, epochs=1, backend="numba", **options), monitor=Listener())
        assert history.step == "autograd"
        assert any(text.startswith("training layer by layer: ") and reason in text for text in said), said
        with pytest.raises(ValueError, match="step fused does not cover this run"):
            fastsnn.train(small(tmp_path / "fused", epochs=1, backend="numba", step="fused", **options))
