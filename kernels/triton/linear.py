"""A linear layer and its neurons in Triton: the product, the scan over time and their gradients.

Two paths, of which :func:`choose_path` takes one: *fused*, where the scan is the epilogue of our own product and the
currents never leave the cache, and *library*, cuBLAS and the scan of ``scan.py`` in the currents' place. Both keep x
and what a step keeps for backward; there the scan gives the gradient of the currents, and two products make those of
weight and x. Sums over time and batch have a fixed order.

Operation: ``kernels/linear.py``. Tests: ``tests/test_linear.py``. Benchmark: ``bench/cases.py``.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fastsnn.kernels.neurons.program import CompiledNeuron
from fastsnn.kernels.packed import unpack
from fastsnn.kernels.triton import bf16_split
from fastsnn.kernels.triton.linear_forward import linear_forward
from fastsnn.kernels.triton.scan import scan_backward, scan_forward

PATHS = ("auto", "fused", "library")
FUSED_UP_TO = {"half-precision": 1024, "full-rate": math.inf, "half-rate": 512, "half-rate-float": 128, "ieee": 128}
"""Inputs K up to which the fused path is the faster, by the kind of product, see :func:`choose_path`.

Derived, not measured. Fusing spares a current its way to memory and back, 8 bytes (4 in half precision), and its
product takes longer by 2 K (1 / ours - 1 / library) at the peak rates; the K at which both are equal, for cards of each
kind, rounded to a power of two:

    half-precision      the library's tensor cores, ours at 0.7 of their rate (H200: 960)
    full-rate           3 or 6 tensor products for one in fp32, where (sm_80, 90, 100) that is faster at any K
    half-rate[-float]   the same on GPUs of half tensor rate (sm_86, 89, 120): 3 products for spikes (RTX 3090, 4090 and
                        5090: 300, 670, 470), 6 for other numbers (76, 165, 117)
    ieee                no tensor cores used (below sm_80): ours at half of cuBLAS's rate (GTX 1070: 100)
"""


def choose_path(path: str, x: Tensor, weight: Tensor) -> str:
    """``path``, or for ``auto`` that of fused and library which :data:`FUSED_UP_TO` takes for the faster."""
    if path != "auto":
        return path
    sm = bf16_split.capability(x.device)
    if sm < 80:
        kind = "ieee"
    elif weight.dtype != torch.float32:
        kind = "half-precision"
    elif sm in (86, 89, 120):
        kind = "half-rate-float" if x.is_floating_point() else "half-rate"
    else:
        kind = "full-rate"
    return "fused" if weight.shape[1] <= FUSED_UP_TO[kind] else "library"


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """The library's products in their operands' own precision: no TF32, and no autocast around a backward pass."""
    # The second name is that of torch before 2.9; where both exist, writing the one after the other is an error.
    settings = torch.backends.cuda.matmul
    name, value = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    saved = getattr(settings, name)
    setattr(settings, name, value)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        setattr(settings, name, saved)


def segment_forward(
    neuron: CompiledNeuron, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None,
    parameters: dict[str, Tensor], T: int, output: Tensor, final: Tensor, kept: Tensor | None, path: str,
) -> None:  # fmt: skip
    """See :func:`forward`; x may be packed, and ``final`` may be ``state``."""
    forward(neuron, operand(x, T), weight, bias, state, parameters, output, final, kept, path)


def forward(
    neuron: CompiledNeuron, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None,
    parameters: dict[str, Tensor], output: Tensor, final: Tensor, kept: Tensor | None, path: str,
) -> None:  # fmt: skip
    """Fill ``output`` [T, B, N] (int32 words if packed), ``final`` [S, B, N] and ``kept`` [K, T, B, N].

    x [T, B, K] is as :func:`operand` gives it.
    """
    run = linear_forward if choose_path(path, x, weight) == "fused" else _library_forward
    weight, state = weight.contiguous(), None if state is None else state.contiguous()
    run(neuron, x, weight, None if bias is None else bias.contiguous(), state, parameters, output, final, kept)


def _library_forward(
    neuron: CompiledNeuron, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None,
    parameters: dict[str, Tensor], output: Tensor, final: Tensor, kept: Tensor | None,
) -> None:  # fmt: skip
    """With the library's product; fp32 currents lie in the memory of what is kept, or of an fp32 output."""
    T, B, K = x.shape
    current = kept[0] if kept is not None and neuron.kept else output
    if weight.dtype != torch.float32 or current.dtype != torch.float32:
        current = torch.empty(T, B, weight.shape[0], dtype=weight.dtype, device=x.device)
    rows = x.reshape(T * B, K).to(weight.dtype)
    with full_precision(x.device):
        if bias is None:
            torch.mm(rows, weight.t(), out=current.view(T * B, -1))
        else:
            torch.addmm(bias, rows, weight.t(), out=current.view(T * B, -1))
    scan_forward(neuron, current, state, parameters, output, final, kept)


