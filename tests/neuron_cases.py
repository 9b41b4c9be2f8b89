"""Cases of neurons, and the numerical contract applied to one: what the tests of several backends share."""

import itertools
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

import fastsnn
from fastsnn import LIF, Neuron
from fastsnn.kernels import contract, reference
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.scan import scan_op
from fastsnn.kernels.segments import STEPS
from fastsnn.kernels.triton import bf16_split

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
"""Where Triton kernels run: on the CPU in the interpreter."""

needs_bf16_products = pytest.mark.skipif(
    bf16_split.capability(DEVICE) < 80, reason="products of bf16 parts need a GPU of sm_80 or newer"
)

SAME_ORDER = bf16_split.INTERPRETED or bf16_split.capability(DEVICE) not in (80, 86, 89, 120)
"""Whether the tiles of spikes and of fp32 numbers are the same in Triton: on these GPUs numbers take more memory."""

BACKENDS = ("triton", "numba")
"""The backends with kernels of fastsnn's own."""

# opcheck copies its inputs, so that they are no leaves; what torch then says of .grad it hides only from the screen.
OPCHECK = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")

OPTIONS = [
    pytest.param(
        {"v_reset": v_reset, "decay_input": decay_input, "detach_reset": detach_reset},
        id=f"v_reset={v_reset}{', decay_input' * decay_input}{', detach_reset' * detach_reset}",
    )
    for v_reset, decay_input, detach_reset in itertools.product((0.0, None, -0.3), (True, False), (True, False))
]
"""Every combination of LIF's options that choose an expression."""


def device_of(backend: str) -> torch.device:
    """Where a backend's kernels run."""
    return DEVICE if backend == "triton" else torch.device("cpu")


def case(*shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Currents [T, ...] that make about a third of the neurons fire, v [...] before them, gradients of spikes and v."""
    generator = torch.Generator().manual_seed(sum(shape))
    current, grad_spikes = torch.randn(2, *shape, generator=generator)
    v, grad_v = torch.rand(2, *shape[1:], generator=generator)
    return current * 1.5 + 0.8, v, grad_spikes, grad_v


def linear_case(T: int, B: int, K: int, N: int, dyadic: bool = False) -> tuple[Tensor, ...]:
    """x, weight, bias, v, and gradients of spikes and v; dyadic currents are exact in any order of summation."""
    generator = torch.Generator().manual_seed(T + B + K + N + dyadic)
    count = max(0.3 * K, 1.0)
    x = (torch.rand(T, B, K, generator=generator) < 0.3).float()
    weight = torch.randn(N, K, generator=generator) * 1.2 / count**0.5 + 1.8 / count
    bias, v = torch.rand(N, generator=generator), torch.rand(B, N, generator=generator)
    if dyadic:
        weight, bias, v = ((tensor * 8).round() / 8 for tensor in (weight, bias, v))
    else:
        x = x * (torch.randn(x.shape, generator=generator) + 1)
    return (
        x,
        weight,
        bias,
        v,
        *torch.randn(1, T, B, N, generator=generator),
        torch.randn(B, N, generator=generator),
    )


def leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies that gradients are asked for."""
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], *upstream: Tensor) -> tuple[Tensor, ...]:
    """Gradients of ``inputs`` for the gradients ``upstream`` of ``outputs``."""
    return torch.autograd.grad(outputs, inputs, [grad.to(out) for grad, out in zip(upstream, outputs, strict=True)])


