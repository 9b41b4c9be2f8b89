"""The LIF scan and linear+LIF on the CPU against the reference: contract C1 to C4, and as operators of torch."""

import numba
import pytest
import torch
from lif_cases import OPTIONS, case, gradients, leaves, neuron, require_gradients, require_spikes
from torch import Tensor

from fastsnn.kernels import contract, reference
from fastsnn.kernels.numba import lif as cpu_lif
from fastsnn.kernels.numba import products
from fastsnn.kernels.numba.lif_kernels import BLOCK

SHAPES = [(1, 1, 1), (1, 2, 3), (37, 5, 53), (8, 2, BLOCK + 3), (5, 7), (3, 2, 2, 2)]


@pytest.mark.parametrize("tau", [2.0, 3.0])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option(options: dict, tau: float) -> None:
    current, v_init, grad_spikes, grad_v = case(37, 5, 53)
    case_neuron = neuron(tau=tau, **options)
    inputs = leaves(current, v_init)
    spikes, v, h = cpu_lif.lif_op(*inputs, True, **case_neuron)
    require_spikes(spikes, v, current, v_init, bit_equal=True, **case_neuron)
    contract.require(contract.same_bits("h", h, reference.lif(current, v_init, **case_neuron)[2]))
    actual = gradients((spikes, v), inputs, grad_spikes, grad_v)
    require_gradients(actual, spikes, current, v_init, grad_spikes, grad_v, **case_neuron)


@pytest.mark.parametrize("alpha", [None, 0.7])
@pytest.mark.parametrize("surrogate", reference.SURROGATES)
def test_every_surrogate(surrogate: str, alpha: float | None) -> None:
    current, v_init, grad_spikes, grad_v = case(37, 5, 53)
    case_neuron = neuron(surrogate=surrogate, alpha=alpha, v_threshold=0.75)
    inputs = leaves(current, v_init)
    spikes, v = cpu_lif.lif(*inputs, **case_neuron)
    actual = gradients((spikes, v), inputs, grad_spikes, grad_v)
    require_gradients(actual, spikes, current, v_init, grad_spikes, grad_v, **case_neuron)


@pytest.mark.parametrize("surrogate", reference.SURROGATES)
def test_the_slope_at_the_threshold(surrogate: str) -> None:
    """A membrane exactly at the threshold fires, and its gradient is the surrogate's largest."""
    current = torch.full((1, 3), 2.0, requires_grad=True)
    spikes, _ = cpu_lif.lif(current, **neuron(surrogate=surrogate))
    (grad,) = torch.autograd.grad(spikes.sum(), current)
    peak = reference.surrogate_derivative(torch.zeros(()), surrogate, reference.SURROGATES[surrogate])
    assert spikes.sum() == 3
    torch.testing.assert_close(grad, (peak / 2).expand(1, 3))
    assert peak > 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    current, v_init, grad_spikes, grad_v = case(*shape)
    inputs = leaves(current, v_init)
    spikes, v = cpu_lif.lif(*inputs, **neuron())
    expected, expected_v, _ = reference.lif(current, v_init, **neuron())
    contract.require(contract.same_bits("spikes", spikes, expected), contract.same_bits("v", v, expected_v))
    actual = gradients((spikes, v), inputs, grad_spikes, grad_v)
    require_gradients(actual, spikes, current, v_init, grad_spikes, grad_v, **neuron())


@pytest.mark.parametrize("v_reset", [0.0, None, -0.5])
def test_neurons_start_at_rest(v_reset: float | None) -> None:
    current = case(9, 3, 4)[0]
    spikes, v = cpu_lif.lif(current, **neuron(v_reset=v_reset))
    expected, expected_v, _ = reference.lif(current, **neuron(v_reset=v_reset))
    contract.require(contract.same_bits("spikes", spikes, expected), contract.same_bits("v", v, expected_v))


def test_the_number_of_threads_changes_nothing() -> None:
    current, v_init, grad_spikes, grad_v = case(11, 3, 501)
    results = []
    threads = numba.get_num_threads()
    try:
        for count in (threads, 1):
            numba.set_num_threads(count)
            inputs = leaves(current, v_init)
            outputs = cpu_lif.lif(*inputs, **neuron())
            results.append((*outputs, *gradients(outputs, inputs, grad_spikes, grad_v)))
    finally:
        numba.set_num_threads(threads)
    contract.require(*(contract.same_bits(str(i), *pair) for i, pair in enumerate(zip(*results, strict=True))))


