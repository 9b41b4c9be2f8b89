"""Training on the whole-step kernels of the CPU: fifty steps (C4), first losses (C5), the same bits (C6), memory."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from cpu_rate_step_cases import (
    CLASSES,
    DEFAULTS,
    PIXELS,
    SAMPLES,
    dataset,
    fused,
    parameters,
    require_same,
    train_reference,
)
from torch import Tensor

import fastsnn
from fastsnn import LIF
from fastsnn.kernels import contract
from fastsnn.kernels.rate_classifier.numba.step import RateStep
from fastsnn.networks import Layers
from fastsnn.sources.images import Images, load
from fastsnn.training.autograd_step import AutogradStep


def optimizer_of(name: str, trained: list[Tensor]) -> Any:
    if name == "adam":
        return torch.optim.Adam(trained, lr=0.003, betas=(0.8, 0.95), eps=1e-7)
    return torch.optim.SGD(trained, lr=0.5, momentum=0.9 if name == "momentum" else 0.0)


@pytest.mark.parametrize(("name", "loss"), [("adam", "mse"), ("adam", "ce"), ("sgd", "mse"), ("momentum", "ce")])
def test_fifty_steps(name: str, loss: str) -> None:
    """Weights, bias and the optimizer's state stay those of torch; the last batch of an epoch is smaller."""
    data, setting = dataset(), DEFAULTS | {"loss": loss, "T": 12}
    order = torch.cat([torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(i)) for i in range(12)])[:790]
    expected = parameters()
    start = [tensor.detach().clone() for tensor in expected]
    expected_optimizer = optimizer_of(name, expected)
    expected_losses, expected_correct = train_reference(
        expected, expected_optimizer, order, data, **setting, neuron=LIF()
    )

    trained = parameters()
    optimizer = optimizer_of(name, trained)
    step = fused(trained, optimizer, T=12, loss=loss, neuron=LIF())
    losses, correct = step.train(step.prepare(*data), order, setting["epoch"], setting["batch_size"])
    step.sync()
    assert len(losses) == 50
    assert losses[-1] < losses[0]
    contract.require(contract.loss_error(losses, expected_losses))
    assert torch.equal(correct, expected_correct)
    for actual, wanted, before in zip(trained, expected, start, strict=True):
        # Norm-wise, of the change that training made.
        assert (actual - wanted).norm() <= 1e-5 * (wanted - before).norm()
        state, wanted_state = optimizer.state[actual], expected_optimizer.state[wanted]
        assert {key for key, value in state.items() if value is not None} == {
            key for key, value in wanted_state.items() if value is not None
        }
        for key in state:
            torch.testing.assert_close(state[key], wanted_state[key], rtol=1e-4, atol=1e-6)


def test_losses_of_the_first_hundred_steps() -> None:
    """C5, on weights that are not dyadic."""
    data, setting = dataset(), DEFAULTS
    order = torch.arange(SAMPLES).repeat(23)[:1600]
    results = []
    for train in (train_reference, None):
        torch.manual_seed(4)
        trained = list(torch.nn.Linear(PIXELS, CLASSES).parameters())
        optimizer = torch.optim.Adam(trained, lr=1e-3)
        if train:
            results.append(train(trained, optimizer, order, data, **setting, neuron=LIF())[0])
        else:
            step = fused(trained, optimizer, T=setting["T"], loss="mse", neuron=LIF())
            results.append(step.train(step.prepare(*data), order, setting["epoch"], setting["batch_size"])[0])
    assert len(results[0]) == 100
    contract.require(contract.loss_error(results[1], results[0]))


@pytest.mark.mnist
def test_losses_of_the_reference_job() -> None:
    """C5 on MNIST itself: T = 100, batches of 64, Adam."""
    found = load("mnist")
    losses = []
    for kind in ("fused", "autograd"):
        layer = fastsnn.LinearLIF(784, 10, bias=False, backend="torch")
        torch.nn.init.uniform_(layer.weight, -1 / 28, 1 / 28, generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        images, labels, order = found.train_images, found.train_labels, torch.arange(6400)
        if kind == "fused":
            step = RateStep(layer.weight, None, optimizer, T=100, seed=0, loss="mse", neuron=LIF())
            losses.append(step.train(step.prepare(images, labels), order, 0, 64)[0])
        else:
            layered = AutogradStep(Layers(layer, flat=True), Images(found), optimizer, fastsnn.FitConfig(T=100))
            losses.append(layered.train(order, 0, 64, [1e-3] * 100).losses)
    assert len(losses[0]) == 100
    assert losses[0][-1] < 0.7 * losses[0][0]
    contract.require(contract.loss_error(*losses))


def trained_bits(order: Tensor, *stops: int) -> list[Tensor]:
    """What training leaves behind; at ``stops`` (in samples) it goes on with new objects from a checkpoint."""
    data, trained = dataset(), parameters()
    optimizer = torch.optim.Adam(trained, lr=0.003)
    results = []
    for start, stop in zip((0, *stops), (*stops, len(order)), strict=True):
        step = fused(trained, optimizer, T=33, loss="mse", neuron=LIF())
        results.append(step.train(step.prepare(*data), order[start:stop], 1, 16)[0])
        step.sync()
        saved, trained = optimizer.state_dict(), [tensor.detach().clone().requires_grad_() for tensor in trained]
        optimizer = torch.optim.Adam(trained, lr=0.003)
        optimizer.load_state_dict(saved)
    states = [tensor for state in optimizer.state_dict()["state"].values() for tensor in state.values()]
    return [torch.cat(results), *(tensor.detach() for tensor in trained), *states]


def test_runs_repeat_and_resume_bit_for_bit() -> None:
    order = torch.arange(SAMPLES).repeat(3)[:192]
    once = trained_bits(order)
    require_same(trained_bits(order), once)
    require_same(trained_bits(order, 64, 80), once)


def test_the_number_of_threads_changes_no_bit() -> None:
    order = torch.arange(SAMPLES).repeat(3)[:200]
    expected = trained_bits(order)
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        require_same(trained_bits(order), expected)
    finally:
        numba.set_num_threads(threads)


def test_eight_threads_change_no_bit(tmp_path: Any) -> None:
    """In a process of its own: Numba allows no more threads than it was started with."""
    code = (
        "import sys, numba, torch; sys.path.insert(0, sys.argv[1]); import test_cpu_training as t\n"
        "assert numba.get_num_threads() == 8\n"
        "torch.save(t.trained_bits(torch.arange(t.SAMPLES).repeat(3)[:200]), sys.argv[2])"
    )
    path = tmp_path / "bits.pt"
    command = [sys.executable, "-c", code, os.path.dirname(__file__), str(path)]
    subprocess.run(command, check=True, env=os.environ | {"NUMBA_NUM_THREADS": "8"}, timeout=300)
    require_same(torch.load(path), trained_bits(torch.arange(SAMPLES).repeat(3)[:200]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads a process's peak memory in Linux' /proc")
@pytest.mark.mnist
def test_a_run_takes_less_than_500_megabytes_above_its_imports(tmp_path: Path) -> None:
    code = (
        "import sys, numba, sklearn.datasets, torchvision.datasets, torch._dynamo, tensorboard.compat.proto.event_pb2\n"
        "import fastsnn, fastsnn.kernels.rate_classifier.numba.step\n"
        "def peak():\n"
        "    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "before = peak()\n"
        "fastsnn.train(fastsnn.Config(dataset='mnist', epochs=1, backend='numba', device='cpu', out=sys.argv[1]))\n"
        "print((peak() - before) / 1e3)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert 0 < float(done.stdout) < 500
