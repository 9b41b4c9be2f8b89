"""Scans in Triton and Numba against the reference: contract C1 to C4 and C6, the memory they touch, and torch.

What is Numba's alone: ``test_numba_scan.py``.
"""

import pytest
import torch
from neuron_cases import (
    BACKENDS,
    DEVICE,
    OPCHECK,
    OPTIONS,
    Guarded,
    case,
    device_of,
    gradients,
    kept_potentials,
    leaves,
    require_gradients,
    require_spikes,
    run_op,
)
from torch import Tensor

from fastsnn import LIF, PLIF
from fastsnn.kernels import contract, philox, reference
from fastsnn.kernels.neurons import SURROGATES
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.numba.scan_kernels import BLOCK
from fastsnn.kernels.scan import scan, scan_op
from fastsnn.kernels.segments import NOTHING, STEPS
from fastsnn.kernels.triton import scan as triton_scan

SHAPES = {
    "triton": [(1, 1, 1), (1, 2, 3), (13, 5, 53), (131, 1, 7), (259, 3), (5, 7), (3, 2, 2, 2), (2, 1031)],
    "numba": [(1, 1, 1), (1, 2, 3), (37, 5, 53), (8, 2, BLOCK + 3), (5, 7), (3, 2, 2, 2)],
}
LARGER = {"triton": (13, 5, 29), "numba": (37, 5, 53)}
"""Of a case that Triton's interpreter makes in a second."""

both = pytest.mark.parametrize("backend", BACKENDS)


def launch(
    backend: str, current: Tensor, v: Tensor, neuron: LIF
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Leaves of current and v on the backend's device, and (spikes, v) of them."""
    inputs = leaves(current.to(device_of(backend)), v.to(device_of(backend)))
    spikes, final = scan(inputs[0], neuron, inputs[1][None], {}, backend)
    return inputs, (spikes, final[0])


def check(backend: str, current: Tensor, v_init: Tensor, *upstream: Tensor, neuron: LIF) -> None:
    """C1, C3 and C4 of one call."""
    inputs, (spikes, v) = launch(backend, current, v_init, neuron)
    there = (grad.to(device_of(backend)) for grad in upstream)
    actual = [grad.cpu() for grad in gradients((spikes, v), inputs, *there)]
    spikes, v = spikes.cpu(), v.cpu()
    expected, (expected_v,) = reference.scan(current.float(), neuron, (v_init,))
    contract.require(
        contract.same_bits("spikes", spikes, expected.to(current.dtype)), contract.same_bits("v", v, expected_v)
    )
    assert [grad.dtype for grad in actual] == [current.dtype, v_init.dtype]
    require_gradients(actual, spikes, current, v_init, *upstream, neuron=neuron)


@pytest.mark.parametrize("tau", [2.0, 3.0])
@pytest.mark.parametrize("options", OPTIONS)
@both
def test_every_option(backend: str, options: dict, tau: float) -> None:
    current, v_init, *upstream = case(*LARGER[backend])
    neuron, device = LIF(tau=tau, **options), device_of(backend)
    check(backend, current, v_init, *upstream, neuron=neuron)
    spikes, v, kept = run_op(backend, current.to(device), neuron, v_init.to(device))
    require_spikes(spikes.cpu(), v.cpu(), current, v_init, neuron, bit_equal=True)
    if backend == "triton":  # Numba keeps nothing
        contract.require(contract.same_bits("kept", kept[0], kept_potentials(neuron, current, v_init)))


@pytest.mark.parametrize("alpha", [None, 0.7])
@pytest.mark.parametrize("surrogate", SURROGATES)
@both
def test_every_surrogate(backend: str, surrogate: str, alpha: float | None) -> None:
    check(backend, *case(*LARGER[backend]), neuron=LIF(surrogate=surrogate, alpha=alpha, v_threshold=0.75))


@pytest.mark.parametrize(("backend", "shape"), [(name, shape) for name in BACKENDS for shape in SHAPES[name]])
def test_shapes(backend: str, shape: tuple[int, ...]) -> None:
    check(backend, *case(*shape), neuron=LIF(tau=3.0, v_reset=None) if backend == "triton" else LIF())


@pytest.mark.parametrize("options", [{"BLOCK": 16, "UNROLL": 4}, {"BLOCK": 512, "UNROLL": 4}], ids=str)
def test_blocks_of_another_size(options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """More blocks, and the block of many neurons, which few neurons never meet."""
    chosen = triton_scan.launch_options
    assert {n: chosen(n)["BLOCK"] for n in (1, 2**19 - 1, 2**19)} == {1: 128, 2**19 - 1: 128, 2**19: 512}
    monkeypatch.setattr(triton_scan, "launch_options", lambda n: chosen(n) | options)
    check("triton", *case(7, 3, 47), neuron=LIF(tau=3.0))


@pytest.mark.parametrize("surrogate", SURROGATES)
@both
def test_the_slope_at_the_threshold(backend: str, surrogate: str) -> None:
    """A membrane exactly at the threshold fires, and its gradient is the surrogate's largest."""
    current = torch.full((1, 3), 2.0, device=device_of(backend), requires_grad=True)
    neuron = LIF(surrogate=surrogate)
    spikes, _ = scan(current, neuron, None, {}, backend)
    (grad,) = torch.autograd.grad(spikes.sum(), current)
    peak = neuron.surrogate_row.derivative(torch.zeros(()), SURROGATES[surrogate].alpha)
    assert spikes.sum() == 3
    torch.testing.assert_close(grad.cpu(), (peak / 2).expand(1, 3))
    assert peak > 0


@pytest.mark.parametrize("v_reset", [0.0, None, -0.5])
@both
def test_neurons_start_at_rest(backend: str, v_reset: float | None) -> None:
    current, neuron = case(9, 3, 4)[0], LIF(v_reset=v_reset)
    spikes, v, _ = run_op(backend, current.to(device_of(backend)), neuron, keep=NOTHING)
    expected, (expected_v,) = reference.scan(current, neuron)
    contract.require(contract.same_bits("spikes", spikes, expected), contract.same_bits("v", v, expected_v))


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (0, 2, 1)])
@both
def test_inputs_that_are_not_contiguous(backend: str, order: tuple[int, int, int]) -> None:
    """Current, state and upstream gradients as transposed views, gradients of them as well."""
    current, v_init, *upstream = case(9, 3, 7)
    views = [
        t.permute(order).contiguous().permute(torch.tensor(order).argsort().tolist()) for t in (current, upstream[0])
    ]
    flipped = [t.T.contiguous().T for t in (v_init, upstream[1])]
    assert not any(tensor.is_contiguous() for tensor in (*views, *flipped))
    check(backend, views[0], flipped[0], views[1], flipped[1], neuron=LIF())


