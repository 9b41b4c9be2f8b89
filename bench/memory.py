"""Peak memory of one training step at long T: ``python -m bench.memory [--rounds N]``.

784-1000-10 LIF neurons, T = 1000, batch 64, a tenth of the inputs spikes: fastsnn with ``recompute`` off and on, and
SpikingJelly in multi-step mode. Each step runs in a process of its own, after a step of T = 2 that loads and compiles
what is needed. Its memory is VmHWM after it less VmRSS before: above weights and libraries, input included, which is
drawn in the smallest form that each takes (packed words, or fp32). Beside it the processor time of the step. Linux.
Results go to bench/results/memory.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastsnn
from bench import machine, public_networks
from bench.results import FOLDER

T, BATCH, SIZES = 1000, 64, (784, 1000, 10)
KINDS = ("recompute off", "recompute on", "spikingjelly")


def network(kind: str) -> nn.Module:
    """Two layers without a bias."""
    torch.manual_seed(0)
    if kind == "spikingjelly":
        from spikingjelly.activation_based import functional, layer

        pairs = [(layer.Linear(a, b, bias=False), public_networks.lif()) for a, b in pairwise(SIZES)]
        net = nn.Sequential(*(part for pair in pairs for part in pair))
        functional.set_step_mode(net, "m")
        return net
    options: dict[str, Any] = {"bias": False, "backend": "numba", "recompute": kind.split()[1]}
    return nn.Sequential(
        fastsnn.LinearLIF(SIZES[0], SIZES[1], packed=True, **options), fastsnn.LinearLIF(SIZES[1], SIZES[2], **options)
    )


def spikes(kind: str, steps: int) -> Tensor | fastsnn.PackedSpikes:
    """Drawn 32 steps at a time, so that only the result takes memory."""
    drawn = ((torch.rand(min(32, steps - t), BATCH, SIZES[0]) < 0.1).float() for t in range(0, steps, 32))
    if kind == "spikingjelly":
        x = torch.empty(steps, BATCH, SIZES[0])
        for t, part in enumerate(drawn):
            x[32 * t : 32 * t + 32] = part
        return x
    return fastsnn.PackedSpikes(torch.cat([fastsnn.PackedSpikes.pack(part).words for part in drawn]), steps)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, kind: str, steps: int) -> None:
    """One training step."""
    output = net(spikes(kind, steps))
    target = nn.functional.one_hot(torch.arange(BATCH) % SIZES[2], SIZES[2]).float()
    optimizer.zero_grad()
    nn.functional.mse_loss(output.mean(0), target).backward()
    optimizer.step()
    if kind == "spikingjelly":
        from spikingjelly.activation_based import functional

        functional.reset_net(net)


def status(name: str) -> int:
    """Bytes, of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def measure(kind: str) -> dict[str, float]:
    """In this process."""
    net = network(kind)
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer, kind, 2)
    before, start = status("VmRSS"), time.process_time()
    train(net, optimizer, kind, T)
    return {"bytes": status("VmHWM") - before, "seconds": time.process_time() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=KINDS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for number in range(given.rounds):
        for kind in KINDS[: 2 if number else 3]:  # SpikingJelly's step takes minutes, and its memory is what counts
            command = [sys.executable, "-W", "ignore", "-m", "bench.memory", "--measure", kind]
            found[kind].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    lines = []
    for kind, rounds in found.items():
        size, seconds = (statistics.median(entry[name] for entry in rounds) for name in ("bytes", "seconds"))
        lines.append({"kind": kind, "megabytes": round(size / 1e6), "seconds": round(seconds, 2), "rounds": rounds})
        print(f"{kind:15} {size / 1e6:6.0f} MB {seconds:7.2f} s of processor time")
    cpu = torch.device("cpu")
    shape = {"T": T, "batch": BATCH, "sizes": SIZES, "threads": torch.get_num_threads()}
    result = {
        "machine": machine.describe(cpu), "environment": machine.environment(), "step": shape,
        "lines": lines,
    }  # fmt: skip
    path = FOLDER / "memory" / f"{machine.slug(machine.device_name(cpu))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
