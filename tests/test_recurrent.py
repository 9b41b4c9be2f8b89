"""Recurrent layers on every backend: against float64 by the contract (C1, C3, C4), against SpikingJelly and snnTorch,
sizes, dtypes, sequences that are cut, and what bad input gets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import pytest
import torch
from neuron_cases import device_of, gradients, leaves, same_gradients
from torch import Tensor
from torch.nn import functional as F

import fastsnn
from fastsnn import LI, LIF, Neuron, SEAdLIF
from fastsnn.kernels import contract
from fastsnn.kernels.neurons.language import Value
from fastsnn.kernels.numba.recurrent import few_inputs
from fastsnn.kernels.packed import PackedSpikes

BACKENDS = ("torch", "triton", "numba")
every = pytest.mark.parametrize("backend", BACKENDS)


@dataclass(frozen=True)
class Mine(Neuron):
    """A user's own."""

    tau: float = 2.5

    def step(self, x: Value, v: Value) -> tuple[Value, Value]:  # type: ignore[override]
        h = v + (x - v) / self.tau
        s = self.spike(h - 1.0)
        return s, (1 - s) * h


NEURONS: dict[str, tuple[Neuron, tuple[str, ...]]] = {
    "lif": (LIF(tau=3.0, v_reset=None, surrogate="sigmoid"), ()),
    "se-adlif": (SEAdLIF(tau=3.0, tau_w=9.0), ("tau", "tau_w")),
    "mine": (Mine(), ()),
    "li": (LI(), ()),
}
"""Name -> the neuron, and its parameters that learn, one for each neuron of the layer."""

Tensors = dict[str, Tensor]


def layer(
    T: int, B: int, K: int, N: int, neuron: Neuron, diagonal: bool = False, dyadic: bool = False, learn: tuple = (),
    rate: float = 0.3,
) -> Tensors:  # fmt: skip
    """x, of which ``rate`` is not 0, weight, bias, recurrent_weight, the states, output (before the first step) and the
    learnt parameters.
    """
    random = torch.Generator().manual_seed(T + B + K + N + diagonal + 2 * dyadic)
    count = max(0.3 * K, 1.0)
    scale = 2.0 if isinstance(neuron, SEAdLIF) else 1.0
    values = {
        "x": (torch.rand(T, B, K, generator=random) < rate).float(),
        "weight": (torch.randn(N, K, generator=random) * 1.2 / count**0.5 + 1.8 / count) * scale,
        "bias": torch.rand(N, generator=random),
        "recurrent_weight": torch.randn(*(() if diagonal else (N,)), N, generator=random) / (1 + 0.3 * N) ** 0.5,
        **{name: torch.rand(B, N, generator=random) * 0.5 for name in neuron.states},
        "output": (torch.rand(B, N, generator=random) < 0.4).float(),
    }
    if dyadic:
        values = {name: (value * 8).round() / 8 for name, value in values.items()}
    else:
        values["x"] = values["x"] * (torch.randn(T, B, K, generator=random) + 1)
        values["output"] = values["output"] * torch.rand(B, N, generator=random)
    learnt = neuron.parameters()
    return values | {name: learnt[name] * (1 + 0.2 * torch.rand(N, generator=random)) for name in learn}


def upstream_of(values: Tensors, neuron: Neuron) -> list[Tensor]:
    """Gradients of the output, the states and the last output."""
    T, (B, N) = len(values["x"]), values["output"].shape
    random = torch.Generator().manual_seed(N)
    return [torch.randn(shape, generator=random) for shape in ((T, B, N), *[(B, N)] * (len(neuron.states) + 1))]


def call(backend: str, values: Mapping[str, Any], neuron: Neuron, packed: bool = False) -> tuple[Any, Tensors]:
    """``fastsnn.recurrent`` of whatever of a layer's values there is."""
    state = {name: values[name] for name in (*neuron.states, "output") if name in values}
    return fastsnn.recurrent(
        *(values.get(name) for name in ("x", "weight", "recurrent_weight", "bias")),
        neuron, state or None, packed=packed, backend=backend,
        parameters={name: values[name] for name in neuron.parameters() if name in values},
    )  # fmt: skip


def run(
    backend: str, values: Tensors, neuron: Neuron, upstream: list[Tensor] | None = None
) -> tuple[Tensor, Tensors, Tensors]:
    """Output, states and gradients by name, on the CPU."""
    device = device_of(backend)
    given = {name: value.detach().to(device) for name, value in values.items()}
    wanted = {name: value.requires_grad_() for name, value in given.items() if value.is_floating_point()}
    output, state = call(backend, given, neuron)
    grads = gradients(
        (output, *state.values()),
        list(wanted.values()),
        *(grad.to(device) for grad in upstream or upstream_of(values, neuron)),
    )
    cpu = {name: value.detach().cpu() for name, value in state.items()}
    return output.detach().cpu(), cpu, {name: grad.cpu() for name, grad in zip(wanted, grads, strict=True)}


