"""Numba kernels of a whole training step of a one-layer rate classifier.

For each sample: the spikes of its non-zero pixels, packed along time; their currents; the LIF scan; rate, loss and its
gradient; the scan backwards, in place; and the weight gradient, added to a partial sum that belongs to a fixed group of
samples. Groups, not threads, own partial sums and they are added in a fixed order, so the number of threads changes no
bit of the result.

Layout: weights and everything of their shape are float32 [P + 1, columns], flat; row P is the bias (zeros without one)
and columns is the number of classes rounded up to whole vectors. Words hold 64 time steps.
Reference: ``kernels/reference.py``. Tests: ``tests/test_cpu_rate_step.py``.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from fastsnn.kernels.numba import jit
from fastsnn.kernels.numba.bits import (
    COLUMNS,
    LANES,
    TABLE_SIZE,
    add,
    add_selected,
    aligned_empty,
    load,
    store,
    tabulate,
    transpose,
    zero,
)
from fastsnn.kernels.numba.philox import ALWAYS, SCRATCH, U64, draw
from fastsnn.kernels.numba.threads import meet


class Problem(NamedTuple):
    """The numbers that a run is made of."""

    T: int
    classes: int
    columns: int
    cross_entropy: bool
    bias: bool
    adam: bool
    seed: np.uint64
    rest: np.float32
    """The neurons' state before the first step"""
    forward_scalars: Any
    backward_scalars: Any


class Workspace(NamedTuple):
    """Arrays of one worker; :func:`workspaces` makes those of all, with the worker as first dimension."""

    lists: Any
    """uint64 [2 + words + SCRATCH, P]: a sample's non-zero pixels, their thresholds and spikes; scratch of ``draw``"""
    bits: Any
    """uint64 [words + 2, 64]: the spikes of 64 pixels, transposed; scratch; 0 to 63"""
    membrane: Any
    """float32 [T * columns]: currents, then what is kept of a step, then the gradient of the currents"""
    rows: Any
    """float32 [2, columns]: spike counts or the gradient of a spike; the state or its gradient"""
    table: Any
    """float32 [TABLE_SIZE]"""


