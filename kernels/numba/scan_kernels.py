"""The time loop of any neuron on the CPU, forward and backward, over [T, n] neurons: see ``scan.py``.

A program (``program.py``) is one of a neuron's two; S is its states, K the numbers that a step keeps.
"""

import numpy as np

from fastsnn.kernels.numba import jit
from fastsnn.kernels.numba.bits import LANES
from fastsnn.kernels.numba.program import step, step_back

BLOCK = 1024
"""Neurons whose states a worker keeps in the first-level cache while it goes through the time steps."""


@jit
def forward_block(program, current, state, output, kept, scalars, rows, start, stop):
    """Neurons start .. stop - 1 over all of T; column 0 of ``kept`` is neuron ``start``.

    current [T, n], output [T, n] or None, state [S, n], kept [K, T, BLOCK] or None.
    """
    n = current.shape[1]
    width = n if kept is None else kept.shape[2]
    whole = start + (stop - start) // LANES * LANES
    for t in range(len(current)):
        for i in range(start, whole, LANES):
            places = (t * n + i, i, t * n + i, t * width + i - start, i)
            step(program, current, state, output, kept, scalars, rows, places, None)
        for i in range(whole, stop):
            places = (t * n + i, i, t * n + i, t * width + i - start, i)
            step(program, current, state, output, kept, scalars, rows, places, 1)


@jit(entry=True)
def forward(worker, workers, program, current, state, output, scalars, rows):
    """One worker's share; ``state`` holds the first states and becomes the last ones.

    output may be current's own memory: a neuron's current is read before anything is written over it.
    """
    n = current.shape[1]
    first, last = n * worker // workers, n * (worker + 1) // workers
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        forward_block(program, current, state, output, None, scalars, rows, start, stop)


@jit
def backward_block(program, kept, grad_output, grad_state, grad_current, grad_rows, scalars, rows, start, stop):
    """The same from the last step to the first; a single row of ``grad_output`` is that of every step."""
    width, n = kept.shape[2], grad_current.shape[1]
    whole = start + (stop - start) // LANES * LANES
    for t in range(len(grad_current) - 1, -1, -1):
        upstream = min(t, len(grad_output) - 1) * n
        for i in range(start, whole, LANES):
            places = (t * width + i - start, upstream + i, i, t * n + i, i)
            step_back(program, kept, grad_output, grad_state, grad_current, grad_rows, scalars, rows, places, None)
        for i in range(whole, stop):
            places = (t * width + i - start, upstream + i, i, t * n + i, i)
            step_back(program, kept, grad_output, grad_state, grad_current, grad_rows, scalars, rows, places, 1)


@jit(entry=True)
def backward(
    worker, workers, forward_program, current, state, forward_scalars, forward_rows, kept_numbers,
    program, grad_output, grad_state, grad_current, grad_rows, scalars, rows,
):  # fmt: skip
    """One worker's share, a block at a time: its steps are made again in the cache, from ``current``, and gone back.

    state [S, n]: the first states, which are overwritten. grad_state [S, n] holds the gradients of the last states and
    becomes those of the first. grad_output [T or 1, n], grad_current [T, n] (current's own memory, if need be),
    grad_rows [L, n], to which is added.
    """
    n = current.shape[1]
    first, last = n * worker // workers, n * (worker + 1) // workers
    kept = np.empty((kept_numbers, len(current), BLOCK), np.float32)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        forward_block(forward_program, current, state, None, kept, forward_scalars, forward_rows, start, stop)
        backward_block(program, kept, grad_output, grad_state, grad_current, grad_rows, scalars, rows, start, stop)
