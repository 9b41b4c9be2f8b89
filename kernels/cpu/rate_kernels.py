"""Numba kernels of a whole training step of a one-layer rate classifier.

A slab is a few samples whose neurons fill the vector lanes. For each slab: the spikes of its non-zero pixels, packed
along time; currents and the LIF scan over [T, lanes]; rate, loss and its gradient; the scan backwards, in place; and the
weight gradient, added to a partial sum that belongs to a fixed group of slabs. Groups, not threads, own partial sums and
they are added in a fixed order, so the number of threads changes no bit of the result.

Layout: weights and everything of their shape are float32 [P + 1, columns], flat; row P is the bias (zeros without one) and
columns is the number of classes rounded up to whole vectors. ``L`` = samples of a slab * columns.
Reference: ``kernels/reference.py``. Tests: ``tests/test_cpu_rate_step.py``.
"""

import math
from typing import Any, NamedTuple

import numba
import numpy as np

from fastsnn.kernels.cpu import jit
from fastsnn.kernels.cpu.bits import COLUMNS, LANES, TABLE_SIZE, add_selected, tabulate, transpose
from fastsnn.kernels.cpu.neuron import Neuron, charge, reset, slopes, surrogate
from fastsnn.kernels.cpu.philox import ALWAYS, U64, draw


class Problem(NamedTuple):
    """The numbers that a run is made of. Parallel loops, which take no nested tuples, get them ``flat``."""

    T: int
    classes: int
    columns: int
    slab: int
    """Samples of a slab"""
    cross_entropy: bool
    bias: bool
    seed: np.uint64
    neuron: Neuron

    def flat(self) -> tuple[Any, ...]:
        """The same numbers as one plain tuple."""
        return (*self[:-1], *self.neuron)


@jit
def unflatten(numbers):
    """A Problem from its flat form."""
    T, classes, columns, slab, cross_entropy, bias, seed = numbers[:7]
    return Problem(T, classes, columns, slab, cross_entropy, bias, seed, Neuron(*numbers[7:]))


class Workspace(NamedTuple):
    """Arrays of one worker; ``workspaces`` makes those of all, in a plain tuple and with the worker as first dimension."""

    found: Any
    """int64 [slab]: how many non-zero pixels each sample has"""
    pixels: Any
    """uint64 [slab, P]: their indices"""
    offsets: Any
    """int64 [slab, P]: where their rows start in the weights"""
    thresholds: Any
    """uint64 [P]"""
    drawing: Any
    """uint64 [7, P]"""
    words: Any
    """uint64 [slab, words, P]: their spikes, 64 time steps a word"""
    steps: Any
    """uint64 [words + 1, 64]: the spikes of 64 pixels, transposed"""
    times: Any
    """int64 [T]: where time steps start in ``membrane``"""
    membrane: Any
    """float32 [T * L]: currents, then h, then the gradient of the currents"""
    rows: Any
    """float32 [3, L]: v or its gradient; spike counts or the gradient of a spike; the surrogate"""
    table: Any
    """float32 [TABLE_SIZE]"""


class Optimizer(NamedTuple):
    """Adam or SGD with momentum, as torch.optim defines them; ``step`` counts the steps done."""

    adam: bool
    step: int
    lr: float
    beta1: float
    """Adam's; SGD's momentum"""
    beta2: float
    eps: float


@jit
def gather(image, columns, pixels, offsets, thresholds):
    """List an image's non-zero pixels; returns how many there are."""
    n = 0
    for p in range(len(image)):
        value = image[p]
        pixels[n], offsets[n] = U64(p), p * columns
        thresholds[n] = ALWAYS if value == 255 else U64(value) * U64(257)
        n += value != 0
    return n


@jit
def add_currents(words, n, offsets, weight, problem, first, work):
    """Add one sample's currents to the membrane, at ``first`` within a time step."""
    T, steps, times, table, membrane = problem.T, work.steps, work.times, work.table, work.membrane
    count = (T + 63) // 64
    for block in range(0, n, COLUMNS):
        width = min(COLUMNS, n - block)
        for w in range(count):
            steps[w, :width] = words[w, block : block + width]
            steps[w, width:] = U64(0)
            transpose(steps[w], steps[-1])
        for column in range(0, problem.columns, LANES):
            tabulate(weight, column, offsets[block:], width, table)
            for w in range(count):
                rows = min(64, T - 64 * w)
                add_selected(steps[w], rows, width, table, membrane, first + column, times[64 * w :])


@jit
def forward(membrane, v, counts, neuron):
    """LIF over membrane [T, L], currents to h in place; v [L] and counts [L] become the last v and the spike counts."""
    v[:] = neuron.v_reset
    counts[:] = np.float32(0)
    for t in range(len(membrane)):
        row = membrane[t]
        for i in range(len(v)):
            h = charge(row[i], v[i], neuron)
            row[i] = h
            v[i] = reset(h, neuron)
            counts[i] += np.float32(1) if h >= neuron.v_threshold else np.float32(0)


