"""Training a network of LIF neurons: read :func:`train` from top to bottom."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import torch
from torch import Tensor, nn

from fastsnn import backends, data, devices, notices, runs, settings
from fastsnn.config import Config
from fastsnn.distributed import Group
from fastsnn.errors import FastSNNError, Interrupted, RunFolderError, TrainingDiverged
from fastsnn.kernels.numba import before_compiling
from fastsnn.layers import LinearLIF
from fastsnn.monitor import EpochMetrics, Monitor
from fastsnn.progress import Progress, mean_over_samples
from fastsnn.runs import Run
from fastsnn.steps import AutogradStep
from fastsnn.text import shell

EVALUATION_BATCH = 200
"""Samples per evaluation batch; a constant, so that an accuracy does not depend on the training batch."""


@dataclass(frozen=True)
class History:
    """What :func:`train` returns."""

    run: Path
    """The run folder."""
    backend: str
    """The backend that ran."""
    step: str
    """fused or autograd."""
    device: str
    """cpu or cuda:N."""
    epochs: list[EpochMetrics] = field(default_factory=list)
    """A line of metrics.csv for each epoch: losses, accuracies from 0 to 1, seconds, images per second."""


def train(config: Config | None = None, *, resume: Path | None = None, monitor: Monitor | None = None) -> History:
    """Train as ``config`` says (or go on with the run folder ``resume``) and return each epoch's metrics.

    Everything is saved under the run folder; nothing is printed. Raises ValueError or TypeError for options that don't
    fit together and a FastSNNError for what the machine, the data or the run folder refuses.
    """
    told = notices.told_to(monitor)
    monitor = monitor or Monitor()
    group = Group.from_environment()
    run = Run.reopen(resume, config, writable=group.leader) if resume else Run.create(config or Config(), group.leader)
    compiling = "compiling the CPU kernels: once on this machine, in less than a minute"
    with told, run, _settings_kept(), before_compiling(lambda: monitor.message(compiling)):
        settings.say()
        try:
            return _Trainer(run, monitor, group).run_epochs()
        finally:
            group.leave()


def evaluate(
    run: Path, *, backend: str | None = None, device: str | None = None, data_dir: Path | None = None
) -> dict[str, Any]:
    """Loss and accuracy of a run's last checkpoint on its test set; by default computed as in training.

    With another device and no backend named, the backend is the fastest there. The keys of the result are run, epoch
    and steps (epochs done, and optimizer steps of the next one), test_loss, test_accuracy (0 to 1), test_seconds,
    backend, step, device.
    """
    settings.say()
    with Run.reopen(run, writable=False) as opened, _settings_kept():
        if opened.checkpoint is None:
            raise RunFolderError(f"{run} has no checkpoint yet: it has no last.pt")
        config = opened.config
        changes: dict[str, Any] = {"threads": min(config.threads or 1, cores())}
        if data_dir is not None:
            changes["data_dir"] = data_dir
        if device is not None:
            changes |= {"device": device, "backend": "auto", "step": "auto"}
            changes |= {} if device.startswith("cuda") else {"amp": "off"}
        if backend is not None:
            changes |= {"backend": backend, "step": "auto"}
        opened.config = replace(config, **changes)
        trainer = _Trainer(opened, Monitor(), Group(), training=False)
        with _memory_explained(trainer.device, "free some, or use another --device"):
            loss, accuracy, seconds = trainer.test()
        return {
            "run": str(run),
            "epoch": len(trainer.history),
            "steps": trainer.progress.steps,
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


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(threads: int | None, backend: str, resumed: bool = False) -> int:
    """Compute on ``threads`` CPU threads (default all cores) and return how many that is."""
    available = cores()
    if threads is None or (resumed and backend == "numba" and threads > available):
        # Numba's results don't depend on the number of threads, so its runs go on anywhere.
        threads = available
    if threads > available:
        raise ValueError(f"threads is {threads}; allowed: 1 to {available}, the cores of this machine")
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    return threads


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Give the caller back the settings that a run changes for the whole process."""
    threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        numba.set_num_threads(numba_threads)
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic)  # imports torch's compiler, even to change nothing