def test_a_gradient_that_is_the_same_at_every_step() -> None:
    current, v_init, _, _ = case(9, 3, 4)
    inputs = leaves(current, v_init)
    spikes, _ = cpu_lif.lif(*inputs, **neuron())
    upstream = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    grads = [
        torch.autograd.grad(spikes, inputs, grad, retain_graph=True)
        for grad in (upstream.expand(9, 3, 4), upstream.repeat(9, 1, 1))
    ]
    contract.require(*(contract.same_bits("gradient", *pair) for pair in zip(*grads, strict=True)))


@pytest.mark.parametrize("which", [0, 1])
def test_one_output_alone(which: int) -> None:
    """Backward where only the spikes, or only the final v, are used."""
    current, v_init, *upstream = case(9, 3, 4)
    inputs = leaves(current, v_init)
    outputs = cpu_lif.lif(*inputs, **neuron())
    actual = torch.autograd.grad(outputs[which], inputs, upstream[which])
    upstream[1 - which].zero_()
    require_gradients(actual, outputs[0], current, v_init, *upstream, **neuron())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_currents(dtype: torch.dtype) -> None:
    """The potential is fp32; spikes and the current's gradient have the current's dtype."""
    current, v_init, grad_spikes, grad_v = case(9, 3, 4)
    current, grad_spikes = current.to(dtype), grad_spikes.to(dtype)
    inputs = leaves(current, v_init)
    spikes, v = cpu_lif.lif(*inputs, **neuron())
    expected, expected_v, _ = reference.lif(current.float(), v_init, **neuron())
    contract.require(contract.same_bits("spikes", spikes, expected.to(dtype)), contract.same_bits("v", v, expected_v))
    actual = gradients((spikes, v), inputs, grad_spikes, grad_v)
    assert actual[0].dtype == dtype
    require_gradients(actual, spikes, current, v_init, grad_spikes, grad_v, **neuron())


def test_nothing_is_kept_but_what_the_caller_has() -> None:
    current, v_init, _, _ = case(9, 3, 4)
    inputs = leaves(current, v_init)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        with torch.no_grad():
            cpu_lif.lif(*leaves(current, v_init), **neuron())
        cpu_lif.lif(current, v_init, **neuron())
        assert not saved
        cpu_lif.lif(*inputs, **neuron())
    assert [tensor.data_ptr() for tensor in saved] == [tensor.data_ptr() for tensor in inputs]
    assert cpu_lif.lif_op(current, v_init, False, **neuron())[2].numel() == 0


@pytest.mark.parametrize("shape", [(5, 0, 3), (5, 3, 0)])
def test_empty_batches(shape: tuple[int, ...]) -> None:
    current = torch.zeros(shape, requires_grad=True)
    spikes, v = cpu_lif.lif(current, **neuron())
    assert spikes.shape == shape
    assert v.shape == shape[1:]
    (grad,) = torch.autograd.grad(spikes.sum() + v.sum(), current)
    assert grad.shape == shape


def linear_case() -> tuple[Tensor, ...]:
    """x [T, B, K] of zeros and ones, weight, bias, v_init, and gradients of spikes and v."""
    generator = torch.Generator().manual_seed(3)
    x = (torch.rand(19, 3, 41, generator=generator) < 0.3).float()
    weight, bias = torch.randn(7, 41, generator=generator) * 0.4, torch.rand(7, generator=generator)
    _, v_init, grad_spikes, grad_v = case(19, 3, 7)
    return x, weight, bias, v_init, grad_spikes, grad_v


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_linear_lif(options: dict, has_bias: bool) -> None:
    x, weight, bias, v_init, *upstream = linear_case()
    tensors = (x, weight, bias, v_init) if has_bias else (x, weight, v_init)
    case_neuron = neuron(**options)
    inputs = leaves(*tensors)
    spikes, v, h = cpu_lif.linear_lif_op(*inputs[:-1], *(() if has_bias else (None,)), inputs[-1], True, **case_neuron)
    # C1 from the currents that were used.
    current = products.linear(*tensors[:-1])
    expected, expected_v, expected_h = reference.lif(current, v_init, **case_neuron)
    contract.require(
        contract.same_bits("spikes", spikes, expected),
        contract.same_bits("v", v, expected_v),
        contract.same_bits("h", h, expected_h),
    )
    actual = gradients((spikes, v), inputs, *upstream)
    replayed = []
    for dtype in (torch.float64, torch.float32):
        exact = leaves(*(tensor.to(dtype) for tensor in tensors))
        outputs = contract.replay(torch.nn.functional.linear(*exact[:-1]), exact[-1], spikes, **case_neuron)[:2]
        replayed.append(gradients(outputs, exact, *upstream))
    names = ("x", "weight", "bias", "v_init") if has_bias else ("x", "weight", "v_init")
    contract.require(*(contract.gradient_error(*row) for row in zip(names, actual, *replayed, strict=True)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16])