@both
def test_a_gradient_that_is_the_same_everywhere(backend: str) -> None:
    """Of spikes.sum() and spikes.sum(0): expanded, it is read as it lies."""
    current, v_init, *_ = case(9, 3, 4)
    inputs, (spikes, _) = launch(backend, current, v_init, LIF())
    row = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)).to(device_of(backend))
    for upstream in (row[:1, :1].expand(9, 3, 4), row.expand(9, 3, 4)):
        grads = [
            torch.autograd.grad(spikes, inputs, grad, retain_graph=True) for grad in (upstream, upstream.contiguous())
        ]
        contract.require(*(contract.same_bits("gradient", *pair) for pair in zip(*grads, strict=True)))


@pytest.mark.parametrize("which", [0, 1])
@both
def test_one_output_alone(backend: str, which: int) -> None:
    """Backward if only the spikes, or only the final v, are used."""
    current, v_init, *upstream = case(9, 3, 4)
    inputs, outputs = launch(backend, current, v_init, LIF())
    actual = torch.autograd.grad(outputs[which], inputs, upstream[which].to(device_of(backend)))
    upstream[1 - which].zero_()
    require_gradients([g.cpu() for g in actual], outputs[0].cpu(), current, v_init, *upstream, neuron=LIF())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@both
def test_half_precision_currents(backend: str, dtype: torch.dtype) -> None:
    """The potential is fp32; spikes and the current's gradient have the current's dtype."""
    current, v_init, grad_spikes, grad_v = case(9, 3, 4)
    check(backend, current.to(dtype), v_init, grad_spikes.to(dtype), grad_v, neuron=LIF())


@both
def test_inference_keeps_nothing(backend: str) -> None:
    current, v_init, _, _ = (tensor.to(device_of(backend)) for tensor in case(9, 3, 4))
    state = v_init[None]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        with torch.no_grad():
            scan(leaves(current)[0], LIF(), leaves(state)[0], {}, backend)
        scan(current, LIF(), state, {}, backend)
        assert not saved
        inputs = leaves(current, state)
        scan(inputs[0], LIF(), inputs[1], {}, backend)
    if backend == "triton":  # the potentials alone: the currents' memory may be freed
        assert [tensor.shape for tensor in saved if tensor.untyped_storage().nbytes() > 4] == [(1, *current.shape)]
    else:  # what the caller has
        found = [tensor.data_ptr() for tensor in saved if tensor.numel()]
        assert found == [tensor.data_ptr() for tensor in inputs]
    assert run_op(backend, current, LIF(), v_init, keep=NOTHING)[2].numel() == 0
    with pytest.raises(ValueError, match="keep is 'nothing'; allowed: 'states' or 'steps'"):
        run_op(backend, *leaves(current), LIF(), keep=NOTHING)


