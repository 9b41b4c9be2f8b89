"""What the command line does with a run: train it, evaluate it, and load its network."""

import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsnn import backends, notices, settings
from fastsnn.checkpoint import file_of
from fastsnn.config import Config
from fastsnn.errors import RunFolderError
from fastsnn.initial_weights import samples_to_look_at
from fastsnn.monitor import EpochMetrics, Monitor
from fastsnn.networks import network_of
from fastsnn.option_values import assignment
from fastsnn.sources import Source, names, open_source
from fastsnn.training.autograd_step import time_steps
from fastsnn.training.epoch_results import EpochResults
from fastsnn.training.loop import EVALUATION_BATCH, History, TrainingLoop, backend_of
from fastsnn.training.machine import (
    choose_device,
    compilation_announced,
    cores,
    memory_explained,
    settings_kept,
    use_threads,
)
from fastsnn.training.optimizer import check_optimizer
from fastsnn.training.process_group import ProcessGroup
from fastsnn.training.readouts import SPIKING, objective_for
from fastsnn.training.run_folder import Run
from fastsnn.training.setup import Setup
from fastsnn.training.splits import first_samples, split_source
from fastsnn.training.step import mean


def train(config: Config | None = None, *, resume: Path | None = None, monitor: Monitor | None = None) -> History:
    """Train as ``config`` says (or go on with the run folder ``resume``) and return each epoch's metrics.

    Everything is saved under the run folder; nothing is printed. Raises ValueError or TypeError for options that don't
    fit together and a FastSNNError for what the machine, the data or the run folder refuses.
    """
    told = notices.told_to(monitor)
    monitor = monitor or Monitor()
    group = ProcessGroup.from_environment()
    options, run = config or Config(), None
    if resume:
        run = Run.reopen(resume, config, writable=group.leader)
        assert isinstance(run.config, Config)
        options = run.config
    elif options.out or options.name:
        run = Run.create(options, options.dataset, group.leader)
    with ExitStack() as stack:
        for context in (told, run or nullcontext(), settings_kept(), compilation_announced(monitor)):
            stack.enter_context(context)
        stack.callback(group.leave)
        check_optimizer(options)  # before kernels are compiled and data are downloaded
        device = choose_device(options, monitor, group)
        backend = backends.resolve(options.backend, device).name
        source = source_of(options, monitor)
        dataset = source.name if source.name in names() else options.dataset
        # A folder that nobody named is called after the data that were found.
        run = run or stack.enter_context(Run.create(options, dataset, group.leader))
        network = build_network(options, source, backend)
        chosen = {"dataset": dataset, "backend": backend}
        return TrainingLoop(run, network, source, device, monitor, group, chosen).run_epochs()


def evaluate(
    run: Path,
    *,
    T: int | None = None,
    backend: str | None = None,
    device: str | None = None,
    data_dir: Path | None = None,
    checkpoint: str = "last",
) -> dict[str, Any]:
    """Loss and accuracy of a run's checkpoint on its test set; by default computed as in training.

    With another device and no backend named, the backend is the fastest there. The keys of the result are run, epoch
    and steps (epochs done, and optimizer steps of the next one), T, test_loss, test_accuracy (0 to 1), test_seconds,
    backend, step, device.

    Args:
        run: run folder of `fastsnn train`.
        T: time steps per sample; default the run's.
        backend: default the run's.
        device: default the run's.
        data_dir: folder of the data sets; default the run's.
        checkpoint: last or best.
    """
    settings.say()
    with settings_kept():
        opened = TrainedRun.open(run, T=T, backend=backend, device=device, data_dir=data_dir, checkpoint=checkpoint)
        setup = opened.setup
        test = split_source(setup.source, opened.config.validation, opened.config.seed).test
        if test is None:
            raise ValueError(f"{setup.source.name} has no test set; allowed: data with one")
        started = time.perf_counter()
        with memory_explained(opened.device, "free some, or use another --device"):
            loss, accuracy = mean(setup.step.evaluate(test.split, test.ids.to(opened.device), EVALUATION_BATCH))
        return {
            "run": str(run),
            "epoch": len(opened.history),
            "steps": opened.results.steps,
            "T": setup.T,
            "test_loss": loss,
            "test_accuracy": accuracy,
            "test_seconds": time.perf_counter() - started,
            "backend": backend_of(setup.network, opened.device),
            "step": setup.step.name,
            "device": str(opened.device),
        }


