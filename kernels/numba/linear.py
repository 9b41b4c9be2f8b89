"""A linear layer and its neurons on the CPU: the products and the scan of ``scan.py``.

The products with the input are those of spikes, if it holds spikes (``spike_products/``), else a library's
(``products.py``). For backward the currents are kept.

Operation: ``kernels/linear.py``. Twin: ``kernels/triton/linear.py``. Tests: ``tests/test_numba_scan.py``.
Benchmark: ``bench/bench_linear.py``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsnn.kernels import philox
from fastsnn.kernels.neurons.program import CompiledNeuron
from fastsnn.kernels.numba.products import linear as product
from fastsnn.kernels.numba.scan import initial_state, scan_backward, scan_forward
from fastsnn.kernels.numba.spike_products import currents, weight_gradient
from fastsnn.kernels.packed import PackedSpikes


def forward(
    neuron: CompiledNeuron, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None,
    parameters: dict[str, Tensor], T: int, pack: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output [T, B, N] (int32 words if packed), last state [S, B, N], and the currents [1, T, B, N] to keep."""
    current = currents(as_spikes(x, T), weight, bias)
    final = initial_state(neuron, state, current.shape[1:])
    output = torch.empty_like(current) if keep else current
    scan_forward(neuron, current, final, parameters, output)
    kept = current[None] if keep else current.new_empty(0)
    return philox.pack(output != 0) if pack else output.to(weight.dtype), final, kept


def gradients(
    neuron: CompiledNeuron, grad_output: Tensor | None, grad_final: Tensor | None, current: Tensor, x: Tensor,
    weight: Tensor, state: Tensor | None, parameters: dict[str, Tensor], T: int, needs: Sequence[bool],
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight and bias, each empty if ``needs`` is False, of the first state and of the rows."""
    # The products become these tensors. Memory that is reserved for them as well is paged in anew at every call.
    of_x, of_weight, of_bias = (weight.new_empty(0, dtype=dtype) for dtype in (x_dtype, weight.dtype, weight.dtype))
    grad_x, grad_weight, grad_bias = (
        grad if need else None for grad, need in zip((of_x, of_weight, of_bias), needs, strict=True)
    )
    shape = current.shape[1:]
    of_state, of_rows = (torch.empty(n, *shape) for n in (neuron.states, len(neuron.learnt_constants)))
    backward(
        neuron, grad_output, grad_final, current, x, weight, state, parameters, T, grad_x, grad_weight, grad_bias,
        of_state, of_rows,
    )  # fmt: skip
    return of_x, of_weight, of_bias, of_state, of_rows


def backward(
    neuron: CompiledNeuron, grad_output: Tensor | None, grad_final: Tensor | None, current: Tensor, x: Tensor,
    weight: Tensor, state: Tensor | None, parameters: dict[str, Tensor], T: int,
    grad_x: Tensor | None, grad_weight: Tensor | None, grad_bias: Tensor | None, grad_state: Tensor, grad_rows: Tensor,
) -> None:  # fmt: skip
    """Make the gradients that are asked for, and fill those of the first state [S, B, N] and of the rows [L, B, N]."""
    grad_state.numpy()[...] = 0.0 if grad_final is None else grad_final.float().numpy()
    first = initial_state(neuron, state, current.shape[1:])
    grad = torch.empty_like(current)
    scan_backward(neuron, current, first, parameters, grad_output, grad_state, grad, grad_rows)
    product_gradients(grad, x, weight, T, grad_x, grad_weight, grad_bias)


def product_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, T: int,
    grad_x: Tensor | None, grad_weight: Tensor | None, grad_bias: Tensor | None,
) -> None:  # fmt: skip
    """Fill those of the gradients that are asked for, from the currents' ``grad`` [T, B, N]."""
    if grad_x is not None:
        _become(grad_x, product(grad, weight.float().T))
    if grad_weight is not None:
        of_bias = None if grad_bias is None else torch.empty(grad.shape[-1])
        _become(grad_weight, weight_gradient(as_spikes(x, T), grad, bias_out=of_bias))
        if grad_bias is not None and of_bias is not None:
            _become(grad_bias, of_bias)
    elif grad_bias is not None:
        _become(grad_bias, grad.reshape(-1, grad.shape[-1]).sum(0))


def _become(out: Tensor, value: Tensor) -> None:
    """Make ``out`` the value, in its own dtype and without a copy, which takes as long as the scan."""
    out.set_(value.to(out.dtype))  # type: ignore[call-overload]


def as_spikes(x: Tensor, T: int) -> Tensor | PackedSpikes:
    """The input [T, B, K], or words of it, as the products take it."""
    return PackedSpikes(x, T) if x.dtype == torch.int32 else x
