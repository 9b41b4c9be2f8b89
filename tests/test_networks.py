"""Networks by notation and from files: their layers against plain torch, and initial weights that let them fire."""

from pathlib import Path
from typing import Any

import pytest
import torch
from run_tools import Command, arguments
from torch import nn

import fastsnn
from fastsnn.config import NetworkOptions
from fastsnn.initial_weights import RATE, random_spikes, scale_weights
from fastsnn.kernels import reference
from fastsnn.network_notation import BatchNorm, Convolution, Linear, Pooling, parse_network
from fastsnn.networks import SpatialSpiking, TimeDistributed, network_from_file, network_of
from fastsnn.nn import LinearLIF, Spiking
from fastsnn.training.firing_rates import SpikeRecorder


def test_the_notation() -> None:
    assert parse_network("32c3-p2-64C5s2-bn-AP3-mp2-800-bn-10") == [
        Convolution(32, 3), Pooling(2), Convolution(64, 5, 2), BatchNorm(), Pooling(3, average=True), Pooling(2),
        Linear(800), BatchNorm(), Linear(10),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "32", "-", "32c", "c3", "0c3", "p0", "p", "xp2", "32c3--p2", "32c3 p2", "-800"])
def test_what_is_no_notation(text: str) -> None:
    if text == "32":
        assert parse_network(text) == [Linear(32)]
        return
    with pytest.raises(ValueError, match=r"is no layer; allowed: 32c3 \(convolution\)"):
        parse_network(text)


def network(net: str | None = None, shape: tuple[int, ...] = (2, 12, 12), **options: Any) -> nn.Sequential:
    spiking = options.pop("spiking_output", True)
    built = network_of(NetworkOptions(net=net, **options), shape, 5, "torch", spiking_output=spiking)
    assert isinstance(built, nn.Sequential)
    return built


def test_layers_of_a_convolutional_network() -> None:
    built = network("4c3-bn-p2-6c5s2-ap3-20-7-bn")
    kinds = [type(getattr(module, "module", module)) for module in built]
    assert kinds == [
        nn.Conv2d, nn.BatchNorm2d, SpatialSpiking, nn.MaxPool2d, nn.Conv2d, SpatialSpiking, nn.AvgPool2d, nn.Flatten,
        LinearLIF, nn.Linear, nn.BatchNorm1d, Spiking, LinearLIF,
    ]  # fmt: skip
    x = (torch.rand(3, 4, 2, 12, 12) < 0.5).float()
    spikes = built(x)
    assert spikes.shape == (3, 4, 5)
    assert set(spikes.unique().tolist()) <= {0.0, 1.0}
    spikes.sum().backward()
    assert all(parameter.grad is not None for parameter in built.parameters())


