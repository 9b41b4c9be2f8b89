"""Numba kernels of the LIF scan, forward and backward, over [T, n]: see ``cpu/lif.py``."""

import numpy as np

from fastsnn.kernels.numba import jit
from fastsnn.kernels.numba.neuron import charge, reset, slopes, surrogate

BLOCK = 1024
"""Neurons whose state a worker keeps in the cache while it walks the time steps."""


@jit
def forward_block(current, v, spikes, h, start, stop, neuron):
    """Neurons start .. stop - 1; ``current`` of no rows is in h, ``h`` of no rows is not stored."""
    state, scratch = v[start:stop], np.empty(BLOCK, np.float32)
    for t in range(len(spikes)):
        fired = spikes[t, start:stop]
        row = h[t, start:stop] if len(h) > 0 else scratch
        # The current is copied to the row, because only a loop that reads what it overwrites is vectorized.
        if len(current) > 0:
            source = current[t, start:stop]
            for i in range(len(state)):
                row[i] = source[i]
        for i in range(len(state)):
            membrane = charge(row[i], state[i], neuron)
            row[i] = membrane
            fired[i] = np.float32(1) if membrane >= neuron.v_threshold else np.float32(0)
            state[i] = reset(membrane, neuron)


@jit(entry=True)
def forward(worker, workers, current, v, spikes, h, neuron):
    """One worker's share of current [T, n] to spikes [T, n], h [T, n] and, from its initial value, v [n]."""
    first, last = len(v) * worker // workers, len(v) * (worker + 1) // workers
    for start in range(first, last, BLOCK):
        forward_block(current, v, spikes, h, start, min(start + BLOCK, last), neuron)


@jit
def recompute_block(current, v_init, h, start, stop, neuron):
    """h [T, BLOCK] of neurons start .. stop - 1 as in the forward pass, from their currents and initial potentials."""
    state = v_init[start:stop].copy()
    for t in range(len(current)):
        row, source = h[t, : len(state)], current[t, start:stop]
        for i in range(len(state)):
            row[i] = source[i]
        for i in range(len(state)):
            membrane = charge(row[i], state[i], neuron)
            row[i] = membrane
            state[i] = reset(membrane, neuron)


@jit
def backward_block(grad_spikes, grad_v, h, first, grad_current, start, stop, neuron):
    """Neurons start .. stop - 1, h of which begins at column ``first``; one row of ``grad_spikes`` is that of all."""
    gain = neuron.inverse_tau if neuron.decay_input else np.float32(1)
    derivative = np.empty(BLOCK, np.float32)
    state = grad_v[start:stop]
    for t in range(len(h) - 1, -1, -1):
        membrane, out = h[t, first : first + len(state)], grad_current[t, start:stop]
        upstream = grad_spikes[min(t, len(grad_spikes) - 1), start:stop]
        surrogate(membrane, len(state), neuron, derivative)
        for i in range(len(state)):
            spike_slope, reset_slope = slopes(membrane[i], derivative[i], neuron)
            grad_h = upstream[i] * spike_slope + state[i] * reset_slope
            out[i] = grad_h * gain
            state[i] = grad_h * neuron.leak


@jit(entry=True)
def backward(worker, workers, grad_spikes, grad_v, current, v_init, h, grad_current, neuron):
    """The same for gradients: of spikes [T or 1, n] and the last v [n] to the current's and, in place, v_init's.

    h of no rows is computed again, in the cache, from ``current`` and ``v_init``, which no one reads otherwise.
    """
    first, last = len(grad_v) * worker // workers, len(grad_v) * (worker + 1) // workers
    scratch = np.empty((len(current), BLOCK), np.float32)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        if len(h) == 0:
            recompute_block(current, v_init, scratch, start, stop, neuron)
            backward_block(grad_spikes, grad_v, scratch, 0, grad_current, start, stop, neuron)
        else:
            backward_block(grad_spikes, grad_v, h, start, grad_current, start, stop, neuron)