def load(run: Path | str, *, checkpoint: str = "last") -> nn.Module:
    """The network of a run with its trained weights, on the CPU and in evaluation mode.

    It maps x [T, B, *shape] to its output [T, B, classes]; ``net(fastsnn.poisson_encode(images, T))`` for images.

    Args:
        run: run folder of `fastsnn train`.
        checkpoint: whose weights, last or best.

    Raises:
        RunFolderError: the folder is none of a run, has no checkpoint, or its network was given to ``fastsnn.fit``.
    """
    with settings_kept():
        return TrainedRun.open(Path(run), device="cpu", checkpoint=checkpoint).setup.network.eval()


@dataclass
class TrainedRun:
    """A run with a checkpoint, opened to look at: its network with weights, its data and the step that evaluates."""

    config: Config
    device: torch.device
    setup: Setup
    history: list[EpochMetrics]
    results: EpochResults

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        T: int | None = None,
        backend: str | None = None,
        device: str | None = None,
        data_dir: Path | None = None,
        checkpoint: str = "last",
    ) -> "TrainedRun":
        """Open it, on another device or backend if one is named; on another device the backend is the fastest there."""
        opened = Run.reopen(path, name=file_of(checkpoint), writable=False)
        if (state := opened.checkpoint) is None:
            raise RunFolderError(f"{path} has no checkpoint yet: it has no last.pt")
        assert isinstance(opened.config, Config)
        config = _moved(opened.config, T, backend, device, data_dir)
        chosen = choose_device(config, Monitor(), ProcessGroup())
        name = backends.resolve(config.backend, chosen).name
        use_threads(config.threads, name, resumed=True)
        source = source_of(config, Monitor())
        network = build_network(config, source, name)
        with memory_explained(chosen, "free some, or use another --device"):
            setup = Setup(network, source, config, chosen, Monitor(), ProcessGroup(), trains=False)
            setup.restore(state, Path(path))
            setup.choose_step()
        history = [EpochMetrics(**row) for row in state["history"]]
        return cls(config, chosen, setup, history, EpochResults.from_state(state["progress"]))


def _moved(config: Config, T: int | None, backend: str | None, device: str | None, data_dir: Path | None) -> Config:
    """The options of a run, as they are on another machine."""
    changes: dict[str, Any] = {"threads": min(config.threads or 1, cores())}
    if T is not None:
        changes["T"] = T
    if data_dir is not None:
        changes["data_dir"] = data_dir
    if device is not None:
        changes |= {"device": device, "backend": "auto", "step": "auto"}
        changes |= {} if device.startswith("cuda") else {"amp": "off"}
    if backend is not None:
        changes |= {"backend": backend, "step": "auto"}
    return replace(config, **changes)


def source_of(config: Config, monitor: Monitor) -> Source:
    """The data that ``config`` names; a notice says if digits had to take MNIST's place."""
    given = dict(assignment(text) for text in config.dataset_args)
    source = open_source(config.dataset, config.data_dir, config.T, config.encoder, say=monitor.message, **given)
    if note := getattr(source, "note", ""):
        notices.say_once(note)
    return first_samples(source, config.train_samples, config.test_samples)


def build_network(config: Config, source: Source, backend: str) -> nn.Module:
    """The network that ``config`` names, for the data; initial weights depend on the seed and the data alone."""
    objective = objective_for(config.readout, config.loss, source.per_step)
    inputs = None
    if (config.hidden or config.net) and source.size("train"):
        T = time_steps(source, config.T)
        ids = torch.arange(min(samples_to_look_at(source.shape, T), source.size("train")))
        inputs = source.batch("train", ids, T, seed=config.seed).x
    return network_of(
        config,
        source.shape,
        source.classes,
        backend,
        seed=config.seed,
        spiking_output=objective.readout in SPIKING,
        inputs=inputs,
    )