class _Trainer:
    """One run's network, optimizer and data on its device, and the loop over them."""

    def __init__(self, run: Run, monitor: Monitor, group: Group, training: bool = True) -> None:
        self.monitor, self.folder, self.config, self.group = monitor, run, run.config, group
        config = self.config
        self.device = devices.find(config.device)
        if group.size > 1 and self.device.type == "cuda":
            self.device = devices.find(f"cuda:{group.local_rank}")
        group.join(self.device)
        self.backend = backends.resolve(config.backend, self.device)
        self.threads = use_threads(config.threads, self.backend.name, run.checkpoint is not None)
        if config.deterministic and self.device.type == "cuda":
            # cuBLAS reads it when it is first used.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.data = data.load(config.dataset, config.data_dir, monitor.message)
        self.data = self.data.first(config.train_samples, config.test_samples)
        if self.data.note:
            monitor.message(self.data.note)
        self.data = self.data.to(self.device)
        pixels = self.data.train_images.shape[1]
        self.network = network_of(config, pixels, self.data.classes, self.backend.name).to(self.device)
        # torch takes a second to make an optimizer: it imports its compiler for that.
        self.optimizer = _optimizer(config, self.network) if training else None
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
        config, folder, done = self.config, self.folder, len(self.history)
        folder.start(self.environment(), self.history)
        sizes = [self.data.train_images.shape[1], *config.hidden, self.data.classes]
        self.monitor.message(
            f"{self.data.name}, {' -> '.join(map(str, sizes))} LIF neurons, T={config.T}: backend {self.backend.name}, "
            f"{self.step_name} step, on {self.device} ({self.threads} threads)"
        )
        if done < config.epochs:
            self.monitor.start(folder.path, len(self.data.train_images), config.epochs, done)
        else:
            self.monitor.message(f"all {done} epochs are done; a larger --epochs goes on")
        advice = f"lower --batch-size (now {config.batch_size}) or -T (now {config.T})"
        with _memory_explained(self.device, advice):
            train_data = self.step.prepare(self.data.train_images, self.data.train_labels)
            test_data = self.step.prepare(self.data.test_images, self.data.test_labels)
            while self.progress.epoch <= config.epochs:
                self._run_epoch(train_data, test_data)
        return History(folder.path, self.backend.name, self.step_name, str(self.device), self.history)

    def _run_epoch(self, train_data: Any, test_data: Any) -> None:
        """What is left of the current epoch, the test after it, and everything that is saved then."""
        self._train_epoch(train_data)
        samples, epoch, seconds = len(self.data.train_images), self.progress.epoch, self.progress.seconds
        train_result = self.progress.result(samples, self.config.batch_size)
        test_loss, test_accuracy, test_seconds = self.test(test_data)
        speed = samples / seconds
        metrics = EpochMetrics(epoch, *train_result, test_loss, test_accuracy, seconds, test_seconds, speed)
        self.history.append(metrics)
        self.progress = Progress(epoch + 1)
        best = metrics.test_accuracy >= max(row.test_accuracy for row in self.history)
        self.folder.save_epoch(self._state(), self.history, best)
        self.monitor.epoch(metrics)

    def _train_epoch(self, train_data: Any) -> None:
        """The steps of the current epoch that are left."""
        config, progress = self.config, self.progress
        samples, batch = len(self.data.train_images), config.batch_size
        order = permutation(config.seed, progress.epoch, samples).to(self.device)
        # So many fused steps take a few milliseconds; between calls progress is shown and a signal is answered.
        steps = (64 if self.device.type == "cuda" else 8) if self.step_name == "fused" else 1
        chunk = batch * steps
        position = min(progress.steps * batch, samples)
        started = time.perf_counter() - progress.seconds
        shown = time.perf_counter()
        while True:
            progress.seconds = time.perf_counter() - started
            if stop_signal := self.group.highest(self.monitor.stop_signal or 0, self.device):
                self._stop(stop_signal, position)
            if position == samples:
                return
            ids = order[position : position + chunk]
            progress.add(*self.step.train(train_data, ids, progress.epoch, batch))
            position += len(ids)
            if self.device.type == "cpu" or position == samples or time.perf_counter() - shown > 0.5:
                shown = time.perf_counter()
                self._collect()
                loss, accuracy = progress.loss_sum / progress.steps, progress.correct_sum / position
                self.monitor.batches(progress.epoch, position, loss, accuracy)

    def test(self, test_data: Any = None) -> tuple[float, float, float]:
        """Loss and accuracy on the test set, and the seconds they took."""
        if test_data is None:
            test_data = self.step.prepare(self.data.test_images, self.data.test_labels)
        started = time.perf_counter()
        losses, correct = self.step.evaluate(test_data, EVALUATION_BATCH)
        loss, accuracy = mean_over_samples(losses, correct, len(self.data.test_images), EVALUATION_BATCH)
        return loss, accuracy, time.perf_counter() - started

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
        if self.optimizer is not None:
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        if self.scaler is not None and checkpoint["scaler"] is not None:
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.progress = Progress.from_state(checkpoint["progress"])
        self.history = [EpochMetrics(**row) for row in checkpoint["history"]]

    def _state(self) -> dict[str, Any]:
        assert self.optimizer is not None
        self.step.sync()
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "progress": self.progress.state(),
        }

    def _stop(self, stop_signal: int, position: int) -> None:
        self._collect()
        self.folder.save(self._state(), self.history)
        raise Interrupted(
            f"stopped in epoch {self.progress.epoch} after {position:,} images and saved; go on with: "
            f"fastsnn train --resume {shell(str(self.folder.path))}",
            stop_signal,
        )

    def _collect(self) -> None:
        """Fetch the last steps' losses; raises TrainingDiverged where they or the weights are NaN or infinite.

        A spike is 0 or 1 even from a NaN, so a network that diverged keeps a finite loss: its weights tell.
        """
        losses = self.progress.collect()
        self.step.sync()
        finite = losses.isfinite()
        if finite.all() and all(bool(parameter.isfinite().all()) for parameter in self.network.parameters()):
            return
        what, step = "weights", self.progress.steps
        if not finite.all():
            what, step = "loss", step - len(losses) + int(finite.logical_not().nonzero()[0]) + 1
        kept = self.folder.path / "last.pt"
        raise TrainingDiverged(
            f"the {what} became NaN or infinite in epoch {self.progress.epoch}, step {step}: lower --lr (now "
            f"{self.config.lr})" + (f"; the last good checkpoint is kept in {kept}" if kept.exists() else "")
        )


_OUT_OF_MEMORY = "out of memory", "allocate memory", "bad_alloc", "ALLOC_FAILED"
"""Parts of messages: torch's allocator on the CPU, C++ and the CUDA libraries all raise a plain RuntimeError."""


@contextmanager
def _memory_explained(device: torch.device, advice: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(part in str(error) for part in _OUT_OF_MEMORY):
            raise
        raise FastSNNError(f"{device} ran out of memory: {advice}") from error


def _optimizer(config: Config, network: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=config.lr)
    return torch.optim.SGD(network.parameters(), lr=config.lr, momentum=config.momentum)
