"""Linear + LIF in Triton against the reference, by both paths: contract C1 to C4, sizes, dtypes, layouts, memory.

As an operator and modules of torch: ``test_linear_lif_modules.py``.
"""

from typing import Any

import pytest
import torch
from lif_cases import DEVICE, OPTIONS, Guarded, gradients, leaves, linear_case, neuron
from torch import Tensor
from torch.nn import functional as F

from fastsnn.kernels import contract, reference
from fastsnn.kernels.triton import linear_lif, linear_lif_forward, planes

NAMES = ("x", "weight", "bias", "v_init")
PATHS = ("fused", "library")
SHAPES = [(1, 1, 1, 1), (7, 5, 53, 71), (3, 2, 130, 131), (131, 2, 11, 13), (259, 1, 5, 3), (16, 9, 33, 5)]
"""T, B, K and N: one, primes, over a block, T over the 128 steps of a launch, several samples in a tile."""


def run(tensors: tuple[Tensor, ...], *upstream: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """Spikes, v and the gradients of those of x, weight, bias and v_init that are floats, on the CPU."""
    inputs = [tensor.to(DEVICE).detach() for tensor in tensors]
    wanted = [tensor.requires_grad_() for tensor in inputs if tensor.is_floating_point()]
    outputs = linear_lif.linear_lif(*inputs, **options)
    return tuple(t.detach().cpu() for t in (*outputs, *gradients(outputs, wanted, *(g.to(DEVICE) for g in upstream))))


def check(tensors: tuple[Tensor, ...], *upstream: Tensor, path: str, **options: Any) -> None:
    """C3 and C4 of one call."""
    spikes, v, *actual = run(tensors, *upstream, path=path, **options)
    x, weight, bias, _ = tensors
    assert spikes.dtype == weight.dtype
    replayed, membranes = [], []
    for state in (torch.float64, torch.float32):
        inputs = leaves(*(t.to(state) for t in tensors))
        current = F.linear(*inputs[:3])
        fired, final, membrane = contract.replay(current, inputs[3], spikes.to(state), **options)
        wanted = inputs if x.is_floating_point() else inputs[1:]
        replayed.append(gradients((fired, final), wanted, *upstream))
        membranes.append(membrane.detach())
    magnitude = contract.product_magnitude(x.to(weight.dtype), weight, bias)
    bound = contract.membrane_bound(membranes[0], magnitude, torch.finfo(weight.dtype).eps, **options)
    names = NAMES if x.is_floating_point() else NAMES[1:]
    contract.require(
        contract.spikes_at_threshold(spikes, membranes[0], bound, options["v_threshold"]),
        *(contract.gradient_error(*row) for row in zip(names, actual, *replayed, strict=True)),
    )
    assert v.dtype == torch.float32


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_on_exact_currents(options: dict, path: str) -> None:
    """C1, bit for bit: spikes, v and h."""
    x, weight, bias, v_init, *upstream = linear_case(9, 3, 17, 19, dyadic=True)
    if not options["decay_input"]:
        weight, bias = weight / 4, bias / 4
    options = neuron(tau=3.0, **options)
    arguments = [tensor.to(DEVICE) for tensor in (x, weight, bias, v_init)]
    spikes, v, h, _ = linear_lif.linear_lif_op(*arguments, None, 9, False, True, path, **options)
    expected = reference.linear_lif(x, weight, bias, v_init, **options)
    contract.require(
        *(contract.same_bits(*row) for row in zip(("spikes", "v", "h"), (spikes, v, h), expected, strict=True))
    )
    assert 0.05 < expected[0].mean() < 0.95
    check((x, weight, bias, v_init), *upstream, path=path, **options)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int, int, int], path: str) -> None:
    *tensors, grad_spikes, grad_v = linear_case(*shape)
    check(tuple(tensors), grad_spikes, grad_v, path=path, **neuron(tau=3.0, v_reset=None, surrogate="sigmoid"))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.bfloat16])
