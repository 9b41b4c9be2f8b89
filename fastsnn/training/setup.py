"""What a step needs, made from a network, a source and options: objective, optimizer, scaler, and which step it is."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsnn.config import FitConfig
from fastsnn.monitor import Monitor
from fastsnn.networks import Layers, accepted_input
from fastsnn.sources import Source
from fastsnn.training import run_folder
from fastsnn.training.autograd_step import AutogradStep, time_steps
from fastsnn.training.fused_step import FusedStep, fused_refusal, single_layer
from fastsnn.training.optimizer import make_optimizer
from fastsnn.training.process_group import ProcessGroup
from fastsnn.training.readouts import objective_for
from fastsnn.training.step import Step


class Setup:
    """A network and a source on their device, with all that trains the one on the other.

    Raises ValueError if T, readout, network or optimizer don't fit. Without ``trains`` there is no optimizer.
    """

    step: Step

    def __init__(
        self,
        network: nn.Module,
        source: Source,
        config: FitConfig,
        device: torch.device,
        monitor: Monitor,
        group: ProcessGroup,
        trains: bool = True,
    ) -> None:
        self.monitor, self.group, self.device = monitor, group, device
        self.config, self.T = config, time_steps(source, config.T)
        self.objective = objective_for(config.readout, config.loss, source.per_step)
        self.source, self.network = source.to(device), network.to(device)
        check_network(self.network, self.source, self.T)
        # torch takes a second to make an optimizer: it imports its compiler for that.
        self.optimizer = make_optimizer(config, network.parameters()) if trains else None
        self.scaler = torch.amp.GradScaler(device.type) if config.amp == "fp16" else None
        self.layered = AutogradStep(
            self.network, self.source, self.optimizer, self.config, self.objective, self.scaler, group, self.T
        )

    def choose_step(self) -> None:
        """The fused whole step if it covers this run, else the step under autograd; the option ``step`` may insist."""
        config = self.config
        refusal = fused_refusal(
            self.network, self.source, self.optimizer, config, self.objective, self.T, self.device, self.group.size
        )
        if config.step == "fused" and refusal:
            raise ValueError(f"step fused does not cover this run: {refusal}; use --step auto")
        if config.step == "autograd" or refusal:
            if config.step == "auto" and refusal and single_layer(self.network) and not refusal.startswith("backend"):
                self.monitor.message(f"training layer by layer: {refusal}")
            self.step = self.layered
        else:
            self.step = FusedStep(self.network, self.source, self.optimizer, config, self.objective, self.T)

    def chosen(self) -> dict[str, Any]:
        """Options that were left open, as they were chosen."""
        return {"T": self.T, "step": self.step.name, "readout": self.objective.readout, "loss": self.objective.loss}

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Load a checkpoint; raises RunFolderError if it is of another network."""
        run_folder.load_state(self.network, state["model"], path)
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of network and optimizer."""
        assert self.optimizer is not None
        self.step.sync()
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }


@torch.no_grad()
def check_network(network: nn.Module, source: Source, T: int) -> None:
    """Run one sample through the network; raises ValueError, in one line, if its shape or its output's don't fit."""
    split = next((name for name in ("train", "validation", "test") if source.size(name)), None)
    if split is None:
        raise ValueError(f"{source.name} has no samples; allowed: 1 or more")
    layer = single_layer(network)
    takes_it = len(source.shape) == 1 or (isinstance(network, Layers) and network.flat)
    if layer and takes_it and (layer.in_features, layer.out_features) == (math.prod(source.shape), source.classes):
        return  # without compiling kernels that the fused step doesn't need
    batch = source.batch(split, torch.zeros(1, dtype=torch.int64), 1 if source.T is None else T)
    training = network.training
    network.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            output = network(accepted_input(network, batch.x))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the network does not take x of shape [T, B, {_shape(source)}]: {reason}") from error
    finally:
        network.train(training)
    shape = [output.T, *output.words.shape[1:]] if hasattr(output, "words") else list(getattr(output, "shape", []))
    steps = 1 if source.T is None else T
    if shape != [steps, 1, source.classes]:
        found = shape or type(output).__name__
        raise ValueError(
            f"the network's output for one sample at {steps} time steps has shape {found}; allowed: [{steps}, 1, "
            f"{source.classes}], time steps, samples and classes of {source.name}"
        )


def _shape(source: Source) -> str:
    return ", ".join(map(str, source.shape))
