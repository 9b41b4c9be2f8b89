"""Layers as torch has them: the choice of a path in Triton, graphs, autocast, modules, what is refused."""

import copy
import pickle
from typing import Any

import pytest
import torch
from neuron_cases import DEVICE, OPCHECK, leaves, linear_case
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import nn

import fastsnn
from fastsnn import LIF, LinearLIF, backends
from fastsnn.errors import BackendUnavailable
from fastsnn.kernels import contract
from fastsnn.kernels.linear import linear, linear_op
from fastsnn.kernels.segments import NOTHING, STATES, STEPS
from fastsnn.kernels.triton import bf16_split
from fastsnn.kernels.triton import linear as triton_linear

PATHS = ("fused", "library")

# Compute capability, whether x is spikes, weights in half precision -> the largest K that is fused.
CHOICES = [
    (61, True, False, 128),
    (61, False, False, 128),
    (75, True, True, 128),
    (80, True, False, 10**6),
    (80, False, False, 10**6),
    (90, False, False, 10**6),
    (90, True, True, 1024),
    (86, True, False, 512),
    (89, False, False, 128),
    (120, False, True, 1024),
]


@pytest.mark.parametrize(("sm", "spikes", "half", "largest"), CHOICES)
def test_the_path_is_chosen_by_k(
    sm: int, spikes: bool, half: bool, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bf16_split, "capability", lambda device: sm)
    x = torch.empty(1, 1, 1, dtype=torch.uint8 if spikes else torch.float32)
    for K, expected in ((largest, "fused"), (largest + 1, "library" if largest < 10**6 else "fused")):
        weight = torch.empty(3, K, dtype=torch.float16 if half else torch.float32, device="meta")
        assert triton_linear.choose_path("auto", x, weight) == expected
        assert [triton_linear.choose_path(path, x, weight) for path in PATHS] == list(PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_the_path_that_is_asked_for_runs(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the function and the module, forward and backward."""
    ran = []
    for module, name in (
        (triton_linear, "linear_forward"),
        (triton_linear, "_library_forward"),
        (bf16_split, "matmul"),
    ):
        call = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, call=call, name=name: (ran.append(name), call(*a))[1])
    x, weight, *_ = (tensor.to(DEVICE) for tensor in linear_case(3, 2, 7, 4))
    spikes, _ = fastsnn.linear(x, weight.requires_grad_(), backend="triton", path=path)
    spikes.sum().backward()
    forward = "_library_forward" if path == "library" else "linear_forward"
    # Below sm_80 backward's products are the library's.
    backward = ["matmul"] * (path == "fused" and bf16_split.capability(DEVICE) >= 80)
    assert ran == [forward, *backward]
    LinearLIF(7, 4, backend="triton", path=path, device=DEVICE)(x)
    assert ran == [forward, *backward, forward]


def test_unknown_paths_are_refused() -> None:
    x, weight, *_ = linear_case(3, 2, 7, 4)
    with pytest.raises(ValueError, match="path is 'cublas'; backend triton allows: auto, fused, library"):
        fastsnn.linear(x.to(DEVICE), weight.to(DEVICE), backend="triton", path="cublas")
    with pytest.raises(ValueError, match="path is 'fused'; backend torch allows: auto"):
        fastsnn.linear(x, weight, backend="torch", path="fused")


def test_the_librarys_precision_is_put_back() -> None:
    settings = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(settings, "fp32_precision") else "allow_tf32"
    before = getattr(settings, name)
    with triton_linear.full_precision(DEVICE):
        assert getattr(settings, name) in ("ieee", False)
    assert getattr(settings, name) == before
    with pytest.raises(RuntimeError, match="cannot be multiplied"), triton_linear.full_precision(DEVICE):
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))
    assert getattr(settings, name) == before


@OPCHECK
@pytest.mark.parametrize("path", PATHS)
def test_operator_passes_opcheck(path: str) -> None:
    x, weight, bias, v, *_ = (tensor.to(DEVICE) for tensor in linear_case(4, 2, 5, 3))
    soft, hard, rest = LIF(v_reset=None).key, LIF().key, LIF(v_reset=-0.3).key
    inputs = (*leaves(x, weight, bias, v[None]), None, [], [], 4)
    torch.library.opcheck(linear_op, (*inputs, False, STEPS, path, soft, "", "triton"))
    # opcheck adds up outputs, and fails where the first is of integers; a compiled network is in test_packed.py.
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    words, carrier = torch.zeros(1, 2, 5, dtype=torch.int32, device=DEVICE), torch.zeros(4, 2, 5, device=DEVICE)
    packed = (words, *leaves(weight), None, None, *leaves(carrier), [], [], 4)
    torch.library.opcheck(linear_op, (*packed, True, STATES, path, hard, "", "triton"), test_utils=utils)
    silent = (x > 0, weight, bias, None, None, [], [], 4)
    torch.library.opcheck(linear_op, (*silent, False, NOTHING, path, rest, "", "triton"))


@pytest.mark.parametrize("path", PATHS)
def test_a_compiled_network(path: str) -> None:
    """One graph of modules, the same results; and under autocast."""
    x, grad = (
        linear_case(6, 2, 5, 5)[0].to(DEVICE),
        torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(1)).to(DEVICE),
    )
    layers = [LinearLIF(K, N, backend="triton", path=path, device=DEVICE) for K, N in ((5, 70), (70, 3))]
    net = nn.Sequential(*layers)
    results = []
    for run in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        spikes = run(4 * x)
        results.append((spikes, *torch.autograd.grad(spikes, list(net.parameters()), grad)))
    contract.require(*(contract.same_bits(str(i), *pair) for i, pair in enumerate(zip(*results, strict=True))))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype, path: str) -> None:
    """As in nn.Linear the product is in autocast's dtype; the result is that of operands which were rounded to it."""
    x, weight, bias, v, grad_spikes, _ = (tensor.to(DEVICE) for tensor in linear_case(9, 3, 17, 19))
    results = []
    for cast in (True, False):
        inputs = leaves(x, weight, bias)
        operands = inputs if cast else tuple(tensor.to(dtype) for tensor in inputs)
        with torch.autocast(DEVICE.type, dtype, enabled=cast):
            spikes, last = fastsnn.linear(*operands, state={"v": v}, backend="triton", path=path)
            # PyTorch advises against a backward pass in here; it must be right all the same.
            grads = torch.autograd.grad(spikes, inputs, grad_spikes.to(dtype))
        results.append((spikes, last["v"], *grads))
    assert [tensor.dtype for tensor in results[0]] == [dtype] + 4 * [torch.float32]
    contract.require(*(contract.same_bits(str(i), *pair) for i, pair in enumerate(zip(*results, strict=True))))


@pytest.mark.parametrize("path", PATHS)
def test_a_backward_pass_under_autocast(path: str) -> None:
    """Forward outside of it: its products are those of fp32."""
    x, weight, _, _, grad_spikes, _ = (tensor.to(DEVICE) for tensor in linear_case(9, 3, 17, 19))
    inputs = leaves(x, weight)
    spikes, _ = linear(*inputs, None, LIF(), None, {}, "triton", path=path)
    expected = torch.autograd.grad(spikes, inputs, grad_spikes, retain_graph=True)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = torch.autograd.grad(spikes, inputs, grad_spikes)
    contract.require(*(contract.same_bits(*row) for row in zip(("x", "weight"), found, expected, strict=True)))


def test_modules_are_copied_pickled_and_called_with_other_weights() -> None:
    options: dict[str, Any] = {"neuron": LIF(tau=3.0), "backend": "triton", "path": "library", "packed": True}
    net, x = LinearLIF(7, 4, device=DEVICE, **options), 3 * linear_case(5, 2, 7, 4)[0].to(DEVICE)
    expected = net(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert repr(twin) == repr(net)
        assert "tau=3.0" in repr(net)
        assert "packed=True, path='library'" in repr(net)
        contract.require(contract.same_bits("words", twin(x).words, expected.words))
    weights = {name: torch.ones_like(tensor) for name, tensor in net.named_parameters()}
    found = torch.func.functional_call(net, weights, (x,))
    net.load_state_dict(weights)
    contract.require(contract.same_bits("words", found.words, net(x).words))
    assert not torch.equal(found.words, expected.words)


def test_weights_of_spikingjellys_pair() -> None:
    """layer.Linear and LIFNode: their weights load, spikes and gradients are theirs."""
    atan = sj_surrogate.ATan()
    pair = nn.Sequential(
        sj_layer.Linear(17, 19, step_mode="m"), sj_neuron.LIFNode(tau=2.0, surrogate_function=atan, step_mode="m")
    )
    x, weight, bias, _, grad_spikes, _ = linear_case(9, 3, 17, 19, dyadic=True)
    pair[0].load_state_dict({"weight": weight, "bias": bias})
    ours = LinearLIF(17, 19, backend="triton", device=DEVICE)
    ours.load_state_dict(pair[0].state_dict())
    expected, spikes = pair(x), ours(x.to(DEVICE))
    contract.require(contract.same_bits("spikes", spikes, expected))
    found = torch.autograd.grad(spikes, list(ours.parameters()), grad_spikes.to(DEVICE))
    wanted = torch.autograd.grad(expected, list(pair.parameters()), grad_spikes)
    rows = zip(("weight", "bias"), found, (grad.double() for grad in wanted), strict=True)
    contract.require(*(contract.gradient_error(*row) for row in rows))


def test_refusals() -> None:
    x, weight, *_ = (tensor.to(DEVICE) for tensor in linear_case(3, 2, 7, 4))
    with pytest.raises(TypeError, match="weight has dtype int8; allowed: float32, float64, float16, bfloat16"):
        fastsnn.linear(x, weight.to(torch.int8), backend="triton")
    with pytest.raises(
        ValueError, match="triton cannot compute this: its kernels compute in fp32, not in float64; allowed"
    ):
        fastsnn.linear(x, weight.double(), backend="triton")
    with pytest.raises(ValueError, match=r"x has shape \[3, 2, 0\]; allowed: .* T and K at least 1"):
        fastsnn.linear(x[..., :0], weight[:, :0], backend="triton")


def test_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    for operation in (fastsnn.scan, lambda x, backend: fastsnn.linear(x, torch.zeros(4, 3), backend=backend)):
        backends.refusal.cache_clear()
        with monkeypatch.context() as patch:
            patch.delenv("TRITON_INTERPRET", raising=False)
            with pytest.raises(
                BackendUnavailable, match=r"cannot run on cpu: it needs a CUDA GPU; .* TRITON_INTERPRET=1"
            ):
                operation(torch.zeros(2, 1, 3), backend="triton")
            backends.refusal.cache_clear()
            patch.setattr("importlib.util.find_spec", lambda name: None)
            with pytest.raises(BackendUnavailable, match="not installed; on Linux: pip install triton"):
                operation(torch.zeros(2, 1, 3), backend="triton")
        backends.refusal.cache_clear()