def replayed(values: Tensors, neuron: Neuron, output: Tensor, dtype: torch.dtype) -> Tensors:
    """Gradients of the reference that fires as recorded."""
    given = dict(zip(values, leaves(*(value.to(dtype) for value in values.values())), strict=True))
    found, last = contract.replay(
        F.linear(given["x"], given["weight"], given["bias"]), neuron, [given[name] for name in neuron.states],
        output.to(dtype), {name: given[name] for name in neuron.parameters() if name in given},
        given["recurrent_weight"], given["output"],
    )  # fmt: skip
    outputs = (found, *last, found[-1])
    return dict(zip(given, gradients(outputs, list(given.values()), *upstream_of(values, neuron)), strict=True))


def check(backend: str, values: Tensors, neuron: Neuron) -> tuple[Tensor, Tensors]:
    """C3 step by step, from the recorded outputs, and C4 of one call."""
    output, state, actual = run(backend, values, neuron)
    previous, back = torch.cat([values["output"][None], output[:-1]]), values["recurrent_weight"]
    matrix = back if back.dim() == 2 else torch.diag(back)
    doubled = {name: value.double() for name, value in values.items()}
    current = F.linear(doubled["x"], doubled["weight"], doubled["bias"]) + F.linear(previous.double(), matrix.double())
    magnitude = contract.product_magnitude(values["x"], values["weight"], values["bias"])
    magnitude = magnitude + contract.product_magnitude(previous, matrix, None)
    learnt = {name: values[name] for name in neuron.parameters() if name in values}
    path = contract.trajectory(current, neuron, [values[name] for name in neuron.states], output, learnt, magnitude)
    exact, eager = (replayed(values, neuron, output, dtype) for dtype in (torch.float64, torch.float32))
    contract.require(
        *([contract.spikes_at_threshold(output, path.distance, path.bound)] if neuron.spikes else []),
        *(
            contract.close(name, state[name], *pair, "C3")
            for name, *pair in zip(neuron.states, path.states, path.state_bounds, strict=True)
        ),
        contract.same_bits("last output", state["output"], output[-1]),
        *(contract.gradient_error(name, grad, exact[name], eager[name]) for name, grad in actual.items()),
    )
    return output, state


@every
@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
@pytest.mark.parametrize("name", NEURONS)
def test_neurons_against_float64(name: str, diagonal: bool, backend: str) -> None:
    neuron, learn = NEURONS[name]
    output, _ = check(backend, layer(5, 5, 9, 17, neuron, diagonal, learn=learn), neuron)
    assert not neuron.spikes or 0.05 < output.mean() < 0.95


@every
@pytest.mark.parametrize("shape", [(1, 3, 5, 17), (5, 1, 3, 1), (4, 9, 33, 48), (2, 17, 1, 67), (35, 2, 7, 5)], ids=str)
def test_shapes(shape: tuple[int, int, int, int], backend: str) -> None:
    check(backend, layer(*shape, LIF(tau=3.0)), LIF(tau=3.0))


@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
@pytest.mark.parametrize("name", ["lif", "se-adlif"])
def test_few_inputs(name: str, diagonal: bool) -> None:
    """Rows of W are added one by one then; inputs need not be spikes, and -0 counts as one."""
    neuron, learn = NEURONS[name]
    values = layer(5, 11, 39, 20, neuron, diagonal, learn=learn, rate=0.1)
    values["x"] += 0.0
    assert few_inputs(values["x"], 5, values["weight"]) is not None
    check("numba", values, neuron)


@pytest.mark.parametrize("backend", ["triton", "numba"])
@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
@pytest.mark.parametrize("options", [{}, {"v_reset": None}, {"v_reset": -0.25, "detach_reset": True}], ids=str)
def test_exact_currents_give_the_references_bits(options: dict, diagonal: bool, backend: str) -> None:
    neuron = LIF(**options)
    values = layer(6, 3, 17, 20, neuron, diagonal, dyadic=True)
    expected, expected_state, _ = run("torch", values, neuron)
    output, state, _ = run(backend, values, neuron)
    contract.require(
        contract.same_bits("output", output, expected),
        *(contract.same_bits(name, state[name], expected_state[name]) for name in state),
    )
    with torch.no_grad():
        silent, last = call(backend, {name: value.to(device_of(backend)) for name, value in values.items()}, neuron)
    contract.require(contract.same_bits("output", silent, expected), contract.same_bits("v", last["v"], state["v"]))


@every
def test_an_empty_batch_and_no_batch(backend: str) -> None:
    values = layer(4, 0, 5, 7, LIF())
    output, _, grads = run(backend, values, LIF())
    assert output.shape == (4, 0, 7)
    assert not any(grads[name].any() for name in ("weight", "bias", "recurrent_weight"))
    values = layer(4, 6, 5, 7, LIF(), dyadic=True)
    folded = {name: v.unflatten(-2, (2, 3)) for name, v in values.items() if name in ("x", "v", "output")}
    flat, nested = (
        call(backend, {name: value.to(device_of(backend)) for name, value in given.items()}, LIF())[0].cpu()
        for given in (values, values | folded)
    )
    contract.require(contract.same_bits("output", nested, flat.unflatten(1, (2, 3))))


