"""Linear layers of neurons in Triton (by both paths) and Numba against the reference: contract C1 to C4, sizes, dtypes,
layouts, memory. As modules of torch: ``test_nn.py``.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from neuron_cases import (
    DEVICE,
    OPTIONS,
    Guarded,
    case,
    device_of,
    gradients,
    kept_potentials,
    leaves,
    linear_case,
    needs_bf16_products,
    same_gradients,
)
from torch import Tensor
from torch.nn import functional as F

from fastsnn import LIF
from fastsnn.kernels import contract, reference
from fastsnn.kernels.linear import linear, linear_op
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.numba import linear as numba_linear
from fastsnn.kernels.segments import NOTHING, STEPS
from fastsnn.kernels.triton import bf16_split, linear_forward
from fastsnn.kernels.triton import linear as triton_linear

NAMES = ("x", "weight", "bias", "v")
KERNELS = {"fused": ("triton", "fused"), "library": ("triton", "library"), "numba": ("numba", "auto")}
"""Name -> backend and path."""
SHAPES = [(1, 1, 1, 1), (7, 5, 53, 71), (3, 2, 130, 131), (131, 2, 11, 13), (259, 1, 5, 3), (16, 9, 33, 5)]
"""T, B, K and N: one, primes, over a block, T over the 128 steps of a launch, several samples in a tile."""

every = pytest.mark.parametrize("kernel", KERNELS)


def call(
    kernel: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    v: Tensor | None = None,
    neuron: LIF | None = None,
) -> tuple[Tensor, Tensor]:
    """Spikes and the last v."""
    backend, path = KERNELS[kernel]
    state = None if v is None else v[None]
    spikes, final = linear(x, weight, bias, neuron or LIF(), state, {}, backend, path=path)
    assert isinstance(spikes, Tensor)
    return spikes, final[0]


def call_op(
    kernel: str, x: Tensor, weight: Tensor, bias: Tensor | None, v: Tensor | None, neuron: LIF, keep: str
) -> Any:
    """The operator: spikes, last v, and what was kept."""
    backend, path = KERNELS[kernel]
    state = None if v is None else v[None]
    spikes, final, _, kept, _ = linear_op(
        x, weight, bias, state, None, [], [], len(x), False, keep, path, neuron.key, "", backend
    )
    return spikes, final[0], kept


def placed(kernel: str, *tensors: Tensor) -> list[Tensor]:
    return [tensor.to(device_of(KERNELS[kernel][0])).detach() for tensor in tensors]


def run(kernel: str, tensors: Sequence[Tensor], *upstream: Tensor, neuron: LIF | None = None) -> tuple[Tensor, ...]:
    """Spikes, v and the gradients of those of x, weight, bias and v that are floats, on the CPU."""
    inputs = placed(kernel, *tensors)
    wanted = [tensor.requires_grad_() for tensor in inputs if tensor.is_floating_point()]
    outputs = call(kernel, *inputs, neuron=neuron)
    return tuple(t.detach().cpu() for t in (*outputs, *gradients(outputs, wanted, *placed(kernel, *upstream))))


def check(kernel: str, tensors: Sequence[Tensor], *upstream: Tensor, neuron: LIF) -> None:
    """C3 and C4 of one call."""
    spikes, v, *actual = run(kernel, tensors, *upstream, neuron=neuron)
    x, weight, bias, _ = tensors
    assert spikes.dtype == weight.dtype
    replayed = []
    for dtype in (torch.float64, torch.float32):
        inputs = leaves(*(t.to(dtype) for t in tensors))
        fired, (final,) = contract.replay(F.linear(*inputs[:3]), neuron, inputs[3:], spikes.to(dtype))
        replayed.append(gradients((fired, final), inputs if x.is_floating_point() else inputs[1:], *upstream))
    magnitude, eps = contract.product_magnitude(x.to(weight.dtype), weight, bias), torch.finfo(weight.dtype).eps
    current = F.linear(x.double(), weight.double(), bias.double())
    path = contract.trajectory(current, neuron, tensors[3:], spikes, None, magnitude, eps)
    names = NAMES if x.is_floating_point() else NAMES[1:]
    contract.require(
        contract.spikes_at_threshold(spikes, path.distance, path.bound),
        contract.close("v", v, path.states[0], path.state_bounds[0], "C3"),
        *(contract.gradient_error(*row) for row in zip(names, actual, *replayed, strict=True)),
    )
    assert v.dtype == torch.float32


@every
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_on_exact_currents(options: dict, kernel: str) -> None:
    """C1, bit for bit: spikes, v and what is kept."""
    x, weight, bias, v, *upstream = linear_case(9, 3, 17, 19, dyadic=True)
    if not options["decay_input"]:
        weight, bias = weight / 4, bias / 4
    neuron = LIF(tau=3.0, **options)
    spikes, last, kept = call_op(kernel, *placed(kernel, x, weight, bias, v), neuron, keep=STEPS)
    current = F.linear(x, weight, bias)
    expected, (expected_v,) = reference.linear(x, weight, bias, neuron, (v,))
    # Numba keeps the currents, Triton the potentials.
    expected_kept = current if kernel == "numba" else kept_potentials(neuron, current, v)
    contract.require(
        contract.same_bits("spikes", spikes, expected),
        contract.same_bits("v", last, expected_v),
        contract.same_bits("kept", kept[0], expected_kept),
    )
    assert 0.05 < expected.mean() < 0.95
    check(kernel, (x, weight, bias, v), *upstream, neuron=neuron)


@every
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int, int, int], kernel: str) -> None:
    *tensors, grad_spikes, grad_v = linear_case(*shape)
    check(kernel, tensors, grad_spikes, grad_v, neuron=LIF(tau=3.0, v_reset=None, surrogate="sigmoid"))


@every
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_spikes_of_any_dtype_come_in(dtype: torch.dtype, kernel: str) -> None:
    x, *tensors, grad_spikes, grad_v = linear_case(9, 3, 17, 19, dyadic=True)
    expected = run(kernel, (x, *tensors), grad_spikes, grad_v)
    spikes, v, *grads = run(kernel, (x.to(dtype), *tensors), grad_spikes, grad_v)
    contract.require(contract.same_bits("spikes", spikes, expected[0]), contract.same_bits("v", v, expected[1]))
    if dtype.is_floating_point:
        of_x = grads.pop(0)
        assert of_x.dtype == dtype
        contract.require(contract.gradient_error("x", of_x, expected[2].double()))
    if dtype == torch.float64:  # not taken for spikes: a library makes the products, in an order of its own
        rows = zip(NAMES[1:], grads, expected[3:], strict=True)
        contract.require(*(contract.gradient_error(name, grad, exact.double()) for name, grad, exact in rows))
    else:
        same_gradients(NAMES[1:], grads, expected[3:], kernel)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(dtype: torch.dtype, kernel: str) -> None:
    """One product in half precision, potentials in fp32; gradients have the weight's dtype."""
    x, weight, bias, v, grad_spikes, grad_v = linear_case(9, 3, 17, 19, dyadic=True)
    grad_spikes = grad_spikes.to(dtype).float()
    half = (x.to(dtype), weight.to(dtype), bias.to(dtype), v)
    spikes, last, *grads = run(kernel, half, grad_spikes, grad_v)
    expected = run(kernel, (x, weight, bias, v), grad_spikes, grad_v)
    contract.require(
        contract.same_bits("spikes", spikes, expected[0].to(dtype)), contract.same_bits("v", last, expected[1])
    )
    assert [grad.dtype for grad in grads] == [dtype, dtype, dtype, torch.float32]
    contract.require(
        *(contract.gradient_error(name, g, e.double()) for name, g, e in zip(NAMES, grads, expected[2:], strict=True))
    )


