"""fastsnn.scan, linear and their modules: arguments, shapes, dtypes; the numbers are each backend's own tests'."""

from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn

import fastsnn
from fastsnn import LIF, PLIF, LinearLIF, Spiking, linear, scan
from fastsnn.errors import BackendUnavailable
from fastsnn.kernels import reference

T, B, K, N = 6, 3, 5, 4


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


CURRENT, X, WEIGHT, BIAS = randn(T, B, N), (randn(T, B, K) > 0).float(), randn(N, K), randn(N)
STATE = {"v": CURRENT[0]}

BAD_SCAN = [
    ((3.0,), {}, TypeError, "current is float; allowed: a tensor of float32, float64, float16, bfloat16"),
    ((CURRENT.int(),), {}, TypeError, "current has dtype int32; allowed: float32"),
    ((CURRENT[:, 0, 0],), {}, ValueError, r"current has shape \[6\]; allowed: \[T, B, ...\]"),
    ((CURRENT[:0],), {}, ValueError, r"current has shape \[0, 3, 4\]; allowed: .* T at least 1"),
    (
        (CURRENT, "neuron"),
        {},
        TypeError,
        r"neuron is 'neuron'; allowed: a fastsnn.Neuron such as fastsnn.LIF\(\), or None",
    ),
    ((CURRENT, LIF), {}, TypeError, "neuron is <class .*LIF'>; allowed: a fastsnn.Neuron"),
    ((CURRENT, None, CURRENT[0]), {}, TypeError, "state is Tensor; allowed: a mapping from v to tensors, or None"),
    ((CURRENT, None, {}), {}, ValueError, "state lacks 'v'; allowed: all of v"),
    (
        (CURRENT, None, {"v": CURRENT[0], "w": CURRENT[0]}),
        {},
        ValueError,
        "state has an unknown 'w'; allowed: all of v",
    ),
    ((CURRENT, None, {"v": 0.5}), {}, TypeError, "state 'v' is float; allowed: a tensor of float32"),
    ((CURRENT, None, {"v": CURRENT[0].double()}), {}, TypeError, "state 'v' has dtype float64; allowed: float32"),
    ((CURRENT.half(), None, {"v": CURRENT[0].half()}), {}, TypeError, "state 'v' has dtype float16; allowed: float32"),
    ((CURRENT, None, {"v": CURRENT}), {}, ValueError, r"state 'v' has shape \[6, 3, 4\]; allowed: \[3, 4\]"),
    ((CURRENT, None, {"v": CURRENT[0].to("meta")}), {}, ValueError, "state 'v' is on meta; allowed: cpu"),
    ((CURRENT,), {"backend": "jax"}, ValueError, "backend is 'jax'; allowed: auto, torch, cupy, triton, numba"),
    ((CURRENT,), {"parameters": {"w": BIAS}}, ValueError, "parameters has 'w'; LIF allows: tau, v_threshold$"),
    ((CURRENT, PLIF()), {"parameters": {"w": 0.5}}, TypeError, "parameter 'w' is float; allowed: a tensor of float32"),
    (
        (CURRENT, PLIF()),
        {"parameters": {"w": BIAS.double()}},
        TypeError,
        "parameter 'w' has dtype float64; allowed: float32",
    ),
    (
        (CURRENT.double(), PLIF()),
        {"parameters": {"w": BIAS}},
        TypeError,
        "parameter 'w' has dtype float32; allowed: float64",
    ),
    (
        (CURRENT, PLIF()),
        {"parameters": {"w": BIAS[:3]}},
        ValueError,
        r"parameter 'w' has shape \[3\]; allowed: one that broadcasts to \[3, 4\]",
    ),
    (
        (CURRENT, PLIF()),
        {"parameters": {"w": CURRENT}},
        ValueError,
        r"parameter 'w' has shape \[6, 3, 4\]; allowed: one that broadcasts",
    ),
    ((CURRENT, PLIF()), {"parameters": {"w": BIAS.to("meta")}}, ValueError, "parameter 'w' is on meta; allowed: cpu"),
    (
        (CURRENT,),
        {"parameters": {"v_reset": BIAS}},
        ValueError,
        "parameters has 'v_reset'; LIF allows: tau, v_threshold$",
    ),
    ((CURRENT,), {"parameters": {"alpha": BIAS}}, ValueError, "parameters has 'alpha'; LIF allows: tau, v_threshold$"),
    (
        (CURRENT, PLIF()),
        {"parameters": {"tau": BIAS}},
        ValueError,
        "parameters has 'tau'; PLIF allows: v_threshold, w$",
    ),
    (
        (CURRENT, LIF(v_reset=None)),
        {"parameters": {"v_reset": BIAS}},
        ValueError,
        "parameters has 'v_reset'; LIF allows: tau, v_threshold$",
    ),
]
BAD_LINEAR = [
    ((X.long(), WEIGHT), {}, TypeError, "x has dtype int64; allowed: float32, float64, float16, bfloat16, bool, uint8"),
    ((X[0], WEIGHT), {}, ValueError, r"x has shape \[3, 5\]; allowed: \[T, B, K\]"),
    ((X, WEIGHT.int()), {}, TypeError, "weight has dtype int32"),
    ((X, WEIGHT.T), {}, ValueError, r"weight has shape \[5, 4\]; allowed: \[N, 5\] for x \[6, 3, 5\]"),
    ((X, WEIGHT[0]), {}, ValueError, r"weight has shape \[5\]"),
    ((X, WEIGHT.to("meta")), {}, ValueError, "weight is on meta; allowed: cpu"),
    ((X, WEIGHT, BIAS.double()), {}, TypeError, "bias has dtype float64; allowed: float32"),
    ((X, WEIGHT, BIAS[:3]), {}, ValueError, r"bias has shape \[3\]; allowed: \[4\]"),
    ((X, WEIGHT, BIAS.to("meta")), {}, ValueError, "bias is on meta; allowed: cpu"),
    ((X, WEIGHT, BIAS, None, {"v": X[0]}), {}, ValueError, r"state 'v' has shape \[3, 5\]; allowed: \[3, 4\]"),
    ((X, WEIGHT, None, LIF, None), {}, TypeError, "neuron is"),
    ((X, WEIGHT, None, PLIF()), {"parameters": {"w": X[0]}}, ValueError, r"'w' has shape \[3, 5\]; .*\[3, 4\]"),
    (
        (X, WEIGHT, None, LIF(v_threshold=float("inf"))), {"packed": True}, ValueError,
        "packed is True, but LIF gives potentials, not spikes; allowed: False",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "said"), BAD_SCAN)
