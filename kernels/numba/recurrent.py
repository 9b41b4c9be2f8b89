"""A recurrent layer on the CPU: the product with W ahead, then the time loop of ``recurrent_kernels.py``.

For backward the whole currents are kept, from which the steps are made again, and the outputs.

Operation: ``kernels/recurrent.py``. Twin: ``kernels/triton/recurrent.py``. Tests: ``tests/test_recurrent.py``.
Benchmark: ``bench/recurrent.py``.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from fastsnn.kernels import philox
from fastsnn.kernels.neurons.program import CompiledNeuron
from fastsnn.kernels.numba.bits import LANES
from fastsnn.kernels.numba.linear import as_spikes, product_gradients
from fastsnn.kernels.numba.philox import unpack
from fastsnn.kernels.numba.recurrent_kernels import TILE, backward, forward
from fastsnn.kernels.numba.scan import constants, initial_state
from fastsnn.kernels.numba.spike_products import currents
from fastsnn.kernels.numba.threads import spread

MAX_GROUPS = 16
"""Partial sums of the recurrent weight's gradient, at most: they bound the threads that backward can use."""
MAX_PARTIAL = 1 << 23
"""Elements of all partial sums together, at most, but for the first."""


def recurrent_forward(
    neuron: CompiledNeuron, x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor,
    state: Tensor | None, initial: Tensor | None, parameters: dict[str, Tensor], T: int, pack: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output [T, B, N] (int32 words if packed), last state [S, B, N], and the whole currents [1, T, B, N]."""
    current = currents(as_spikes(x, T), weight, bias)
    (_, B, N), shape = current.shape, current.shape[1:]
    final, output = initial_state(neuron, state, shape), torch.empty_like(current)
    diagonal = recurrent_weight.dim() == 1
    matrix = recurrent_weight.new_zeros(1, 1) if diagonal else recurrent_weight.T
    spread(
        forward, workers_of(B, T * B * N), neuron.forward, N, current.view(T, B * N).numpy(),
        final.view(-1, B * N).numpy(),
        first_output(initial, B, N), output.view(T, B * N).numpy(), rows_of(matrix, N),
        recurrent_weight.float().numpy() if diagonal else np.empty(0, np.float32),
        *constants(neuron, parameters, shape),
    )  # fmt: skip
    return philox.pack(output != 0) if pack else output.to(weight.dtype), final, current[None]


def recurrent_backward(
    neuron: CompiledNeuron, grad_output: Tensor | None, grad_final: Tensor | None, current: Tensor, output: Tensor,
    x: Tensor, weight: Tensor, recurrent_weight: Tensor, state: Tensor | None, initial: Tensor | None,
    parameters: dict[str, Tensor], grad_x: Tensor | None, grad_weight: Tensor | None, grad_bias: Tensor | None,
    grad_recurrent: Tensor, grad_state: Tensor, grad_initial: Tensor, grad_rows: Tensor,
) -> None:  # fmt: skip
    """Fill the gradients that are asked for, and those of V, of the first state and output, and of the rows."""
    T, B, N = current.shape
    diagonal = recurrent_weight.dim() == 1
    columns = -(-N // LANES) * LANES
    groups = max(1, min(MAX_GROUPS, -(-B // TILE), MAX_PARTIAL // (N * columns)))
    partial = np.empty((groups, 0 if diagonal else N * columns), np.float32)
    partial_diagonal = np.empty((groups, N if diagonal else 0), np.float32)
    grad_state.numpy()[...] = 0.0 if grad_final is None else grad_final.float().numpy()
    grad_rows.numpy()[...] = 0
    upstream = np.zeros((1, B * N), np.float32)
    if grad_output is not None:
        rows = grad_output[:1] if grad_output.stride(0) == 0 else grad_output
        upstream = rows.reshape(len(rows), B * N).float().contiguous().numpy()
    fired = unpack(output, T) if output.dtype == torch.int32 else output.float()
    grad = torch.empty_like(current)
    matrix = recurrent_weight.new_zeros(1, 1) if diagonal else recurrent_weight
    spread(
        backward, min(groups, workers_of(B, T * B * N)), neuron.forward,
        *constants(neuron, parameters, current.shape[1:]),
        neuron.kept, neuron.backward, *constants(neuron, parameters, current.shape[1:], backward=True), N, groups,
        current.view(T, B * N).numpy(), initial_state(neuron, state, current.shape[1:]).view(-1, B * N).numpy(),
        first_output(initial, B, N), fired.reshape(T, B * N).numpy(), upstream, grad_state.view(-1, B * N).numpy(),
        grad.view(T, B * N).numpy(), grad_rows.view(-1, B * N).numpy(), grad_initial.view(B * N).numpy(),
        rows_of(matrix, N), recurrent_weight.float().numpy() if diagonal else np.empty(0, np.float32),
        partial, partial_diagonal,
    )  # fmt: skip
    if diagonal:
        grad_recurrent.copy_(torch.from_numpy(partial_diagonal.sum(0)))
    else:
        grad_recurrent.copy_(torch.from_numpy(partial.sum(0).reshape(N, columns)[:, :N].T))
    product_gradients(grad, x, weight, T, grad_x, grad_weight, grad_bias)


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
