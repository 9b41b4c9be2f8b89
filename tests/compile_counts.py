"""How many kernels a training run compiles, and what a change of its sizes adds; printed as JSON, {change: kernels}.

The launches are recorded, as in ``compile_targets.py``, which must not run under TRITON_INTERPRET; nothing is compiled.
"""

import json
from unittest import mock

import torch

from fastsnn import LIF
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.rate_classifier.parameters import Parameters
from fastsnn.kernels.rate_classifier.triton.encode import PixelIndex
from fastsnn.kernels.rate_classifier.triton.launch import Plan, Problem
from fastsnn.kernels.triton import bf16_split, philox
from fastsnn.kernels.triton.scan import scan_backward, scan_forward
from tests.compile_cases import empty, run_gradients, run_linear, run_recurrent
from tests.compile_targets import recording


def train(T: int = 100, batch: int = 64, test_batch: int = 200, pixels: int = 784, capacities: int = 352) -> None:
    """The launches of training and evaluation, as ``train`` makes them for a network of one layer."""
    weight = torch.nn.Parameter(empty(10, pixels))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    problem = Problem(T, 10, pixels, 0, False, False, True, compile_neuron(LIF()))
    parameters = Parameters(weight, None, optimizer, problem.block_n, problem.exact)
    rows, entries = empty(60001, dtype=torch.int32), empty(9 << 20, dtype=torch.int32)
    data = PixelIndex(rows, entries, empty(60000, dtype=torch.int64), pixels, capacities)
    for size, training in ((batch, True), (test_batch, False)):
        plan = Plan(problem, parameters, data, size, 100, training)
        plan._launch(plan.batches)


def try_backend() -> None:
    """The tiny kernel that shows that the backend runs."""
    one = empty(1, 1)
    scan_forward(compile_neuron(LIF()), one, None, {}, one, empty(1, 1), None)


def encode(T: int, batch: int, stream: int, epoch: int) -> None:
    images, ids = empty(batch, 784, dtype=torch.uint8), empty(batch, dtype=torch.int64)
    philox.poisson_spikes(images, T, 2**63 + 1, epoch, stream, ids, False)


def layer(T: int, batch: int, sizes: tuple[int, int] = (800, 784)) -> None:
    """A training step of a linear layer, less the library's products, and one of a recurrent layer."""
    N, K = sizes
    run_linear(torch.uint8, T=T, B=batch, N=N, K=K, bias=False)
    run_gradients(90, torch.uint8, T, batch, N, K)
    neuron = compile_neuron(LIF())
    grad, states = empty(T, batch * N), empty(1, batch * N)
    parts = empty(3, T, batch * N, dtype=torch.bfloat16)
    scan_backward(neuron, grad, None, empty(1, T, batch * N), {}, parts, states, empty(0, batch * N), states[0])
    run_recurrent(T=T, B=batch, N=N)


def main() -> None:
    counts: dict[str, list[str]] = {}
    known: set[str] = set()
    with recording() as variants, mock.patch.object(bf16_split, "capability", return_value=90):

        def note(change: str) -> None:
            """What the launches since the last note would compile."""
            new = {repr(variant): variant.kernel.__name__ for variant in variants if repr(variant) not in known}
            counts[change] = sorted(new.values())
            known.update(new)
            variants.clear()

        try_backend()
        train()
        note("first run")
        for batch in (1, 7, 16, 63, 128, 256, 600):
            train(batch=batch, test_batch=batch)
        note("batch sizes")
        train(pixels=64, capacities=64)
        train(pixels=3, capacities=16)
        note("data sets")
        for T in (90, 128, 300, 1000):
            train(T=T)
        note("T")
        for T, batch, stream, epoch in ((100, 64, 0, 1), (1, 1, 1, 0), (500, 33, 1, 2**32 - 1)):
            encode(T, batch, stream, epoch)
        note("encoding")
        layer(100, 64)
        note("layers")
        for T, batch in ((90, 64), (1, 64), (100, 33), (128, 1), (77, 7)):
            layer(T, batch)
        note("T and batch of layers")
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
