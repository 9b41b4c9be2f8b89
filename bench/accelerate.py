"""What ``accelerate`` and ``from_snntorch`` gain on networks as they are: ``python -m bench.accelerate [--only NAME]``.

A training step (forward, backward) of each network before and after it was converted, in interleaved rounds: the median
time of each, and the median of the rounds' ratios. Both compute the same, which is checked first. Results go to
bench/results/accelerate.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import snntorch
import snntorch.utils
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

import fastsnn
from bench import machine, public_networks
from bench.results import FOLDER

T, BATCH = 100, 64
DIFFERENT = 1e-3
"""Share of the outputs that may differ, at most."""


def tutorial(sizes: tuple[int, ...] = (784, 800, 10)) -> tuple[nn.Module, Tensor]:
    """784-800-10 on a batch of MNIST's density, T = 100."""
    from spikingjelly.activation_based import layer

    torch.manual_seed(0)
    parts = [[layer.Linear(a, b, bias=False), public_networks.lif()] for a, b in pairwise(sizes)]
    net = nn.Sequential(*(part for pair in parts for part in pair))
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(6)  # a fair share of the neurons fires
    return net, (torch.rand(T, BATCH, sizes[0]) < 0.2).float()


class Loop(nn.Module):
    """A network of snnTorch's in its own loop over time."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        snntorch.utils.reset(self.net)
        return torch.stack([self.net(step) for step in x])


def from_snntorch(batch: int) -> tuple[nn.Module, Tensor]:
    """128-128-128-20, T = 256, a twentieth of the inputs spikes: the shape of networks for spoken digits."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for a, b in pairwise((128, 128, 128, 128, 20)):
        linear = nn.Linear(a, b)
        with torch.no_grad():
            linear.weight.mul_(3)
        parts += [linear, snntorch.Leaky(0.9, init_hidden=True)]
    return Loop(nn.Sequential(*parts)), public_networks.spikes(256, batch, 128, rate=0.05)


def converted(net: nn.Module) -> tuple[nn.Module, list[str]]:
    """The network on fastsnn's kernels, and what became of its layers."""
    if isinstance(net, Loop):
        return fastsnn.from_snntorch(net.net), ["from_snntorch"]
    fast, report = fastsnn.accelerate(copy.deepcopy(net))
    return fast, [str(row) for row in report]


def step(net: nn.Module, x: Tensor, device: torch.device) -> tuple[float, Tensor]:
    """Seconds of a training step, and the output."""
    net.zero_grad(set_to_none=True)
    started = time.perf_counter()
    output = net(x)
    output.square().mean().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    if not isinstance(net, Loop):
        functional.reset_net(net)
    return seconds, output.detach()


def measure(make: Callable[[], tuple[nn.Module, Tensor]], rounds: int, device: torch.device) -> dict[str, Any]:
    """Times in seconds, the ratio, and how many outputs differ."""
    net, x = make()
    original, x = net.to(device), x.to(device)
    fast, report = converted(original)
    # The first step compiles, and tells whether both compute the same; a sum in another order may flip a rare spike.
    (_, expected), (_, found) = step(original, x, device), step(fast, x, device)
    differ = float((found != expected).float().mean())
    if differ > DIFFERENT:
        raise SystemExit(f"{differ:.2%} of the outputs differ; nothing is timed")
    seconds = [(step(original, x, device)[0], step(fast, x, device)[0]) for _ in range(rounds)]
    return {
        "report": report,
        "original_seconds": statistics.median(pair[0] for pair in seconds),
        "accelerated_seconds": statistics.median(pair[1] for pair in seconds),
        "times": statistics.median(before / after for before, after in seconds),
        "outputs_that_differ": differ,
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.accelerate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--width", type=int, default=32, help="of the public networks")
    parser.add_argument("--only", default="", metavar="NAME")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subjects: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"784-800-10, T=100, B=64": tutorial}
    for batch in (16, 64, 256):
        subjects[f"snnTorch 128-128-128-20, T=256, B={batch}"] = partial(from_snntorch, batch)
    for name in public_networks.NETWORKS:
        subjects[name] = partial(public_networks.build, name, width=options.width)
    found = {}
    for name, make in subjects.items():
        if options.only in name:
            found[name] = measure(make, options.rounds, device)
            print(f"{name}: {found[name]['times']:.2f} times", *found[name]["report"], sep="\n    ", flush=True)
    described = machine.describe(device)
    path = FOLDER / "accelerate" / f"{machine.slug(described['device'])}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": described, "width": options.width, "networks": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
