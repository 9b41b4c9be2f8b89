"""The measurements that everything else is judged by: what is within a bound, what is not, and what they say."""

import math

import pytest
import torch
from neuron_cases import OPTIONS, case, potentials

from fastsnn import LIF
from fastsnn.kernels import contract, reference
from fastsnn.kernels.contract import Measurement, require

NEURON = LIF(tau=2.0)


def test_require_names_the_tensor_the_index_and_both_values() -> None:
    expected = torch.zeros(2, 3)
    actual = expected.clone()
    actual[1, 2] = 0.5
    with pytest.raises(
        AssertionError, match=r"C1 v: 0.5, allowed 0 \(1 of 6 values differ; \[1, 2\] is 0.5 instead of 0.0\)"
    ):
        require(contract.same_bits("spikes", expected, expected), contract.same_bits("v", actual, expected))


def test_same_bits_sees_shape_dtype_and_nan() -> None:
    one = torch.ones(2)
    assert contract.same_bits("v", one, one).ok
    assert contract.same_bits("v", -0.0 * one, 0.0 * one).ok
    for other in (torch.ones(2, 1), torch.ones(2, dtype=torch.float64), one * math.nan, torch.nextafter(one, 2 * one)):
        assert not contract.same_bits("v", other, one).ok
        assert contract.same_bits("v", other, one).share == math.inf
    assert contract.same_bits("v", torch.empty(0), torch.empty(0)).ok


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_error_that_is_not_finite_is_over_any_bound(error: float) -> None:
    measurement = Measurement("C4", "weight", error, 1.0)
    assert not measurement.ok
    assert measurement.share == math.inf


def test_share_is_the_part_of_the_bound_that_was_used() -> None:
    assert Measurement("C4", "weight", 1e-6, 1e-5).share == pytest.approx(0.1)
    assert Measurement("C1", "spikes", 0.0, 0.0).share == 0


def test_close_judges_each_element_by_its_own_bound() -> None:
    expected, bound = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 1e-3], dtype=torch.float64)
    assert contract.close("v", torch.tensor([0.9, 9e-4]), expected, bound, "C3").error == pytest.approx(0.9)
    found = contract.close("v", torch.tensor([0.9, 2e-3]), expected, bound, "C3")
    assert found.error == pytest.approx(2)
    assert "[1] is" in found.where
    assert contract.close("v", torch.zeros(2), expected, 0.0, "C3").ok
    assert not contract.close("v", torch.full((2,), 1e-30), expected, 0.0, "C3").ok
    assert not contract.close("v", torch.full((2,), math.nan), expected, bound, "C3").ok


def test_gradient_error_is_bounded_by_the_floor_or_by_twice_eager() -> None:
    exact = torch.ones(4, dtype=torch.float64)
    assert contract.gradient_error("weight", exact.float() * (1 + 9e-6), exact).ok
    off = exact.float() * (1 + 3e-5)
    assert not contract.gradient_error("weight", off, exact).ok
    assert contract.gradient_error("weight", off, exact, eager=exact.float() * (1 + 2e-5)).ok
    assert not contract.gradient_error("weight", off, exact, eager=exact.float() * (1 + 1e-5)).ok
    assert not contract.gradient_error("weight", None, exact).ok
    assert not contract.gradient_error("weight", torch.ones(2, 2), exact).ok
    assert not contract.gradient_error("weight", exact.float() * math.nan, exact).ok
    assert contract.gradient_error("weight", (exact * (1 + 5e-4)).half(), exact).ok
    assert not contract.gradient_error("weight", (exact * (1 + 5e-3)).half(), exact).ok
    zero = torch.zeros(4, dtype=torch.float64)
    assert contract.gradient_error("weight", None, zero).ok
    assert not contract.gradient_error("weight", torch.full((4,), 1e-4), zero).ok


def test_current_error_is_bounded_by_twice_torch_with_a_floor_of_a_few_ulp() -> None:
    exact = torch.ones(4, dtype=torch.float64)
    assert contract.current_error(exact * (1 + 4e-7), exact, exact.float()).ok
    assert not contract.current_error(exact * (1 + 6e-7), exact, exact.float()).ok
    assert contract.current_error(exact * (1 + 6e-7), exact, exact * (1 + 4e-7)).ok


def test_losses_agree_within_the_bound() -> None:
    losses = torch.tensor([0.1, 0.09])
    assert contract.loss_error(losses, losses + 2e-5).ok
    assert not contract.loss_error(losses, losses + torch.tensor([0, 4e-5])).ok
    assert not contract.loss_error(losses[:1], losses).ok
    assert not contract.loss_error(losses * math.nan, losses).ok


def test_replay_of_the_reference_is_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(9, 5, generator=generator, dtype=torch.float64) + 1
    for neuron in (NEURON, LIF(tau=3.0, v_reset=-0.2, decay_input=False, surrogate="erf")):
        inputs = [current.clone().requires_grad_() for _ in range(2)]
        ours, (v,) = reference.scan(inputs[0], neuron)
        theirs, (their_v,) = contract.replay(inputs[1], neuron, None, ours)
        assert torch.equal(ours, theirs)
        assert torch.equal(v, their_v)
        gradients = [
            torch.autograd.grad(output.square().sum() + last.sum(), x)[0]
            for output, last, x in ((ours, v, inputs[0]), (theirs, their_v, inputs[1]))
        ]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_a_trajectory_is_the_reference_that_fires_as_recorded() -> None:
    """Whatever is recorded, and if a parameter learns."""
    generator = torch.Generator().manual_seed(1)
    current, v = torch.randn(9, 5, generator=generator) + 1, torch.rand(5, generator=generator)
    spikes = (torch.rand(9, 5, generator=generator) < 0.5).float()
    tau = torch.linspace(1.5, 4, 5)
    for neuron, learnt in ((NEURON, {}), (LIF(v_reset=None), {}), (LIF(tau=3.0, v_reset=-0.2), {"tau": tau})):
        path = contract.trajectory(current, neuron, (v,), spikes, learnt)
        doubled = {name: value.double() for name, value in learnt.items()}
        _, last = contract.replay(current.double(), neuron, (v.double(),), spikes, doubled)
        torch.testing.assert_close(path.states, last, rtol=1e-14, atol=0)
        state = (v.double(),)
        for x, fired, distance in zip(current.double(), spikes, path.distance, strict=True):
            h = potentials(neuron, x[None], *state, doubled)[0]
            torch.testing.assert_close(distance, h - neuron.v_threshold, rtol=1e-13, atol=1e-15)
            _, state = contract.replay(x[None], neuron, state, fired[None], doubled)


