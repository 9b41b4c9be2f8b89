"""The choice of a backend: by name, ``auto``, one of another package, and what each of them says if it can't."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from neuron_cases import DEVICE, case, linear_case
from torch import Tensor, nn

import fastsnn
from fastsnn import LIF, PLIF, LinearLIF, PackedSpikes, Spiking, backends
from fastsnn.errors import BackendUnavailable
from fastsnn.kernels import contract

CPU = torch.device("cpu")


class Theirs:
    """A backend of another package: one file with one class. It remembers what it was asked."""

    name = "theirs"
    paths = ("auto", "quick")

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.reason: str | None = None

    def refusal(self, device: torch.device) -> str | None:
        return self.reason

    def neuron_refusal(self, neuron: Any, dtype: torch.dtype, learns: bool, *_: object) -> str | None:
        return "it has no learnt parameters" if learns else None

    def scan(self, current: Tensor, neuron: Any, state: Tensor | None, parameters: Any) -> tuple[Tensor, Tensor]:
        self.asked.append(("scan", tuple(current.shape), neuron, state, parameters))
        return backends.TorchBackend().scan(current, neuron, state, parameters)

    def linear(self, *arguments: Any) -> tuple[Tensor | PackedSpikes, Tensor]:
        self.asked.append(("linear", *arguments[-2:]))
        return backends.TorchBackend().linear(*arguments)

    def rate_classifier(self) -> None:
        return None


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Theirs]:
    monkeypatch.setattr(backends, "_backends", dict(backends._backends))
    backends.refusal.cache_clear()
    backend = Theirs()
    backends.register(backend)  # type: ignore[arg-type]
    yield backend
    backends.refusal.cache_clear()


def test_a_registered_backend_is_one_by_name(theirs: Theirs) -> None:
    current, v, *_ = case(5, 2, 3)
    assert "theirs" in backends.names()
    spikes, last = fastsnn.scan(current, LIF(tau=3.0), {"v": v}, backend="theirs")
    expected, expected_last = fastsnn.scan(current, LIF(tau=3.0), {"v": v}, backend="torch")
    contract.require(contract.same_bits("spikes", spikes, expected))
    contract.require(contract.same_bits("v", last["v"], expected_last["v"]))
    tried, (operation, shape, neuron, state, parameters) = theirs.asked
    assert tried[:2] == ("scan", (1, 1, 1))  # the tiny kernel that shows that it runs
    assert (operation, shape, neuron, parameters) == ("scan", (5, 2, 3), LIF(tau=3.0), {})
    assert torch.equal(state, v[None])
    x = linear_case(5, 2, 4, 3)[0]
    net = nn.Sequential(LinearLIF(4, 3, backend="theirs", packed=True), LinearLIF(3, 2, backend="theirs", path="quick"))
    net(x).sum().backward()
    assert [entry[1:] for entry in theirs.asked if entry[0] == "linear"] == [(True, "auto"), (False, "quick")]
    assert net[0].weight.grad is not None
    with pytest.raises(ValueError, match="path is 'slow'; backend theirs allows: auto, quick"):
        fastsnn.linear(x, net[0].weight, backend="theirs", path="slow")


def test_a_registered_backend_refuses_in_one_sentence(theirs: Theirs) -> None:
    current = case(5, 2, 3)[0]
    said = r"^backend theirs cannot compute this: it has no learnt parameters; allowed here: torch, .*numba$"
    with pytest.raises(ValueError, match=said):
        fastsnn.scan(current, PLIF(), parameters={"w": torch.zeros(3)}, backend="theirs")
    theirs.reason = "its chip is not plugged in; plug it in"
    backends.refusal.cache_clear()
    said = r"^backend theirs cannot run on cpu: its chip is not plugged in; plug it in; run `fastsnn doctor`$"
    with pytest.raises(BackendUnavailable, match=said):
        fastsnn.scan(current, backend="theirs")
    theirs.reason = None
    backends.refusal.cache_clear()
    theirs.scan = lambda *_: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(BackendUnavailable, match="its test kernel failed: ZeroDivisionError: division by zero"):
        fastsnn.scan(current, backend="theirs")


def test_a_name_is_taken_once(theirs: Theirs) -> None:
    for name in ("theirs", "auto", "numba"):
        theirs.name = name
        with pytest.raises(ValueError, match=f"backend '{name}' is taken; allowed: a name other than auto, torch, "):
            backends.register(theirs)  # type: ignore[arg-type]


def test_an_unknown_backend_lists_all(theirs: Theirs) -> None:
    for call in (lambda: fastsnn.scan(torch.zeros(1, 1, 1), backend="jax"), lambda: backends.load("jax")):
        with pytest.raises(ValueError, match=r"backend is 'jax'; allowed: auto, torch, cupy, triton, numba, theirs$"):
            call()


def test_auto_takes_the_fastest_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU numba, for any neuron; torch if numba can't, with the reason."""
    assert backends.choose(CPU) == ("numba", [])
    assert backends.choose(CPU, PLIF(v_threshold=2.0), learns=True) == ("numba", [])
    chosen, passed_over = backends.choose(CPU, LIF(), torch.float64)
    assert chosen == "torch"
    assert passed_over == ["not numba, its kernels compute in fp32, not in float64"]
    assert backends.choose(torch.device("meta")) == ("torch", [])