@every
def test_operands_that_are_not_contiguous(kernel: str) -> None:
    """Transposed, every other element, or expanded: what is read is what the caller sees."""
    x, weight, bias, v, *upstream = linear_case(9, 3, 17, 19, dyadic=True)
    expected = run(kernel, (x, weight, bias, v), *upstream)
    views = (x.mT.contiguous().mT, weight.T.contiguous().T, torch.stack([bias, bias], 1)[:, 0], v.T.contiguous().T)
    assert not any(view.is_contiguous() for view in views)
    mixed = (upstream[0].transpose(0, 1).contiguous().transpose(0, 1), upstream[1].T.contiguous().T)
    names = ("spikes", "v", *NAMES)
    found = run(kernel, views, *mixed)
    contract.require(*(contract.same_bits(*row) for row in zip(names, found, expected, strict=True)))


@every
def test_other_numbers_of_axes(kernel: str) -> None:
    x, weight, bias, v, *_ = placed(kernel, *linear_case(9, 3, 17, 19, dyadic=True))
    spikes, last = call(kernel, x, weight, bias, v)
    for index in ((slice(None), 0), (slice(None), slice(1), None)):
        part, part_v = call(kernel, x[index], weight, bias, v[index[1:]])
        contract.require(contract.same_bits("spikes", part, spikes[index]))
        contract.require(contract.same_bits("v", part_v, last[index[1:]]))


