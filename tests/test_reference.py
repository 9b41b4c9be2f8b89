"""kernels/reference.py against hand-computed numbers, finite differences and SpikingJelly's own neuron."""

import math
from typing import Any

import pytest
import torch
from neuron_cases import OPTIONS, case, gradients, leaves, potentials, require_gradients
from torch import Tensor
from torch.nn import functional as F

from fastsnn import LIF, spikingjelly
from fastsnn.kernels.neurons import SURROGATES
from fastsnn.kernels.neurons.language import precision
from fastsnn.kernels.reference import linear, on_tensors, rate_loss, scan

THEIRS = {name: row.spikingjelly for name, row in SURROGATES.items() if row.spikingjelly}
"""Our surrogates -> SpikingJelly's."""


# Every number below was worked out by hand from the three equations; all are exact in fp32.
TRACES = {
    "hard reset, fires at the threshold": (
        {},
        [1.5, 1.5, 0.0, 2.0, 3.0],
        [0.75, 1.125, 0.0, 1.0, 1.5],
        [0, 1, 0, 1, 1],
        0.0,
    ),
    "soft reset": ({"v_reset": None}, [1.5, 1.5, 0.0, 3.0], [0.75, 1.125, 0.0625, 1.53125], [0, 1, 0, 1], 0.53125),
    "reset to -0.5": ({"v_reset": -0.5}, [1.5, 1.5, 2.0, 0.0], [0.25, 0.625, 1.0625, -0.5], [0, 0, 1, 0], -0.5),
    "whole input": (
        {"decay_input": False},
        [0.75, 0.5, 0.5625, 0.25],
        [0.75, 0.875, 1.0, 0.25],
        [0, 0, 1, 0],
        0.25,
    ),
    "whole input, reset to -0.5": (
        {"decay_input": False, "v_reset": -0.5},
        [1.0, 0.25, 1.0, 0.875, 0.0],
        [0.5, 0.25, 0.875, 1.0625, -0.5],
        [0, 0, 0, 1, 0],
        -0.5,
    ),
    "tau 4, threshold 0.5": ({"tau": 4.0, "v_threshold": 0.5}, [1.0, 2.25, 1.0], [0.25, 0.75, 0.25], [0, 1, 0], 0.25),
}


@pytest.mark.parametrize(("changes", "current", "membrane", "spikes", "final"), TRACES.values(), ids=TRACES)
def test_hand_computed_trace(
    changes: dict[str, Any], current: list[float], membrane: list[float], spikes: list[int], final: float
) -> None:
    s, (v,) = scan(torch.tensor(current), LIF(**changes))
    assert potentials(LIF(**changes), torch.tensor(current)).tolist() == membrane
    assert s.tolist() == spikes
    assert v.item() == final


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # ds0/dx0 = 1/2; ds1/dx0 = 1/2 * dv0/dh0 * 1/2 with dv0/dh0 = 1 - s0 + (v_reset - h0) * 1 = 1/4
        ({}, [0.5 + 0.0625, 0.5]),
        ({"detach_reset": True}, [0.5 + 0.25, 0.5]),
        # dv0/dh0 = 1 - v_threshold * 1 = 0
        ({"v_reset": None}, [0.5, 0.5]),
        # ds0/dx0 = 1; ds1/dx0 = 1/2 * (1 - 3/4), h0 = 0.75
        ({"decay_input": False}, [1 + 0.125, 1.0]),
    ],
)
def test_hand_computed_gradient(changes: dict[str, Any], expected: list[float]) -> None:
    """h0 = 0.75 and h1 are within half a unit of the threshold, where rectangle's derivative is 1."""
    current = torch.tensor([0.75, 0.75] if changes.get("decay_input") is False else [1.5, 1.5], requires_grad=True)
    scan(current, LIF(surrogate="rectangle", **changes))[0].sum().backward()
    assert current.grad is not None
    assert current.grad.tolist() == expected


def test_a_state_continues_a_run() -> None:
    current, neuron = torch.rand(7, 2, 3, generator=torch.Generator().manual_seed(0)) * 3, LIF(v_reset=-0.3)
    spikes, (v,) = scan(current, neuron)
    first, between = scan(current[:3], neuron)
    second, (last,) = scan(current[3:], neuron, between)
    h = potentials(neuron, current[:3]), potentials(neuron, current[3:], *between)
    assert torch.equal(torch.cat([first, second]), spikes)
    assert torch.equal(torch.cat(h), potentials(neuron, current))
    assert torch.equal(last, v)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    spikes, (v,) = scan(torch.full((3, 2), 2.0, dtype=dtype), LIF())
    assert (spikes.dtype, v.dtype) == (dtype, dtype)
    assert spikes.eq(1).all()