def test_a_spike_may_differ_only_at_the_threshold() -> None:
    """h = 1 - 2e-7 at the second neuron: fp32 may fire there, and nowhere else."""
    current = torch.tensor([[1.0, 2 - 4e-7, 3.0]], dtype=torch.float64)
    for spikes, ok, explained in (
        ([0, 0, 1], True, 0),
        ([0, 1, 1], True, 1),
        ([1, 0, 1], False, 0),
        ([0, 1, 0], False, 1),
    ):
        recorded = torch.tensor([spikes], dtype=torch.float32)
        path = contract.trajectory(current, NEURON, None, recorded)
        found = contract.spikes_at_threshold(recorded, path.distance, path.bound)
        assert (found.ok, found.explained) == (ok, explained)
    assert not contract.spikes_at_threshold(recorded / 2, path.distance, torch.ones(1, 3)).ok
    assert not contract.spikes_at_threshold(recorded[0], path.distance, torch.ones(1, 3)).ok


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.3])
def test_bounds_sum_decayed_errors_of_currents(v_reset: float | None, decay_input: bool) -> None:
    """tau = 2: each step adds its current's error, of which the leak takes a half at the next."""
    generator = torch.Generator().manual_seed(2)
    current, silent = torch.rand(40, 7, generator=generator), torch.zeros(40, 7)
    neuron = LIF(v_reset=v_reset, decay_input=decay_input)
    exact = contract.trajectory(current, neuron, None, silent)
    magnitude = torch.full((40, 7), 3.0, dtype=torch.float64)
    found = contract.trajectory(current, neuron, None, silent, None, magnitude, 1e-3)
    gain = 0.5 if decay_input else 1.0
    added = (found.bound - exact.bound)[:, 0].tolist()
    expected = [4e-3 * 3 * gain * (2 - 0.5**t) for t in range(40)]  # 4 eps of the magnitude
    assert added == pytest.approx(expected, rel=1e-9)
    last = (found.state_bounds[0] - exact.state_bounds[0]).tolist()
    assert last == pytest.approx([expected[-1]] * 7, rel=1e-9)


def test_a_spike_ends_what_came_before() -> None:
    """A hard reset forgets the potential's error, a soft one keeps it."""
    current, fired = torch.full((1, 3), 3.0), torch.ones(1, 3)
    hard, soft = (contract.trajectory(current, LIF(v_reset=v), None, fired).state_bounds[0] for v in (0.0, None))
    assert float(hard.max()) <= contract.EPS * 1e-6
    assert float(soft.min()) > contract.EPS


def test_bounds_of_a_step_by_hand() -> None:
    """tau = 3: x - v, its quotient, h and the distance are rounded, as are tau and the threshold."""
    half = contract.EPS / 2
    path = contract.trajectory(torch.tensor([[0.75]]), LIF(tau=3.0), (torch.tensor([0.25]),), torch.zeros(1, 1))
    difference, quotient = 0.5, 0.5 / 3
    h = 0.25 + quotient
    of_h = half * (difference / 3 + 2 * quotient + h)
    assert path.distance.item() == pytest.approx(h - 1, rel=1e-15)
    assert path.bound.item() == pytest.approx(of_h + half * (1 + (1 - h)), rel=1e-12)
    assert path.state_bounds[0].item() == pytest.approx(of_h, rel=1e-12)


@pytest.mark.parametrize("tau", [2.0, 3.7])
@pytest.mark.parametrize("options", OPTIONS)
def test_fp32_stays_within_the_bounds(options: dict, tau: float) -> None:
    """And at the threshold these are at most those of 4 eps of the potential a step."""
    current, v, *_ = case(60, 3, 31)
    neuron = LIF(tau=tau, **options)
    spikes, (last,) = reference.scan(current, neuron, (v,))
    path = contract.trajectory(current, neuron, (v,), spikes)
    contract.require(contract.close("v", last, path.states[0], path.state_bounds[0], "C3"))
    distance = potentials(neuron, current, v) - neuron.v_threshold
    contract.require(contract.close("distance", distance, path.distance, path.bound, "C3"))
    simple, bounds = torch.zeros(3, 31, dtype=torch.float64), []
    for h in path.distance + neuron.v_threshold:
        simple = simple * (1 - 1 / tau) + 4 * contract.EPS * h.abs()
        bounds.append(simple)
    near = path.distance.abs() < 0.05
    assert near.sum() > 100
    assert (path.bound <= torch.stack(bounds))[near].all()


def test_product_magnitude_counts_every_term() -> None:
    x, weight, bias = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[-3.0, 1.0]]), torch.tensor([-0.5])
    assert contract.product_magnitude(x, weight, bias).tolist() == [[[7.5]]]
    assert contract.product_magnitude(x, weight, None).tolist() == [[[7.0]]]
