"""The LIF scan in Triton against the reference: contract C1 to C4, the memory that it touches, and torch."""

from typing import Any

import pytest
import torch
from lif_cases import (
    DEVICE,
    OPCHECK,
    OPTIONS,
    Guarded,
    case,
    gradients,
    leaves,
    neuron,
    require_gradients,
    require_spikes,
)
from torch import Tensor

from fastsnn.kernels import contract, philox, reference
from fastsnn.kernels.triton import lif

SHAPES = [(1, 1, 1), (1, 2, 3), (13, 5, 53), (131, 1, 7), (259, 3), (5, 7), (3, 2, 2, 2), (2, 1031)]


def launch(*inputs: Tensor, **options: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """Leaves of current and v_init where the kernels run, and (spikes, v) of them."""
    current, v_init = leaves(*(tensor.to(DEVICE) for tensor in inputs))
    return (current, v_init), lif.lif(current, v_init, **options)


def check(current: Tensor, v_init: Tensor, *upstream: Tensor, **options: Any) -> None:
    """C1, C3 and C4 of one call."""
    inputs, (spikes, v) = launch(current, v_init, **options)
    actual = [grad.cpu() for grad in gradients((spikes, v), inputs, *(grad.to(DEVICE) for grad in upstream))]
    spikes, v = spikes.cpu(), v.cpu()
    expected, expected_v, _ = reference.lif(current.float(), v_init, **options)
    contract.require(
        contract.same_bits("spikes", spikes, expected.to(current.dtype)), contract.same_bits("v", v, expected_v)
    )
    assert [grad.dtype for grad in actual] == [current.dtype, v_init.dtype]
    require_gradients(tuple(actual), spikes, current, v_init, *upstream, **options)


@pytest.mark.parametrize("tau", [2.0, 3.0])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option(options: dict, tau: float) -> None:
    current, v_init, *upstream = case(13, 5, 29)
    case_neuron = neuron(tau=tau, **options)
    check(current, v_init, *upstream, **case_neuron)
    spikes, v, h = lif.lif_op(current.to(DEVICE), v_init.to(DEVICE), True, **case_neuron)
    require_spikes(spikes.cpu(), v.cpu(), current, v_init, bit_equal=True, **case_neuron)
    contract.require(contract.same_bits("h", h, reference.lif(current, v_init, **case_neuron)[2]))


@pytest.mark.parametrize("alpha", [None, 0.7])
@pytest.mark.parametrize("surrogate", reference.SURROGATES)
def test_every_surrogate(surrogate: str, alpha: float | None) -> None:
    check(*case(13, 5, 29), **neuron(surrogate=surrogate, alpha=alpha, v_threshold=0.75))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    check(*case(*shape), **neuron(tau=3.0, v_reset=None))


@pytest.mark.parametrize("options", [{"BLOCK": 16, "UNROLL": 4}, {"BLOCK": 512, "UNROLL": 4}], ids=str)
def test_blocks_of_another_size(options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """More blocks, and the block of many neurons, which few neurons never meet."""
    chosen = lif.launch_options
    assert {n: chosen(n)["BLOCK"] for n in (1, 2**19 - 1, 2**19)} == {1: 128, 2**19 - 1: 128, 2**19: 512}
    monkeypatch.setattr(lif, "launch_options", lambda n: chosen(n) | options)
    check(*case(7, 3, 47), **neuron(tau=3.0))


@pytest.mark.parametrize("surrogate", reference.SURROGATES)
def test_the_slope_at_the_threshold(surrogate: str) -> None:
    """A membrane exactly at the threshold fires, and its gradient is the surrogate's largest."""
    current = torch.full((1, 3), 2.0, device=DEVICE, requires_grad=True)
    spikes, _ = lif.lif(current, **neuron(surrogate=surrogate))
    (grad,) = torch.autograd.grad(spikes.sum(), current)
    peak = reference.surrogate_derivative(torch.zeros(()), surrogate, reference.SURROGATES[surrogate])
    assert spikes.sum() == 3
    torch.testing.assert_close(grad.cpu(), (peak / 2).expand(1, 3))
    assert peak > 0


@pytest.mark.parametrize("v_reset", [0.0, None, -0.5])
def test_neurons_start_at_rest(v_reset: float | None) -> None:
    current = case(9, 3, 4)[0]
    spikes, v = lif.lif(current.to(DEVICE), **neuron(v_reset=v_reset))
    expected, expected_v, _ = reference.lif(current, **neuron(v_reset=v_reset))
    contract.require(contract.same_bits("spikes", spikes, expected), contract.same_bits("v", v, expected_v))


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_inputs_that_are_not_contiguous(order: tuple[int, int, int]) -> None:
    """Current, v_init and upstream gradients as transposed views, gradients of them as well."""
    current, v_init, *upstream = case(9, 3, 7)
    views = [
        t.permute(order).contiguous().permute(torch.tensor(order).argsort().tolist()) for t in (current, upstream[0])
    ]
    flipped = [t.T.contiguous().T for t in (v_init, upstream[1])]
    assert not any(tensor.is_contiguous() for tensor in (*views, *flipped))
    check(views[0], flipped[0], views[1], flipped[1], **neuron())


def test_a_gradient_that_is_the_same_everywhere() -> None:
    """Of spikes.sum() and spikes.sum(0): expanded, it is read as it lies."""
    current, v_init, *_ = case(9, 3, 4)
    inputs, (spikes, _) = launch(current, v_init, **neuron())
    row = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for upstream in (row[:1, :1].expand(9, 3, 4), row.expand(9, 3, 4)):
        grads = [
            torch.autograd.grad(spikes, inputs, grad, retain_graph=True) for grad in (upstream, upstream.contiguous())
        ]
        contract.require(*(contract.same_bits("gradient", *pair) for pair in zip(*grads, strict=True)))


@pytest.mark.parametrize("which", [0, 1])
def test_one_output_alone(which: int) -> None:
    """Backward where only the spikes, or only the final v, are used."""
    current, v_init, *upstream = case(9, 3, 4)
    inputs, outputs = launch(current, v_init, **neuron())
    actual = torch.autograd.grad(outputs[which], inputs, upstream[which].to(DEVICE))
    upstream[1 - which].zero_()
    actual = tuple(grad.cpu() for grad in actual)
    require_gradients(actual, outputs[0].cpu(), current, v_init, *upstream, **neuron())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_currents(dtype: torch.dtype) -> None:
    """The potential is fp32; spikes and the current's gradient have the current's dtype."""
    current, v_init, grad_spikes, grad_v = case(9, 3, 4)
    check(current.to(dtype), v_init, grad_spikes.to(dtype), grad_v, **neuron())


def test_inference_keeps_no_membrane() -> None:
    current, v_init, _, _ = (tensor.to(DEVICE) for tensor in case(9, 3, 4))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        with torch.no_grad():
            lif.lif(*leaves(current, v_init), **neuron())
        lif.lif(current, v_init, **neuron())
        assert not saved
        lif.lif(*leaves(current, v_init), **neuron())
    assert [tensor.shape for tensor in saved] == [current.shape]
    assert lif.lif_op(current, v_init, False, **neuron())[2].numel() == 0
    with pytest.raises(ValueError, match="save_h is False; allowed: True"):
        lif.lif_op(*leaves(current, v_init), False, **neuron())


@pytest.mark.parametrize("shape", [(5, 0, 3), (5, 3, 0)])
def test_empty_batches(shape: tuple[int, ...]) -> None:
    current = torch.zeros(shape, device=DEVICE, requires_grad=True)
    spikes, v = lif.lif(current, **neuron())
    assert (spikes.shape, v.shape) == (shape, shape[1:])
    (grad,) = torch.autograd.grad(spikes.sum() + v.sum(), current)
    assert grad.shape == shape


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("T", [1, 8, 37])
def test_all_outputs_are_written_and_nothing_else(T: int, pack: bool) -> None:
    current, v_init, grad_spikes, grad_v = (tensor.to(DEVICE) for tensor in case(T, 3, 43))
    empty = Guarded()
    spikes = empty(-(-T // 32), 3, 43, dtype=torch.int32) if pack else empty(T, 3, 43)
    v, h = empty(3, 43), empty(T, 3, 43)
    lif.launch_forward(current, v_init, spikes, v, h, neuron())
    empty.check()
    for shape, dtype in (((T, 3, 43), torch.float32), ((3, T, 3, 43), torch.bfloat16)):
        grad_current, grad_v_init, total = empty(*shape, dtype=dtype), empty(3, 43), empty(3, 43)
        lif.launch_backward(grad_spikes, grad_v, h, grad_current, grad_v_init, total, neuron())
        empty.check()
        summed = grad_current.float().sum(0) if dtype == torch.bfloat16 else grad_current
        torch.testing.assert_close(total, summed.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("T", [1, 31, 32, 33, 70])
def test_packed_spikes(T: int) -> None:
    """The words that the library path of linear_lif asks for; bits past T are 0."""
    current, v_init, _, _ = (tensor.to(DEVICE) for tensor in case(T, 3, 43))
    expected, v = lif.lif(current, v_init, **neuron())
    words, packed_v = torch.full((-(-T // 32), 3, 43), -7, dtype=torch.int32, device=DEVICE), torch.empty_like(v)
    lif.launch_forward(current, v_init, words, packed_v, None, neuron())
    contract.require(contract.same_bits("words", words, philox.pack(expected)), contract.same_bits("v", packed_v, v))


@pytest.mark.parametrize("save_h", [False, True])
def test_outputs_in_the_memory_of_the_current(save_h: bool) -> None:
    """The library path of linear_lif scans currents that lie where h, or fp32 spikes, will."""
    current, v_init, _, _ = (tensor.to(DEVICE) for tensor in case(19, 3, 43))
    expected, v, h = lif.lif_op(current, v_init, True, **neuron())
    memory, found_v = current.clone(), torch.empty_like(v)
    spikes = torch.empty_like(current) if save_h else memory
    lif.launch_forward(memory, v_init, spikes, found_v, memory if save_h else None, neuron())
    contract.require(contract.same_bits("spikes", spikes, expected), contract.same_bits("v", found_v, v))
    if save_h:
        contract.require(contract.same_bits("h", memory, h))


def test_the_same_bits_every_time() -> None:
    current, v_init, *upstream = (tensor.to(DEVICE) for tensor in case(11, 3, 50))
    results = []
    for _ in range(2):
        inputs, outputs = launch(current, v_init, **neuron(tau=3.0))
        results.append((*outputs, *gradients(outputs, inputs, *upstream)))
    contract.require(*(contract.same_bits(str(i), *pair, "C6") for i, pair in enumerate(zip(*results, strict=True))))


@OPCHECK
def test_operator_passes_opcheck() -> None:
    current, v_init, *_ = (tensor.to(DEVICE) for tensor in case(4, 2, 3))
    torch.library.opcheck(lif.lif_op, (*leaves(current, v_init), True), neuron(v_reset=None))
    torch.library.opcheck(lif.lif_op, (current, None, False), neuron(v_reset=-0.3))


def test_a_compiled_graph_holds_the_operator() -> None:
    current, v_init, *upstream = (tensor.to(DEVICE) for tensor in case(6, 2, 5))

    def network(current: Tensor, v_init: Tensor) -> tuple[Tensor, Tensor]:
        spikes, v = lif.lif(current * 2, v_init, **neuron())
        return lif.lif(spikes * 3, **neuron())[0], v

    results = []
    for run in (network, torch.compile(network, backend="aot_eager", fullgraph=True)):
        inputs = leaves(current, v_init)
        outputs = run(*inputs)
        results.append((*outputs, *gradients(outputs, inputs, *upstream)))
    contract.require(*(contract.same_bits(str(i), *pair) for i, pair in enumerate(zip(*results, strict=True))))


def test_double_precision_is_refused() -> None:
    with pytest.raises(TypeError, match="current has dtype float64; backend triton allows: float32, float16, bfloat16"):
        lif.lif(torch.zeros(2, 3, dtype=torch.float64, device=DEVICE), **neuron())


def test_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsnn.kernels.triton.INTERPRETED", False)
    with pytest.raises(ValueError, match=r"current is on cpu; allowed: .* TRITON_INTERPRET=1 in the environment"):
        lif.lif(torch.zeros(2, 3), **neuron())
    monkeypatch.setattr("fastsnn.kernels.triton.AVAILABLE", False)
    with pytest.raises(RuntimeError, match="not installed; on Linux: pip install triton"):
        lif.lif(torch.zeros(2, 3), **neuron())
