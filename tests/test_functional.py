"""fastsnn.lif, linear_lif and their modules: arguments, shapes, dtypes; the numbers are each backend's own tests'."""

from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn

import fastsnn
from fastsnn import LIF, LIFParameters, LinearLIF, lif, linear_lif
from fastsnn.kernels import reference

T, B, K, N = 6, 3, 5, 4


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


CURRENT, X, WEIGHT, BIAS = randn(T, B, N), (randn(T, B, K) > 0).float(), randn(N, K), randn(N)

BAD_LIF = [
    ((3.0,), TypeError, "current is float; allowed: a tensor of float32, float64, float16, bfloat16"),
    ((CURRENT.int(),), TypeError, "current has dtype int32; allowed: float32"),
    ((CURRENT[:, 0, 0],), ValueError, r"current has shape \[6\]; allowed: \[T, B, ...\]"),
    ((CURRENT[:0],), ValueError, r"current has shape \[0, 3, 4\]; allowed: .* T at least 1"),
    ((CURRENT, "neuron"), TypeError, "neuron is 'neuron'; allowed: fastsnn.LIFParameters or None"),
    ((CURRENT, None, 0.5), TypeError, "v_init is float; allowed: a tensor of float32"),
    ((CURRENT, None, CURRENT[0].double()), TypeError, "v_init has dtype float64; allowed: float32"),
    ((CURRENT, None, CURRENT), ValueError, r"v_init has shape \[6, 3, 4\]; allowed: \[3, 4\]"),
    ((CURRENT, None, CURRENT[0].to("meta")), ValueError, "v_init is on meta; allowed: cpu"),
    ((CURRENT, None, None, "jax"), ValueError, "backend is 'jax'; allowed: auto, torch, cupy, triton, numba"),
]
BAD_LINEAR_LIF = [
    ((X.long(), WEIGHT), TypeError, "x has dtype int64; allowed: float32, float64, float16, bfloat16, bool, uint8"),
    ((X[0], WEIGHT), ValueError, r"x has shape \[3, 5\]; allowed: \[T, B, K\]"),
    ((X, WEIGHT.int()), TypeError, "weight has dtype int32"),
    ((X, WEIGHT.T), ValueError, r"weight has shape \[5, 4\]; allowed: \[N, 5\] for x \[6, 3, 5\]"),
    ((X, WEIGHT[0]), ValueError, r"weight has shape \[5\]"),
    ((X, WEIGHT.to("meta")), ValueError, "weight is on meta; allowed: cpu"),
    ((X, WEIGHT, BIAS.double()), TypeError, "bias has dtype float64; allowed: float32"),
    ((X, WEIGHT, BIAS[:3]), ValueError, r"bias has shape \[3\]; allowed: \[4\]"),
    ((X, WEIGHT, BIAS.to("meta")), ValueError, "bias is on meta; allowed: cpu"),
    ((X, WEIGHT, BIAS, None, X[0]), ValueError, r"v_init has shape \[3, 5\]; allowed: \[3, 4\]"),
    ((X, WEIGHT, None, LIFParameters, None), TypeError, "neuron is"),
]