@every
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.float64])
def test_spikes_of_any_dtype_come_in(dtype: torch.dtype, backend: str) -> None:
    values = layer(6, 3, 11, 17, LIF(), dyadic=True)
    expected, _, wanted = run(backend, values, LIF())
    output, _, grads = run(backend, values | {"x": values["x"].to(dtype)}, LIF())
    contract.require(contract.same_bits("output", output, expected))
    for name, grad in grads.items():
        contract.require(contract.gradient_error(name, grad, wanted[name].double()))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(dtype: torch.dtype, backend: str) -> None:
    values = layer(6, 3, 11, 17, LIF(), dyadic=True)
    names = ("x", "weight", "recurrent_weight", "bias")
    upstream = [grad.to(dtype).float() for grad in upstream_of(values, LIF())]
    upstream[-1].zero_()  # a sum of two gradients would be rounded
    expected, _, wanted = run(backend, values, LIF(), upstream)
    output, state, grads = run(backend, values | {name: values[name].to(dtype) for name in names}, LIF(), upstream)
    assert state["v"].dtype == torch.float32
    contract.require(contract.same_bits("output", output, expected.to(dtype)))
    for name, grad in grads.items():
        assert grad.dtype == (dtype if name in names else torch.float32)
        contract.require(contract.gradient_error(name, grad, wanted[name].double()))


@every
def test_packed_spikes_in_and_out(backend: str) -> None:
    """T over a word; gradients go through the words."""
    values = {n: v.to(device_of(backend)) for n, v in layer(35, 2, 9, 18, LIF(), dyadic=True).items()}
    grad = torch.randn(35, 2, 18, generator=torch.Generator().manual_seed(1)).to(device_of(backend))
    found = []
    for packed in (False, True):
        inputs = dict(zip(values, leaves(*values.values()), strict=True))
        x = PackedSpikes.pack(inputs["x"]) if packed else inputs["x"]
        output, state = call(backend, inputs | {"x": x}, LIF(), packed)
        assert isinstance(output, PackedSpikes) == packed
        dense = output.unpack() if packed else output
        found.append((dense, state["output"], *gradients((dense,), list(inputs.values()), grad)))
    (plain, last, *expected), (packed_output, packed_last, *grads) = found
    contract.require(
        contract.same_bits("output", packed_output, plain), contract.same_bits("last output", packed_last, last)
    )
    same_gradients(list(values), grads, expected, backend)


@every
@pytest.mark.parametrize("name", ["lif", "se-adlif", "mine"])
def test_a_cut_sequence_is_the_whole(name: str, backend: str) -> None:
    """States and the last output carry over, with their gradients."""
    neuron, learn = NEURONS[name]
    values = layer(11, 3, 7, 17, neuron, dyadic=True, learn=learn)  # a product of other sizes is rounded in another way
    output, state, grads = run(backend, values, neuron)
    device = device_of(backend)
    given = dict(zip(values, leaves(*(value.to(device) for value in values.values())), strict=True))
    first, carried = call(backend, given | {"x": given["x"][:4]}, neuron)
    second, last = call(backend, given | {"x": given["x"][4:]} | carried, neuron)
    outputs, upstream = (torch.cat([first, second]), *last.values()), upstream_of(values, neuron)
    cut = gradients(outputs, list(given.values()), *(grad.to(device) for grad in upstream))
    contract.require(
        contract.same_bits("output", outputs[0], output),
        *(contract.same_bits(key, last[key], state[key]) for key in state),
        *(contract.gradient_error(key, grad, grads[key].double()) for key, grad in zip(given, cut, strict=True)),
    )


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    neuron, learn = NEURONS["se-adlif"]
    values = layer(60, 19, 9, 48, neuron, learn=learn)
    results = []
    for threads in (1, 2):
        monkeypatch.setattr(numba, "get_num_threads", lambda threads=threads: threads)
        output, state, grads = run("numba", values, neuron)
        results.append({"output ": output, **state, **{f"gradient of {n}": grad for n, grad in grads.items()}})
    contract.require(*(contract.same_bits(n, results[1][n], results[0][n], "C6") for n in results[0]))


@every
def test_only_what_is_asked_for_is_differentiated(backend: str) -> None:
    values = layer(5, 2, 7, 17, LIF())
    grad = upstream_of(values, LIF())[0]
    nothing = [grad, *(torch.zeros(2, 17) for _ in range(2))]
    *_, everything = run(backend, values, LIF(), nothing)
    for name in values:
        given = {n: value.to(device_of(backend)).requires_grad_(n == name) for n, value in values.items()}
        output, _ = call(backend, given, LIF())
        (found,) = torch.autograd.grad(output, given[name], grad.to(output.device))
        contract.require(contract.same_bits(f"gradient of {name}", found.cpu(), everything[name]))
