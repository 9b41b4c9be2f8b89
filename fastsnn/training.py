"""Training a network of LIF neurons: read :func:`train` from top to bottom."""

import math
import os
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import torch
from torch import Tensor, nn

from fastsnn import backends, data, runs
from fastsnn.config import Config
from fastsnn.distributed import Group
from fastsnn.errors import FastSNNError, Interrupted, RunFolderError, TrainingDiverged
from fastsnn.layers import LinearLIF
from fastsnn.monitor import EpochMetrics, Monitor
from fastsnn.runs import Run
from fastsnn.steps import AutogradStep

EVALUATION_BATCH = 200
"""Samples per evaluation batch; a constant, so that an accuracy does not depend on the training batch."""


@dataclass(frozen=True)
class History:
    """What :func:`train` returns."""

    run: Path
    backend: str
    step: str
    device: str
    epochs: list[EpochMetrics] = field(default_factory=list)


@dataclass
class Progress:
    """Where training stands: the next epoch and, within it, the losses and correct answers of the steps done."""

    epoch: int = 1
    losses: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "losses": torch.cat(self.losses).cpu() if self.losses else torch.zeros(0),
            "correct": torch.cat(self.correct).cpu() if self.correct else torch.zeros(0, dtype=torch.int64),
            "seconds": self.seconds,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Progress":
        return cls(state["epoch"], [state["losses"]], [state["correct"]], state["seconds"])

    def steps(self) -> int:
        return sum(len(losses) for losses in self.losses)


def train(config: Config | None = None, *, resume: Path | None = None, monitor: Monitor | None = None) -> History:
    """Train as ``config`` says (or go on with the run folder ``resume``) and return each epoch's metrics.

    Everything is saved under the run folder; nothing is printed. Raises ValueError or TypeError for options that don't
    fit together and a FastSNNError for what the machine, the data or the run folder refuses.
    """
    monitor = monitor or Monitor()
    group = Group.from_environment()
    run = Run.reopen(resume, config, writable=group.leader) if resume else Run.create(config or Config(), group.leader)
    with run:
        trainer = _Trainer(run, monitor, group)
        try:
            return trainer.run_epochs()
        finally:
            group.leave()


def evaluate(
    run: Path, *, backend: str | None = None, device: str | None = None, data_dir: Path | None = None
) -> dict[str, Any]:
    """Loss and accuracy of a run's last checkpoint on its test set; by default computed as in training.

    The keys of the result are run, epoch, test_loss, test_accuracy (0 to 1), test_seconds, backend, step, device.
    """
    with Run.reopen(run, writable=False) as opened:
        if opened.checkpoint is None:
            raise RunFolderError(f"{run} has no checkpoint yet: it has no last.pt")
        changes: dict[str, Any] = {"step": "auto"} if backend else {}
        for name, value in (("backend", backend), ("device", device), ("data_dir", data_dir)):
            if value is not None:
                changes[name] = value
        opened.config = replace(opened.config, **changes)
        trainer = _Trainer(opened, Monitor(), Group())
        loss, accuracy, seconds = trainer.test()
        return {
            "run": str(run),
            "epoch": len(trainer.history),
            "test_loss": loss,
            "test_accuracy": accuracy,
            "test_seconds": seconds,
            "backend": trainer.backend.name,
            "step": trainer.step_name,
            "device": str(trainer.device),
        }


