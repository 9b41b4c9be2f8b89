"""Packed spikes: the same spikes and gradients as unpacked ones on every backend, in 1/32 of the memory."""

import copy
import pickle
from typing import Any

import pytest
import torch
from neuron_cases import DEVICE, OPCHECK, SAME_ORDER, leaves
from torch import Tensor, nn

import fastsnn
from fastsnn import LinearLIF, PackedSpikes, linear
from fastsnn.kernels import contract, packed, philox

BACKENDS = [("torch", "auto"), ("triton", "fused"), ("triton", "library")] + [("numba", "auto")] * (
    DEVICE.type == "cpu"
)
STEPS = [1, 31, 32, 33, 131]
T, B, K, N = 37, 3, 9, 21


def draw(*shape: int, density: float = 0.4) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.rand(shape, generator=generator) < density).float().to(DEVICE)


def network(backend: str, path: str, packed: bool) -> nn.Sequential:
    """Two layers whose currents are exact in whatever order they are summed."""
    layers = [
        LinearLIF(K, N, packed=packed, backend=backend, path=path, device=DEVICE),
        LinearLIF(N, 5, backend=backend, path=path, device=DEVICE),
    ]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.randint(-4, 7, layer.weight.shape, generator=generator) / 8)
            layer.bias.copy_(torch.randint(0, 4, layer.bias.shape, generator=generator) / 8)
    return nn.Sequential(*layers)


def outcome(net: nn.Module, x: Any) -> tuple[Tensor, ...]:
    """Spikes of a network and the gradients of its parameters."""
    spikes = net(x)
    upstream = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    return (spikes.detach(), *torch.autograd.grad(spikes, list(net.parameters()), upstream))


def same(what: str, actual: Any, expected: Any) -> None:
    contract.require(*(contract.same_bits(f"{what} {i}", *p) for i, p in enumerate(zip(actual, expected, strict=True))))


def same_outcome(packing: Any, plain: Any) -> None:
    """Spikes bit for bit, and gradients too where packed and fp32 spikes are summed in one order, else within C4."""
    same("spikes", packing[:1], plain[:1])
    if SAME_ORDER:
        same("gradient", packing[1:], plain[1:])
    else:
        pairs = enumerate(zip(packing[1:], plain[1:], strict=True))
        contract.require(*(contract.gradient_error(f"input {i}", a, b.double().cpu()) for i, (a, b) in pairs))


