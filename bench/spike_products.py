"""The table behind ``kernels/numba/spike_products/choice.py``: ``python -m bench.spike_products`` in the root folder.

Each way of both products, for shapes and densities of spikes: milliseconds, medians of alternated rounds, on one thread
(of processor time, which other programs disturb least) and on all (of time). ``density`` is the share of spikes among
the inputs that spike at all, ``active`` the share of those inputs.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench import fastsnn_tasks, machine
from bench.results import FOLDER
from fastsnn.kernels.numba import spike_products
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.training.machine import cores

DENSITIES = (0.01, 0.05, 0.1, 0.2, 0.5)
ROUNDS = 7
LEAST_SECONDS = 2e-3
"""One timed round repeats a product for at least so long."""


class Layer(NamedTuple):
    """Sizes of a layer that is measured."""

    name: str
    T: int
    B: int
    K: int
    N: int
    active: float = 1.0
    """Share of a sample's inputs that spike at all."""


LAYERS = (
    Layer("Poisson MNIST, first layer", 100, 64, 784, 800, 0.19),
    Layer("its second layer", 100, 64, 800, 10),
    Layer("wide layer, long", 500, 16, 1024, 1024),
    Layer("N-MNIST, first layer", 30, 64, 2312, 512),
    Layer("head of a conv net", 4, 128, 2048, 100),
    Layer("one image", 100, 1, 784, 10, 0.19),
    Layer("one step of a batch", 1, 64, 512, 512),
    Layer("a few rows", 4, 4, 512, 512),
    Layer("one row", 1, 1, 512, 512),
)


class Line(NamedTuple):
    """One line of the table; milliseconds of each way, by name."""

    layer: Layer
    density: float
    threads: int
    currents: dict[str, float]
    gradient: dict[str, float]
    pack: float
    """Packing float32 spikes, which every way but dense needs unless they come packed."""


def spikes(layer: Layer, density: float) -> Tensor:
    """Float32 spikes [T, B, K] of ``density`` among the active inputs."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(layer.B, layer.K, generator=generator) < layer.active
    return ((torch.rand(layer.T, layer.B, layer.K, generator=generator) < density) & active).float()


def measure(layer: Layer, density: float, threads: int) -> Line:
    x = spikes(layer, density)
    words = spike_products.pack(x)
    assert words is not None
    packed = PackedSpikes(words, layer.T)
    weight, bias = torch.randn(layer.N, layer.K), torch.randn(layer.N)
    grad, out = torch.randn(layer.T, layer.B, layer.N), torch.empty(layer.T, layer.B, layer.N)
    weight_grad = torch.empty(layer.N, layer.K)
    works: dict[str, Callable[[], object]] = {"pack": lambda: spike_products.pack(x)}
    ways: tuple[tuple[spike_products.Way, Tensor | PackedSpikes], ...]
    ways = (("dense", x), ("tables", packed), ("lists", packed), ("auto", packed))
    for way, operand in ways:
        works[f"currents {way}"] = partial(spike_products.currents, operand, weight, bias, out, way)
        works[f"gradient {way}"] = partial(spike_products.weight_gradient, operand, grad, weight_grad, way=way)
    with fastsnn_tasks.threads(threads):
        times = _alternate(works, time.thread_time if threads == 1 else time.perf_counter)
    forward, backward = (
        {way: times[f"{what} {way}"] for way in spike_products.WAYS} for what in ("currents", "gradient")
    )
    return Line(layer, density, threads, forward, backward, times["pack"])


def _alternate(works: dict[str, Callable[[], object]], clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of one call of each, round by round in turn."""
    repeats = {}
    for name, work in works.items():
        work()
        started = clock()
        work()
        repeats[name] = max(1, round(LEAST_SECONDS / max(clock() - started, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            started = clock()
            for _ in range(repeats[name]):
                work()
            times[name].append((clock() - started) / repeats[name] * 1e3)
    return {name: round(statistics.median(values), 4) for name, values in times.items()}


def save(lines: list[Line]) -> None:
    """Write the table of this machine to the results folder."""
    about = {
        "device": machine.device_name(torch.device("cpu")),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    table = [line._asdict() | {"layer": line.layer._asdict()} for line in lines]
    path = FOLDER / "spike-products" / f"{machine.slug(str(about['device']))}.json"
    path.parent.mkdir(exist_ok=True)
    results = {"machine": about, "environment": machine.environment(), "lines": table}
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.spike_products", description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores()}), help="numbers of threads")
    lines = []
    print("currents, then gradient, ms: auto tables lists dense")
    for threads in parser.parse_args().threads:
        for layer in LAYERS:
            for density in DENSITIES:
                line = measure(layer, density, threads)
                lines.append(line)
                columns = [f"{ms:9.3f}" for what in (line.currents, line.gradient) for ms in what.values()]
                print(f"{layer.name:28} {density:5} {threads} threads", *columns, flush=True)
    save(lines)


if __name__ == "__main__":
    main()