@every
def test_only_what_is_asked_for_is_differentiated(kernel: str) -> None:
    x, weight, bias, v, grad_spikes, _ = placed(kernel, *linear_case(9, 3, 17, 19))
    everything = run(kernel, (x, weight, bias, v), grad_spikes, torch.zeros_like(v))[2:]
    for i, name in enumerate(NAMES):
        inputs = [x, weight, bias, v]
        inputs[i] = leaves(inputs[i])[0]
        spikes, _ = call(kernel, *inputs)
        (grad,) = torch.autograd.grad(spikes, inputs[i], grad_spikes)
        contract.require(contract.same_bits(f"gradient of {name}", grad.cpu(), everything[i]))


@every
@pytest.mark.parametrize("shape", [(5, 0, 41), (5, 2, 0, 41)])
def test_an_empty_batch_has_zero_gradients(shape: tuple[int, ...], kernel: str) -> None:
    x, *ones = placed(kernel, torch.zeros(shape), torch.ones(7, 41), torch.ones(7))
    weight, bias = leaves(*ones)
    spikes, v = call(kernel, x, weight, bias)
    assert (spikes.shape, v.shape) == ((*shape[:-1], 7), (*shape[1:-1], 7))
    grads = torch.autograd.grad(spikes.sum() + v.sum(), (weight, bias))
    assert [grad.abs().sum() for grad in grads] == [0, 0]
    assert [grad.shape for grad in grads] == [(7, 41), (7,)]


@every
def test_inference_keeps_nothing(kernel: str) -> None:
    x, weight, bias, *_ = placed(kernel, *linear_case(5, 2, 7, 3))
    assert call_op(kernel, x, weight, bias, None, LIF(), keep=NOTHING)[2].numel() == 0
    weight.requires_grad_()
    with torch.no_grad():
        assert call(kernel, x, weight, bias)[0].grad_fn is None
    with pytest.raises(ValueError, match="keep is 'nothing'; allowed: 'states' or 'steps'"):
        call_op(kernel, x, weight, bias, None, LIF(), keep=NOTHING)