@jit
def backward(membrane, grad_v, grad_spike, derivative, neuron):
    """Gradient of the currents from that of each spike (the same at every t), in place of h."""
    gain = neuron.inverse_tau if neuron.decay_input else np.float32(1)
    grad_v[:] = np.float32(0)
    for t in range(len(membrane) - 1, -1, -1):
        row = membrane[t]
        surrogate(row, neuron, derivative)
        for i in range(len(grad_v)):
            spike_slope, reset_slope = slopes(row[i], derivative[i], neuron)
            grad_h = grad_spike[i] * spike_slope + grad_v[i] * reset_slope
            grad_v[i] = grad_h * neuron.leak
            row[i] = grad_h * gain


@jit
def score(counts, label, problem, batch):
    """Loss of one sample and whether its answer is right; its spike counts become the gradient of each of its spikes."""
    classes = problem.classes
    scale = 1.0 / (batch * problem.T)
    best = 0
    for n in range(classes):
        counts[n] /= np.float32(problem.T)  # the firing rate
        if counts[n] > counts[best]:
            best = n
    if problem.cross_entropy:
        highest, total = float(counts[best]), 0.0
        for n in range(classes):
            total += math.exp(counts[n] - highest)
        loss = math.log(total) + highest - counts[label]
        for n in range(classes):
            counts[n] = (math.exp(counts[n] - highest) / total - (n == label)) * scale
    else:
        loss = 0.0
        for n in range(classes):
            error = counts[n] - (n == label)
            loss += error * error / classes
            counts[n] = 2.0 / classes * error * scale
    return loss, best == label