def test_spikes_of_any_dtype_come_in(dtype: torch.dtype, path: str) -> None:
    x, *tensors, grad_spikes, grad_v = linear_case(9, 3, 17, 19, dyadic=True)
    expected = run((x, *tensors), grad_spikes, grad_v, path=path, **neuron())
    spikes, v, *grads = run((x.to(dtype), *tensors), grad_spikes, grad_v, path=path, **neuron())
    contract.require(contract.same_bits("spikes", spikes, expected[0]), contract.same_bits("v", v, expected[1]))
    if dtype.is_floating_point:
        of_x = grads.pop(0)
        assert of_x.dtype == dtype
        contract.require(contract.gradient_error("x", of_x, expected[2].double()))
    contract.require(*(contract.same_bits(*row) for row in zip(NAMES[1:], grads, expected[3:], strict=True)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(dtype: torch.dtype, path: str) -> None:
    """One product in half precision, potentials in fp32; gradients have the weight's dtype."""
    x, weight, bias, v_init, grad_spikes, grad_v = linear_case(9, 3, 17, 19, dyadic=True)
    grad_spikes = grad_spikes.to(dtype).float()
    half = (x.to(dtype), weight.to(dtype), bias.to(dtype), v_init)
    spikes, v, *grads = run(half, grad_spikes, grad_v, path=path, **neuron())
    expected = run((x, weight, bias, v_init), grad_spikes, grad_v, path=path, **neuron())
    contract.require(
        contract.same_bits("spikes", spikes, expected[0].to(dtype)), contract.same_bits("v", v, expected[1])
    )
    assert [grad.dtype for grad in grads] == [dtype, dtype, dtype, torch.float32]
    contract.require(
        *(contract.gradient_error(name, g, e.double()) for name, g, e in zip(NAMES, grads, expected[2:], strict=True))
    )


@pytest.mark.parametrize("path", PATHS)
def test_operands_that_are_not_contiguous(path: str) -> None:
    """Transposed, every other element, or expanded: what is read is what the caller sees."""
    x, weight, bias, v_init, *upstream = linear_case(9, 3, 17, 19, dyadic=True)
    expected = run((x, weight, bias, v_init), *upstream, path=path, **neuron())
    views = (x.mT.contiguous().mT, weight.T.contiguous().T, torch.stack([bias, bias], 1)[:, 0], v_init.T.contiguous().T)
    assert not any(view.is_contiguous() for view in views)
    mixed = (upstream[0].transpose(0, 1).contiguous().transpose(0, 1), upstream[1].T.contiguous().T)
    names = ("spikes", "v", *NAMES)
    found = run(views, *mixed, path=path, **neuron())
    contract.require(*(contract.same_bits(*row) for row in zip(names, found, expected, strict=True)))


@pytest.mark.parametrize("path", PATHS)
def test_other_numbers_of_axes(path: str) -> None:
    x, weight, bias, v_init, *_ = (tensor.to(DEVICE) for tensor in linear_case(9, 3, 17, 19, dyadic=True))
    spikes, v = linear_lif.linear_lif(x, weight, bias, v_init, path=path, **neuron())
    for index in ((slice(None), 0), (slice(None), slice(1), None)):
        part, part_v = linear_lif.linear_lif(x[index], weight, bias, v_init[index[1:]], path=path, **neuron())
        contract.require(contract.same_bits("spikes", part, spikes[index]))
        contract.require(contract.same_bits("v", part_v, v[index[1:]]))


@pytest.mark.parametrize("path", PATHS)
def test_only_what_is_asked_for_is_differentiated(path: str) -> None:
    x, weight, bias, v_init, grad_spikes, _ = (tensor.to(DEVICE) for tensor in linear_case(9, 3, 17, 19))
    everything = run((x, weight, bias, v_init), grad_spikes, torch.zeros_like(v_init), path=path, **neuron())[2:]
    for i, name in enumerate(NAMES):
        inputs = [x, weight, bias, v_init]
        inputs[i] = leaves(inputs[i])[0]
        spikes, _ = linear_lif.linear_lif(*inputs, path=path, **neuron())
        (grad,) = torch.autograd.grad(spikes, inputs[i], grad_spikes)
        contract.require(contract.same_bits(f"gradient of {name}", grad, everything[i].to(DEVICE)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(5, 0, 41), (5, 2, 0, 41)])
def test_an_empty_batch_has_zero_gradients(shape: tuple[int, ...], path: str) -> None:
    weight, bias = leaves(torch.ones(7, 41, device=DEVICE), torch.ones(7, device=DEVICE))
    spikes, v = linear_lif.linear_lif(torch.zeros(shape, device=DEVICE), weight, bias, path=path, **neuron())
    assert (spikes.shape, v.shape) == ((*shape[:-1], 7), (*shape[1:-1], 7))
    grads = torch.autograd.grad(spikes.sum() + v.sum(), (weight, bias))
    assert [grad.abs().sum() for grad in grads] == [0, 0]
    assert [grad.shape for grad in grads] == [(7, 41), (7,)]


@pytest.mark.parametrize("path", PATHS)
def test_inference_keeps_no_membrane(path: str) -> None:
    x, weight, bias, *_ = (tensor.to(DEVICE) for tensor in linear_case(5, 2, 7, 3))
    arguments = (None, None, 5, False, False, path)
    assert linear_lif.linear_lif_op(x, weight, bias, *arguments, **neuron())[2].numel() == 0
    weight.requires_grad_()
    with torch.no_grad():
        assert linear_lif.linear_lif(x, weight, bias, path=path, **neuron())[0].grad_fn is None
    with pytest.raises(ValueError, match="save_h is False; allowed: True"):
        linear_lif.linear_lif_op(x, weight, bias, *arguments, **neuron())


@pytest.mark.parametrize("save_h", [True, False])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("forward", [linear_lif_forward.linear_lif_forward, linear_lif.library_forward])
def test_all_outputs_are_written_and_nothing_else(forward: Any, pack: bool, save_h: bool) -> None:
    T, B, K, N = 37, 3, 9, 21
    x, weight, bias, v_init, *_ = (tensor.to(DEVICE) for tensor in linear_case(T, B, K, N))
    empty = Guarded()
    spikes = empty(-(-T // 32), B, N, dtype=torch.int32) if pack else empty(T, B, N)
    forward(x, weight, bias, v_init, spikes, empty(B, N), empty(T, B, N) if save_h else None, neuron())
    empty.check()


def test_gradients_are_written_and_nothing_else() -> None:
    T, B, K, N = 19, 3, 9, 21
    x, weight, *_ = (tensor.to(DEVICE) for tensor in linear_case(T, B, K, N))
    empty = Guarded()
    dense = torch.randn(T, B, N, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    parts = torch.stack([dense.bfloat16(), *2 * [torch.zeros_like(dense).bfloat16()]])
    for grad in (dense, parts):
        linear_lif.weight_gradient(grad, x, empty(N, K))
        linear_lif.input_gradient(grad, weight, empty(T, B, K))
        empty.check()


def test_weights_in_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes of a large weight are made for some neurons, or some inputs, at a time."""
    *tensors, grad_spikes, grad_v = linear_case(3, 2, 140, 140, dyadic=True)
    expected = run(tuple(tensors), grad_spikes, grad_v, path="library", **neuron())
    split, widths = planes.split, []
    monkeypatch.setattr(planes, "PANEL_BYTES", 1)
    monkeypatch.setattr(planes, "split", lambda x: (widths.append(tuple(x.shape)), split(x))[1])
    found = run(tuple(tensors), grad_spikes, grad_v, path="fused", **neuron())
    assert widths == [(128, 140), (12, 140), (140, 128), (140, 12)]
    contract.require(*(contract.same_bits(*row) for row in zip(("spikes", "v"), found[:2], expected[:2], strict=True)))
    rows = zip(NAMES, found[2:], (grad.double() for grad in expected[2:]), strict=True)
    contract.require(*(contract.gradient_error(*row) for row in rows))


@pytest.mark.parametrize("steps", [32, 64, 128])
def test_every_division_of_a_tile(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a tile are (sample, step): 4 x 32, 2 x 64 or 1 x 128, v carried between launches; blocks of 16 to 64."""
    x, weight, bias, v_init, *_ = linear_case(150, 3, 7, 50, dyadic=True)
    expected = reference.linear_lif(x, weight, bias, v_init, **neuron())[:2]
    monkeypatch.setattr(linear_lif_forward, "choose_tile", lambda *_: (steps, {32: 16, 64: 32, 128: 64}[steps]))
    found = linear_lif.linear_lif(*(t.to(DEVICE) for t in (x, weight, bias, v_init)), path="fused", **neuron())
    contract.require(*(contract.same_bits(*row) for row in zip(("spikes", "v"), found, expected, strict=True)))


@pytest.mark.parametrize("path", PATHS)
def test_the_same_bits_every_time(path: str) -> None:
    *tensors, grad_spikes, grad_v = linear_case(11, 3, 33, 21)
    first, second = (run(tuple(tensors), grad_spikes, grad_v, path=path, **neuron()) for _ in range(2))
    contract.require(*(contract.same_bits(str(i), *row, "C6") for i, row in enumerate(zip(second, first, strict=True))))
