"""One step in every language, piece by piece against the reference: surrogates, charge, reset, slopes of backward; and
that a surrogate is one row of a table.
"""

import importlib.util
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from neuron_cases import BACKENDS, case, check_neuron, device_of, gradients, kept_potentials, leaves, run_op
from torch import Tensor

from fastsnn import LIF, Neuron, backends
from fastsnn.kernels import contract, reference
from fastsnn.kernels.neurons import SURROGATES, Surrogate, absolute, exp
from fastsnn.kernels.neurons.language import precision
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.scan import scan
from fastsnn.kernels.segments import NOTHING
from fastsnn.verify import CHECKS, Target

TAUS = (1.5, 2.0, 3.7, 4.0, 1024.0)

both = pytest.mark.parametrize("backend", BACKENDS)


@dataclass(frozen=True)
class Slope(Neuron):
    """Its output is the surrogate's derivative at the current."""

    spikes: ClassVar[bool] = False

    def step(self, x, v):  # type: ignore[no-untyped-def]
        return self.surrogate_row.derivative(x, self.alpha), v


def derivative(backend: str, x: Tensor, surrogate: str, alpha: float) -> Tensor:
    return run_op(backend, x[None].to(device_of(backend)), Slope(surrogate=surrogate, alpha=alpha), keep=NOTHING)[0][
        0
    ].cpu()


@pytest.mark.parametrize("scale", [1.0, 0.3, 7.0])
@pytest.mark.parametrize("surrogate", SURROGATES)
@both
def test_derivative(backend: str, surrogate: str, scale: float) -> None:
    alpha = torch.tensor(scale * SURROGATES[surrogate].alpha).item()
    x = torch.linspace(-3, 3, 3001)
    with precision(torch.float64):
        exact = SURROGATES[surrogate].derivative(x.double(), alpha)
    actual = derivative(backend, x, surrogate, alpha)
    # Where the slope has died away little is left of its precision, and nothing of its weight.
    contract.require(contract.close("slope", actual, exact, 4e-6 * exact + 1e-7 * alpha, "C4"))
    assert actual[1500] == actual.max() > 0  # at the threshold, the middle


@pytest.mark.filterwarnings(
    "ignore:(overflow|divide by zero) encountered:RuntimeWarning"
)  # NumPy's, in the interpreter
@pytest.mark.parametrize("surrogate", SURROGATES)
@both
def test_derivative_far_from_the_threshold(backend: str, surrogate: str) -> None:
    """Neither NaN nor infinite where squares and exponentials overflow."""
    x = torch.tensor([-3e38, -1e25, -1e4, 1e4, 1e25, 3e38])
    slope = derivative(backend, x, surrogate, SURROGATES[surrogate].alpha)
    assert ((slope >= 0) & (slope < 1e-6)).all()
    contract.require(contract.same_bits("slope", slope, slope.flip(0)))


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.3])
@both
def test_charge_and_reset_are_the_reference_bit_for_bit(
    backend: str, v_reset: float | None, decay_input: bool, tau: float
) -> None:
    generator = torch.Generator().manual_seed(7)
    # Magnitudes from 2^-40 to 2^20, and neurons that reach the threshold exactly.
    x, v = (torch.randn(2, 1777, generator=generator) * torch.linspace(-40, 20, 1777).exp2()).unbind()
    x[:100], v[:100] = (tau if decay_input else 1.0) * (torch.arange(100) % 3), 0.0
    neuron, device = LIF(tau=tau, v_reset=v_reset, decay_input=decay_input), device_of(backend)
    spikes, after, kept = run_op(backend, x[None].to(device), neuron, v.to(device))
    expected, (expected_v,) = reference.scan(x[None], neuron, (v,))
    found = [contract.same_bits("spikes", spikes, expected), contract.same_bits("v", after, expected_v)]
    h = kept_potentials(neuron, x[None], v)
    if backend == "triton":
        found.append(contract.same_bits("kept", kept[0], h))
    contract.require(*found)
    assert v_reset or (h == (0 if v_reset is None else 1)).any()


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.3])
@both
def test_slopes_are_the_derivatives_of_one_step(backend: str, v_reset: float | None, detach_reset: bool) -> None:
    neuron, device = LIF(v_reset=v_reset, detach_reset=detach_reset, decay_input=False), device_of(backend)
    x = torch.linspace(-2, 3, 1501)
    state = torch.zeros_like(x)[None].to(device)
    (current,) = leaves(x[None].to(device))  # whole currents: the derivative of h is 1
    spikes, final = scan(current, neuron, state, {}, backend)
    (exact,) = leaves(x.double()[None])
    outputs, (v,) = contract.replay(exact, neuron, (torch.zeros_like(exact[0]),), spikes.cpu())
    ones = torch.ones_like(spikes)
    for what, found, wanted, bound in (("spike", spikes, outputs, 2e-6), ("reset", final, v[None], 4e-6)):
        (slope,) = torch.autograd.grad(found, current, ones, retain_graph=True)
        (expected,) = torch.autograd.grad(wanted.sum(), exact, retain_graph=True)
        contract.require(contract.close(f"slope of the {what}", slope, expected, bound, "C4"))