def workspaces(workers: int, pixels: int, T: int, columns: int) -> Workspace:
    """The arrays of all workers."""
    words = 2 * -(-T // 128)
    bits = aligned_empty((workers, words + 2, COLUMNS), np.uint64)
    bits[:, -1] = np.arange(COLUMNS)
    return Workspace(
        lists=aligned_empty((workers, 2 + words + SCRATCH, pixels), np.uint64),
        bits=bits,
        membrane=aligned_empty((workers, T * columns), np.float32),
        rows=aligned_empty((workers, 2, columns), np.float32),
        table=aligned_empty((workers, TABLE_SIZE), np.float32),
    )


@jit
def gather(image, pixels, thresholds):
    """List an image's non-zero pixels; returns how many there are."""
    n = 0
    for p in range(len(image)):
        pixels[n] = U64(p)
        n += image[p] != 0
    for i in range(n):
        value = U64(image[pixels[i]])
        thresholds[i] = ALWAYS if value == U64(255) else value * U64(257)
    return n


@jit
def add_currents(pixels, words, n, weight, problem, work):
    """Currents of one sample [T, columns]: the bias, and the weights of pixels that spike."""
    T, columns, bits = problem.T, problem.columns, work.bits
    spare, steps = bits[-2], bits[-1]
    for column in range(0, columns, LANES):
        row = load(weight, len(weight) - columns + column)
        for t in range(T):
            store(work.membrane, t * columns + column, row)
    for block in range(0, n, COLUMNS):
        width = min(COLUMNS, n - block)
        for w in range((T + 63) // 64):
            for i in range(width):
                bits[w, i] = words[w, block + i]
            for i in range(width, COLUMNS):
                bits[w, i] = U64(0)
            transpose(bits[w], spare)
        for column in range(0, columns, LANES):
            tabulate(weight, column, columns, pixels[block:], width, work.table, zero())
            for w in range((T + 63) // 64):
                first = 64 * w * columns + column
                count = min(64, T - 64 * w)
                add_selected(bits[w], width, work.table, work.membrane, first, columns, steps, count, zero())


@jit
def add_gradient(pixels, words, n, gradient, problem, work):
    """Add one sample's part of the weight gradient: at each spike of a pixel, the gradient of the currents."""
    T, columns = problem.T, problem.columns
    for column in range(0, columns, LANES):
        for w in range((T + 63) // 64):
            width = min(64, T - 64 * w)
            tabulate(work.membrane, 64 * w * columns + column, columns, work.bits[-1], width, work.table, zero())
            add_selected(words[w], width, work.table, gradient, column, columns, pixels, n, zero())
        address = len(gradient) - columns + column
        bias = load(gradient, address)
        for t in range(T):
            bias = add(bias, load(work.membrane, t * columns + column))
        store(gradient, address, bias)


@jit
def score(counts, label, problem, batch):
    """Loss of one sample and whether its answer is right; spike counts become the gradient of each such spike."""
    classes = problem.classes
    scale = 1.0 / (batch * problem.T)
    best = 0
    for n in range(classes):
        counts[n] /= np.float32(problem.T)  # the firing rate
        if counts[n] > counts[best]:
            best = n
    loss = 0.0
    if problem.cross_entropy:
        highest, total = float(counts[best]), 0.0
        for n in range(classes):
            total += math.exp(counts[n] - highest)
        loss = math.log(total) + highest - counts[label]
        for n in range(classes):
            counts[n] = (math.exp(counts[n] - highest) / total - (n == label)) * scale
    else:
        for n in range(classes):
            error = counts[n] - (n == label)
            loss += error * error / classes
            counts[n] = 2.0 / classes * error * scale
    return loss, best == label


@jit
def run_group(
    forward, backward, images, labels, samples, stream, epoch, batch, weight, gradient, learn, problem, work, losses,
    correct,
):  # fmt: skip
    """Losses and answers of the samples; where ``learn``, ``gradient`` is set to their part of the weight gradient.

    samples: int64, indices of images uint8 [D, P] and labels; batch: how many samples the loss is averaged over.
    """
    T, columns, lists = problem.T, problem.columns, work.lists
    scalars, backward_scalars = problem.forward_scalars, problem.backward_scalars
    count = 2 * ((T + 127) // 128)
    pixels, thresholds, words, scratch = lists[0], lists[1], lists[2 : 2 + count], lists[2 + count :]
    counts, state = work.rows[0], work.rows[1]
    if learn:
        gradient[:] = np.float32(0)
    for s in range(len(samples)):
        sample = samples[s]
        n = gather(images[sample], pixels, thresholds)
        draw(pixels, thresholds, n, T, problem.seed, U64(epoch), U64(stream), U64(sample), words, scratch)
        add_currents(pixels, words, n, weight, problem, work)
        state[:], counts[:] = problem.rest, np.float32(0)
        forward(work.membrane.ctypes, T, columns, state.ctypes, counts.ctypes, scalars.ctypes, len(scalars))
        losses[s], correct[s] = score(counts, labels[sample], problem, batch)
        if learn:
            state[:] = np.float32(0)
            backward(
                work.membrane.ctypes, T, columns, state.ctypes, counts.ctypes, backward_scalars.ctypes,
                len(backward_scalars),
            )  # fmt: skip
            add_gradient(pixels, words, n, gradient, problem, work)


@jit
def update(weight, first, second, gradients, groups, start, stop, adam, rates, constants):
    """Sum the groups' gradients of weights start .. stop - 1 and take one step of the optimizer, as torch.optim does.

    first, second: Adam's exp_avg and exp_avg_sq; SGD's momentum_buffer, and nothing; rates, constants: a row and the
    second table of ``Parameters.schedule``.
    """
    # Slices, since a loop whose indices could count from the end is not vectorized.
    weight, gradient = weight[start:stop], gradients[0, start:stop]
    first, second = first[start:stop], second[start:stop]
    for group in range(1, groups):
        other = gradients[group, start:stop]
        for i in range(len(gradient)):
            gradient[i] += other[i]
    rate, correction = rates[0], rates[1]
    beta1, rate1, beta2, rate2, eps = constants[0], constants[1], constants[2], constants[3], constants[4]
    if adam:
        for i in range(len(weight)):
            g = gradient[i]
            first[i] += rate1 * (g - first[i])
            second[i] = beta2 * second[i] + rate2 * g * g
            weight[i] -= rate * (first[i] / (np.sqrt(second[i]) / correction + eps))
    else:
        for i in range(len(weight)):
            first[i] = beta1 * first[i] + gradient[i]
            weight[i] -= rate * first[i]


@jit
def summarize(sample_loss, sample_correct, batch, losses, correct, step):
    """Mean loss and number of correct answers of one step."""
    total, right = 0.0, 0
    for s in range(batch):
        total += sample_loss[s]
        right += sample_correct[s]
    losses[step], correct[step] = total / batch, right


@jit(entry=True)
def run(
    worker, workers, arrived, forward, backward, images, labels, order, stream, epoch, batch_size, learn, weight, first,
    second, gradients, rates, constants, problem, work, sample_loss, sample_correct, losses, correct,
):  # fmt: skip
    """One worker's share of the samples of ``order`` in batches; where ``learn``, each batch is a training step.

    forward, backward: the neurons' functions, see ``neurons.py``; gradients: float32 [groups, size], the groups'
    partial sums; losses, correct: one number a batch; the rest as in :func:`run_group` and :func:`update`.
    """
    work = Workspace(
        work.lists[worker], work.bits[worker], work.membrane[worker], work.rows[worker], work.table[worker]
    )  # fmt: skip
    learned = len(weight) if problem.bias else len(weight) - problem.columns
    for step in range(len(losses)):
        samples = order[step * batch_size : (step + 1) * batch_size]
        batch = len(samples)
        span = (batch + len(gradients) - 1) // len(gradients)  # samples of a group, whatever the number of workers
        groups = (batch + span - 1) // span
        for group in range(worker, groups, workers):
            part = slice(group * span, min((group + 1) * span, batch))
            run_group(
                forward, backward, images, labels, samples[part], stream, epoch, batch, weight, gradients[group], learn,
                problem, work, sample_loss[part], sample_correct[part],
            )  # fmt: skip
        if not meet(arrived, workers, 2 * step + 1):
            return
        if worker == 0:
            summarize(sample_loss, sample_correct, batch, losses, correct, step)
        if learn:
            start, stop = learned * worker // workers, learned * (worker + 1) // workers
            update(weight, first, second, gradients, groups, start, stop, problem.adam, rates[step], constants)
        if not meet(arrived, workers, 2 * step + 2):
            return