@jit
def add_gradient(words, n, offsets, problem, first, work, gradient):
    """Add one sample's part to the weight gradient: row p gets the currents' gradient at each spike of pixel p."""
    T, columns, times = problem.T, problem.columns, work.times
    for column in range(0, columns, LANES):
        for w in range((T + 63) // 64):
            tabulate(work.membrane, first + column, times[64 * w :], min(64, T - 64 * w), work.table)
            add_selected(words[w], n, min(64, T - 64 * w), work.table, gradient, column, offsets)
    if problem.bias:
        row = gradient[-columns:]
        for t in range(T):
            for n in range(columns):
                row[n] += work.membrane[times[t] + first + n]


@jit
def run_slab(images, labels, samples, stream, epoch, batch, weight, gradient, learn, problem, work, losses, correct):
    """Losses and answers of one slab; where ``learn``, its weight gradient is added to ``gradient``.

    samples: int64 [<= problem.slab]; images and labels are indexed by them; losses, correct: [samples]; batch: the samples
    that the loss is averaged over.
    """
    T, columns = problem.T, problem.columns
    L = problem.slab * columns
    membrane = work.membrane.reshape(T, L)
    bias = weight[-columns:]
    for t in range(T):
        for s in range(problem.slab):
            membrane[t, s * columns : (s + 1) * columns] = bias
    for s in range(len(samples)):
        pixels, offsets, words = work.pixels[s], work.offsets[s], work.words[s]
        n = gather(images[samples[s]], columns, pixels, offsets, work.thresholds)
        work.found[s] = n
        draw(pixels, work.thresholds, n, T, problem.seed, U64(epoch), stream, U64(samples[s]), words, work.drawing)
        add_currents(words, n, offsets, weight, problem, s * columns, work)
    v, counts, derivative = work.rows[0], work.rows[1], work.rows[2]
    forward(membrane, v, counts, problem.neuron)
    for s in range(len(samples)):
        own = counts[s * columns : (s + 1) * columns]
        losses[s], correct[s] = score(own, labels[samples[s]], problem, batch)
    if learn:
        backward(membrane, v, counts, derivative, problem.neuron)
        for s in range(len(samples)):
            add_gradient(work.words[s], work.found[s], work.offsets[s], problem, s * columns, work, gradient)


@jit
def workspaces(workers, P, problem):
    """The arrays of all workers."""
    problem = unflatten(problem)
    T, slab, L = problem.T, problem.slab, problem.slab * problem.columns
    count = 2 * ((T + 127) // 128)
    return (
        np.empty((workers, slab), np.int64),
        np.empty((workers, slab, P), np.uint64),
        np.empty((workers, slab, P), np.int64),
        np.empty((workers, P), np.uint64),
        np.empty((workers, 7, P), np.uint64),
        np.empty((workers, slab, count, P), np.uint64),
        np.empty((workers, count + 1, 64), np.uint64),
        np.repeat(np.arange(T) * L, workers).reshape(T, workers).T.copy(),
        np.empty((workers, T * L), np.float32),
        np.empty((workers, 3, L), np.float32),
        np.empty((workers, TABLE_SIZE), np.float32),
    )


@jit
def own(work, worker):
    """One worker's arrays."""
    return Workspace(
        work[0][worker], work[1][worker], work[2][worker], work[3][worker], work[4][worker], work[5][worker],
        work[6][worker], work[7][worker], work[8][worker], work[9][worker], work[10][worker],
    )  # fmt: skip


@jit
def run_group(images, labels, samples, stream, epoch, batch, weight, gradient, learn, problem, work, worker, losses, correct):
    """``run_slab`` for as many samples as there are."""
    problem, work = unflatten(problem), own(work, worker)
    if learn:
        gradient[:] = np.float32(0)
    for start in range(0, len(samples), problem.slab):
        part = slice(start, start + problem.slab)
        run_slab(
            images, labels, samples[part], stream, epoch, batch, weight, gradient, learn, problem, work,
            losses[part], correct[part],
        )  # fmt: skip


@jit
def update(weight, moments, gradients, groups, start, stop, optimizer, step):
    """Sum the groups' gradients of weights start .. stop - 1 and take the optimizer's step number ``step`` from now.

    moments: float32 [2, size]: Adam's exp_avg and exp_avg_sq, or SGD's momentum_buffer in the first.
    """
    optimizer = Optimizer(*optimizer)
    gradient = gradients[0, start:stop]
    for group in range(1, groups):
        gradient += gradients[group, start:stop]
    w, first, second = weight[start:stop], moments[0, start:stop], moments[1, start:stop]
    if optimizer.adam:
        step += optimizer.step + 1
        step_size = np.float32(optimizer.lr / (1.0 - optimizer.beta1**step))
        correction = np.float32(math.sqrt(1.0 - optimizer.beta2**step))
        rate1, beta2, rate2 = np.float32(1.0 - optimizer.beta1), np.float32(optimizer.beta2), np.float32(1.0 - optimizer.beta2)
        eps = np.float32(optimizer.eps)
        for i in range(len(w)):
            g = gradient[i]
            first[i] += rate1 * (g - first[i])
            second[i] = beta2 * second[i] + rate2 * g * g
            w[i] -= step_size * (first[i] / (np.sqrt(second[i]) / correction + eps))
    else:
        lr, momentum = np.float32(optimizer.lr), np.float32(optimizer.beta1)
        for i in range(len(w)):
            first[i] = momentum * first[i] + gradient[i]
            w[i] -= lr * first[i]


@jit(parallel=True)
def train(
    images, labels, order, epoch, batch_size, weight, moments, gradients, optimizer, problem, workers, losses, correct
):  # fmt: skip
    """Train on the samples of ``order``, a step per ``batch_size`` of them; losses, correct: [steps].

    gradients: float32 [groups, size], the groups' partial sums; problem: flat.
    """
    work = workspaces(workers, images.shape[1], problem)
    sample_loss, sample_correct = np.empty(batch_size), np.empty(batch_size, np.int64)
    size = learned_size(gradients.shape[1], problem)
    for step in range(len(losses)):
        samples = order[step * batch_size : (step + 1) * batch_size]
        batch = len(samples)
        span = group_size(batch, len(gradients), problem)
        groups = (batch + span - 1) // span
        for worker in numba.prange(workers):
            for group in range(worker, groups, workers):
                start, stop = group * span, min((group + 1) * span, batch)
                run_group(
                    images, labels, samples[start:stop], 0, epoch, batch, weight, gradients[group], True, problem, work,
                    worker, sample_loss[start:stop], sample_correct[start:stop],
                )  # fmt: skip
        for worker in numba.prange(workers):
            start, stop = size * worker // workers, size * (worker + 1) // workers
            update(weight, moments, gradients, groups, start, stop, optimizer, step)
        losses[step] = sample_loss[:batch].sum() / batch
        correct[step] = sample_correct[:batch].sum()


@jit
def group_size(batch, groups, problem):
    """Samples of a group: whole slabs, the same whatever the number of threads."""
    slab = unflatten(problem).slab
    return ((batch + slab - 1) // slab + groups - 1) // groups * slab


@jit
def learned_size(size, problem):
    """How many of the weights are trained: all but the last row where there is no bias."""
    problem = unflatten(problem)
    return size if problem.bias else size - problem.columns


@jit(parallel=True)
def evaluate(images, labels, weight, problem, workers, losses, correct):
    """Loss and correct answer of every sample, [samples]; evaluation draws stream 1 of epoch 0. problem: flat."""
    work = workspaces(workers, images.shape[1], problem)
    samples = np.arange(len(images))
    for worker in numba.prange(workers):
        start, stop = len(images) * worker // workers, len(images) * (worker + 1) // workers
        run_group(
            images, labels, samples[start:stop], 1, 0, 1, weight, weight, False, problem, work,
            worker, losses[start:stop], correct[start:stop],
        )  # fmt: skip