def network_of(config: Config, pixels: int, classes: int, backend: str) -> nn.Sequential:
    """Linear+LIF layers pixels -> hidden... -> classes, with initial weights drawn on the CPU from the seed."""
    sizes = [pixels, *config.hidden, classes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        layers = [LinearLIF(K, N, config.bias, config.neuron, backend) for K, N in pairwise(sizes)]
    return nn.Sequential(*layers)


def permutation(seed: int, epoch: int, samples: int) -> Tensor:
    """The order of an epoch's samples, int64 [samples]; the same on every machine."""
    generator = torch.Generator().manual_seed((seed + epoch * 0x9E3779B97F4A7C15) % 2**63)
    return torch.randperm(samples, generator=generator)


def use_threads(threads: int | None) -> int:
    """Compute on ``threads`` CPU threads (default all cores) and return how many that is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads is not None and threads > cores:
        raise ValueError(f"threads is {threads}; allowed: 1 to {cores}, the cores of this machine")
    torch.set_num_threads(threads or cores)
    return threads or cores


class _Trainer:
    """One run's network, optimizer and data on its device, and the loop over them."""

    def __init__(self, run: Run, monitor: Monitor, group: Group) -> None:
        self.monitor, self.folder, self.config, self.group = monitor, run, run.config, group
        config = self.config
        self.threads = use_threads(config.threads)
        self.device = backends.choose_device() if config.device == "auto" else torch.device(config.device)
        if group.size > 1 and self.device.type == "cuda":
            self.device = torch.device("cuda", group.local_rank)
        group.join(self.device)
        self.backend = backends.resolve(config.backend, self.device)
        if self.backend.name == "numba":
            numba.set_num_threads(self.threads)
        self.data = data.load(config.dataset, config.data_dir).first(config.train_samples, config.test_samples)
        if self.data.note:
            monitor.message(self.data.note)
        self.data = self.data.to(self.device)
        pixels = self.data.train_images.shape[1]
        self.network = network_of(config, pixels, self.data.classes, self.backend.name).to(self.device)
        self.optimizer = _optimizer(config, self.network)
        self.scaler = torch.amp.GradScaler(self.device.type) if config.amp == "fp16" else None
        self.progress = Progress()
        self.history: list[EpochMetrics] = []
        self._check_amp()
        self._restore()
        self.step, self.step_name = self._build_step()
        # What was chosen is what is recorded, so that a resumed run computes the same thing.
        chosen = {"dataset": self.data.name, "backend": self.backend.name, "step": self.step_name}
        run.config = self.config = replace(config, device=str(self.device), threads=self.threads, **chosen)  # type: ignore[arg-type]

    def run_epochs(self) -> History:
        """Train the epochs that are left; save after each."""
        config, folder = self.config, self.folder
        folder.start(self.environment(), self.history)
        sizes = [self.data.train_images.shape[1], *config.hidden, self.data.classes]
        self.monitor.message(
            f"{self.data.name}, {' -> '.join(map(str, sizes))} LIF neurons, T={config.T}: backend {self.backend.name}, "
            f"{self.step_name} step, on {self.device} ({self.threads} threads)"
        )
        self.monitor.start(folder.path, len(self.data.train_images), config.epochs, len(self.history))
        train_data = self.step.prepare(self.data.train_images, self.data.train_labels)
        test_data = self.step.prepare(self.data.test_images, self.data.test_labels)
        while self.progress.epoch <= config.epochs:
            train_loss, train_accuracy = self._train_epoch(train_data)
            seconds = self.progress.seconds
            test_loss, test_accuracy, test_seconds = self.test(test_data)
            metrics = EpochMetrics(
                self.progress.epoch,
                train_loss,
                train_accuracy,
                test_loss,
                test_accuracy,
                seconds,
                test_seconds,
                len(self.data.train_images) / seconds,
            )
            self.history.append(metrics)
            self.progress = Progress(self.progress.epoch + 1)
            best = test_accuracy >= max(row.test_accuracy for row in self.history)
            folder.save_epoch(self._state(), self.history, best)
            self.monitor.epoch(metrics)
        return History(folder.path, self.backend.name, self.step_name, str(self.device), self.history)

    def _train_epoch(self, train_data: Any) -> tuple[float, float]:
        """The rest of the current epoch; returns its mean loss and accuracy over all its samples."""
        config, progress = self.config, self.progress
        samples, batch = len(self.data.train_images), config.batch_size
        order = permutation(config.seed, progress.epoch, samples).to(self.device)
        position = progress.steps() * batch
        # A few steps a call keep the fused steps busy; between calls progress is shown and a signal is answered.
        chunk = batch * (8 if self.step_name == "fused" else 1)
        shown, loss_sum, correct_sum, seen = time.perf_counter(), 0.0, 0, 0
        started = time.perf_counter() - progress.seconds
        while position < samples:
            ids = order[position : position + chunk]
            losses, correct = self._guarded(self.step.train, train_data, ids, progress.epoch, batch)
            progress.losses.append(losses)
            progress.correct.append(correct)
            position += len(ids)
            if self.device.type == "cpu" or position >= samples or time.perf_counter() - shown > 0.5:
                shown = time.perf_counter()
                progress.seconds = shown - started
                self._check_finite()
                new = progress.losses[seen:]
                loss_sum += math.fsum(float(part.sum()) for part in new)
                correct_sum += sum(int(part.sum()) for part in progress.correct[seen:])
                seen = len(progress.losses)
                steps = progress.steps()
                self.monitor.batches(progress.epoch, position, loss_sum / steps, correct_sum / position)
            stop_signal = self.group.highest(self.monitor.stop_signal or 0, self.device)
            if stop_signal and position < samples:
                self._stop(stop_signal, time.perf_counter() - started)
        progress.seconds = time.perf_counter() - started
        sizes = torch.full((progress.steps(),), batch, dtype=torch.float64)
        sizes[-1] = samples - (len(sizes) - 1) * batch
        losses, correct = (torch.cat([part.cpu() for part in parts]) for parts in (progress.losses, progress.correct))
        return float((losses.double() * sizes).sum() / samples), int(correct.sum()) / samples

    def test(self, test_data: Any = None) -> tuple[float, float, float]:
        """Loss and accuracy on the test set, and the seconds they took."""
        if test_data is None:
            test_data = self.step.prepare(self.data.test_images, self.data.test_labels)
        started = time.perf_counter()
        losses, correct = self._guarded(self.step.evaluate, test_data, EVALUATION_BATCH)
        samples = len(self.data.test_images)
        sizes = torch.full((len(losses),), EVALUATION_BATCH, dtype=torch.float64)
        sizes[-1] = samples - (len(losses) - 1) * EVALUATION_BATCH
        loss = float((losses.cpu().double() * sizes).sum() / samples)
        return loss, int(correct.sum()) / samples, time.perf_counter() - started

    def environment(self) -> dict[str, Any]:
        """What the bits of a run depend on besides its options."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else runs.cpu_name()
        return {"device_name": device} | runs.versions()

    def _build_step(self) -> tuple[Any, str]:
        """The fused whole step where it covers this run, else the step under autograd; ``step`` may insist."""
        config, module = self.config, self.backend.rate_step
        options: dict[str, Any] = {"T": config.T, "loss": config.loss} | config.neuron.options()
        reason = None
        if config.hidden:
            reason = f"hidden is {','.join(map(str, config.hidden))}, and the fused step trains one layer"
        elif config.amp != "off":
            reason = f"amp is {config.amp}, and the fused step computes in fp32"
        elif self.group.size > 1:
            reason = f"there are {self.group.size} processes, and the fused step trains in one"
        elif module is None:
            reason = f"backend is {self.backend.name}; backends with a fused step: numba, triton"
        else:
            reason = module.unsupported(
                classes=self.data.classes, pixels=self.data.train_images.shape[1], optimizer=self.optimizer, **options
            )
        if config.step == "fused" and reason:
            raise ValueError(f"step fused does not cover this run: {reason}; use --step auto")
        if config.step == "autograd" or reason:
            if reason and module is not None:
                self.monitor.message(f"training layer by layer: {reason}")
            step = AutogradStep(
                self.network,
                self.optimizer,
                T=config.T,
                seed=config.seed,
                loss=config.loss,
                amp=config.amp,
                scaler=self.scaler,
                group=self.group,
            )
            return step, "autograd"
        layer = self.network[0]
        assert module is not None
        assert isinstance(layer, LinearLIF)
        return module.RateStep(layer.weight, layer.bias, self.optimizer, seed=config.seed, **options), "fused"

    def _check_amp(self) -> None:
        if self.config.amp == "off":
            return
        if self.device.type != "cuda":
            raise ValueError(f"amp is {self.config.amp}; allowed: off on {self.device}, which gains nothing from it")
        if torch.cuda.get_device_capability(self.device) < (7, 0):
            name = torch.cuda.get_device_name(self.device)
            raise ValueError(
                f"amp is {self.config.amp}; allowed: off on {name}, whose half precision is slower than fp32"
            )

    def _restore(self) -> None:
        checkpoint = self.folder.checkpoint
        if checkpoint is None:
            return
        runs.load_state(self.network, checkpoint["model"], self.folder.path)
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if self.scaler is not None and checkpoint["scaler"] is not None:
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.progress = Progress.from_state(checkpoint["progress"])
        self.history = [EpochMetrics(**row) for row in checkpoint["history"]]

    def _state(self) -> dict[str, Any]:
        self.step.sync()
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "progress": self.progress.state(),
        }

    def _stop(self, stop_signal: int, seconds: float) -> None:
        self.progress.seconds = seconds
        self._check_finite()
        self.folder.save(self._state(), self.history)
        raise Interrupted(
            f"stopped in epoch {self.progress.epoch} and saved; go on with: fastsnn train --resume {self.folder.path}",
            stop_signal,
        )

    def _check_finite(self) -> None:
        losses = torch.cat([part.cpu() for part in self.progress.losses])
        if not (bad := (~losses.isfinite()).nonzero()).numel():
            return
        step = int(bad[0]) + 1
        raise TrainingDiverged(
            f"the loss became {float(losses[step - 1])} in epoch {self.progress.epoch}, step {step}; the last good "
            f"checkpoint is kept in {self.folder.path}: lower --lr (now {self.config.lr})"
        )

    def _guarded(self, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except torch.OutOfMemoryError as error:
            config = self.config
            raise FastSNNError(
                f"{self.device} ran out of memory: lower --batch-size (now {config.batch_size}) or -T (now {config.T})"
            ) from error


def _optimizer(config: Config, network: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=config.lr)
    return torch.optim.SGD(network.parameters(), lr=config.lr, momentum=config.momentum)
