"""A recurrent layer on the CPU: the time loop of ``recurrent_kernels.py``, with the product with W in it or ahead.

For backward what each step keeps and the outputs are kept, or made again.

Operation: ``kernels/recurrent.py``. Twin: ``kernels/triton/recurrent.py``. Tests: ``tests/test_recurrent.py``.
Benchmark: ``bench/cases.py``.
"""

import math
from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from fastsnn.kernels.neurons.program import CompiledNeuron
from fastsnn.kernels.numba.bits import LANES, aligned_empty
from fastsnn.kernels.numba.linear import as_spikes, product_gradients, write
from fastsnn.kernels.numba.pages import use_large_pages
from fastsnn.kernels.numba.philox import unpack
from fastsnn.kernels.numba.recurrent_kernels import TILE, backward, forward
from fastsnn.kernels.numba.scan import begin, constants, initial_state
from fastsnn.kernels.numba.spike_products import currents
from fastsnn.kernels.numba.threads import spread

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

MAX_GROUPS = 16
"""Partial sums of the weights' gradients, at most: they bound the threads that backward can use."""
MAX_PARTIAL = 1 << 23
"""Elements of all partial sums together, at most, but for the first."""
MAX_LISTED = 1 << 18
"""Elements of a W whose rows are added one by one, at most: they stay in the second-level cache."""
FEW = 4
"""Inputs that are not 0 are few if they are at most one of so many (measured), or one a step."""


def segment_forward(
    neuron: CompiledNeuron, x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor,
    state: Tensor | None, initial: Tensor | None, parameters: dict[str, Tensor], T: int,
    output: Tensor, final: Tensor, kept: Tensor | None,
) -> None:  # fmt: skip
    """Fill ``output`` [T, B, N] (int32 words if packed), ``final`` [S, B, N], which may be ``state``, and ``kept``.

    kept [numbers, T, B, N]: what backward needs of each step.
    """
    spikes = output if output.dtype == torch.float32 else torch.empty(T, *final.shape[1:])
    use_large_pages(spikes, kept)
    begin(neuron, state, final)
    inputs = few_inputs(x, T, weight)
    current = currents(as_spikes(x, T), weight, bias) if inputs is None else torch.empty(0)
    N, n = len(weight), final[0].numel()
    diagonal = recurrent_weight.dim() == 1
    spread(
        forward, workers_of(len(final[0]), T * n), neuron.forward, N, flat(inputs), flat(current),
        final.view(-1, n).numpy(), first_output(initial, n), flat(spikes),
        np.empty((neuron.kept, 0), np.float32) if kept is None else kept.view(neuron.kept, T * n).numpy(),
        table_of(None if inputs is None else weight, None if inputs is None else bias, recurrent_weight),
        padded(recurrent_weight[None]) if diagonal else flat(None), *padded_constants(neuron, parameters, final),
    )  # fmt: skip
    write(spikes, output)


