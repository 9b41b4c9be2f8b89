"""Recurrent layers against the loops of other libraries: ``python -m bench.recurrent [--quick]`` in the root folder.

A training step of one layer on the CPU, on one thread: forward, the sum of the spikes, backward. SpikingJelly's
``LinearRecurrentContainer``, snnTorch's ``RLeaky`` and a loop of torch's operators (fastsnn's reference) take turns
with fastsnn, round by round; medians of time, and of processor time, which other programs disturb least. Nothing is
timed before fastsnn's spikes and gradients have passed C3 and C4. The peers are timed as they come: SpikingJelly's
layer computes the same steps (the tests of ``accelerate`` compare them), snnTorch's resets a step later. A peer that
isn't installed is left out, by name.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numba
import torch
from torch import Tensor
from torch.nn import functional as F

import fastsnn
from bench import machine
from bench.results import FOLDER
from fastsnn.kernels import contract

NEURON = fastsnn.LIF()


class Layer(NamedTuple):
    """Sizes of a layer that is measured."""

    name: str
    T: int
    B: int
    K: int
    N: int


LAYERS = (
    Layer("Braille", 152, 100, 128, 200),
    Layer("SHD", 250, 64, 140, 256),
    Layer("sequential MNIST", 784, 32, 1, 128),
)
TINY = Layer("tiny", 8, 4, 5, 20)


class Inputs(NamedTuple):
    """x [T, B, K], W [N, K] and V [N, N], of which the last two are leaves."""

    x: Tensor
    weight: Tensor
    recurrent_weight: Tensor


def draw(layer: Layer) -> Inputs:
    """A tenth of the inputs spike, and 3 to 10 % of the neurons."""
    random = torch.Generator().manual_seed(0)
    x = (torch.rand(layer.T, layer.B, layer.K, generator=random) < 0.1).float()
    count = 0.1 * layer.K
    if layer.K == 1:
        weight = torch.rand(layer.N, 1, generator=random) * 3.2
    else:
        weight = torch.randn(layer.N, layer.K, generator=random) * 0.8 / count**0.5 + 0.2 / count
    back = torch.randn(layer.N, layer.N, generator=random) * 0.3 / (0.08 * layer.N) ** 0.5
    return Inputs(x, weight.requires_grad_(), back.requires_grad_())


def fused(backend: str) -> Callable[[Inputs], Tensor]:
    """fastsnn's layer on a backend."""
    return lambda given: fastsnn.recurrent(*given, neuron=NEURON, backend=backend)[0]  # type: ignore[return-value]


def spikingjelly(given: Inputs) -> Tensor:
    """The container's one Linear holds [W V]."""
    from spikingjelly.activation_based import layer, neuron, surrogate

    lif = neuron.LIFNode(surrogate_function=surrogate.ATan(), step_mode="s")
    (N, K), joined = given.weight.shape, torch.cat(given[1:], 1)
    container = layer.LinearRecurrentContainer(lif, K, N, bias=False, step_mode="m")
    return torch.func.functional_call(container, {"rc.weight": joined}, (given.x,))  # type: ignore[no-any-return]


def snntorch(given: Inputs) -> Tensor:
    """RLeaky has another reset: it is timed, and its spikes are its own."""
    from snntorch import RLeaky
    from snntorch.surrogate import atan

    N = len(given.weight)
    leaky = RLeaky(0.5, linear_features=N, spike_grad=atan(alpha=2.0))
    parameters = {"recurrent.weight": given.recurrent_weight, "recurrent.bias": torch.zeros(N)}
    spikes, mem = leaky.reset_mem()
    outputs = []
    for current in F.linear(given.x, given.weight) / 2:
        spikes, mem = torch.func.functional_call(leaky, parameters, (current, spikes, mem))
        outputs.append(spikes)
    return torch.stack(outputs)


PEERS = {"fastsnn numba": fused("numba"), "spikingjelly": spikingjelly, "snntorch": snntorch, "loop": fused("torch")}


def step(forward: Callable[[Inputs], Tensor], given: Inputs) -> Tensor:
    """A training step, less the update; returns the spikes."""
    given.weight.grad = given.recurrent_weight.grad = None
    output = forward(given)
    output.sum().backward()
    return output.detach()


def gate(given: Inputs) -> float:
    """C3 and C4 of fastsnn; returns its share of spikes."""
    output = step(PEERS["fastsnn numba"], given)
    found = [given.weight.grad, given.recurrent_weight.grad]
    doubled = [tensor.detach().double().requires_grad_() for tensor in given]
    x, weight, back = doubled
    previous = torch.cat([torch.zeros_like(output[:1]), output[:-1]]).double()
    current = F.linear(x, weight)
    total = (current + F.linear(previous, back)).detach()
    magnitude = contract.product_magnitude(x, weight, None) + contract.product_magnitude(previous, back, None)
    path = contract.trajectory(total, NEURON, None, output, None, magnitude.detach())
    replayed, _ = contract.replay(current, NEURON, None, output.double(), None, back)
    exact = torch.autograd.grad(replayed.sum(), [weight, back])
    contract.require(
        contract.spikes_at_threshold(output, path.distance, path.bound),
        *(contract.gradient_error(*row) for row in zip(("weight", "recurrent_weight"), found, exact, strict=True)),
    )
    return float(output.mean())


def measure(layer: Layer, rounds: int) -> dict[str, object]:
    """Milliseconds of each implementation: (time, processor time)."""
    given = draw(layer)
    rate = gate(given)
    absent = [name for name in ("spikingjelly", "snntorch") if importlib.util.find_spec(name) is None]
    entered = {name: forward for name, forward in PEERS.items() if name not in absent}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in entered}
    for forward in entered.values():
        step(forward, given)
    for _ in range(rounds):
        for name, forward in entered.items():
            started = time.perf_counter(), time.process_time()
            step(forward, given)
            ended = time.perf_counter(), time.process_time()
            times[name].append(((ended[0] - started[0]) * 1e3, (ended[1] - started[1]) * 1e3))
    medians = {
        name: tuple(round(statistics.median(column), 3) for column in zip(*pairs, strict=True))
        for name, pairs in times.items()
    }
    return {"layer": layer._asdict(), "rate": rate, "rounds": rounds, "absent": absent, "milliseconds": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny layer, once; nothing is written")
    quick = parser.parse_args().quick
    lines = []
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    for layer in (TINY,) if quick else LAYERS:
        line = measure(layer, 1 if quick else 5)
        lines.append(line)
        print(json.dumps(line), flush=True)
    if quick:
        return
    about = machine.describe(torch.device("cpu"), quick=False)
    path = FOLDER / "recurrent" / f"{machine.slug(about['device'])}.json"
    path.parent.mkdir(exist_ok=True)
    results = {"machine": about, "environment": machine.environment(), "lines": lines}
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