@pytest.mark.parametrize(
    ("surrogate", "alpha", "x", "expected"),
    [
        ("atan", 2.0, 0.0, 1.0),
        ("atan", 2.0, 1 / math.pi, 0.5),
        ("sigmoid", 4.0, 0.0, 1.0),
        ("sigmoid", 4.0, math.log(3) / 4, 0.75),
        ("erf", 2.0, 0.0, 2 / math.sqrt(math.pi)),
        ("erf", 2.0, 0.5, 2 / math.sqrt(math.pi) / math.e),
        ("piecewise_quadratic", 1.0, 0.0, 1.0),
        ("piecewise_quadratic", 2.0, 0.25, 1.0),
        ("piecewise_quadratic", 1.0, 1.5, 0.0),
        ("soft_sign", 2.0, 0.0, 1.0),
        ("soft_sign", 2.0, 0.5, 0.25),
        ("rectangle", 1.0, 0.0, 1.0),
        ("rectangle", 2.0, 0.24, 2.0),
        ("rectangle", 2.0, 0.25, 0.0),
        ("fast_sigmoid", 25.0, 0.0, 1.0),
        ("fast_sigmoid", 25.0, 0.04, 0.25),
    ],
)
def test_surrogate_values(surrogate: str, alpha: float, x: float, expected: float) -> None:
    with precision(torch.float64):
        both_sides = SURROGATES[surrogate].derivative(torch.tensor([x, -x], dtype=torch.float64), alpha)
    assert both_sides.tolist() == pytest.approx([expected, expected], rel=1e-14, abs=0)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("alpha", [0.7, 3.0])
