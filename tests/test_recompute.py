"""To compute steps again in backward gives the bits that keeping them gives: every operation, backend and kind of
neuron, over several segments and a tail; and nothing of every step is kept.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numba
import pytest
import torch
from neuron_cases import device_of, gradients, leaves
from test_own_neurons import Filtered
from torch import Tensor, nn

import fastsnn
from fastsnn import ALIF, LI, LIF, PLIF, CuBaLIF, Neuron, PackedSpikes
from fastsnn.kernels import contract, segments

B, K, N = 3, 7, 5
FUSED = pytest.mark.parametrize("backend", ["numba", "triton"])
OPERATIONS = pytest.mark.parametrize("operation", ["scan", "linear", "recurrent"])
NEURONS: dict[str, tuple[Neuron, tuple[str, ...]]] = {
    "lif": (LIF(v_reset=None), ()),
    "alif": (ALIF(), ()),
    "cuba": (CuBaLIF(), ()),
    "plif": (PLIF(), ("w",)),
    "mine": (Filtered(), ()),
    "li": (LI(), ()),
}


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 steps."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", dict.fromkeys(segments.SEGMENT_BYTES, 1))


def case(operation: str, T: int, neuron: Neuron, learn: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a call, by name; all but spikes have gradients."""
    random = torch.Generator().manual_seed(T)
    values = {name: torch.rand(B, N, generator=random) * 0.5 for name in neuron.states}
    values |= {name: torch.rand(N, generator=random) * 0.4 + 0.1 for name in learn}
    if operation == "scan":
        return {"current": torch.randn(T, B, N, generator=random) * 2 + 0.8, **values}
    values |= {"weight": torch.randn(N, K, generator=random) + 0.4, "bias": torch.rand(N, generator=random)}
    if operation == "recurrent":
        values |= {"recurrent_weight": torch.randn(N, N, generator=random) * 0.4}
        values |= {"output": (torch.rand(B, N, generator=random) < 0.5).float()}
    return {"x": (torch.rand(T, B, K, generator=random) < 0.3).float(), **values}