def test_spikes_of_any_dtype_come_in(dtype: torch.dtype) -> None:
    x, weight, bias, v_init, *upstream = linear_case()
    results = []
    for spikes_in in (x, x.to(dtype)):
        inputs = leaves(weight, bias, v_init)
        outputs = cpu_lif.linear_lif(spikes_in, *inputs, **neuron())
        results.append((*outputs, *gradients(outputs, inputs, *upstream)))
    contract.require(*(contract.same_bits(str(i), *pair) for i, pair in enumerate(zip(*results, strict=True))))


def test_linear_lif_on_other_numbers_of_axes() -> None:
    x, weight, bias, v_init, *_ = linear_case()
    weight, bias = (weight * 8).round() / 8, (bias * 8).round() / 8  # any order of summation gives these currents
    spikes, v = cpu_lif.linear_lif(x, weight, bias, v_init, **neuron())
    for index in ((slice(None), 0), (slice(None), slice(1), None)):
        part, part_v = cpu_lif.linear_lif(x[index], weight, bias, v_init[index[1:]], **neuron())
        contract.require(contract.same_bits("spikes", part, spikes[index]))
        contract.require(contract.same_bits("v", part_v, v[index[1:]]))


def test_an_empty_batch_has_zero_gradients() -> None:
    weight, bias = leaves(torch.ones(7, 41), torch.ones(7))
    spikes, v = cpu_lif.linear_lif(torch.zeros(5, 0, 41), weight, bias, **neuron())
    assert (spikes.shape, v.shape) == ((5, 0, 7), (0, 7))
    grads = torch.autograd.grad(spikes.sum() + v.sum(), (weight, bias))
    assert [grad.abs().sum() for grad in grads] == [0, 0]
    assert [grad.shape for grad in grads] == [(7, 41), (7,)]


# opcheck looks at .grad of copies of its inputs, which are no leaves; torch hides that warning from the screen alone.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
def test_operators_pass_opcheck() -> None:
    current, v_init, *_ = case(4, 2, 3)
    options = neuron(v_reset=None)
    torch.library.opcheck(cpu_lif.lif_op, (*leaves(current, v_init), True), options)
    torch.library.opcheck(cpu_lif.lif_op, (current, None, False), neuron(v_reset=-0.3))
    x, weight, bias, v_init, *_ = linear_case()
    torch.library.opcheck(cpu_lif.linear_lif_op, (*leaves(x, weight, bias), None, True), options)
    torch.library.opcheck(cpu_lif.linear_lif_op, (x, *leaves(weight), None, v_init, True), neuron())
    torch.library.opcheck(cpu_lif.linear_lif_op, (x, weight, bias, v_init, False), options)


def test_a_compiled_graph_holds_the_operators() -> None:
    x, weight, bias, v_init, *upstream = linear_case()

    def network(x: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return cpu_lif.linear_lif(cpu_lif.lif(x * 2, **neuron())[0], *inputs, **neuron())

    results = []
    for run in (network, torch.compile(network, backend="aot_eager", fullgraph=True)):
        inputs = leaves(x, weight, bias, v_init)
        outputs = run(*inputs)
        results.append((*outputs, *gradients(outputs, inputs, *upstream)))
    contract.require(*(contract.same_bits(str(i), *pair) for i, pair in enumerate(zip(*results, strict=True))))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="current is on meta; allowed: the CPU"):
        cpu_lif.lif(torch.zeros(2, 3, device="meta"), **neuron())
    with pytest.raises(ValueError, match="weight is on meta"):
        cpu_lif.linear_lif(torch.zeros(2, 3), torch.zeros(4, 3, device="meta"), **neuron())
    with pytest.raises(TypeError, match="current has dtype float64; backend numba allows: float32"):
        cpu_lif.lif(torch.zeros(2, 3, dtype=torch.float64), **neuron())