def test_a_membrane_potential_is_read_from_neurons_that_do_not_spike() -> None:
    built = network("4c3-20", spiking_output=False)
    assert [type(module) for module in built][-2:] == [nn.Linear, Spiking]
    assert not built[-1].neuron.spikes
    assert len(built(random_spikes((2, 12, 12))).unique()) > 1000


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_convolution_with_neurons_is_that_of_plain_torch(backend: str) -> None:
    """Outputs and gradients, channels last as it is computed, against channels first and a loop over time."""
    torch.manual_seed(0)
    neuron = fastsnn.LIF(tau=3.0, v_threshold=0.15)
    convolution = nn.Conv2d(2, 6, 3, padding=1)
    ours = nn.Sequential(
        TimeDistributed(convolution), SpatialSpiking(neuron, backend=backend), TimeDistributed(nn.AvgPool2d(2))
    )
    plain = nn.Conv2d(2, 6, 3, padding=1)
    plain.load_state_dict(convolution.state_dict())
    x = (torch.rand(5, 3, 2, 8, 8) < 0.5).float()
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = ours(mine)
    current = torch.stack([plain(step) for step in theirs])
    spikes = reference.scan(current, neuron)[0]
    expected = torch.stack([nn.functional.avg_pool2d(step, 2) for step in spikes])
    assert 0.05 < expected.mean().item() < 0.9
    torch.testing.assert_close(found, expected)
    weights = torch.rand_like(expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(convolution.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-5)


def test_neurons_behind_a_convolution_copy_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They see the convolution's own memory, in its order, and the next convolution sees theirs."""
    seen: list[torch.Tensor] = []

    def record(current: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(current)
        return (current > 0.5).float(), current[-1]

    monkeypatch.setattr("fastsnn.nn.scan", record)
    convolution = TimeDistributed(nn.Conv2d(2, 6, 3))
    current = convolution(torch.rand(5, 3, 2, 8, 8))
    spikes = SpatialSpiking()(current)
    assert seen[0].is_contiguous()
    assert seen[0].data_ptr() == current.data_ptr()
    assert spikes.shape == current.shape
    assert spikes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


# Initial weights.


def test_a_single_layer_starts_with_the_weights_of_linear() -> None:
    torch.manual_seed(0)
    expected = nn.Linear(288, 5, bias=True)
    found = network(bias=True)
    assert list(found.state_dict()) == ["0.weight", "0.bias"]
    assert torch.equal(found[0].weight, expected.weight)
    assert torch.equal(found[0].bias, expected.bias)


NEURONS = [
    {},
    {"tau": 5.0},
    {"tau": 4.0, "decay_input": False},
    {"v_reset": None},
    {"v_threshold": 3.0, "v_reset": 1.0},
]


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_every_layer_of_a_deep_network_fires_from_the_start(rate: float, neuron: dict[str, Any]) -> None:
    x = (torch.rand(40, 30, 100, generator=torch.Generator().manual_seed(0)) < rate).float()
    options = NetworkOptions(hidden=(200,) * 4, bias="tau" in neuron, **neuron)
    built = network_of(options, (100,), 10, "torch", inputs=x[:, :20])
    with torch.no_grad(), SpikeRecorder(built) as recorder:
        built(x)
    rates = recorder.rates(None)
    assert len(rates) == 5
    assert rates.tolist() == pytest.approx([RATE] * 5, rel=0.25)


@pytest.mark.parametrize("net", ["8c3-8c3-50-50", "8c3-bn-p2-8c3-bn-p2-50-bn", "8c3-ap2-8c3-ap2-50"])
def test_every_layer_of_a_convolutional_network_fires_from_the_start(net: str) -> None:
    built = network(net, bias=True)
    before = {name: buffer.clone() for name, buffer in built.named_buffers()}
    with torch.no_grad(), SpikeRecorder(built) as recorder:
        built(random_spikes((2, 12, 12)))
    rates = recorder.rates(None)
    assert rates.tolist() == pytest.approx([RATE] * len(rates), rel=0.25)
    assert not before or any(not torch.equal(before[name], buffer) for name, buffer in built.named_buffers())


def test_what_nothing_makes_fire_keeps_its_weights() -> None:
    layer = LinearLIF(4, 3, bias=False)
    before = layer.weight.clone()
    scale_weights([layer], torch.zeros(5, 2, 4))
    assert torch.equal(layer.weight, before)


def test_statistics_of_a_batch_norm_start_afresh() -> None:
    built = network("4c3-bn-20")
    assert all(int(buffer.abs().sum()) in (0, 4) for buffer in built.buffers())


# A network of one's own.

FILE = """
import beside
import torch
from fastsnn import Spiking, TimeDistributed

def own(shape, classes):
    torch.rand(1)
    linear = torch.nn.Linear(beside.size(shape), classes)
    return torch.nn.Sequential(torch.nn.Flatten(2), linear, Spiking(backend="torch"))

def wide(shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(2), torch.nn.Linear(7, classes))

def many(shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(2), torch.nn.Linear(beside.size(shape), classes + 1))

def broken(shape, classes):
    return 1 / 0

def number(shape, classes):
    return 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("import math\nsize = math.prod\n")
    path = tmp_path / "net.py"
    path.write_text(FILE)
    return path


def test_a_network_of_ones_own(file: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = [*arguments(epochs=2), "--network", "net.py:own", "--out", tmp_path / "run"]
    code, stdout, stderr = command("train", *options)
    assert (code, stderr) == (0, "")
    assert "digits, Sequential of 650 parameters, T=4" in stdout
    monkeypatch.chdir("/")
    code, stdout, _ = command("train", "--resume", tmp_path / "run", "--epochs", "3")
    assert code == 0
    code, stdout, _ = command("eval", tmp_path / "run")
    assert stdout.startswith("epoch 3: test loss")
    loaded = fastsnn.load(tmp_path / "run")
    assert list(loaded.state_dict()) == ["1.weight", "1.bias"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("none", "has no function none"),
        ("broken", "raised ZeroDivisionError: division by zero"),
        ("number", "returned a int; allowed: an nn.Module"),
        ("wide", r"the network does not take x of shape \[T, B, 1, 8, 8\]: mat1 and mat2 shapes cannot be multiplied"),
        ("many", r"output for one sample at 1 time steps has shape \[1, 1, 11\]; allowed: \[1, 1, 10\]"),
    ],
)
def test_a_network_that_does_not_fit_is_one_line(
    function: str, said: str, file: Path, tmp_path: Path, command: Command
) -> None:
    import re

    code, _, stderr = command("train", *arguments(), "--network", f"{file}:{function}", "--out", tmp_path / "run")
    assert code == 2
    assert stderr.count("\n") == 1
    assert re.search(said, stderr), stderr
    assert not (tmp_path / "run").exists()


def test_the_seed_draws_the_weights_of_a_network_of_ones_own(file: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        built = network_of(NetworkOptions(network=f"{file}:own"), (1, 8, 8), 10, "torch", seed=seed)
        return next(built.parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert isinstance(network_from_file(f"{file}:own", (1, 8, 8), 10), nn.Sequential)


def test_rare_inputs_start_with_half_of_what_is_possible() -> None:
    """One input that spikes at every twentieth step: no weight makes a neuron fire at every tenth."""
    x = torch.zeros(100, 3, 1)
    x[::20] = 1
    layer = LinearLIF(1, 50, bias=False)
    scale_weights([layer], x)
    assert 0.005 < layer(x).mean().item() < 0.03