def run_op(
    backend: str, current: Tensor, neuron: Neuron, v: Tensor | None = None, keep: str = STEPS
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator on tensors where the backend runs: spikes, the last v and what was kept for backward."""
    spikes, final, _, kept = scan_op(current, None if v is None else v[None], [], [], neuron.key, "", backend, keep)
    return spikes, final[0], kept


def potentials(
    neuron: LIF, current: Tensor, v: Tensor | None = None, parameters: Mapping[str, Tensor] | None = None
) -> Tensor:
    """h [T, ...] of LIF neurons: the membrane before firing, by the reference."""
    bound = reference.on_tensors(neuron, current, parameters)
    assert isinstance(bound, LIF)
    state = reference.rest(neuron, current[0])[0] if v is None else v
    found = []
    for x in current:
        found.append(bound.charge(x, state))
        _, state = bound.step(x, state)
    return torch.stack(found)


def kept_potentials(neuron: LIF, current: Tensor, v: Tensor | None = None) -> Tensor:
    """What a LIF neuron's forward step keeps: h, or its distance from the threshold if backward needs no more."""
    h = potentials(neuron, current, v)
    assert compile_neuron(neuron).kept == 1
    return h if neuron.v_reset is not None and not neuron.detach_reset else h - neuron.v_threshold


def require_spikes(spikes: Tensor, v: Tensor, current: Tensor, v_init: Tensor, neuron: Neuron, bit_equal: bool) -> None:
    """C3, and if ``bit_equal`` C1: fp32 spikes and v on the CPU against the reference on the same currents."""
    expected, (expected_v,) = reference.scan(current, neuron, (v_init,))
    assert 0.05 < expected.mean() < 0.95
    if bit_equal:
        contract.require(contract.same_bits("spikes", spikes, expected), contract.same_bits("v", v, expected_v))
    path = contract.trajectory(current, neuron, (v_init,), spikes)
    contract.require(
        contract.spikes_at_threshold(spikes, path.distance, path.bound),
        contract.close("v", v, path.states[0], path.state_bounds[0], "C3"),
    )


def require_gradients(
    actual: Sequence[Tensor], spikes: Tensor, current: Tensor, v: Tensor, *upstream: Tensor, neuron: Neuron
) -> None:
    """C4 for the gradients of current and v, with the recorded ``spikes`` given to the float64 reference."""
    exact, eager = (
        replayed_gradients(dtype, spikes, current, {"v": v}, *upstream, neuron=neuron)
        for dtype in (torch.float64, torch.float32)
    )
    rows = zip(exact, actual, exact.values(), eager.values(), strict=True)
    contract.require(*(contract.gradient_error(*row) for row in rows))


def replayed_gradients(
    dtype: torch.dtype, spikes: Tensor, current: Tensor, states: Mapping[str, Tensor], *upstream: Tensor,
    neuron: Neuron, parameters: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Gradients of the reference that fires as recorded, by name: of the current, the states, the parameters."""
    given = {"current": current, **states, **(parameters or {})}
    names = dict(zip(given, leaves(*(tensor.detach().cpu().to(dtype) for tensor in given.values())), strict=True))
    learnt = {name: names[name] for name in parameters or {}}
    before = [names[name] for name in states] or None
    output, last = contract.replay(names["current"], neuron, before, spikes, learnt)
    return dict(zip(names, gradients((output, *last), list(names.values()), *upstream), strict=True))


def check_neuron(
    backend: str, neuron: Neuron, current: Tensor, states: Mapping[str, Tensor] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """C1, C3 and C4 of ``fastsnn.scan``: output, states and gradients of everything; returns the gradients."""
    states, parameters = dict(states or {}), dict(parameters or {})
    given = {"current": current, **states, **parameters}
    there = dict(zip(given, leaves(*(t.to(device_of(backend)) for t in given.values())), strict=True))
    output, last = fastsnn.scan(
        there["current"], neuron, {name: there[name] for name in states} or None,
        parameters={name: there[name] for name in parameters}, backend=backend,
    )  # fmt: skip
    spikes, before = output.detach().cpu(), tuple(states.values()) or None
    expected, expected_last = reference.scan(current, neuron, before, parameters)
    rows = zip(neuron.states, last.values(), expected_last, strict=True)
    contract.require(
        contract.same_bits("output", spikes, expected),
        *(contract.same_bits(name, got.cpu(), wanted) for name, got, wanted in rows),
    )
    assert not neuron.spikes or 0.05 < spikes.mean() < 0.95
    path = contract.trajectory(current, neuron, before, spikes, parameters)
    if neuron.spikes:
        contract.require(contract.spikes_at_threshold(spikes, path.distance, path.bound))
    for got, wanted, bound in zip(last.values(), path.states, path.state_bounds, strict=True):
        contract.require(contract.close("state", got.cpu(), wanted, bound, "C3"))
    generator = torch.Generator().manual_seed(13)
    upstream = [torch.randn(value.shape, generator=generator) for value in (output, *last.values())]
    actual = gradients((output, *last.values()), list(there.values()), *(g.to(output.device) for g in upstream))
    exact, eager = (
        replayed_gradients(dtype, spikes, current, states, *upstream, neuron=neuron, parameters=parameters)
        for dtype in (torch.float64, torch.float32)
    )
    # Torch's own gradients have nothing to be measured by but the floor.
    bounded = {} if backend == "torch" else eager
    found = dict(zip(given, (gradient.cpu() for gradient in actual), strict=True))
    contract.require(*(contract.gradient_error(name, found[name], exact[name], bounded.get(name)) for name in found))
    return found


class Guarded:
    """Tensors within larger memory; ``check`` finds what was left unwritten, and writes on either side."""

    def __init__(self) -> None:
        self.tensors: list[tuple[Tensor, Tensor]] = []

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        margin, n = 4096, torch.Size(shape).numel()
        mark = -7 if dtype == torch.int32 else torch.nan
        memory = torch.full((2 * margin + n,), mark, dtype=dtype, device=DEVICE)
        self.tensors.append((memory, memory[margin : margin + n]))
        return self.tensors[-1][1].view(shape)

    def check(self) -> None:
        for memory, inner in self.tensors:
            untouched = (memory == -7) | memory.isnan()
            assert not untouched[4096:-4096].any(), f"{inner.numel()} elements of {inner.dtype}: some were not written"
            assert untouched[:4096].all()
            assert untouched[-4096:].all()


def same_gradients(names: Sequence[str], actual: Sequence[Tensor], expected: Sequence[Tensor], backend: str) -> None:
    """The same bits where a backend sums spikes and fp32 numbers in one order, else within C4."""
    same = contract.same_bits if backend == "numba" or SAME_ORDER else _within_c4
    contract.require(*(same(*row) for row in zip(names, actual, expected, strict=True)))


def _within_c4(name: str, actual: Tensor, expected: Tensor) -> contract.Measurement:
    return contract.gradient_error(name, actual.cpu(), expected.cpu().double())
