"""The small language of steps: the same bits in every language, and derived gradients.

What it refuses: ``test_refused_steps.py``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from neuron_cases import BACKENDS, device_of, leaves, replayed_gradients
from torch import Tensor

from fastsnn import LIF, PLIF, Neuron
from fastsnn.kernels import contract, reference
from fastsnn.kernels.neurons import (
    SURROGATES,
    absolute,
    detach,
    exp,
    maximum,
    minimum,
    reciprocal,
    select,
    sigmoid,
    sqrt,
    where,
)
from fastsnn.kernels.neurons.differentiate import gradient, reachable
from fastsnn.kernels.neurons.language import TORCH, Graph, Value
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.scan import scan

EPS = contract.EPS
both = pytest.mark.parametrize("backend", BACKENDS)


@dataclass(frozen=True)
class Exact(Neuron):
    """A state for each operation that IEEE 754 settles, computed from the current and v."""

    spikes: ClassVar[bool] = False
    states: ClassVar[tuple[str, ...]] = (
        "v", "sum", "difference", "product", "quotient", "by_half", "opposite", "below", "at_most", "above", "at_least",
        "chosen", "constant", "selected", "smaller", "larger", "clipped", "size", "root",
    )  # fmt: skip
    tau: float = 3.0
    low: float = 0.3
    high: float = 0.7

    def step(self, x, v, *before):  # type: ignore[no-untyped-def]
        s = self.spike(v - self.low)
        return (
            x, v, x + v, x - v, x * v, x / v, x / 4.0, -x,
            where(x < v, 1.0, 0.0), where(x <= v, x, v), where(x > v, 2.0, x), where(x >= v, v, 0.1),
            where(x < 0.0, x / self.tau, 1 - v), where(v < self.low, self.low, self.high), select(s, self.high, x),
            minimum(x, v), maximum(x, v), minimum(maximum(0.1, x), self.high), absolute(x), sqrt(absolute(v)),
        )  # fmt: skip


@dataclass(frozen=True)
class Approximate(Neuron):
    """The operations that each language rounds in its own way."""

    spikes: ClassVar[bool] = False
    states: ClassVar[tuple[str, ...]] = ("v", "power", "share", "inverse")

    def step(self, x, v, *before):  # type: ignore[no-untyped-def]
        return x, v, exp(x), sigmoid(x), reciprocal(absolute(x) + 1e-30)


def states(neuron: Neuron, backend: str, x: Tensor, v: Tensor) -> dict[str, Tensor]:
    """The states after one step; those before it but v are 0."""
    before = torch.zeros(len(neuron.states), len(x))
    before[0] = v
    if backend == "torch":
        _, after = reference.scan(x[None], neuron, tuple(before))
    else:
        device = device_of(backend)
        _, stacked = scan(x[None].to(device), neuron, before.to(device), {}, backend)
        after = stacked.cpu().unbind()
    return dict(zip(neuron.states, after, strict=True))


def values() -> tuple[Tensor, Tensor]:
    """Pairs of magnitudes from 2^-40 to 2^40, equal ones, and zeros of both signs over what isn't one."""
    generator = torch.Generator().manual_seed(5)
    x, v = torch.randn(2, 1003, generator=generator) * torch.linspace(-40, 40, 1003).exp2()
    v[::7] = x[::7]
    x[3:9] = torch.tensor([0.0, -0.0, 0.0, -0.0, 0.1, -0.1])
    v[9:12] = torch.tensor([0.3, 0.7, torch.tensor(0.3).nextafter(torch.tensor(1.0)).item()])
    return x, v


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of lanes without a neuron
@both
def test_exact_operations_have_the_same_bits(backend: str) -> None:
    x, v = values()
    found, expected = (states(Exact(), name, x, v) for name in (backend, "torch"))
    contract.require(*(contract.same_bits(name, found[name], expected[name]) for name in Exact.states))
    # And what is expected is IEEE's: in double, then rounded once.
    wide, narrow = x.double(), v.double()
    for name, exact in (("quotient", wide / narrow), ("root", narrow.abs().sqrt()), ("product", wide * narrow)):
        contract.require(contract.same_bits(name, expected[name], exact.float()))