def segment_backward(
    neuron: CompiledNeuron, grad_output: Tensor | None, grad_state: Tensor, kept: Tensor | None, x: Tensor,
    weight: Tensor, bias: Tensor | None, state: Tensor | None, parameters: dict[str, Tensor], T: int,
    needs: Sequence[bool], x_dtype: torch.dtype, path: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]:  # fmt: skip
    """Gradients of x, weight and bias, None if ``needs`` is False, and of the rows [L, B, N].

    ``grad_state`` [S, B, N], that of the last state, becomes that of ``state``. What steps keep is made again unless it
    is given.
    """
    x, shape = operand(x, T), (T, *grad_state.shape[1:])
    if kept is None:
        kept = grad_state.new_empty((neuron.kept, *shape))
        words = grad_state.new_empty((-(-T // 32), *shape[1:]), dtype=torch.int32)
        forward(neuron, x, weight, bias, state, parameters, words, torch.empty_like(grad_state), kept, path)
    fused = choose_path(path, x, weight) == "fused"
    split = fused and bf16_split.arithmetic(x.device, weight.dtype)["PARTS"] == 3
    grad = kept.new_empty((3, *shape), dtype=torch.bfloat16) if split else kept.new_empty(shape, dtype=weight.dtype)
    grad_rows = grad_state.new_empty((len(neuron.learnt_constants), *shape[1:]))
    total = torch.empty_like(grad_state[0]) if needs[2] else None
    scan_backward(neuron, grad_output, grad_state, kept, parameters, grad, grad_state, grad_rows, total)
    return *product_gradients(grad, x, weight, total, needs, x_dtype), grad_rows


def product_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, total: Tensor | None, needs: Sequence[bool], x_dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of the gradients of x, weight and bias that ``needs`` asks for, from the currents' gradient or its parts,
    and its sum over time [B, N].
    """
    grad_x = weight.new_empty(x.shape, dtype=x_dtype) if needs[0] else None
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if needs[1] else None
    if grad_x is not None:
        input_gradient(grad, weight.contiguous(), grad_x)
    if grad_weight is not None:
        weight_gradient(grad, x, grad_weight)
    return grad_x, grad_weight, None if total is None else total.sum(0)


def operand(x: Tensor, T: int) -> Tensor:
    """x as the kernels take it: contiguous [T, B, K] of a float dtype or uint8."""
    if x.dtype == torch.int32:
        return unpack(x.contiguous(), T)
    return (x.view(torch.uint8) if x.dtype == torch.bool else x).contiguous()


def weight_gradient(grad: Tensor, x: Tensor, out: Tensor) -> None:
    """out [N, K] = dW, of the currents' gradient, [T, B, N] or parts [3, T, B, N], and x [T, B, K]."""
    N, K = out.shape
    rows = x.reshape(-1, K)
    if grad.dim() == 4:
        bf16_split.matmul(rows.t(), grad.view(3, -1, N), out.t())
        return
    with full_precision(grad.device):
        torch.mm(grad.view(-1, N).t(), rows.to(out.dtype), out=out)


def input_gradient(grad: Tensor, weight: Tensor, out: Tensor) -> None:
    """out [T, B, K] = dx, of the currents' gradient, [T, B, N] or parts [3, T, B, N], and weight [N, K]."""
    N, K = weight.shape
    if grad.dim() == 3:
        with full_precision(grad.device):
            out.copy_(grad @ weight)
        return
    panel = max(bf16_split.PANEL_BYTES // (6 * N) // 128, 1) * 128
    for first in range(0, K, panel):
        columns = slice(first, first + panel)
        bf16_split.matmul(grad.view(3, -1, N), bf16_split.split(weight[:, columns]), out.view(-1, K)[:, columns])