def test_derivative_is_that_of_the_primitive(surrogate: str, alpha: float) -> None:
    x = torch.linspace(-2.01, 2, 402, dtype=torch.float64, requires_grad=True)
    row = SURROGATES[surrogate]
    step = row.primitive(x, alpha)
    (slope,) = torch.autograd.grad(step.sum(), x)
    with precision(torch.float64):
        torch.testing.assert_close(slope, row.derivative(x.detach(), alpha), rtol=1e-12, atol=1e-14)
    assert step.diff().ge(0).all()
    far = row.primitive(torch.tensor([-1e9, 0.0, 1e9], dtype=torch.float64), alpha)
    # fast_sigmoid's slope is at most 1 whatever alpha is, so its step is 2 / alpha high.
    expected = [0.5 - 1 / alpha, 0.5, 0.5 + 1 / alpha] if surrogate == "fast_sigmoid" else [0, 0.5, 1]
    assert far.tolist() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck_of_the_smooth_form(surrogate: str, options: dict[str, Any]) -> None:
    """Finite differences in float64 of the network whose step is the surrogate's primitive."""
    neuron = LIF(tau=2.3, surrogate=surrogate, alpha=SURROGATES[surrogate].alpha * 0.8, **options)
    generator = torch.Generator().manual_seed(1)
    current = torch.rand(3, 2, dtype=torch.float64, generator=generator) * 3 - 0.5
    v = torch.rand(2, dtype=torch.float64, generator=generator)
    if neuron.detach_reset:
        # The gradient leaves the reset out, so finite differences must hold it where it was.
        fired = scan(current, neuron, (v,), smooth=True)[0]

        def run(x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            return frozen_reset(x, v, fired, neuron)

        inputs = leaves(current, v)
        output, (last,) = scan(inputs[0], neuron, inputs[1:], smooth=True)
        ours = torch.autograd.grad(weighted((output, last)), inputs)
        theirs = torch.autograd.grad(weighted(run(*inputs)), inputs)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    else:

        def run(x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            output, last = scan(x, neuron, (v,), smooth=True)
            return output, *last

    assert torch.autograd.gradcheck(run, (current.requires_grad_(), v.requires_grad_()))


def frozen_reset(current: Tensor, v: Tensor, fired: Tensor, neuron: LIF) -> tuple[Tensor, ...]:
    """The smooth LIF whose reset reads ``fired`` instead of its own spikes."""
    spikes, bound = [], on_tensors(neuron, current)
    for x, reset in zip(current, fired, strict=True):
        h = bound.charge(x, v)  # type: ignore[attr-defined]
        spikes.append(neuron.surrogate_row.primitive(h - neuron.v_threshold, neuron.alpha))
        v = h - reset * neuron.v_threshold if neuron.v_reset is None else h + reset * (neuron.v_reset - h)
    return torch.stack(spikes), v


def weighted(outputs: tuple[Tensor, ...]) -> Tensor:
    """A scalar in which every output counts differently."""
    return sum(
        (output * torch.arange(1.0, output.numel() + 1, dtype=output.dtype).reshape(output.shape)).sum()
        for output in outputs
    )  # type: ignore[return-value]


@pytest.mark.parametrize("surrogate", THEIRS)
@pytest.mark.parametrize("tau", [2.0, 3.7])
@pytest.mark.parametrize("options", OPTIONS)
def test_same_as_spikingjelly(surrogate: str, tau: float, options: dict[str, Any]) -> None:
    """Spikes and v bit for bit, gradients under C4, against its torch LIFNode in training mode."""
    neuron = LIF(tau=tau, surrogate=surrogate, **options)
    current, v_init, *upstream = inputs = case(20, 3, 31)
    ours, theirs = leaves(current, v_init), leaves(current, v_init)
    spikes, (v,) = scan(ours[0], neuron, ours[1:])
    library = spikingjelly.library()
    node = library.neurons.LIFNode(
        tau, surrogate_function=getattr(library.surrogates, THEIRS[surrogate])(neuron.alpha), step_mode="m", **options
    )
    node.v = theirs[1]
    their_spikes = node(theirs[0])
    assert 0.05 < spikes.mean() < 0.95
    assert torch.equal(spikes, their_spikes)
    assert torch.equal(v, node.v)
    require_gradients(gradients((spikes, v), ours, *upstream), spikes, *inputs, neuron=neuron)
    require_gradients(gradients((their_spikes, node.v), theirs, *upstream), spikes, *inputs, neuron=neuron)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_a_product_and_a_scan(bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = (torch.rand(6, 2, 5, generator=generator) < 0.4).float()
    weight = torch.randn(7, 5, generator=generator)
    b = torch.randn(7, generator=generator) if bias else None
    current = torch.einsum("tbk,nk->tbn", x, weight) + (b if bias else 0.0)
    state = (torch.full((2, 7), 0.25),)
    spikes, last = linear(x, weight, b, LIF(tau=3.0), state)
    expected, expected_last = scan(current, LIF(tau=3.0), state)
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(last, expected_last)


SPIKES = torch.tensor(
    [[[1.0, 0, 1], [0, 0, 0]], [[1, 0, 0], [0, 1, 1]]]
)  # [T=2, B=2, N=3]; rates [1, 0, .5] [0, .5, .5]


@pytest.mark.parametrize(
    ("labels", "loss", "value", "correct"),
    [
        ([0, 1], "mse", (0.25 + 0.25 + 0.25) / 6, 2),  # the tie of the second sample goes to class 1
        ([0, 2], "mse", (0.25 + 0.25 + 0.25) / 6, 1),
        ([2, 0], "mse", (1 + 0.25 + 1 + 0.25 + 0.25) / 6, 0),
        (
            [0, 1],
            "ce",
            (math.log(math.e + 1 + math.exp(0.5)) - 1 + math.log(1 + 2 * math.exp(0.5)) - 0.5) / 2,
            2,
        ),
    ],
)
def test_rate_loss_by_hand(labels: list[int], loss: str, value: float, correct: int) -> None:
    computed, right = rate_loss(SPIKES, torch.tensor(labels), loss)
    assert computed.item() == pytest.approx(value, rel=1e-6)
    assert right.item() == correct


def test_rate_loss_of_silence_is_class_0() -> None:
    assert rate_loss(torch.zeros(4, 3, 5), torch.tensor([0, 1, 0]), "mse")[1].item() == 2


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_rate_loss_of_a_smaller_last_batch_averages_over_its_own_size(loss: str) -> None:
    generator = torch.Generator().manual_seed(4)
    spikes = (torch.rand(9, 5, 4, generator=generator) < 0.5).float()
    labels = torch.randint(4, (5,), generator=generator)
    alone = torch.stack([rate_loss(spikes[:, i : i + 1], labels[i : i + 1], loss)[0] for i in range(5)])
    for part in (slice(0, 3), slice(3, 5)):
        torch.testing.assert_close(rate_loss(spikes[:, part], labels[part], loss)[0], alone[part].mean())


def test_rate_loss_gradient_reaches_each_spike() -> None:
    spikes = SPIKES.clone().requires_grad_()
    labels = torch.tensor([0, 2])
    rate_loss(spikes, labels, "mse")[0].backward()
    assert spikes.grad is not None
    expected = 2 * (SPIKES.mean(0) - F.one_hot(labels, 3)) / 6 / 2
    torch.testing.assert_close(spikes.grad, expected.expand(2, 2, 3))


def test_unknown_loss_is_named() -> None:
    with pytest.raises(ValueError, match="loss is 'l1'; allowed: mse, ce"):
        rate_loss(SPIKES, torch.tensor([0, 1]), "l1")
