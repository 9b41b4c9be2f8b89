"""One training step of a recipe, fastsnn's network and the same network as a loop over time, in turn on the CPU.

LIF neurons become SpikingJelly 14's layers in multi-step mode; adaptive and recurrent ones the loop of their papers'
public code, written small: torch's operators once a step. Both have the same weights, data, loss and optimizer and run
in the same training step (``fastsnn.training``); before anything is timed their outputs for a batch are compared.
"""

import copy
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import machine
from fastsnn import LI, LIF, AdLIF, LinearLIF, Recurrent, Spiking
from fastsnn.config import Config, options_from
from fastsnn.kernels.neurons import Neuron
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.monitor import Monitor
from fastsnn.options import read_yaml
from fastsnn.training.command import build_network, source_of
from fastsnn.training.machine import use_threads
from fastsnn.training.process_group import ProcessGroup
from fastsnn.training.setup import Setup

ROOT = Path(__file__).parents[1]
FILE = ROOT / "bench" / "results" / "recipes" / "peers.json"
ROUNDS, BATCHES = 5, 2


class Leaky(nn.Module):
    """A leaky read-out: [T, B, N] -> [T, B, N]."""

    def __init__(self, neuron: LI) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        v, potentials = torch.zeros_like(x[0]), []
        for current in x:
            v = (
                v + (current - v) / self.neuron.tau
                if self.neuron.decay_input
                else v * (1 - 1 / self.neuron.tau) + current
            )
            potentials.append(v)
        return torch.stack(potentials)


class AdaptiveLoop(nn.Module):
    """A layer of AdLIF neurons, recurrent or not, as the loop of sparch (Bittar and Garner 2022)."""

    def __init__(self, layer: Any, recurrent_weight: Tensor | None) -> None:
        super().__init__()
        from spikingjelly.activation_based import surrogate

        self.layer, self.recurrent_weight = layer, recurrent_weight
        self.spike = surrogate.ATan()

    def number(self, name: str) -> Tensor | float:
        """A parameter of the neurons, learnt or fixed."""
        value: Tensor | float = getattr(self.layer, name, getattr(self.layer.neuron, name))
        return value

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(x, self.layer.weight, self.layer.bias)
        alpha, beta = (torch.exp(-1 / torch.as_tensor(self.number(name))) for name in ("tau", "tau_w"))
        a, b, threshold = self.number("a"), self.number("b"), self.layer.neuron.v_threshold
        v, w, s, spikes = torch.zeros_like(x[0]), torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
        for current in x:
            if self.recurrent_weight is not None:
                current = current + s @ self.recurrent_weight.T
            h = v * alpha + (current - w) * (1 - alpha)
            s = self.spike(h - threshold)
            v, w = h - s * threshold, w * beta + h * a + s * b
            spikes.append(s)
        return torch.stack(spikes)


def node(neuron: Neuron) -> nn.Module:
    """SpikingJelly's neuron for this one, in multi-step mode."""
    from spikingjelly.activation_based import neuron as theirs
    from spikingjelly.activation_based import surrogate

    if not (isinstance(neuron, LIF) and type(neuron) is LIF) or neuron.surrogate != "atan":
        raise ValueError(f"there is no loop for {neuron}; allowed: LIF with atan, AdLIF, LI")
    return theirs.LIFNode(
        neuron.tau,
        neuron.decay_input,
        neuron.v_threshold,
        neuron.v_reset,
        surrogate.ATan(),
        neuron.detach_reset,
        step_mode="m",
    )


class Looped(nn.Module):
    """A network of fastsnn's layers as loops over time, with weights of its own."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.ModuleList(looped(copy.deepcopy(module)) for module in network)
        self.flat = getattr(network, "flat", False)

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        from spikingjelly.activation_based import functional

        spikes = x.unpack() if isinstance(x, PackedSpikes) else x
        spikes = spikes.flatten(2) if self.flat else spikes
        for layer in self.layers:
            spikes = layer(spikes)
        functional.reset_net(self)
        return spikes


def looped(module: nn.Module) -> nn.Module:
    """A layer of fastsnn's as a loop over time; others as they are."""
    if isinstance(module, Recurrent | LinearLIF) and isinstance(module.neuron, AdLIF):
        return AdaptiveLoop(module, getattr(module, "recurrent_weight", None))
    if isinstance(module, LinearLIF):
        linear = nn.Linear(module.in_features, module.out_features, module.bias is not None)
        linear.load_state_dict(
            {name: value for name, value in module.state_dict().items() if name in ("weight", "bias")}
        )
        return nn.Sequential(linear, node(module.neuron))
    if isinstance(module, Spiking) and isinstance(module.neuron, LI):
        return Leaky(module.neuron)
    return node(module.neuron) if isinstance(module, Spiking) else module


def setups(name: str, data_dir: str | None, threads: int) -> dict[str, Setup]:
    """fastsnn's network and the loop, each with an optimizer, on the recipe's data."""
    values = read_yaml(ROOT / "recipes" / f"{name}.yaml")
    config = options_from(Config, values | {"device": "cpu", "threads": threads}, name)
    config = replace(config, data_dir=Path(data_dir) if data_dir else None)
    use_threads(threads, "numba")
    source = source_of(config, Monitor())
    network = build_network(config, source, "numba")
    kinds = {"fastsnn": network, "loop": Looped(network)}  # type: ignore[arg-type]
    made = {
        kind: Setup(net, source, config, torch.device("cpu"), Monitor(), ProcessGroup()) for kind, net in kinds.items()
    }
    for setup in made.values():
        setup.choose_step()
    return made


@torch.no_grad()
def check(made: dict[str, Setup], ids: Tensor) -> None:
    """Raise ValueError unless both give the same output for a batch; a spike in a thousand may differ by rounding."""
    ours, theirs = (next(iter(setup.layered.forward("train", ids, len(ids))))[1] for setup in made.values())
    if (ours - theirs).abs().gt(1e-3).float().mean() > 1e-3:
        raise ValueError("fastsnn's network and the loop differ; nothing was timed")


def measure(names: Sequence[str], data_dir: str | None, threads: int = 1) -> None:
    """Seconds of processor time that a training step takes, round by round, into the results."""
    found: dict[str, Any] = {"device": machine.device_name(torch.device("cpu")), "threads": threads, "recipes": {}}
    if FILE.is_file():
        found["recipes"] = json.loads(FILE.read_text(encoding="utf-8"))["recipes"]
    for name in names:
        made = setups(name, data_dir, threads)
        size = next(iter(made.values())).config.batch_size
        ids = torch.arange(size * BATCHES)
        check(made, ids[:size])
        seconds: dict[str, list[float]] = {kind: [] for kind in made}
        for number in range(ROUNDS + 1):
            for kind, setup in made.items():
                start = time.process_time()
                setup.step.train(ids, 1, size, [1e-4] * BATCHES)
                if number:  # the first compiles and warms up
                    seconds[kind].append((time.process_time() - start) / BATCHES)
        found["recipes"][name] = {"batch": size, "seconds": seconds, "environment": machine.environment()}
        ratio = statistics.median(b / a for a, b in zip(seconds["fastsnn"], seconds["loop"], strict=True))
        print(f"{name}: a step takes {statistics.median(seconds['fastsnn']):.3g} s, the loop {ratio:.1f} times that")
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