def test_auto_says_once_what_it_passes_over() -> None:
    """For the first float64 tensor of a process, and in every process."""
    code = """
import torch, fastsnn
for _ in range(3):
    spikes, last = fastsnn.scan(torch.ones(4, 1, 2, dtype=torch.float64))
fastsnn.LinearLIF(3, 2, dtype=torch.float64)(torch.ones(4, 1, 3, dtype=torch.float64))
fastsnn.scan(torch.ones(4, 1, 2))
print(last["v"].dtype)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    notice = "backend auto takes torch on cpu: not numba, its kernels compute in fp32, not in float64\n"
    assert (done.stdout, done.stderr) == ("torch.float64\n", notice)


@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_a_backend_that_declines_names_one_that_can(backend: str) -> None:
    device = DEVICE if backend == "triton" else CPU
    current = torch.ones(4, 1, 2, dtype=torch.float64, device=device)
    said = f"^backend {backend} cannot compute this: its kernels compute in fp32, not in float64; allowed here: torch"
    for call in (
        lambda: fastsnn.scan(current, backend=backend),
        lambda: fastsnn.linear(current, torch.ones(3, 2, dtype=torch.float64, device=device), backend=backend),
        lambda: Spiking(backend=backend)(current),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert fastsnn.scan(current, backend="torch")[0].dtype == torch.float64


def test_every_backend_has_what_the_protocol_asks_for() -> None:
    members = [name for name in vars(backends.Backend) if not name.startswith("_")]
    assert {"scan", "linear", "refusal", "neuron_refusal", "rate_classifier"} <= set(members)
    for name in backends.names():
        backend = backends.load(name)
        assert backend.name == name
        assert backend.paths[0] == "auto"
        assert all(callable(getattr(backend, member)) for member in members)


def test_what_only_torch_can_do_goes_to_torch(caplog: pytest.LogCaptureFixture) -> None:
    """torch.func, second derivatives: ``auto`` takes torch, a backend by name refuses; an export always takes torch."""
    x, weight = (torch.rand(6, 3, 5) < 0.5).float(), torch.rand(4, 5)

    def mean(w: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        return fastsnn.linear(x, w, backend=backend)[0].mean()

    leaf = weight.clone().requires_grad_()
    (expected,) = torch.autograd.grad(mean(leaf, "torch"), leaf)
    torch.testing.assert_close(torch.func.grad(mean)(weight), expected)
    assert "backend auto takes torch" in caplog.text
    with pytest.raises(ValueError, match=r"backend numba cannot compute this: .*torch.func.*; use backend torch"):
        torch.func.grad(lambda w: mean(w, "numba"))(weight)
    for backend in ("auto", "numba"):
        program = torch.export.export(fastsnn.LinearLIF(5, 4, backend=backend), (x,), strict=False)
        assert "fastsnn" not in str(program.graph)
    (first,) = torch.autograd.grad(mean(leaf, "numba"), leaf, create_graph=True)
    torch.testing.assert_close(first, expected)
    with pytest.raises(RuntimeError, match=r"backend numba has no second derivative .*; use backend torch"):
        torch.autograd.grad(first.square().sum(), leaf)
    (first,) = torch.autograd.grad(mean(leaf, "torch"), leaf, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), leaf)[0].abs().sum() > 0