def run(
    operation: str, backend: str, tensors: dict[str, Tensor], neuron: Neuron, recompute: str,
    learn: tuple[str, ...] = (), packed: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """Output, last states and all gradients; with ``packed`` spikes come and go as words."""
    there = {name: value.to(device_of(backend)) for name, value in tensors.items()}
    there = dict(zip(there, leaves(*there.values()), strict=True))
    first: Any = there[next(iter(there))]
    names = (*neuron.states, *["output"] * ("output" in there))
    options: dict[str, Any] = {"state": {name: there[name] for name in names}, "recompute": recompute}
    options |= {"neuron": neuron, "backend": backend, "parameters": {name: there[name] for name in learn}}
    if packed:
        first, options["packed"] = PackedSpikes.pack(first), True
    given = [there[name] for name in ("weight", "recurrent_weight", "bias") if name in there]
    output, last = getattr(fastsnn, operation)(first, *given, **options)
    output = output.unpack() if packed else output
    random = torch.Generator().manual_seed(1)
    outputs = (output, *last.values())
    upstream = [torch.randn(value.shape, generator=random).to(value.device) for value in outputs]
    grads = gradients(outputs, list(there.values()), *upstream)
    found = {"spikes": output, **{f"last {name}": value for name, value in last.items()}}
    return found | {f"gradient of {name}": grad for name, grad in zip(there, grads, strict=True)}


def require_the_same(found: list[dict[str, Tensor]]) -> None:
    first, second = found
    contract.require(*(contract.same_bits(name, second[name], first[name]) for name in first))


@OPERATIONS
@pytest.mark.parametrize("name", NEURONS)
def test_the_same_bits_for_every_neuron(name: str, operation: str) -> None:
    neuron, learn = NEURONS[name]
    tensors = case(operation, 71, neuron, learn)
    found = [run(operation, "numba", tensors, neuron, choice, learn) for choice in ("off", "on")]
    assert found[0]["spikes"].any()
    require_the_same(found)


@OPERATIONS
@pytest.mark.parametrize("T", [1, 32, 33])
def test_the_same_bits_for_few_steps(T: int, operation: str) -> None:
    """One step, a whole segment, and a tail of one step."""
    tensors = case(operation, T, LIF())
    require_the_same([run(operation, "numba", tensors, LIF(), choice) for choice in ("off", "on")])


@OPERATIONS
def test_the_same_bits_in_triton(operation: str) -> None:
    """Of a neuron that learns; kernels run as they are in its interpreter, which is slow."""
    neuron, learn = NEURONS["plif"]
    tensors = case(operation, 33, neuron, learn)
    require_the_same([run(operation, "triton", tensors, neuron, choice, learn) for choice in ("off", "on")])


@FUSED
@pytest.mark.parametrize("operation", ["linear", "recurrent"])
def test_the_same_bits_of_packed_spikes(operation: str, backend: str) -> None:
    tensors = case(operation, 33, LIF())
    found = [run(operation, backend, tensors, LIF(), choice, packed=True) for choice in ("off", "on")]
    require_the_same(found)
    assert found[0]["spikes"].any()


@FUSED
@OPERATIONS
def test_segments_are_one_sequence(operation: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is carried from segment to segment, forward and back: the results of one segment, within C4."""
    tensors = case(operation, 33, LIF())
    cut = run(operation, backend, tensors, LIF(), "on")
    monkeypatch.undo()
    whole = run(operation, backend, tensors, LIF(), "on")
    contract.require(
        contract.same_bits("spikes", cut["spikes"], whole["spikes"]),
        *(contract.gradient_error(name, cut[name], whole[name].double().cpu()) for name in whole if "gradient" in name),
    )


@pytest.mark.parametrize(("operation", "backend"), [("scan", "triton"), ("linear", "triton"), ("recurrent", "numba")])
def test_half_precision(operation: str, backend: str) -> None:
    """Whose gradients are summed over segments in fp32."""
    tensors = case(operation, 33, LIF())
    wide = ("x", "v") if operation == "scan" else (*LIF().states, "output")
    tensors = {name: value if name in wide else value.bfloat16() for name, value in tensors.items()}
    require_the_same([run(operation, backend, tensors, LIF(), choice) for choice in ("off", "on")])


def kept_by_autograd(network: nn.Module, x: Any) -> int:
    """Bytes, each memory once, without inputs and parameters."""
    given = x.words if isinstance(x, PackedSpikes) else x
    known = {tensor.untyped_storage().data_ptr() for tensor in (given, *network.parameters())}
    found: dict[int, Tensor] = {}
    pack: Callable[[Tensor], Tensor] = lambda t: found.setdefault(t.untyped_storage().data_ptr(), t)  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        network(x).sum().backward()
    return sum(t.untyped_storage().nbytes() for place, t in found.items() if place not in known)


@FUSED
@pytest.mark.parametrize("kind", ["linear", "recurrent"])
def test_nothing_of_every_step_is_kept(kind: str, backend: str) -> None:
    """The states at one start, of T = 64 in two segments; and of a recurrent layer the output there."""
    layer = fastsnn.Recurrent if kind == "recurrent" else fastsnn.LinearLIF
    x = (torch.rand(64, B, K) < 0.3).float().to(device_of(backend))
    network = layer(K, N, backend=backend, recompute="on").to(x.device)
    assert kept_by_autograd(network, x) == 4 * B * N * (2 if kind == "recurrent" else 1)


def test_auto_is_on_above_a_share_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x, sizes = torch.ones(64, B, K), []
    network = fastsnn.LinearLIF(K, N, backend="numba")
    for memory in (4 * 64 * B * N / segments.SHARE, 4 * 64 * B * N / segments.SHARE - 1):
        monkeypatch.setattr(segments, "memory_of", lambda device, size=memory: size)
        sizes.append(kept_by_autograd(network, x))
    states, steps = 4 * B * N, 4 * 64 * B * N
    assert sizes == [states + steps, states]


@OPERATIONS
def test_the_number_of_threads_changes_no_bit(operation: str) -> None:
    threads, found = numba.get_num_threads(), []
    try:
        for count in (threads, 1):
            numba.set_num_threads(count)
            found.append(run(operation, "numba", case(operation, 71, LIF()), LIF(), "on"))
    finally:
        numba.set_num_threads(threads)
    require_the_same(found)


def test_a_compiled_network_recomputes() -> None:
    backend = "numba"
    layers = [replace(LIF(), tau=3.0), LIF()]
    network = nn.Sequential(
        fastsnn.LinearLIF(K, N, neuron=layers[0], backend=backend, packed=True, recompute="on"),
        fastsnn.Recurrent(N, N, layers[1], backend=backend, recompute="on"),
    ).to(device_of(backend))
    x = (torch.rand(37, B, K, generator=torch.Generator().manual_seed(3)) < 0.5).float().to(device_of(backend)) * 3
    results = []
    for call in (network, torch.compile(network, backend="aot_eager", fullgraph=True)):
        output = call(x)
        results.append((output, *gradients((output,), list(network.parameters()), torch.ones_like(output))))
    contract.require(*(contract.same_bits(str(i), *pair) for i, pair in enumerate(zip(*results, strict=True))))


@FUSED
def test_there_is_no_second_derivative(backend: str) -> None:
    device = device_of(backend)
    x, weight = leaves(torch.ones(33, B, K, device=device), torch.ones(N, K, device=device))
    output, _ = fastsnn.linear(x, weight, backend=backend, recompute="on")
    grad = torch.autograd.grad(output.sum(), weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=f"backend {backend} has no second derivative"):
        grad.sum().backward()


def test_what_is_refused() -> None:
    x = torch.ones(2, 1, 3)
    with pytest.raises(ValueError, match="recompute is 'on'; backend torch allows: auto, off"):
        fastsnn.scan(x, recompute="on", backend="torch")
    with pytest.raises(ValueError, match="recompute is 'yes'; backend numba allows: auto, on, off"):
        fastsnn.scan(x, recompute="yes", backend="numba")
    with torch.no_grad():  # nothing is kept anyway
        fastsnn.scan(x, recompute="on", backend="torch")