@pytest.mark.parametrize(("arguments", "error", "said"), BAD_LIF)
def test_lif_names_the_argument(arguments: tuple[Any, ...], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        lif(*arguments)


@pytest.mark.parametrize(("arguments", "error", "said"), BAD_LINEAR_LIF)
def test_linear_lif_names_the_argument(arguments: tuple[Any, ...], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        linear_lif(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
def test_the_torch_backend_is_the_reference(dtype: torch.dtype, v_reset: float | None) -> None:
    parameters = LIFParameters(tau=3.0, v_reset=v_reset, surrogate="erf", detach_reset=True)
    current, v_init = 3 * randn(T, B, 2, N, dtype=dtype), randn(B, 2, N, dtype=dtype)
    spikes, v = lif(current, parameters, v_init, backend="torch")
    expected_spikes, expected_v, _ = reference.lif(current, v_init, **parameters.options())
    assert torch.equal(spikes, expected_spikes)
    assert torch.equal(v, expected_v)
    assert 0 < spikes.mean() < 1
    x, weight, bias = (part.to(dtype) for part in (X, WEIGHT, BIAS))
    spikes, v = linear_lif(x, weight, bias, parameters, backend="torch")
    expected_spikes, expected_v, _ = reference.lif(nn.functional.linear(x, weight, bias), **parameters.options())
    assert torch.equal(spikes, expected_spikes)
    assert torch.equal(v, expected_v)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_spikes_of_any_type_drive_a_layer(dtype: torch.dtype) -> None:
    found = linear_lif(X.to(dtype), WEIGHT, BIAS, backend="torch")
    for one, other in zip(found, linear_lif(X, WEIGHT, BIAS, backend="torch"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_membrane_in_fp32(dtype: torch.dtype) -> None:
    current = (3 * CURRENT).to(dtype)
    spikes, v = lif(current, v_init=torch.zeros(B, N), backend="torch")
    assert (spikes.dtype, v.dtype) == (dtype, torch.float32)
    expected_spikes, expected_v = lif(current.float(), backend="torch")
    assert torch.equal(spikes.float(), expected_spikes)
    assert torch.equal(v, expected_v)


@pytest.mark.parametrize("backend", ["auto", "torch", "numba"])
def test_empty_batches_and_gradients_of_them(backend: str) -> None:
    weight = WEIGHT.clone().requires_grad_()
    spikes, v = linear_lif(X[:, :0], weight, backend=backend)
    assert (spikes.shape, v.shape) == ((T, 0, N), (0, N))
    spikes.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(N, K))


def test_linear_lif_is_linear_then_lif() -> None:
    torch.manual_seed(3)
    fused = LinearLIF(K, N, neuron=LIFParameters(tau=1.5), backend="torch")
    torch.manual_seed(3)
    linear = nn.Linear(K, N)
    assert list(fused.state_dict()) == ["weight", "bias"]
    assert torch.equal(fused.weight, linear.weight)
    pair = nn.Sequential(linear, LIF(LIFParameters(tau=1.5), backend="torch"))
    outputs = [net(4 * X) for net in (fused, pair)]
    assert torch.equal(*outputs)
    assert 0 < outputs[0].mean() < 1
    for output in outputs:
        output.square().mean().backward()
    assert torch.equal(fused.weight.grad, linear.weight.grad)
    assert LinearLIF(K, N, bias=False, dtype=torch.float64).weight.dtype == torch.float64


def test_weights_of_spikingjelly_load_and_compute_the_same() -> None:
    torch.manual_seed(4)
    theirs = nn.Sequential(
        layer.Linear(K, N, step_mode="m"),
        neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), step_mode="m"),
    )
    ours = LinearLIF(K, N, backend="torch")
    ours.load_state_dict(theirs[0].state_dict())
    spikes = ours(5 * X)
    assert torch.equal(spikes, theirs(5 * X))
    assert 0 < spikes.mean() < 1


def test_every_call_starts_from_the_reset_potential() -> None:
    net = LIF(LIFParameters(v_reset=-0.5), backend="torch")
    assert torch.equal(net(CURRENT), net(CURRENT))
    quiet = lif(torch.zeros(1, 1, 1), LIFParameters(v_reset=-0.5), backend="torch")[1]
    assert float(quiet) == -0.5


def test_modules_show_neuron_and_backend() -> None:
    text = repr(nn.Sequential(LinearLIF(2, 3), LIF(backend="torch")))
    assert "in_features=2, out_features=3, bias=True, LIFParameters(tau=2.0" in text
    assert "backend='torch'" in text
    with pytest.raises(TypeError, match="neuron is 2"):
        LinearLIF(2, 3, neuron=2.0)  # type: ignore[arg-type]


def test_public_names() -> None:
    for name in fastsnn.__all__:
        assert getattr(fastsnn, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'lifs'"):
        fastsnn.lifs  # noqa: B018