def test_scan_names_the_argument(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        scan(*arguments, **options)


@pytest.mark.parametrize(("arguments", "options", "error", "said"), BAD_LINEAR)
def test_linear_names_the_argument(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        linear(*arguments, **options)


def test_a_backend_that_cannot_run_there_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="backend numba cannot run on meta: it computes on the CPU; use"):
        scan(CURRENT.to("meta"), backend="numba")
    with pytest.raises(BackendUnavailable, match="backend numba cannot run on meta: it computes on the CPU; use"):
        linear(X.to("meta"), WEIGHT.to("meta"), backend="numba")
    for backend in ("numba", "triton"):
        said = (
            f"backend {backend} cannot compute this: its kernels compute in fp32, not in float64; allowed here: torch"
        )
        with pytest.raises(ValueError, match=said):
            scan(CURRENT.double(), backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
def test_the_torch_backend_is_the_reference(dtype: torch.dtype, v_reset: float | None) -> None:
    cells = LIF(tau=3.0, v_reset=v_reset, surrogate="erf", detach_reset=True)
    current, v = 3 * randn(T, B, 2, N, dtype=dtype), randn(B, 2, N, dtype=dtype)
    spikes, state = scan(current, cells, {"v": v}, backend="torch")
    expected_spikes, (expected_v,) = reference.scan(current, cells, (v,))
    assert torch.equal(spikes, expected_spikes)
    assert torch.equal(state["v"], expected_v)
    assert 0 < spikes.mean() < 1
    x, weight, bias = (part.to(dtype) for part in (X, WEIGHT, BIAS))
    spikes, state = linear(x, weight, bias, cells, backend="torch")
    expected_spikes, (expected_v,) = reference.scan(nn.functional.linear(x, weight, bias), cells)
    assert torch.equal(spikes, expected_spikes)
    assert torch.equal(state["v"], expected_v)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_spikes_of_any_type_drive_a_layer(dtype: torch.dtype) -> None:
    found, state = linear(X.to(dtype), WEIGHT, BIAS, backend="torch")
    expected, expected_state = linear(X, WEIGHT, BIAS, backend="torch")
    assert torch.equal(found, expected)
    assert torch.equal(state["v"], expected_state["v"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_membrane_in_fp32(dtype: torch.dtype) -> None:
    current = (3 * CURRENT).to(dtype)
    spikes, state = scan(current, state={"v": torch.zeros(B, N)}, backend="torch")
    assert (spikes.dtype, state["v"].dtype) == (dtype, torch.float32)
    expected, expected_state = scan(current.float(), backend="torch")
    assert torch.equal(spikes.float(), expected)
    assert torch.equal(state["v"], expected_state["v"])


@pytest.mark.parametrize("backend", ["auto", "torch", "numba"])
def test_empty_batches_and_gradients_of_them(backend: str) -> None:
    weight = WEIGHT.clone().requires_grad_()
    spikes, state = linear(X[:, :0], weight, backend=backend)
    assert (spikes.shape, state["v"].shape) == ((T, 0, N), (0, N))
    spikes.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(N, K))


def test_linear_lif_is_linear_then_spiking() -> None:
    torch.manual_seed(3)
    fused = LinearLIF(K, N, neuron=LIF(tau=1.5), backend="torch")
    torch.manual_seed(3)
    product = nn.Linear(K, N)
    assert list(fused.state_dict()) == ["weight", "bias"]
    assert torch.equal(fused.weight, product.weight)
    pair = nn.Sequential(product, Spiking(LIF(tau=1.5), backend="torch"))
    outputs = [net(4 * X) for net in (fused, pair)]
    assert torch.equal(*outputs)
    assert 0 < outputs[0].mean() < 1
    for output in outputs:
        output.square().mean().backward()
    assert torch.equal(fused.weight.grad, product.weight.grad)
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
    net = Spiking(LIF(v_reset=-0.5), backend="torch")
    assert torch.equal(net(CURRENT), net(CURRENT))
    quiet = scan(torch.zeros(1, 1, 1), LIF(v_reset=-0.5), backend="torch")[1]["v"]
    assert float(quiet) == -0.5


def test_modules_show_neuron_and_backend() -> None:
    text = repr(nn.Sequential(LinearLIF(2, 3), Spiking(backend="torch")))
    assert "in_features=2, out_features=3, bias=True, LIF(surrogate='atan', alpha=2.0, tau=2.0" in text
    assert "backend='torch'" in text
    with pytest.raises(TypeError, match="neuron is 2"):
        LinearLIF(2, 3, neuron=2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="neuron is 2"):
        Spiking(2.0)  # type: ignore[arg-type]


def test_public_names() -> None:
    for name in fastsnn.__all__:
        assert getattr(fastsnn, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'lifs'"):
        fastsnn.lifs  # noqa: B018
