"""One LIF step in Triton, piece by piece against the reference: surrogates, charge, reset, slopes of backward."""

from typing import Any

import pytest
import torch
from lif_cases import DEVICE, neuron
from torch import Tensor

from fastsnn.kernels import contract, reference
from fastsnn.kernels.triton import surrogates, tl, triton
from fastsnn.kernels.triton.surrogates import charge, neuron_arguments, reset, slopes, surrogate_derivative

TAUS = (1.5, 2.0, 3.7, 4.0, 1024.0)


@triton.jit
def derivative_kernel(x_ptr, out_ptr, n, alpha, SURROGATE: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0)
    tl.store(out_ptr + offs, surrogate_derivative(x, alpha, SURROGATE), mask=offs < n)


@triton.jit
def step_kernel(
    x_ptr, v_ptr, h_ptr, next_ptr, spike_slope_ptr, reset_slope_ptr, n,
    tau, inv_tau, leak, v_threshold, v_reset, alpha,
    DECAY_INPUT: tl.constexpr, RESTING: tl.constexpr, POWER_OF_TWO: tl.constexpr,
    HARD_RESET: tl.constexpr, DETACH_RESET: tl.constexpr, SURROGATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.arange(0, BLOCK)
    x, v = tl.load(x_ptr + offs, mask=offs < n, other=0.0), tl.load(v_ptr + offs, mask=offs < n, other=0.0)
    h = charge(x, v, tau, inv_tau, leak, v_reset, DECAY_INPUT, RESTING, POWER_OF_TWO)
    after = reset(h, h >= v_threshold, v_threshold, v_reset, HARD_RESET)
    spike_slope, reset_slope = slopes(h, v_threshold, v_reset, alpha, HARD_RESET, DETACH_RESET, SURROGATE)
    tl.store(h_ptr + offs, h, mask=offs < n)
    tl.store(next_ptr + offs, after, mask=offs < n)
    tl.store(spike_slope_ptr + offs, spike_slope, mask=offs < n)
    tl.store(reset_slope_ptr + offs, reset_slope, mask=offs < n)


def derivative(x: Tensor, surrogate: str, alpha: float) -> Tensor:
    out, number = torch.full_like(x, torch.nan, device=DEVICE), surrogates.SURROGATE_IDS[surrogate]
    derivative_kernel[(1,)](x.to(DEVICE), out, len(x), alpha, SURROGATE=number, BLOCK=4096, enable_fp_fusion=False)
    return out.cpu()


def step(x: Tensor, v: Tensor, **options: Any) -> list[Tensor]:
    """h, the next v, and the slopes of spike and reset."""
    found = [torch.full_like(x, torch.nan, device=DEVICE) for _ in range(4)]
    arguments = neuron_arguments(**options)
    step_kernel[(1,)](x.to(DEVICE), v.to(DEVICE), *found, len(x), **arguments, BLOCK=2048, enable_fp_fusion=False)
    return [tensor.cpu() for tensor in found]


def test_every_surrogate_has_a_number() -> None:
    assert list(surrogates.SURROGATE_IDS) == list(reference.SURROGATES)
    assert sorted(surrogates.SURROGATE_IDS.values()) == list(range(6))


@pytest.mark.parametrize("scale", [1.0, 0.3, 7.0])
@pytest.mark.parametrize("surrogate", reference.SURROGATES)
def test_derivative(surrogate: str, scale: float) -> None:
    alpha = torch.tensor(scale * reference.SURROGATES[surrogate]).item()
    x = torch.linspace(-3, 3, 3001)
    exact = reference.surrogate_derivative(x.double(), surrogate, alpha)
    actual = derivative(x, surrogate, alpha)
    # Where the slope has died away little is left of its precision, and nothing of its weight.
    contract.require(contract.close("slope", actual, exact, 4e-6 * exact + 1e-7 * alpha, "C4"))
    assert actual[1500] == actual.max() > 0  # at the threshold, the middle


@pytest.mark.filterwarnings(
    "ignore:(overflow|divide by zero) encountered:RuntimeWarning"
)  # NumPy's, in the interpreter
@pytest.mark.parametrize("surrogate", reference.SURROGATES)
def test_derivative_far_from_the_threshold(surrogate: str) -> None:
    """Neither NaN nor infinite where squares and exponentials overflow."""
    x = torch.tensor([-3e38, -1e25, -1e4, 1e4, 1e25, 3e38])
    slope = derivative(x, surrogate, reference.SURROGATES[surrogate])
    assert ((slope >= 0) & (slope < 1e-6)).all()
    contract.require(contract.same_bits("slope", slope, slope.flip(0)))


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.3])
def test_charge_and_reset_are_the_reference_bit_for_bit(v_reset: float | None, decay_input: bool, tau: float) -> None:
    generator = torch.Generator().manual_seed(7)
    # Magnitudes from 2^-40 to 2^20, and neurons that reach the threshold exactly.
    x, v = (torch.randn(2, 1777, generator=generator) * torch.linspace(-40, 20, 1777).exp2()).unbind()
    x[:100], v[:100] = (tau if decay_input else 1.0) * (torch.arange(100) % 3), 0.0
    options = neuron(tau=tau, v_reset=v_reset, decay_input=decay_input)
    h, after, _, _ = step(x, v, **options)
    _, expected_v, expected_h = reference.lif(x[None], v, **options)
    contract.require(contract.same_bits("h", h, expected_h[0]), contract.same_bits("v", after, expected_v))
    assert v_reset or (h == 1).any()


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.3])
def test_slopes_are_the_derivatives_of_one_step(v_reset: float | None, detach_reset: bool) -> None:
    options = neuron(v_reset=v_reset, detach_reset=detach_reset, decay_input=False)
    x = torch.linspace(-2, 3, 1501)
    h, _, spike_slope, reset_slope = step(x, torch.zeros_like(x), **options)
    current = x.double().requires_grad_()  # whole currents: the derivative of h is 1
    spikes, v, _ = contract.replay(current[None], torch.zeros_like(current), (h >= 1)[None], **options)
    (of_spike,) = torch.autograd.grad(spikes.sum(), current, retain_graph=True)
    (of_reset,) = torch.autograd.grad(v.sum(), current)
    contract.require(contract.close("slope of the spike", spike_slope, of_spike, 2e-6, "C4"))
    contract.require(contract.close("slope of the reset", reset_slope, of_reset, 4e-6, "C4"))


def test_the_neuron_as_a_kernel_takes_it() -> None:
    found = neuron_arguments(**neuron(tau=3.0, v_reset=None, surrogate="erf", alpha=1.5, detach_reset=True))
    assert (found["tau"], found["inv_tau"], found["leak"]) == (3.0, 1 / 3, 1 - 1 / 3)
    assert (found["v_reset"], found["HARD_RESET"], found["RESTING"]) == (0.0, False, False)
    assert (found["SURROGATE"], found["alpha"], found["DETACH_RESET"]) == (2, 1.5, True)
    assert [neuron_arguments(**neuron(v_reset=v))["RESTING"] for v in (0.0, -0.5)] == [False, True]
    powers = [tau for tau in (1.5, 2.0, 3.0, 4.0, 6.0, 2.0**30) if neuron_arguments(**neuron(tau=tau))["POWER_OF_TWO"]]
    assert powers == [2.0, 4.0, 2.0**30]
