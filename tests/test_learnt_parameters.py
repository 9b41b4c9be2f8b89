"""Parameters that learn, one for a layer, for a neuron or for a channel: gradients, their fixed order, modules."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from neuron_cases import BACKENDS, DEVICE, case, check_neuron, device_of, gradients, leaves, linear_case
from torch import Tensor, nn

import fastsnn
from fastsnn import LIF, PLIF, LinearLIF, Neuron, Spiking
from fastsnn.kernels import contract, reference
from fastsnn.sources import Arrays

every = pytest.mark.parametrize("backend", ["torch", *BACKENDS])


@dataclass(frozen=True)
class Blend(Neuron):
    """Constants that mix learnt parameters with fixed ones."""

    tau: float = 3.0
    gain: float = 1.2
    v_threshold: float = 1.0
    v_reset: float = -0.1

    def step(self, x, v):  # type: ignore[no-untyped-def]
        h = v * (1 - 1 / self.tau) + x * (self.gain / self.tau) + self.gain * 0.01
        s = self.spike(h - self.v_threshold * self.gain)
        return s, h - s * (h - self.v_reset * self.tau)


def spread(value: float, size: Sequence[int], learnt: int = 0) -> Tensor:
    """A parameter of this size around a value."""
    generator = torch.Generator().manual_seed(21 + learnt)
    return value * (1 + 0.2 * torch.rand(tuple(size), generator=generator))


SIZES = {"layer": (), "neuron": (4, 5, 3), "channel": (4, 1, 1), "last axis": (3,), "broadcast": (1, 4, 1, 3)}
CASES = [
    (PLIF(tau=3.0), ("w",)),
    (PLIF(tau=3.0, v_reset=-0.2, decay_input=False), ("w", "v_threshold")),
    (LIF(tau=3.0, v_reset=None), ("tau", "v_threshold")),
    (LIF(tau=3.0, v_reset=-0.2), ("tau", "v_threshold", "v_reset")),
    (Blend(), ("tau",)),
    (Blend(), ("tau", "gain", "v_reset")),
]


@pytest.mark.parametrize(("neuron", "names"), CASES, ids=lambda value: str(value))
@every
def test_gradients(backend: str, neuron: Neuron, names: tuple[str, ...]) -> None:
    """C1 to C4; one parameter for each neuron, of which one is not learnt anywhere else."""
    values = neuron.parameters()
    parameters = {name: spread(values[name], (4, 5, 3), i) for i, name in enumerate(names)}
    current = case(9, 2, 4, 5, 3)[0]
    found = check_neuron(backend, neuron, current, {"v": spread(0.5, (2, 4, 5, 3), 9)}, parameters)
    assert all(found[name].abs().max() > 0 for name in names)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@every
def test_sizes(backend: str, size: tuple[int, ...]) -> None:
    neuron = CASES[-1][0]
    values = neuron.parameters()
    parameters = {"tau": spread(values["tau"], size), "gain": torch.tensor(1.3), "v_reset": spread(-0.1, (3,))}
    found = check_neuron(backend, neuron, case(9, 2, 4, 5, 3)[0], None, parameters)
    assert found["tau"].shape == size


@every
def test_learning_a_value_that_all_share_is_the_value(backend: str) -> None:
    """A tensor of one number gives the bits of the number, if the number is no divisor that is a power of two."""
    current = case(9, 3, 7)[0].to(device_of(backend))
    for neuron, name in ((LIF(tau=3.0), "tau"), (LIF(v_threshold=0.7), "v_threshold"), (Blend(), "gain")):
        learnt = {name: torch.tensor(neuron.parameters()[name], device=current.device)}
        fixed = fastsnn.scan(current, neuron, backend=backend)[0]
        contract.require(
            contract.same_bits("spikes", fastsnn.scan(current, neuron, parameters=learnt, backend=backend)[0], fixed)
        )


@pytest.mark.parametrize("size", [(), (19,)], ids=["layer", "neuron"])
@pytest.mark.parametrize("path", ["fused", "library", "torch", "numba"])
def test_linear_layers(path: str, size: tuple[int, ...]) -> None:
    """Gradients of weight, bias and what the neurons learn, on exact currents; with an axis more in the batch."""
    backend, path = ("triton", path) if path in ("fused", "library") else (path, "auto")
    device = device_of(backend)
    x, weight, bias, _, grad, _ = linear_case(9, 4, 17, 19, dyadic=True)
    neuron = Blend()
    parameters = {name: spread(neuron.parameters()[name], size) for name in ("tau", "gain")}
    for shape in ((9, 4, 17), (9, 2, 2, 17)):
        given = leaves(*(t.to(device) for t in (weight, bias, *parameters.values())))
        learnt = dict(zip(parameters, given[2:], strict=True))
        spikes, _ = fastsnn.linear(
            x.view(shape).to(device), *given[:2], neuron, parameters=learnt, backend=backend, path=path
        )
        expected, _ = reference.linear(x.view(shape), weight, bias, neuron, None, parameters)
        contract.require(contract.same_bits("spikes", spikes.detach().cpu(), expected))
        assert 0.05 < expected.mean() < 0.95
        upstream = grad.view(expected.shape)
        found = gradients([spikes], given, upstream.to(device))
        exact = leaves(*(t.double() for t in (weight, bias, *parameters.values())))
        current = nn.functional.linear(x.view(shape).double(), *exact[:2])
        replayed, _ = contract.replay(current, neuron, None, expected, dict(zip(parameters, exact[2:], strict=True)))
        wanted = gradients([replayed], exact, upstream)
        rows = zip(("weight", "bias", *parameters), found, wanted, strict=True)
        contract.require(*(contract.gradient_error(*row) for row in rows))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bits_every_time_and_for_any_number_of_threads(backend: str) -> None:
    """Sums over time, samples and neurons have one order."""
    n = 16411 if backend == "numba" else 131
    current, grad = (tensor.to(device_of(backend)) for tensor in case(9, 2, n)[::2])
    threads, results = numba.get_num_threads(), []
    try:
        for count in (threads, threads, 1):
            numba.set_num_threads(count)
            given = leaves(*(spread(value, ()).to(current.device) for value in (3.0, 1.2)), current)
            learnt = dict(zip(("tau", "gain"), given, strict=False))
            spikes, _ = fastsnn.scan(given[2], Blend(), parameters=learnt, backend=backend)
            results.append((spikes, *torch.autograd.grad(spikes, given, grad)))
    finally:
        numba.set_num_threads(threads)
    for other in results[1:]:
        rows = enumerate(zip(other, results[0], strict=True))
        contract.require(*(contract.same_bits(str(i), *pair, "C6") for i, pair in rows))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_currents(backend: str, dtype: torch.dtype) -> None:
    """Parameters, their gradients and the states stay in fp32."""
    current = case(9, 3, 7)[0].to(device_of(backend), dtype)
    w = leaves(torch.tensor([0.2, -0.7, 0.1, 0.0, -0.2, 0.3, 0.5], device=current.device))[0]
    spikes, last = fastsnn.scan(current, PLIF(), parameters={"w": w}, backend=backend)
    expected, _ = reference.scan(current.float().cpu(), PLIF(), None, {"w": w.detach().cpu()})
    contract.require(contract.same_bits("spikes", spikes.detach().cpu(), expected.to(dtype)))
    (grad,) = torch.autograd.grad(spikes.sum(), w)
    assert (last["v"].dtype, grad.dtype) == (torch.float32, torch.float32)
    assert grad.abs().min() > 0


@pytest.mark.parametrize("kept", ["weight", "bias"])
def test_a_parameter_cannot_take_a_name_of_the_layers_own(kept: str) -> None:
    namespace = {"__annotations__": {kept: float}, kept: 1.0, "step": Blend.step}
    kind = dataclass(frozen=True)(type("Clash", (Neuron,), namespace))
    with pytest.raises(
        ValueError, match=f"learn has '{kept}', which LinearLIF has too; give the parameter another name"
    ):
        LinearLIF(3, 2, neuron=kind(), learn=(kept,))


def test_modules_hold_what_learns() -> None:
    """Under its own name, with the neuron's value; ``learns`` of the neuron unless ``learn`` says otherwise."""
    layer = LinearLIF(5, 4, neuron=PLIF(tau=3.0), size=(4,))
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {"weight": (4, 5), "bias": (4,), "w": (4,)}
    torch.testing.assert_close(1 / layer.w.sigmoid(), torch.full((4,), 3.0))
    assert [name for name, _ in Spiking(PLIF(), learn=()).named_parameters()] == []
    assert [name for name, _ in Spiking(LIF(), learn=("tau", "v_threshold")).named_parameters()] == [
        "tau",
        "v_threshold",
    ]
    assert LinearLIF(5, 4, neuron=PLIF(), dtype=torch.float64).w.dtype == torch.float64
    assert LinearLIF(5, 4, neuron=PLIF(), dtype=torch.bfloat16).w.dtype == torch.float32
    for module in (LinearLIF, Spiking):
        sizes = (5, 4) if module is LinearLIF else ()
        with pytest.raises(ValueError, match=r"learn has 'taus'; LIF allows: tau, v_threshold$"):
            module(*sizes, neuron=LIF(), learn=("taus",))


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_training_moves_tau(backend: str) -> None:
    """A few steps towards spikes of another tau; the layer is saved and loaded with what it learnt."""
    torch.manual_seed(0)
    device = device_of(backend)
    current = case(15, 8, 4, 3, 3)[0].to(device)
    layer = Spiking(PLIF(tau=2.0), size=(4, 1, 1), backend=backend).to(device)
    target = fastsnn.scan(current, PLIF(tau=5.0), backend=backend)[0].mean(0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(12):
        loss = (layer(current).mean(0) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert (1 / layer.w.sigmoid() > 2.5).all()
    twin = Spiking(PLIF(), size=(4, 1, 1), backend=backend).to(device)
    twin.load_state_dict(layer.state_dict())
    contract.require(contract.same_bits("spikes", twin(current), layer(current)))


def test_gradients_reach_through_a_parameter_that_is_computed() -> None:
    """A parameter needs not be a leaf: as one that a network makes of others."""
    current = case(9, 3, 7)[0].to(DEVICE)
    (raw,) = leaves(torch.zeros(7, device=DEVICE))
    results = []
    for backend in ("torch", "triton"):
        spikes, _ = fastsnn.scan(current, LIF(tau=3.0), parameters={"tau": 2 + raw.exp()}, backend=backend)
        results.append(torch.autograd.grad(spikes.sum(), raw)[0])
    contract.require(contract.gradient_error("raw", results[1], results[0].double().cpu()))


@pytest.mark.parametrize(
    ("neuron", "learn", "least"),
    [
        (fastsnn.AdLIF(), ("tau", "tau_w", "a", "b"), {"tau": 0.1, "tau_w": 0.1, "a": 0.0}),
        (fastsnn.SEAdLIF(), ("a",), {"a": -1.0}),
        (fastsnn.ALIF(), ("tau", "tau_adp"), {"tau": 0.1, "tau_adp": 0.1}),
        (fastsnn.LIF(), ("tau", "v_threshold"), {"tau": 1.001}),
        (fastsnn.CuBaLIF(), ("syn_decay", "mem_decay"), {"syn_decay": 0.0, "mem_decay": 0.0}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, fastsnn.Neuron) else None,
)
@pytest.mark.parametrize("kind", [fastsnn.Recurrent, fastsnn.LinearLIF])
def test_training_keeps_what_is_learnt_in_its_bounds(
    kind: Any, neuron: fastsnn.Neuron, learn: tuple[str, ...], least: dict[str, float], tmp_path: Path
) -> None:
    """A step of the optimizer that throws every parameter far down leaves those with a bound on it."""
    network = nn.Sequential(kind(3, 2, neuron=neuron, learn=learn, size=(2,), backend="torch"))
    source = Arrays(torch.ones(4, 5, 3), [0, 1, 0, 1], test_fraction=0.5)
    for name in learn:
        getattr(network[0], name).register_hook(torch.ones_like)
    options: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 1e4, "threads": 1}
    config = fastsnn.FitConfig(epochs=1, batch_size=4, out=tmp_path / "run", **options)
    fastsnn.fit(network, source, config)
    for name in learn:
        found = getattr(network[0], name)
        if name in least:
            assert torch.equal(found, torch.full((2,), least[name])), name
        else:
            assert (found < -1e3).all(), name