def test_the_constants_that_kernels_take() -> None:
    """In double precision, of parameters alone; a tau that is a power of two is no divisor."""
    neuron = compile_neuron(LIF(tau=3.0, v_reset=None, surrogate="erf", alpha=1.5, decay_input=False))
    assert sorted(neuron.constants({})[0]) == sorted((1 - 1 / 3, 1.0, 1.5))
    powers = []
    for tau in (1.5, 2.0, 3.0, 4.0, 6.0, 2.0**30):
        prepared = compile_neuron(LIF(tau=tau, alpha=7.0))
        divides = any(instruction.op == "div" for instruction in prepared.forward.instructions)
        powers += [] if divides else [tau]
        assert (tau in prepared.constants({})[0]) == divides
    assert powers == [2.0, 4.0, 2.0**30]
    programs = {compile_neuron(LIF(tau=tau, v_threshold=v)).forward.digest for tau in (2.0, 4.0) for v in (1.0, 0.5)}
    assert len(programs) == 1  # values make no programs of their own


@both
def test_a_learnt_tau_divides_whatever_it_is(backend: str) -> None:
    """The exact reciprocal of a power of two is no promise for what training will make of it."""
    (tau,) = leaves(torch.tensor([2.0, 3.0, 3.7], device=device_of(backend)))
    current, v = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(3)) + 1, torch.zeros(1, 2, 3)
    device = device_of(backend)
    spikes, final = scan(current.to(device), LIF(), v.to(device), {"tau": tau}, backend)
    expected, last = reference.scan(current, LIF(), tuple(v), {"tau": tau.cpu()})
    contract.require(contract.same_bits("spikes", spikes, expected), contract.same_bits("v", final[0], last[0]))
    assert gradients([spikes], [tau], torch.ones_like(spikes))[0].abs().min() > 0


EXPONENTIAL = Surrogate(
    "trial",
    lambda x, alpha: alpha / 2 * exp(-absolute(x * alpha)),
    lambda x, alpha: torch.where(x < 0, (alpha * x).exp() / 2, 1 - (-alpha * x).exp() / 2),
    3.0,
)
"""A row of the table of surrogates that isn't there."""


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_a_surrogate_is_one_row(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Added to the table, neurons take it and every backend computes it."""
    with pytest.raises(ValueError, match=r"surrogate is 'trial'.*; allowed: atan, "):
        LIF(surrogate="trial")
    monkeypatch.setitem(SURROGATES, EXPONENTIAL.name, EXPONENTIAL)
    assert LIF(surrogate="trial").alpha == 3.0
    current, v, *_ = case(11, 3, 29)
    found = check_neuron(backend, LIF(surrogate="trial"), current, {"v": v})
    other = check_neuron(backend, LIF(surrogate="atan"), current, {"v": v})
    assert not torch.equal(found["current"], other["current"])


def test_lists_derive_from_the_table_of_surrogates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row more, and verify has cases of it, which pass."""
    monkeypatch.setitem(SURROGATES, EXPONENTIAL.name, EXPONENTIAL)
    spec = importlib.util.find_spec("fastsnn.verify.cases")
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, again)  # dataclasses look themselves up there
    spec.loader.exec_module(again)
    cases = [case for case in again.GRID if "trial" in case.name or case.neuron.surrogate == "trial"]
    assert {"lif", "threshold", "linear", "rate-step"} <= {case.group for case in cases}
    for backend in ("torch", "triton"):
        target = Target(backends.load(backend), device_of(backend), "cpu" if backend == "torch" else "interpreter")
        chosen = {case.group: case for case in cases if case.group in ("lif", "threshold", "linear")}
        for each in chosen.values():
            contract.require(*CHECKS[each.group](each, target))