def segment_backward(
    neuron: CompiledNeuron, grad_output: Tensor | None, grad_state: Tensor, kept: Tensor | None, output: Tensor | None,
    x: Tensor, weight: Tensor, bias: Tensor | None, recurrent_weight: Tensor, state: Tensor | None,
    initial: Tensor | None, parameters: dict[str, Tensor], T: int, needs: Sequence[bool], x_dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, of the output before the first step [B, N], of W, b and V, and of the rows [L, B, N].

    Those of x, W and b are None if ``needs`` is False. ``grad_state`` [S, B, N], that of the last state, becomes that
    of ``state``. What steps keep and the outputs are made again unless they were kept.
    """
    shape, n, N = grad_state.shape[1:], grad_state[0].numel(), len(weight)
    if kept is None or output is None:
        kept, output = torch.empty(neuron.kept, T, *shape), torch.empty(T, *shape)
        final = initial_state(neuron, state, shape)
        segment_forward(
            neuron, x, weight, bias, recurrent_weight, state, initial, parameters, T, output, final, kept
        )  # fmt: skip
    fired = unpack(output, T) if output.dtype == torch.int32 else output.float()
    inputs, diagonal = few_inputs(x, T, weight), recurrent_weight.dim() == 1
    K, columns = 0 if inputs is None else weight.shape[1], -(-N // LANES) * LANES
    size = (K + (0 if diagonal else N) + 1) * columns
    groups = max(1, min(MAX_GROUPS, -(-shape[0] // TILE), MAX_PARTIAL // size))
    partial, partial_diagonal = aligned_empty((groups, size), np.float32), np.empty((groups, N), np.float32)
    upstream = torch.zeros(n)
    if grad_output is not None:
        upstream = grad_output[:1] if grad_output.stride(0) == 0 else grad_output
    grad = torch.empty(T, *shape) if needs[0] or (inputs is None and any(needs)) else torch.empty(0)
    use_large_pages(grad)
    grad_initial = torch.empty(shape)
    grad_rows = torch.from_numpy(np.zeros((len(neuron.learnt_constants), *shape), np.float32))
    spread(
        backward, min(groups, workers_of(shape[0], T * n)), neuron.backward, N, groups,
        flat(inputs), first_output(initial, n), flat(fired), kept.view(neuron.kept, T * n).numpy(), flat(upstream),
        grad_state.view(-1, n).numpy(), flat(grad), grad_rows.view(-1, n).numpy(), flat(grad_initial),
        flat(None) if diagonal else padded(recurrent_weight),
        padded(recurrent_weight[None]) if diagonal else flat(None), partial, partial_diagonal,
        *constants(neuron, parameters, shape, backward=True),
    )  # fmt: skip
    sums = torch.from_numpy(partial.sum(0).reshape(-1, columns)[:, :N])
    of_back = torch.from_numpy(partial_diagonal.sum(0)) if diagonal else sums[K : K + N].T.contiguous()
    ahead = needs if inputs is None else (needs[0], False, False)
    grad_x, grad_weight, grad_bias = product_gradients(grad, x, weight, T, ahead, x_dtype)
    if inputs is not None:
        grad_weight = sums[:K].T.contiguous() if needs[1] else None
        grad_bias = sums[-1].clone() if needs[2] else None
    return grad_x, grad_initial, grad_weight, grad_bias, of_back, grad_rows


def few_inputs(x: Tensor, T: int, weight: Tensor) -> Tensor | None:
    """The inputs as fp32 [T, B, K], if so few of them are not 0 that their rows of W^T are added one by one."""
    if weight.numel() > MAX_LISTED:
        return None
    values = unpack(x, T) if x.dtype == torch.int32 else x.float().contiguous()
    steps, K = values.shape[:-1].numel(), values.shape[-1]
    # NumPy counts integers ten times faster than floats; -0 is as good as an input.
    count = np.count_nonzero(values.view(torch.int32).numpy())
    return values if count <= steps * max(1, K // FEW) else None


def table_of(weight: Tensor | None, bias: Tensor | None, recurrent_weight: Tensor) -> Array:
    """The rows of W^T and V^T, if there are any, and of the bias, flat.

    A row of silent neurons is not read. So that a NaN in it shows all the same, the bias is NaN there.
    """
    N = recurrent_weight.shape[-1]
    matrices = [] if weight is None else [weight.detach().float()]
    matrices += [recurrent_weight.detach().float()] if recurrent_weight.dim() == 2 else []
    last = torch.zeros(N) if bias is None else bias.detach().float()
    for matrix in matrices:
        last = last + torch.where(matrix.isnan().any(1), math.nan, 0.0)
    return padded(torch.cat([*(matrix.T for matrix in matrices), last[None]]))


def padded(matrix: Tensor) -> Array:
    """A matrix [rows, N] with rows of whole vectors, flat."""
    rows, N = matrix.shape
    values = aligned_empty((rows, -(-N // LANES) * LANES), np.float32)
    values[:, N:] = 0
    values[:, :N] = matrix.detach().float().numpy()
    return values.reshape(-1)


def padded_constants(neuron: CompiledNeuron, parameters: dict[str, Tensor], state: Tensor) -> tuple[Array, Array]:
    """A program's scalars and rows, with a vector more at the end of each row."""
    scalars, rows = constants(neuron, parameters, state.shape[1:])
    return scalars, np.pad(rows, ((0, 0), (0, LANES)))


def workers_of(samples: int, elements: int) -> int:
    """Threads that samples keep busy."""
    return max(1, min(numba.get_num_threads(), samples, elements // (1 << 14)))


def flat(values: Tensor | None) -> Array:
    """fp32 numbers in one row; of None there are none."""
    return np.empty(0, np.float32) if values is None else values.detach().float().reshape(-1).contiguous().numpy()


def first_output(initial: Tensor | None, n: int) -> Array:
    """The outputs before the first step, [B * N]."""
    return np.zeros(n, np.float32) if initial is None else flat(initial)
