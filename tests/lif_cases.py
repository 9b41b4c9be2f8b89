"""Cases of LIF neurons, and the numerical contract applied to one: what the tests of several backends share."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fastsnn import LIFParameters
from fastsnn.kernels import contract, reference

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
"""Where Triton kernels run: on the CPU in the interpreter."""

# opcheck copies its inputs, so that they are no leaves; what torch then says of .grad it hides only from the screen.
OPCHECK = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")

OPTIONS = [
    pytest.param(
        {"v_reset": v_reset, "decay_input": decay_input, "detach_reset": detach_reset},
        id=f"v_reset={v_reset}{', decay_input' * decay_input}{', detach_reset' * detach_reset}",
    )
    for v_reset, decay_input, detach_reset in itertools.product((0.0, None, -0.3), (True, False), (True, False))
]
"""Every combination of the options that choose an expression."""


def neuron(**changes: Any) -> dict[str, Any]:
    """The keyword arguments of a kernel."""
    return LIFParameters(**changes).options()


def case(*shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Currents [T, ...] that make about a third of the neurons fire, v_init [...], and gradients of spikes and v."""
    generator = torch.Generator().manual_seed(sum(shape))
    current, grad_spikes = torch.randn(2, *shape, generator=generator)
    v_init, grad_v = torch.rand(2, *shape[1:], generator=generator)
    return current * 1.5 + 0.8, v_init, grad_spikes, grad_v


def linear_case(T: int, B: int, K: int, N: int, dyadic: bool = False) -> tuple[Tensor, ...]:
    """x, weight, bias, v_init, and gradients of spikes and v; dyadic currents are exact in any order of summation."""
    generator = torch.Generator().manual_seed(T + B + K + N + dyadic)
    count = max(0.3 * K, 1.0)
    x = (torch.rand(T, B, K, generator=generator) < 0.3).float()
    weight = torch.randn(N, K, generator=generator) * 1.2 / count**0.5 + 1.8 / count
    bias, v_init = torch.rand(N, generator=generator), torch.rand(B, N, generator=generator)
    if dyadic:
        weight, bias, v_init = ((tensor * 8).round() / 8 for tensor in (weight, bias, v_init))
    else:
        x = x * (torch.randn(x.shape, generator=generator) + 1)
    return (
        x,
        weight,
        bias,
        v_init,
        *torch.randn(1, T, B, N, generator=generator),
        torch.randn(B, N, generator=generator),
    )


def leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies that gradients are asked for."""
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


def gradients(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...], *upstream: Tensor) -> tuple[Tensor, ...]:
    """Gradients of ``inputs`` for the gradients ``upstream`` of ``outputs``."""
    return torch.autograd.grad(outputs, inputs, [grad.to(out) for grad, out in zip(upstream, outputs, strict=True)])


def require_spikes(
    spikes: Tensor, v: Tensor, current: Tensor, v_init: Tensor, *, bit_equal: bool, **options: Any
) -> None:
    """C3, and where ``bit_equal`` C1: fp32 spikes and v on the CPU against the reference on the same currents."""
    expected, expected_v, _ = reference.lif(current, v_init, **options)
    assert 0.05 < expected.mean() < 0.95
    if bit_equal:
        contract.require(contract.same_bits("spikes", spikes, expected), contract.same_bits("v", v, expected_v))
    _, _, membrane = contract.replay(current.double(), v_init.double(), spikes, **options)
    bound = contract.membrane_bound(membrane, **options)
    contract.require(contract.spikes_at_threshold(spikes, membrane, bound, options["v_threshold"]))


def require_gradients(
    actual: tuple[Tensor, ...], spikes: Tensor, current: Tensor, v_init: Tensor, *upstream: Tensor, **options: Any
) -> None:
    """C4 for the gradients of current and v_init, with the recorded ``spikes`` given to the float64 reference."""
    replayed = []
    for dtype in (torch.float64, torch.float32):
        inputs = leaves(current.to(dtype), v_init.to(dtype))
        outputs = contract.replay(*inputs, spikes, **options)[:2]
        replayed.append(gradients(outputs, inputs, *upstream))
    names = ("current", "v_init")
    contract.require(*(contract.gradient_error(*row) for row in zip(names, actual, *replayed, strict=True)))


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