@pytest.mark.filterwarnings("ignore:(overflow|underflow) encountered:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_the_others_are_within_their_stated_error(backend: str) -> None:
    """exp within 2 eps, sigmoid 4, reciprocal 4e-7, of the value; exp's are right among subnormal numbers too."""
    x = torch.cat([torch.linspace(-103, 88.7, 2003), torch.linspace(-1, 1, 501)])
    found, exact = states(Approximate(), backend, x, x), x.double()
    for name, value, error, tiny in (
        ("power", exact.exp(), 2 * EPS, 3e-45),
        ("share", exact.sigmoid(), 4 * EPS, 2.0**-126),
        ("inverse", 1 / (exact.abs() + 1e-30), 4e-7, 0.0),
    ):
        contract.require(contract.close(name, found[name], value, error * value + tiny, "C1"))


@pytest.mark.filterwarnings("ignore:(overflow|underflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_exponentials_end_where_floats_do(backend: str) -> None:
    found = states(Approximate(), backend, torch.tensor([-1e30, -200.0, -104.5, 89.0, 200.0, 1e30]), torch.zeros(6))
    assert (found["power"][:3] < 3e-45).all()
    assert (found["power"][3:] > 3.4e38).all()
    contract.require(contract.close("share", found["share"], torch.tensor([0, 0, 0, 1, 1, 1.0]), 1e-38, "C1"))


@dataclass(frozen=True)
class Mixed(Neuron):
    """Two states in which every operation has a part, with a derived gradient."""

    states: ClassVar[tuple[str, ...]] = ("v", "a")
    tau: float = 3.0
    v_threshold: float = 0.8
    gain: float = 0.6

    def step(self, x, v, a):  # type: ignore[no-untyped-def]
        drive = x * sigmoid(a) - self.gain * absolute(a) / (1.5 + absolute(x))
        h = v + (drive - v) / self.tau + 0.1 * exp(-absolute(v)) * sqrt(1 + v * v)
        h = where(h > 1.4, 1.4 + 0.25 * (h - 1.4), maximum(h, -0.5))
        s = self.spike(h - self.v_threshold)
        after = minimum(0.9 * a + self.gain * detach(s), 2.0) + reciprocal(4.0 + h * h) * where(a <= x, 0.1, -0.2)
        return s, select(s, 0.1 * h, h), where(x >= -1.0, after, -after)


@both
def test_derived_gradients_of_a_step_with_everything(backend: str) -> None:
    """C4 against autograd in float64 with the recorded spikes."""
    generator = torch.Generator().manual_seed(6)
    current = torch.randn(11, 3, 13, generator=generator) * 2 + 1
    before = torch.rand(2, 3, 13, generator=generator)
    grad_output, grad_states = torch.randn(11, 3, 13, generator=generator), torch.randn(2, 3, 13, generator=generator)
    device = device_of(backend)
    inputs = leaves(current.to(device), before.to(device))
    spikes, final = scan(inputs[0], Mixed(), inputs[1], {}, backend)
    actual = torch.autograd.grad((spikes, final), inputs, (grad_output.to(device), grad_states.to(device)))
    spikes = spikes.detach().cpu()
    assert 0.05 < spikes.mean() < 0.95
    path = contract.trajectory(current, Mixed(), tuple(before), spikes)
    contract.require(contract.spikes_at_threshold(spikes, path.distance, path.bound))
    named = dict(zip(Mixed.states, before, strict=True))
    upstream = (grad_output, *grad_states)
    exact, eager = (
        replayed_gradients(dtype, spikes, current, named, *upstream, neuron=Mixed())
        for dtype in (torch.float64, torch.float32)
    )
    found = dict(zip(exact, (actual[0], *actual[1]), strict=True))
    contract.require(*(contract.gradient_error(name, found[name], exact[name], eager[name]) for name in exact))
    for bound, after, wanted in zip(path.state_bounds, final.detach().cpu(), path.states, strict=True):
        contract.require(contract.close("state", after, wanted, bound, "C3"))


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "square": lambda a, b: a * a,
    "div": lambda a, b: a / b,
    "div by a number": lambda a, b: a / 3.0,
    "number by": lambda a, b: 3.0 / b,
    "neg": lambda a, b: -a,
    "where": lambda a, b: where(a < b, a * b, a + b),
    "select": lambda a, b: select(a, b, a * b),
    "minimum": minimum,
    "maximum": maximum,
    "minimum of a number": lambda a, b: minimum(a, 0.5),
    "maximum of a number": lambda a, b: maximum(0.5, b),
    "absolute": lambda a, b: absolute(a),
    "exp": lambda a, b: exp(a),
    "sqrt": lambda a, b: sqrt(absolute(a) + 0.1),
    "sigmoid": lambda a, b: sigmoid(a),
    "reciprocal": lambda a, b: reciprocal(absolute(b) + 0.2),
    "detach": lambda a, b: detach(a) * b,
    "shared": lambda a, b: exp(a) * sigmoid(a) + exp(a) / b,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradient_of_every_operation(name: str) -> None:
    """To the last bits of float64, at ties too: a tie shares the gradient, and absolute's at 0 is 0."""
    generator = torch.Generator().manual_seed(7)
    a, b, g = torch.randn(3, 200, generator=generator, dtype=torch.float64)
    b[:50], a[50:60], b[60:70] = a[:50], 0.0, 0.5
    graph = Graph()
    inputs = [graph.input("a"), graph.input("b")]
    upstream = graph.input("g")
    found = evaluate(gradient([OPERATIONS[name](*inputs)], [upstream], inputs), {"a": a, "b": b, "g": g})
    tensors = leaves(a, b)
    output = OPERATIONS[name](*tensors)
    expected = torch.autograd.grad(output, tensors, g, allow_unused=True)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(
            got.expand(200), torch.zeros_like(g) if wanted is None else wanted, rtol=1e-13, atol=1e-15
        )


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradient_of_a_spike_is_the_surrogates(surrogate: str) -> None:
    row = SURROGATES[surrogate]
    x = torch.linspace(-2, 2, 401, dtype=torch.float64)
    graph = Graph()
    node = graph.input("x")
    fired = graph.node("spike", node, graph.number(row.alpha), data=surrogate)
    (found,) = evaluate(gradient([fired], [graph.number(1.0)], [node]), {"x": x})
    torch.testing.assert_close(found, row.derivative(x, torch.full_like(x, row.alpha)), rtol=1e-14, atol=0)


def evaluate(nodes: list[Value], given: dict[str, Tensor]) -> list[Tensor]:
    """What the nodes are for these inputs, in float64."""
    memo: dict[int, Tensor] = {}
    for node in reachable(nodes):
        if node.op == "number":
            memo[node.index] = torch.tensor(node.data, dtype=torch.float64)
        elif node.op == "input":
            memo[node.index] = given[str(node.data)]
        else:
            memo[node.index] = TORCH[node.op](*(memo[arg.index] for arg in node.args))
    return [memo[node.index] for node in nodes]


def test_numbers_alone_are_evaluated_once_in_double() -> None:
    """In torch they are numbers too."""
    graph = Graph()
    x = graph.input("x")
    assert (x * (1 - 1 / graph.number(3.0))).args[1].data == 1 - 1 / 3
    assert (exp(graph.number(0.5)).data, exp(0.5)) == (math.exp(0.5), math.exp(0.5))
    assert (maximum(0.25, graph.number(0.5)).data, maximum(0.25, 0.5), sqrt(2.0)) == (0.5, 0.5, math.sqrt(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_and_parameters_leave_the_precision_as_it_is(dtype: torch.dtype) -> None:
    current = torch.randn(3, 4, generator=torch.Generator().manual_seed(8)).to(dtype)
    before = tuple(torch.zeros(4, dtype=dtype) for _ in Exact.states)
    output, after = reference.scan(current, Exact(), before)
    assert {tensor.dtype for tensor in (output, *after)} == {dtype}
    constant = after[Exact.states.index("constant")]
    assert set(constant.tolist()) <= set(torch.tensor([0.3, 0.7], dtype=dtype).tolist())


def test_a_loop_that_ends_is_unrolled() -> None:
    @dataclass(frozen=True)
    class Looping(Neuron):
        steps: int = 3

        def step(self, x, v):  # type: ignore[no-untyped-def]
            for _ in range(self.steps):
                v = v + (x - v) / 8.0
            return self.spike(v - 1.0), abs(v)

    current = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(9)) + 1
    for steps in (1, 3):
        spikes, final = scan(current.to(device_of("triton")), Looping(steps), None, {}, "triton")
        expected, last = reference.scan(current, Looping(steps))
        contract.require(contract.same_bits("spikes", spikes, expected), contract.same_bits("v", final[0], last[0]))


def test_backward_keeps_the_fewest_numbers() -> None:
    @dataclass(frozen=True)
    class Leaky(Neuron):
        spikes: ClassVar[bool] = False

        def step(self, x, v):  # type: ignore[no-untyped-def]
            v = v + (x - v) / 3.0
            return v, v

    assert compile_neuron(Leaky()).kept == 0
    assert compile_neuron(LIF(v_threshold=math.inf)).kept == 0
    for neuron in (LIF(), LIF(v_reset=None, tau=3.0), LIF(detach_reset=True, v_reset=-0.5)):
        assert compile_neuron(neuron).kept == 1
    # h, and what w is multiplied by: the input less the potential.
    assert compile_neuron(PLIF(), ("w",)).kept == 2
    assert compile_neuron(Mixed()).kept <= 3
