"""Neurons over given currents on the CPU: how the kernels of ``scan_kernels.py`` are called.

Each worker goes through the T steps with a block of neurons whose states stay in the first-level cache. Memory is what
costs, so nothing is kept for backward, which makes each block's steps again from the currents, in the cache.

Operation: ``kernels/scan.py``. Twin: ``kernels/triton/scan.py``. Tests: ``tests/test_numba_scan.py``.
Benchmark: ``bench/cases.py``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastsnn.kernels.neurons.program import CompiledNeuron
from fastsnn.kernels.numba.scan_kernels import backward, forward
from fastsnn.kernels.numba.threads import spread, workers_for
from fastsnn.kernels.segments import assign

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def segment_forward(
    neuron: CompiledNeuron, current: Tensor, state: Tensor | None, parameters: dict[str, Tensor],
    output: Tensor, final: Tensor, kept: Tensor | None,
) -> None:  # fmt: skip
    """Fill ``output`` [T, ...] (current's dtype) and ``final`` [S, ...], which may be ``state``; nothing is kept."""
    begin(neuron, state, final)
    wide = current.float().contiguous()
    spikes = output if output.dtype == torch.float32 else torch.empty_like(wide)
    scan_forward(neuron, wide, final, parameters, spikes)
    if spikes is not output:
        output.copy_(spikes)


def segment_backward(
    neuron: CompiledNeuron, grad_output: Tensor | None, current: Tensor, state: Tensor | None, kept: Tensor | None,
    parameters: dict[str, Tensor], grad_current: Tensor, grad_state: Tensor, grad_rows: Tensor,
) -> None:  # fmt: skip
    """Fill the gradients of current (its dtype) and rows; that of the last state becomes that of ``state``."""
    first = initial_state(neuron, state, current.shape[1:])
    wide = grad_current if grad_current.dtype == torch.float32 else torch.empty(current.shape)
    scan_backward(
        neuron, current.float().contiguous(), first, parameters, grad_output, grad_state, wide, grad_rows
    )  # fmt: skip
    if wide is not grad_current:
        grad_current.copy_(wide)


def initial_state(neuron: CompiledNeuron, state: Tensor | None, shape: Sequence[int]) -> Tensor:
    """The states before the first step [S, ...], fp32, in new memory."""
    values = torch.empty(neuron.states, *shape)
    begin(neuron, state, values)
    return values


def begin(neuron: CompiledNeuron, state: Tensor | None, out: Tensor) -> None:
    """Fill ``out`` with the states before the first step; it may be ``state`` itself."""
    for i, rest in enumerate(neuron.neuron.rest()):
        if state is not out:
            assign(out[i], rest if state is None else state[i])


def constants(
    neuron: CompiledNeuron, parameters: dict[str, Tensor], shape: Sequence[int], backward: bool = False
) -> tuple[Array, Array]:
    """A program's scalars [C] and rows [R, n], as its kernel takes them."""
    scalars, rows = neuron.constants(parameters, backward)
    n = int(np.prod(shape, dtype=np.int64))
    expanded = np.empty((len(rows), n), np.float32)
    for i, row in enumerate(rows):
        expanded[i] = np.broadcast_to(row.detach().float().numpy(), tuple(shape)).reshape(n)
    return np.array(scalars, np.float32), expanded


def scan_forward(
    neuron: CompiledNeuron, current: Tensor, state: Tensor, parameters: dict[str, Tensor],
    output: Tensor,
) -> None:  # fmt: skip
    """Fill ``output`` [T, ...], which may be ``current`` itself; ``state`` [S, ...] becomes the last one.

    All fp32 and contiguous.
    """
    T, n = len(current), state[0].numel()
    if not n or not T:
        return
    spread(
        forward, workers_for(T * n), neuron.forward, current.view(T, n).numpy(), state.view(-1, n).numpy(),
        output.view(T, n).numpy(), *constants(neuron, parameters, state.shape[1:]),
    )  # fmt: skip


def scan_backward(
    neuron: CompiledNeuron, current: Tensor, state: Tensor, parameters: dict[str, Tensor],
    grad_output: Tensor | None, grad_state: Tensor, grad_current: Tensor, grad_rows: Tensor,
) -> None:  # fmt: skip
    """Fill ``grad_current`` [T, ...], which may be ``current`` itself, and ``grad_rows`` [L, ...].

    ``state`` [S, ...], the first one, is overwritten; ``grad_state`` [S, ...] becomes the gradient of it.
    """
    T, n = len(current), state[0].numel()
    grad_rows.numpy()[...] = 0
    if not n or not T:
        return
    if grad_output is None:
        grad_output = torch.from_numpy(np.zeros((1, n), np.float32))
    # A gradient that is the same at every time step, as of output.sum(0), is read from one row.
    grad = grad_output[:1] if grad_output.stride(0) == 0 else grad_output
    shape = state.shape[1:]
    spread(
        backward, workers_for(T * n), neuron.forward, current.view(T, n).numpy(), state.view(-1, n).numpy(),
        *constants(neuron, parameters, shape), neuron.kept, neuron.backward,
        grad.reshape(len(grad), n).float().contiguous().numpy(), grad_state.view(-1, n).numpy(),
        grad_current.view(T, n).numpy(), grad_rows.view(-1, n).numpy(),
        *constants(neuron, parameters, shape, backward=True),
    )  # fmt: skip
