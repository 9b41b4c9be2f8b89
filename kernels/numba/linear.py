"""A linear layer and its neurons on the CPU: the products and the scan of ``scan.py``.

The products with the input are those of spikes, if it holds spikes (``spike_products/``), else a library's
(``products.py``). For backward the currents are kept, or made
again.

Operation: ``kernels/linear.py``. Twin: ``kernels/triton/linear.py``. Tests: ``tests/test_numba_scan.py``.
Benchmark: ``bench/cases.py``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsnn.kernels.neurons.program import CompiledNeuron
from fastsnn.kernels.numba.products import linear as product
from fastsnn.kernels.numba.scan import begin, initial_state, scan_backward, scan_forward
from fastsnn.kernels.numba.spike_products import currents, pack, weight_gradient
from fastsnn.kernels.packed import PackedSpikes

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]
"""Of x, weight, bias and the rows."""


def segment_forward(
    neuron: CompiledNeuron, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None,
    parameters: dict[str, Tensor], T: int, output: Tensor, final: Tensor, kept: Tensor | None, path: str,
) -> None:  # fmt: skip
    """Fill ``output`` [T, B, N] (int32 words if packed), ``final`` [S, B, N], which may be ``state``, and ``kept``.

    kept [1, T, B, N]: the currents. Without it they lie in the output's memory, or in a segment's own.
    """
    begin(neuron, state, final)
    dense = output if output.dtype == torch.float32 else None
    current = currents(as_spikes(x, T), weight, bias, out=dense if kept is None else kept[0])
    spikes = torch.empty_like(current) if dense is None and kept is not None else dense
    spikes = current if spikes is None else spikes
    scan_forward(neuron, current, final, parameters, spikes)
    write(spikes, output)


def write(spikes: Tensor, output: Tensor) -> None:
    """Copy outputs fp32 [T, ...] to ``output``, of any dtype or packed, unless they lie there."""
    if spikes is output:
        return
    words = pack(spikes != 0) if output.dtype == torch.int32 else spikes
    assert words is not None
    output.copy_(words)


def segment_backward(
    neuron: CompiledNeuron, grad_output: Tensor | None, grad_state: Tensor, kept: Tensor | None, x: Tensor,
    weight: Tensor, bias: Tensor | None, state: Tensor | None, parameters: dict[str, Tensor], T: int,
    needs: Sequence[bool], x_dtype: torch.dtype, path: str,
) -> Gradients:  # fmt: skip
    """Gradients of x, weight and bias, None if ``needs`` is False, and of the rows [L, B, N].

    ``grad_state`` [S, B, N], that of the last state, becomes that of ``state``. The currents are made again unless they
    were kept.
    """
    current = currents(as_spikes(x, T), weight, bias) if kept is None else kept[0]
    first = initial_state(neuron, state, current.shape[1:])
    grad_rows = torch.empty(len(neuron.learnt_constants), *current.shape[1:])
    grad = current if kept is None else torch.empty_like(current)
    scan_backward(neuron, current, first, parameters, grad_output, grad_state, grad, grad_rows)
    return *product_gradients(grad, x, weight, T, needs, x_dtype), grad_rows


def product_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, T: int, needs: Sequence[bool], x_dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of the gradients of x, weight and bias that ``needs`` asks for, from the currents' ``grad`` [T, B, N]."""
    of_x, of_weight, of_bias = needs
    grad_x = product(grad, weight.float().T).to(x_dtype) if of_x else None
    grad_bias = torch.empty(grad.shape[-1]) if of_bias else None
    grad_weight = weight_gradient(as_spikes(x, T), grad, bias_out=grad_bias) if of_weight else None
    if grad_bias is not None and not of_weight:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
    return grad_x, grad_weight, grad_bias


def as_spikes(x: Tensor, T: int) -> Tensor | PackedSpikes:
    """The input [T, B, K], or words of it, as the products take it."""
    return PackedSpikes(x, T) if x.dtype == torch.int32 else x