@pytest.mark.parametrize("shape", [(5, 0, 3), (5, 3, 0)])
@both
def test_empty_batches(backend: str, shape: tuple[int, ...]) -> None:
    current = torch.zeros(shape, device=device_of(backend), requires_grad=True)
    spikes, v = scan(current, LIF(), None, {}, backend)
    assert (spikes.shape, v.shape) == (shape, (1, *shape[1:]))
    (grad,) = torch.autograd.grad(spikes.sum() + v.sum(), current)
    assert grad.shape == shape


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("T", [1, 8, 37])
def test_all_outputs_are_written_and_nothing_else(T: int, pack: bool) -> None:
    current, v_init, grad_spikes, grad_v = (tensor.to(DEVICE) for tensor in case(T, 3, 43))
    empty, neuron = Guarded(), compile_neuron(LIF())
    spikes = empty(-(-T // 32), 3, 43, dtype=torch.int32) if pack else empty(T, 3, 43)
    final, kept = empty(1, 3, 43), empty(1, T, 3, 43)
    triton_scan.scan_forward(neuron, current, v_init[None], {}, spikes, final, kept)
    empty.check()
    for shape, dtype in (((T, 3, 43), torch.float32), ((3, T, 3, 43), torch.bfloat16)):
        grad_current, grad_state, total = empty(*shape, dtype=dtype), empty(1, 3, 43), empty(3, 43)
        rows = torch.empty(0, 3, 43, device=DEVICE)
        triton_scan.scan_backward(neuron, grad_spikes, grad_v[None], kept, {}, grad_current, grad_state, rows, total)
        empty.check()
        summed = grad_current.float().sum(0) if dtype == torch.bfloat16 else grad_current
        torch.testing.assert_close(total, summed.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("T", [1, 31, 32, 33, 70])
def test_packed_spikes(T: int) -> None:
    """The words that the library path of linear asks for; bits past T are 0."""
    current, v_init, _, _ = (tensor.to(DEVICE) for tensor in case(T, 3, 43))
    expected, v, _ = run_op("triton", current, LIF(), v_init, keep=NOTHING)
    words, packed_v = torch.full((-(-T // 32), 3, 43), -7, dtype=torch.int32, device=DEVICE), torch.empty_like(v)
    triton_scan.scan_forward(compile_neuron(LIF()), current, v_init[None], {}, words, packed_v[None], None)
    contract.require(contract.same_bits("words", words, philox.pack(expected)), contract.same_bits("v", packed_v, v))


@pytest.mark.parametrize("keep", [False, True])
def test_outputs_in_the_memory_of_the_current(keep: bool) -> None:
    """The library path of linear scans currents that lie where the potentials, or fp32 spikes, will."""
    current, v_init, _, _ = (tensor.to(DEVICE) for tensor in case(19, 3, 43))
    expected, v, kept = run_op("triton", current, LIF(), v_init)
    memory, final = current.clone(), torch.empty(1, 3, 43, device=DEVICE)
    spikes = torch.empty_like(current) if keep else memory
    triton_scan.scan_forward(
        compile_neuron(LIF()), memory, v_init[None], {}, spikes, final, memory[None] if keep else None
    )
    contract.require(contract.same_bits("spikes", spikes, expected), contract.same_bits("v", final[0], v))
    if keep:
        contract.require(contract.same_bits("kept", memory, kept[0]))


@both
def test_the_same_bits_every_time(backend: str) -> None:
    current, v_init, *upstream = case(11, 3, 50)
    upstream = [grad.to(device_of(backend)) for grad in upstream]
    results = []
    for _ in range(2):
        inputs, outputs = launch(backend, current, v_init, LIF(tau=3.0))
        results.append((*outputs, *gradients(outputs, inputs, *upstream)))
    contract.require(*(contract.same_bits(str(i), *pair, "C6") for i, pair in enumerate(zip(*results, strict=True))))


@OPCHECK
@both
def test_operator_passes_opcheck(backend: str) -> None:
    current, v_init, *_ = (tensor.to(device_of(backend)) for tensor in case(4, 2, 3))
    inputs = leaves(current, v_init[None])
    torch.library.opcheck(scan_op, (*inputs, [], [], LIF(v_reset=None).key, "", backend, STEPS))
    torch.library.opcheck(scan_op, (current, None, [], [], LIF(v_reset=-0.3).key, "", backend, NOTHING))
    w = leaves(torch.full((3,), 0.25, device=current.device))[0]
    values = [value.detach().requires_grad_() for value in compile_neuron(PLIF(), ("w",)).learnt_values({"w": w})]
    torch.library.opcheck(scan_op, (*inputs, values, [w.detach()], PLIF().key, "w", backend, STEPS))


@both
def test_a_compiled_graph_holds_the_operator(backend: str) -> None:
    current, v_init, *upstream = (tensor.to(device_of(backend)) for tensor in case(6, 2, 5))

    neuron = LIF()

    def network(current: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        spikes, final = scan(current * 2, neuron, state, {}, backend)
        return scan(spikes * 3, neuron, None, {}, backend)[0], final[0]

    results = []
    for run in (network, torch.compile(network, backend="aot_eager", fullgraph=True)):
        inputs = leaves(current, v_init[None])
        outputs = run(*inputs)
        results.append((*outputs, *gradients(outputs, inputs, *upstream)))
    contract.require(*(contract.same_bits(str(i), *pair) for i, pair in enumerate(zip(*results, strict=True))))
