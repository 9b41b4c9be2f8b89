"""The end of a training step of a one-layer rate classifier: sum the gradients, train the weights, count.

The partial sums of ``kernels.py`` are added in a fixed order, so that a run repeats bit for bit. Adam
and SGD follow torch.optim's formulas; what depends on the step comes from tables that the host made in double:

    schedule  fp32 [steps, 2]   Adam: lr / (1 - beta1^step), sqrt(1 - beta2^step); SGD: lr, unused
    hyper     fp32 [5]          Adam: beta1, 1 - beta1, beta2, 1 - beta2, eps; SGD: momentum

Launches: ``kernels/rate_classifier/triton/launch.py``. Tests: ``tests/test_rate_step.py``.
"""

from fastsnn.kernels.triton import tl, triton
from fastsnn.kernels.triton.bf16_split import split3


@triton.jit
def _tally(
    sizes_ptr, samples_ptr, spikes_ptr, losses_ptr, correct_ptr, batch, batch_size, inv_T,
    CLASSES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, CROSS_ENTROPY: tl.constexpr,
):  # fmt: skip
    """Mean loss and correct answers of one batch, from its numbers of spikes [B, BLOCK_N] and labels."""
    size, step = tl.load(sizes_ptr + batch * 2), tl.load(sizes_ptr + batch * 2 + 1)
    offs_n = tl.arange(0, BLOCK_N)[None, :]
    loss = tl.zeros((BLOCK_B,), tl.float32)
    correct = tl.zeros((BLOCK_B,), tl.int32)
    for first in range(0, size, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        slot = (batch * batch_size + b).to(tl.int64)
        label = tl.load(samples_ptr + slot * 2 + 1, mask=b < size, other=0)
        mask_n = offs_n < CLASSES
        spikes = tl.load(spikes_ptr + slot[:, None] * BLOCK_N + offs_n, mask=(b < size)[:, None] & mask_n, other=-1.0)
        rate = spikes * inv_T
        target = offs_n == label[:, None]
        if CROSS_ENTROPY:
            highest = tl.max(rate, 1)
            total = tl.sum(tl.where(mask_n, tl.exp(rate - highest[:, None]), 0.0), 1)
            value = highest + tl.log(total) - tl.sum(tl.where(target, rate, 0.0), 1)
        else:
            error = tl.where(mask_n, rate - tl.where(target, 1.0, 0.0), 0.0)
            value = tl.sum(error * error, 1) * (1.0 / CLASSES)
        loss += tl.where(b < size, value, 0.0)
        # The lowest of the classes that fired most.
        answer = tl.min(tl.where(spikes == tl.max(spikes, 1)[:, None], offs_n, BLOCK_N), 1)
        correct += ((answer == label) & (b < size)).to(tl.int32)
    if size > 0:
        tl.store(losses_ptr + step, tl.div_rn(tl.sum(loss, 0), size.to(tl.float32)))
        tl.store(correct_ptr + step, tl.sum(correct, 0).to(tl.int64))


@triton.jit(do_not_specialize=["batch", "batch_size", "pixels", "groups"])
def update_kernel(
    job_ptr, sizes_ptr, partial_ptr, stamp_ptr, weight_ptr, parts_ptr, first_ptr, second_ptr, schedule_ptr, hyper_ptr,
    samples_ptr, spikes_ptr, losses_ptr, correct_ptr,
    batch, batch_size, pixels, groups, inv_T,
    CLASSES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_B: tl.constexpr, CROSS_ENTROPY: tl.constexpr, EXACT: tl.constexpr, ADAM: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks + 1, batches from ``batch`` on): the last program counts, the others train rows of the weights.

    An evaluation launches it with -1 pixels, which leaves no row to train: one kernel less to compile.
    """
    batch += tl.program_id(1)
    size, step = tl.load(sizes_ptr + batch * 2), tl.load(sizes_ptr + batch * 2 + 1)
    last = tl.num_programs(0) - 1
    if tl.program_id(0) == last:
        _tally(
            sizes_ptr, samples_ptr, spikes_ptr, losses_ptr, correct_ptr, batch, batch_size, inv_T,
            CLASSES, BLOCK_N, BLOCK_B, CROSS_ENTROPY,
        )  # fmt: skip
        # Past all of the batches. Only the encoder reads the step counter: no program of this launch can see it move.
        if (size > 0) & (tl.program_id(1) == 0):
            tl.store(job_ptr, (step + tl.num_programs(1)).to(tl.int64))
    else:
        rows = pixels + 1
        offs_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
        offs_n = tl.arange(0, BLOCK_N)
        offs = offs_p[:, None] * BLOCK_N + offs_n[None, :]
        # Past the end of the run nothing is stored; a branch on it would hold up every load.
        mask = (offs_p < tl.where(size > 0, rows, 0))[:, None] & (offs_n < CLASSES)[None, :]
        weight = tl.load(weight_ptr + offs, mask=mask, other=0.0)
        first = tl.load(first_ptr + offs, mask=mask, other=0.0)
        rate = tl.load(schedule_ptr + step * 2, mask=size > 0, other=0.0)
        correction = tl.load(schedule_ptr + step * 2 + 1, mask=size > 0, other=1.0)
        gradient = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
        for g in range(0, groups, BLOCK_G):
            group = g + tl.arange(0, BLOCK_G)
            known = (group < groups)[:, None] & (offs_p < rows)[None, :]
            row = group[:, None] * rows + offs_p[None, :]
            counts = known & (tl.load(stamp_ptr + row, mask=known, other=0) == step + 1)
            offs_g = row[:, :, None] * BLOCK_N + offs_n[None, None, :]
            gradient += tl.sum(tl.load(partial_ptr + offs_g, mask=counts[:, :, None], other=0.0), 0)
        second = tl.load(second_ptr + offs, mask=mask, other=0.0) if ADAM else first
        if ADAM:
            first += tl.load(hyper_ptr + 1) * (gradient - first)
            second = second * tl.load(hyper_ptr + 2) + tl.load(hyper_ptr + 3) * gradient * gradient
            root = tl.div_rn(tl.sqrt_rn(second), correction + tl.zeros_like(second)) + tl.load(hyper_ptr + 4)
            weight -= rate * tl.div_rn(first, root)
        else:
            first = first * tl.load(hyper_ptr) + gradient
            weight -= rate * first
        # An element may be held by several threads: all must have read it before one writes it.
        tl.debug_barrier()
        if ADAM:
            tl.store(second_ptr + offs, second, mask=mask)
        tl.store(first_ptr + offs, first, mask=mask)
        tl.store(weight_ptr + offs, weight, mask=mask)
        if EXACT:
            high, middle, low = split3(weight)
            part = rows * BLOCK_N
            tl.store(parts_ptr + offs, high, mask=mask)
            tl.store(parts_ptr + part + offs, middle, mask=mask)
            tl.store(parts_ptr + 2 * part + offs, low, mask=mask)
