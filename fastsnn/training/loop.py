"""Training any network on any source: read :func:`fit` and :class:`TrainingLoop` from top to bottom."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsnn import backends, checkpoint, notices, versions
from fastsnn.config import FitConfig
from fastsnn.errors import Interrupted, TrainingDiverged
from fastsnn.monitor import EpochMetrics, Monitor, Monitors, best_epoch
from fastsnn.networks import Layers
from fastsnn.sources import Source
from fastsnn.text import shell
from fastsnn.training import run_folder
from fastsnn.training.epoch_results import EpochResults
from fastsnn.training.firing_rates import diagnosis, layer_names
from fastsnn.training.learning_rate import learning_rate
from fastsnn.training.machine import (
    be_deterministic,
    choose_device,
    compilation_announced,
    memory_explained,
    settings_kept,
    use_threads,
)
from fastsnn.training.process_group import ProcessGroup
from fastsnn.training.run_folder import Run
from fastsnn.training.setup import Setup
from fastsnn.training.splits import Part, permutation, split_source
from fastsnn.training.step import mean

EVALUATION_BATCH = 200
"""Samples per evaluation batch; a constant, so that an accuracy does not depend on the training batch."""
RATE_SAMPLES = 32
"""Samples that firing rates are measured on: few, for layer by layer they take longer than the fused step."""
SHOWN_EVERY = 0.5
"""Seconds between two looks at the losses on a GPU, each of which waits for it."""


@dataclass(frozen=True)
class History:
    """What :func:`fit` and :func:`fastsnn.train` return."""

    run: Path
    """The run folder."""
    dataset: str
    """The data that it was trained on: digits where ``auto`` could not have MNIST."""
    backend: str
    """The backend that ran."""
    step: str
    """fused or autograd."""
    device: str
    """cpu or cuda:N."""
    epochs: list[EpochMetrics] = field(default_factory=list)
    """A line of metrics.csv for each epoch: losses, accuracies from 0 to 1, seconds, samples per second."""

    @property
    def best(self) -> EpochMetrics:
        """The epoch that best.pt holds; with a validation set it was chosen there, and it alone was tested."""
        return best_epoch(self.epochs)


def fit(
    network: nn.Module,
    source: Source,
    config: FitConfig | None = None,
    *,
    callbacks: Sequence[Monitor] = (),
    resume: Path | str | None = None,
) -> History:
    """Train a network of one's own, in place, with the loop, checkpoints and metrics of ``fastsnn train``.

    Everything is saved under the run folder (``config.out``, default runs/NAME-TIME); nothing is printed.

    Args:
        network: any module from x [T, B, *source.shape] to its output [T, B, source.classes]: spikes, or with a
            ``config.readout`` other than rate membrane potentials. It is moved to the device and ends with the weights
            of the last epoch. Modules with a ``reset`` method, as SpikingJelly's neurons, are reset before each batch.
        source: the data; see ``fastsnn.sources``.
        config: default ``FitConfig()``, or the one that the run to ``resume`` was started with.
        callbacks: are told what happens, and may stop training.
        resume: the folder of an earlier call to go on with, with a network and a source like those that it was given.

    Returns:
        The metrics of each epoch.

    Raises:
        ValueError, TypeError: options, data or network that don't fit together.
        FastSNNError: what the machine or the run folder refuses.
        Interrupted: a callback asked for a stop; the run is saved.
    """
    monitor = Monitors(callbacks)
    group = ProcessGroup.from_environment()
    if resume is not None:
        run = Run.reopen(Path(resume), config, kind=FitConfig, writable=group.leader)
    else:
        run = Run.create(config or FitConfig(), source.name, group.leader)
    run.given = {"network": type(network).__name__, "source": source.name}
    with notices.told_to(monitor if callbacks else None), run, settings_kept(), compilation_announced(monitor):
        try:
            device = choose_device(run.config, monitor, group)
            return TrainingLoop(run, network, source, device, monitor, group).run_epochs()
        finally:
            group.leave()


class TrainingLoop:
    """One run: a network and a source on their device, and the loop over epochs."""

    def __init__(
        self,
        run: Run,
        network: nn.Module,
        source: Source,
        device: torch.device,
        monitor: Monitor,
        group: ProcessGroup,
        chosen: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.monitor, self.device, self.group = run, monitor, device, group
        config = run.config
        self.backend = backend_of(network, device)
        threads = use_threads(config.threads, self.backend, run.checkpoint is not None)
        if config.deterministic:
            be_deterministic(device)
        with memory_explained(device, f"lower --batch-size (now {config.batch_size}) or -T"):
            self.setup = Setup(network, source, config, device, monitor, group)
        self.parts = split_source(source, config.validation, config.seed)
        self.results = EpochResults()
        self.history: list[EpochMetrics] = []
        if run.checkpoint is not None:
            self._restore(run.checkpoint)
        self.setup.choose_step()
        # What was chosen is what is recorded, so that a resumed run computes the same thing.
        found = {"device": str(device), "threads": threads, **self.setup.chosen(), **(chosen or {})}
        self.config = run.config = replace(self.setup.config, **found)

    def run_epochs(self) -> History:
        """Train the epochs that are left; save after each."""
        config, folder, done, setup = self.config, self.folder, len(self.history), self.setup
        folder.start(self._environment(), self.history)
        self.monitor.message(
            f"{setup.source.name}, {describe(setup.network)}, T={config.T}: backend {self.backend}, {setup.step.name} "
            f"step, on {self.device} ({config.threads} threads)"
        )
        if done < config.epochs:
            self.monitor.start(folder.path, setup.source.name, len(self.parts.train), config.epochs, done)
        else:
            self.monitor.message(f"all {done} epochs are done; a larger --epochs goes on")
        advice = f"lower --batch-size (now {config.batch_size}) or -T (now {config.T})"
        with memory_explained(self.device, advice):
            while self.results.epoch <= config.epochs:
                self._run_epoch()
            self._test_best()
        return History(folder.path, setup.source.name, self.backend, setup.step.name, str(self.device), self.history)

    def _run_epoch(self) -> None:
        """What is left of the current epoch, the evaluation after it, and everything that is saved then."""
        self._train_epoch()
        epoch, seconds = self.results.epoch, self.results.seconds
        part = self.parts.held_out
        loss, accuracy, evaluation_seconds = self.evaluate(part)
        rates = self._firing_rates(part)
        metrics = EpochMetrics(
            epoch, *self.results.result(), loss, accuracy, seconds, evaluation_seconds, len(self.parts.train) / seconds,
            firing_rates=rates,
        )  # fmt: skip
        if self.parts.validation is not None:
            metrics = replace(
                metrics, test_loss=None, test_accuracy=None, validation_loss=loss, validation_accuracy=accuracy
            )
        earlier = [row.firing_rates for row in self.history]
        self.history.append(metrics)
        self.results = EpochResults(epoch + 1)
        self.folder.save_epoch(self._state(), self.history, best_epoch(self.history) is metrics)
        self.monitor.epoch(metrics)
        for line in diagnosis(layer_names(self.setup.network), earlier, rates):
            self.monitor.message(line)

    def _train_epoch(self) -> None:
        """The steps of the current epoch that are left."""
        config, results, step = self.config, self.results, self.setup.step
        samples, batch = len(self.parts.train), config.batch_size
        order = self.parts.train.ids[permutation(config.seed, results.epoch, samples)].to(self.device)
        steps_per_epoch = -(-samples // batch)
        position = min(results.steps * batch, samples)
        started = shown = time.perf_counter()
        started -= results.seconds
        while True:
            results.seconds = time.perf_counter() - started
            self.group.signal = self.monitor.stop_signal or 0
            if stop_signal := self.group.agreed_signal():
                self._stop(stop_signal, position)
            if position == samples:
                return
            ids = order[position : position + batch * step.batches_per_call]
            first = (results.epoch - 1) * steps_per_epoch + results.steps
            rates = [learning_rate(config, first + i, steps_per_epoch) for i in range(-(-len(ids) // batch))]
            results.add(step.train(ids, results.epoch, batch, rates))
            position += len(ids)
            if self.device.type == "cpu" or position == samples or time.perf_counter() - shown > SHOWN_EVERY:
                shown = time.perf_counter()
                self._collect()
                accuracy = results.correct_sum / max(1, results.counted_sum)
                self.monitor.batches(results.epoch, position, results.loss_sum / results.steps, accuracy)

    def evaluate(self, part: Part) -> tuple[float, float, float]:
        """Loss and accuracy on some samples, and the seconds they took."""
        started = time.perf_counter()
        loss, accuracy = mean(self.setup.step.evaluate(part.split, part.ids.to(self.device), EVALUATION_BATCH))
        return loss, accuracy, time.perf_counter() - started

    def _firing_rates(self, part: Part) -> tuple[float, ...]:
        """Mean rate of every layer over the first samples of ``part``."""
        if not layer_names(self.setup.network):
            return ()
        self.setup.step.sync()
        ids = part.ids[:RATE_SAMPLES].to(self.device)
        _, rates = self.setup.layered.outputs(part.split, ids, RATE_SAMPLES)
        return tuple(rates.tolist())

    def _test_best(self) -> None:
        """With a validation set the test set is used once: for the epoch that was chosen, after the last one."""
        best, test = best_epoch(self.history), self.parts.test
        if self.parts.validation is None or test is None or best.test_loss is not None:
            return
        self.setup.step.sync()
        last = {name: tensor.clone() for name, tensor in self.setup.network.state_dict().items()}
        path = self.folder.path / "best.pt"
        run_folder.load_state(self.setup.network, checkpoint.load(path)["model"], path)
        loss, accuracy, _ = self.evaluate(test)
        self.setup.network.load_state_dict(last)
        tested = replace(best, test_loss=loss, test_accuracy=accuracy)
        self.history[self.history.index(best)] = tested
        self.folder.save_test(self._state(), self.history, tested)
        self.monitor.tested(tested)

    def _environment(self) -> dict[str, Any]:
        """What the bits of a run depend on besides its options."""
        cuda = self.device.type == "cuda"
        device = torch.cuda.get_device_name(self.device) if cuda else versions.cpu_name()
        return {"device_name": device} | versions.versions()

    def _restore(self, state: dict[str, Any]) -> None:
        self.setup.restore(state, self.folder.path)
        self.results = EpochResults.from_state(state["progress"])
        self.history = [EpochMetrics(**row) for row in state["history"]]

    def _state(self) -> dict[str, Any]:
        return self.setup.state() | {"progress": self.results.state()}

    def _stop(self, stop_signal: int, position: int) -> None:
        self._collect()
        self.folder.save(self._state(), self.history)
        path = shell(str(self.folder.path))
        command = f"fastsnn train --resume {path}"
        if self.folder.given is not None:
            command = f"fastsnn.fit(network, source, resume={str(self.folder.path)!r})"
        raise Interrupted(
            f"stopped in epoch {self.results.epoch} after {position:,} samples and saved; go on with: {command}",
            stop_signal,
        )

    def _collect(self) -> None:
        """Fetch the last steps' losses; raises TrainingDiverged if they or the weights are NaN or infinite.

        A spike is 0 or 1 even from a NaN, so a network that diverged keeps a finite loss: its weights tell.
        """
        losses = self.results.collect()
        self.setup.step.sync()
        finite = losses.isfinite()
        if finite.all() and all(bool(parameter.isfinite().all()) for parameter in self.setup.network.parameters()):
            return
        what, step = "weights", self.results.steps
        if not finite.all():
            what, step = "loss", step - len(losses) + int(finite.logical_not().nonzero()[0]) + 1
        kept = self.folder.path / "last.pt"
        raise TrainingDiverged(
            f"the {what} became NaN or infinite in epoch {self.results.epoch}, step {step}: lower --lr (now "
            f"{self.config.lr})" + (f"; the last good checkpoint is kept in {kept}" if kept.exists() else "")
        )


def backend_of(network: nn.Module, device: torch.device) -> str:
    """The backend of the network's neurons; torch if it has none of fastsnn's."""
    names = {str(module.backend) for module in network.modules() if isinstance(getattr(module, "backend", None), str)}
    return ", ".join(sorted(backends.resolve(name, device).name for name in names)) or "torch"


def describe(network: nn.Module) -> str:
    """A network in a few words: its own, else its class and number of parameters."""
    if isinstance(network, Layers) and network.description:
        return network.description
    count = sum(parameter.numel() for parameter in network.parameters())
    return f"{type(network).__name__} of {count:,} parameters"
