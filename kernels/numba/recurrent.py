"""A recurrent layer on the CPU: the product with W ahead, then the time loop of ``recurrent_kernels.py``.

For backward the whole currents, from which the steps are made again, and the outputs are kept, or made again as well.

Operation: ``kernels/recurrent.py``. Twin: ``kernels/triton/recurrent.py``. Tests: ``tests/test_recurrent.py``.
Benchmark: ``bench/cases.py``.
"""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from fastsnn.kernels.neurons.program import CompiledNeuron
from fastsnn.kernels.numba.bits import LANES
from fastsnn.kernels.numba.linear import as_spikes, product_gradients, write
from fastsnn.kernels.numba.philox import unpack
from fastsnn.kernels.numba.recurrent_kernels import TILE, backward, forward
from fastsnn.kernels.numba.scan import begin, constants, initial_state
from fastsnn.kernels.numba.spike_products import currents
from fastsnn.kernels.numba.threads import spread

MAX_GROUPS = 16
"""Partial sums of the recurrent weight's gradient, at most: they bound the threads that backward can use."""
MAX_PARTIAL = 1 << 23
"""Elements of all partial sums together, at most, but for the first."""


def segment_forward(
    neuron: CompiledNeuron, x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor,
    state: Tensor | None, initial: Tensor | None, parameters: dict[str, Tensor], T: int,
    output: Tensor, final: Tensor, kept: Tensor | None,
) -> None:  # fmt: skip
    """Fill ``output`` [T, B, N] (int32 words if packed), ``final`` [S, B, N], which may be ``state``, and ``kept``.

    kept [1, T, B, N]: the whole currents.
    """
    current = currents(as_spikes(x, T), weight, bias, out=None if kept is None else kept[0])
    spikes = output if output.dtype == torch.float32 else torch.empty_like(current)
    begin(neuron, state, final)
    _loop(neuron, current, recurrent_weight, initial, parameters, spikes, final)
    write(spikes, output)


def _loop(
    neuron: CompiledNeuron, current: Tensor, recurrent_weight: Tensor, initial: Tensor | None,
    parameters: dict[str, Tensor], output: Tensor, final: Tensor,
) -> None:  # fmt: skip
    """The time loop: ``current`` becomes the whole current, ``final`` the last state; ``output`` is filled."""
    T, B, N = current.shape
    diagonal = recurrent_weight.dim() == 1
    matrix = recurrent_weight.new_zeros(1, 1) if diagonal else recurrent_weight.T
    spread(
        forward, workers_of(B, T * B * N), neuron.forward, N, current.view(T, B * N).numpy(),
        final.view(-1, B * N).numpy(),
        first_output(initial, B, N), output.view(T, B * N).numpy(), rows_of(matrix, N),
        recurrent_weight.float().numpy() if diagonal else np.empty(0, np.float32),
        *constants(neuron, parameters, current.shape[1:]),
    )  # fmt: skip


def segment_backward(
    neuron: CompiledNeuron, grad_output: Tensor | None, grad_state: Tensor, kept: Tensor | None, output: Tensor | None,
    x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor, state: Tensor | None,
    initial: Tensor | None, parameters: dict[str, Tensor], T: int, needs: Sequence[bool], x_dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, of the output before the first step [B, N], of W, b and V, and of the rows [L, B, N].

    Those of x, W and b are None if ``needs`` is False. ``grad_state`` [S, B, N], that of the last state, becomes that
    of ``state``. Whole currents and outputs are made again unless they were kept.
    """
    if kept is None or output is None:
        current = currents(as_spikes(x, T), weight, bias)
        fired = torch.empty_like(current)
        _loop(
            neuron, current, recurrent_weight, initial, parameters, fired,
            initial_state(neuron, state, current.shape[1:]),
        )  # fmt: skip
    else:
        current, fired = kept[0], unpack(output, T) if output.dtype == torch.int32 else output.float()
    (_, B, N), shape = current.shape, current.shape[1:]
    diagonal = recurrent_weight.dim() == 1
    columns = -(-N // LANES) * LANES
    groups = max(1, min(MAX_GROUPS, -(-B // TILE), MAX_PARTIAL // (N * columns)))
    partial = np.empty((groups, 0 if diagonal else N * columns), np.float32)
    partial_diagonal = np.empty((groups, N if diagonal else 0), np.float32)
    upstream = np.zeros((1, B * N), np.float32)
    if grad_output is not None:
        rows = grad_output[:1] if grad_output.stride(0) == 0 else grad_output
        upstream = rows.reshape(len(rows), B * N).float().contiguous().numpy()
    grad, grad_initial = torch.empty_like(current), torch.empty(B, N)
    grad_rows = torch.from_numpy(np.zeros((len(neuron.learnt_constants), B, N), np.float32))
    matrix = recurrent_weight.new_zeros(1, 1) if diagonal else recurrent_weight
    spread(
        backward, min(groups, workers_of(B, T * B * N)), neuron.forward, *constants(neuron, parameters, shape),
        neuron.kept, neuron.backward, *constants(neuron, parameters, shape, backward=True), N, groups,
        current.view(T, B * N).numpy(), initial_state(neuron, state, shape).view(-1, B * N).numpy(),
        first_output(initial, B, N), fired.reshape(T, B * N).numpy(), upstream, grad_state.view(-1, B * N).numpy(),
        grad.view(T, B * N).numpy(), grad_rows.view(-1, B * N).numpy(), grad_initial.view(B * N).numpy(),
        rows_of(matrix, N), recurrent_weight.float().numpy() if diagonal else np.empty(0, np.float32),
        partial, partial_diagonal,
    )  # fmt: skip
    sums = partial_diagonal.sum(0) if diagonal else partial.sum(0).reshape(N, columns)[:, :N].T
    grad_x, grad_weight, grad_bias = product_gradients(grad, x, weight, T, needs, x_dtype)
    return grad_x, grad_initial, grad_weight, grad_bias, torch.from_numpy(np.ascontiguousarray(sums)), grad_rows


def workers_of(samples: int, elements: int) -> int:
    """Threads that samples keep busy."""
    return max(1, min(numba.get_num_threads(), samples, elements // (1 << 14)))


def rows_of(matrix: Tensor, N: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """A matrix [N, N] with rows of whole vectors, flat; a diagonal's stand-in has columns alone."""
    padded = np.zeros((N, -(-N // LANES) * LANES), np.float32)
    if len(matrix) == N:
        padded[:, :N] = matrix.detach().float().numpy()
    return padded.reshape(-1)


def first_output(initial: Tensor | None, B: int, N: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """The outputs before the first step, [B * N]."""
    return np.zeros(B * N, np.float32) if initial is None else initial.detach().float().reshape(-1).contiguous().numpy()