@pytest.mark.parametrize("steps", STEPS)
def test_words_hold_the_spikes(steps: int) -> None:
    spikes = draw(steps, B, 5)
    found = PackedSpikes.pack(spikes)
    assert found.words.shape == (-(-steps // 32), B, 5)
    assert found.words.dtype == torch.int32
    for t in range(32 * len(found.words)):
        bits = found.words[t // 32] >> t % 32 & 1
        assert torch.equal(bits.float(), spikes[t] if t < steps else torch.zeros(B, 5, device=DEVICE))
    same("spikes", [found.unpack()], [spikes])
    same("bytes", [packed.unpack(found.words, steps)], [spikes.to(torch.uint8)])


def test_gradients_flow_through_packing() -> None:
    spikes, upstream = draw(T, B, 5).to(torch.bfloat16).requires_grad_(), torch.randn(T, B, 5).bfloat16().to(DEVICE)
    (grad,) = torch.autograd.grad(PackedSpikes.pack(spikes).unpack(), spikes, upstream.float())
    same("gradient", [grad], [upstream])


@OPCHECK
def test_packing_passes_opcheck() -> None:
    torch.library.opcheck(packed.pack_op, leaves(draw(T, B, 5)))


@pytest.mark.parametrize(("backend", "path"), BACKENDS)
def test_layers_that_hand_on_packed_spikes(backend: str, path: str) -> None:
    x = draw(T, B, K)
    plain, packing = (outcome(network(backend, path, packed), x) for packed in (False, True))
    same_outcome(packing, plain)
    assert 0.05 < plain[0].mean() < 0.95
    assert all(grad.abs().sum() > 0 for grad in plain[1:])
    same("spikes", packing[:1], outcome(network("torch", "auto", False), x)[:1])


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("path", ["fused", "library"])
def test_packed_spikes_of_any_length(path: str, steps: int) -> None:
    """In a word, at its edge, over it, and past the 128 steps of a launch; with and without h."""
    x, weight = draw(steps, 2, K), torch.randint(-4, 7, (N, K), generator=torch.Generator().manual_seed(7)) / 8
    options: dict[str, Any] = {"backend": "triton", "path": path}
    for leaf in (weight.to(DEVICE), weight.to(DEVICE).requires_grad_()):
        spikes, state = linear(x, leaf, **options)
        found, packed_state = linear(PackedSpikes.pack(x), leaf, packed=True, **options)
        same("outcome", (found.words, found.unpack(), packed_state["v"]), (philox.pack(spikes), spikes, state["v"]))


@pytest.mark.parametrize(("backend", "path"), BACKENDS)
def test_packed_input_and_its_gradient(backend: str, path: str) -> None:
    weight = (torch.randint(-4, 7, (N, K), generator=torch.Generator().manual_seed(8)) / 8).to(DEVICE)
    upstream = torch.randn(T, B, N, generator=torch.Generator().manual_seed(9)).to(DEVICE)
    results = []
    for pack in (False, True):
        x, leaf = leaves(draw(T, B, K), weight)
        spikes, _ = linear(PackedSpikes.pack(x) if pack else x, leaf, backend=backend, path=path)
        results.append((spikes, *torch.autograd.grad(spikes, (x, leaf), upstream)))
    same_outcome(*results)


@pytest.mark.parametrize(("backend", "path"), BACKENDS)
def test_encoded_words_drive_a_layer(backend: str, path: str) -> None:
    """And with axes between batch and inputs."""
    images = torch.rand(B, 2, K, generator=torch.Generator().manual_seed(10)).to(DEVICE)
    words = fastsnn.poisson_encode(images, T=T, packed=True)
    net = network(backend, path, packed=True)
    spikes = net(PackedSpikes(words, T))
    assert spikes.shape == (T, B, 2, 5)
    same("spikes", [spikes], [net(fastsnn.poisson_encode(images, T=T))])


def test_what_lies_between_two_layers_is_a_thirty_second() -> None:
    """Bytes that autograd keeps, each memory once, without inputs and parameters: h of both layers, and the spikes."""
    steps, x = 64, draw(64, B, K)
    kept = []
    for pack in (False, True):
        net, found = network("triton", "fused", pack), {}
        known = {tensor.untyped_storage().data_ptr() for tensor in (x, *net.parameters())}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.setdefault(t.data_ptr(), t), lambda t: t):  # noqa: B023
            spikes = net(x)
        kept.append(sum(t.untyped_storage().nbytes() for address, t in found.items() if address not in known))
        spikes.sum().backward()
    membranes, spikes_between = 4 * steps * B * (N + 5), 4 * steps * B * N
    assert kept == [membranes + spikes_between, membranes + spikes_between // 32]


def test_the_carrier_takes_the_memory_of_one_number() -> None:
    for found in (PackedSpikes.pack(draw(T, B, 5)), network("triton", "fused", True)[0](draw(T, B, K))):
        assert found.carrier.untyped_storage().nbytes() == 4
        assert found.carrier.shape == (T, *found.words.shape[1:])
        assert not found.carrier.any()


def test_packed_spikes_are_copied_and_pickled() -> None:
    found = PackedSpikes.pack(draw(T, B, 5))
    for twin in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert isinstance(twin, PackedSpikes)
        same("spikes", [twin.unpack()], [found.unpack()])


def test_a_compiled_network_hands_on_packed_spikes() -> None:
    net, x = network("triton", "fused", True), draw(T, B, K)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    same("result", outcome(compiled, x), outcome(net, x))
    words = torch.compile(net[0], backend="aot_eager", fullgraph=True)(x)
    same("words", [words.words], [net[0](x).words])


WORDS = torch.zeros(2, B, K, dtype=torch.int32)
BAD = [
    (PackedSpikes(WORDS.float(), 40), TypeError, "x's words has dtype float32; allowed: int32"),
    (PackedSpikes(WORDS, 32), ValueError, r"T = 32 and words of shape \[2, 3, 9\]; allowed: .* T from 33 to 64"),
    (PackedSpikes(WORDS, 65), ValueError, "T = 65 and words of shape"),
    (PackedSpikes(WORDS[:, 0], 40), ValueError, r"x has shape \[40, 9\]; allowed: \[T, B, K\]"),
    (
        PackedSpikes(WORDS, 40, torch.zeros(40, B, 8)),
        ValueError,
        r"carrier has shape \[40, 3, 8\]; allowed: \[40, 3, 9\]",
    ),
    (WORDS, TypeError, "x has dtype int32; allowed: float32"),
]


@pytest.mark.parametrize(("x", "error", "said"), BAD)
def test_words_that_do_not_fit_are_refused(x: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        linear(x, torch.zeros(N, K))