@every
def test_the_same_bits_every_time(kernel: str) -> None:
    *tensors, grad_spikes, grad_v = linear_case(11, 3, 33, 21)
    first, second = (run(kernel, tensors, grad_spikes, grad_v) for _ in range(2))
    contract.require(*(contract.same_bits(str(i), *row, "C6") for i, row in enumerate(zip(second, first, strict=True))))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_numba_scans_the_currents_of_its_own_product(options: dict, has_bias: bool) -> None:
    """C1 from the currents that were used, C4 for gradients."""
    generator = torch.Generator().manual_seed(3)
    x = (torch.rand(19, 3, 41, generator=generator) < 0.3).float()
    weight, bias = torch.randn(7, 41, generator=generator) * 0.4, torch.rand(7, generator=generator)
    _, v, *upstream = case(19, 3, 7)
    layer, neuron = (x, weight, bias)[: 2 + has_bias], LIF(**options)
    inputs = leaves(*layer, v)
    spikes, last = call("numba", *inputs[:-1], *(() if has_bias else (None,)), inputs[-1], neuron=neuron)
    current = numba_linear.currents(numba_linear.as_spikes(x, len(x)), weight, bias if has_bias else None)
    expected, (expected_v,) = reference.scan(current, neuron, (v,))
    contract.require(contract.same_bits("spikes", spikes, expected), contract.same_bits("v", last, expected_v))
    actual = gradients((spikes, last), inputs, *upstream)
    replayed = []
    for dtype in (torch.float64, torch.float32):
        exact = leaves(*(tensor.to(dtype) for tensor in (*layer, v)))
        output, final = contract.replay(F.linear(*exact[:-1]), neuron, exact[-1:], spikes)
        replayed.append(gradients((output, *final), exact, *upstream))
    names = NAMES if has_bias else ("x", "weight", "v")
    contract.require(*(contract.gradient_error(*row) for row in zip(names, actual, *replayed, strict=True)))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("path", ["fused", "library"])
def test_all_outputs_are_written_and_nothing_else(path: str, pack: bool, keep: bool) -> None:
    T, B, K, N = 37, 3, 9, 21
    x, weight, bias, v, *_ = (tensor.to(DEVICE) for tensor in linear_case(T, B, K, N))
    empty = Guarded()
    spikes = empty(-(-T // 32), B, N, dtype=torch.int32) if pack else empty(T, B, N)
    final, kept = empty(1, B, N), empty(1, T, B, N) if keep else None
    triton_linear.forward(compile_neuron(LIF()), x, weight, bias, v[None], {}, spikes, final, kept, path)
    empty.check()


@pytest.mark.parametrize("split", [False, pytest.param(True, marks=needs_bf16_products)])
def test_gradients_are_written_and_nothing_else(split: bool) -> None:
    T, B, K, N = 19, 3, 9, 21
    x, weight, *_ = (tensor.to(DEVICE) for tensor in linear_case(T, B, K, N))
    empty = Guarded()
    grad = torch.randn(T, B, N, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    if split:
        grad = torch.stack([grad.bfloat16(), *2 * [torch.zeros_like(grad).bfloat16()]])
    triton_linear.weight_gradient(grad, x, empty(N, K))
    triton_linear.input_gradient(grad, weight, empty(T, B, K))
    empty.check()


@needs_bf16_products
def test_weights_in_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 parts of a large weight are made for some neurons, or some inputs, at a time."""
    *tensors, grad_spikes, grad_v = linear_case(3, 2, 140, 140, dyadic=True)
    expected = run("library", tensors, grad_spikes, grad_v)
    split, widths = bf16_split.split, []
    monkeypatch.setattr(bf16_split, "PANEL_BYTES", 1)
    monkeypatch.setattr(bf16_split, "split", lambda x: (widths.append(tuple(x.shape)), split(x))[1])
    found = run("fused", tensors, grad_spikes, grad_v)
    assert widths == [(128, 140), (12, 140), (140, 128), (140, 12)]
    contract.require(*(contract.same_bits(*row) for row in zip(("spikes", "v"), found[:2], expected[:2], strict=True)))
    rows = zip(NAMES, found[2:], (grad.double() for grad in expected[2:]), strict=True)
    contract.require(*(contract.gradient_error(*row) for row in rows))


@pytest.mark.parametrize("steps", [32, 64, 128])
def test_every_division_of_a_tile(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a tile are (sample, step): 4 x 32, 2 x 64 or 1 x 128, v carried between launches; blocks of 16 to 64."""
    x, weight, bias, v, *_ = linear_case(150, 3, 7, 50, dyadic=True)
    expected, (expected_v,) = reference.linear(x, weight, bias, LIF(), (v,))
    monkeypatch.setattr(linear_forward, "choose_tile", lambda *_: (steps, {32: 16, 64: 32, 128: 64}[steps]))
    spikes, last = call("fused", *placed("fused", x, weight, bias, v))
    contract.require(contract.same_bits("spikes", spikes, expected), contract.same_bits("v", last, expected_v))
