"""What ``fastsnn.accelerate`` gains on a SpikingJelly network: ``python -m bench.accelerate`` in the repository's root.

A 784-800-10 network of SpikingJelly 0.0.0.0.14 in multi-step mode, forward and backward on T = 100 steps of a batch of
64, before and after it was converted: alternated rounds, medians, and that both compute the same.
"""

import copy
import statistics
import time
from itertools import pairwise

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

import fastsnn
from bench import machine

T, BATCH, SIZES, ROUNDS = 100, 64, (784, 800, 10), 9


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(SIZES):
        layers += [layer.Linear(inputs, outputs, bias=False), neuron.LIFNode(2.0, surrogate_function=surrogate.ATan())]
    net = nn.Sequential(*layers)
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(6)  # a fair share of the neurons fires
    return net


def step(net: nn.Module, x: Tensor, device: torch.device) -> tuple[float, Tensor, list[Tensor]]:
    """Seconds, firing rates, and the gradients of the weights."""
    net.zero_grad(set_to_none=True)
    started = time.perf_counter()
    rates = net(x).mean(0)
    rates.square().sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    functional.reset_net(net)
    return seconds, rates.detach(), [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    original = network().to(device)
    converted, report = fastsnn.accelerate(copy.deepcopy(original))
    x = (torch.rand(T, BATCH, SIZES[0], device=device) < 0.2).float()
    seconds: dict[str, list[float]] = {"SpikingJelly": [], "accelerated": []}
    for i in range(ROUNDS + 1):
        results = [step(net, x, device) for net in (original, converted)]
        if i:  # the first round compiles
            for times, (elapsed, _, _) in zip(seconds.values(), results, strict=True):
                times.append(elapsed)
    (_, rates, expected), (_, found_rates, found) = results
    spikes = (rates - found_rates).abs().max().item() * T
    error = max(float(torch.linalg.norm(a - b) / torch.linalg.norm(a)) for a, b in zip(expected, found, strict=True))
    medians = [statistics.median(times) for times in seconds.values()]
    print(machine.describe(device, quick=False)["device"], *report, sep="\n  ")
    print("  ".join(f"{name} {median * 1e3:.1f} ms" for name, median in zip(seconds, medians, strict=True)))
    print(f"{medians[0] / medians[1]:.1f} times as fast")
    print(f"firing rate {rates.mean():.2f}, spike counts differ by {spikes:.0f}, gradients by {error:.1e}")


if __name__ == "__main__":
    main()
