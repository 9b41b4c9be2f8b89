"""Buffers and launches of the fused training step, and their replay as a CUDA graph.

Kernels: ``encode.py``, ``kernels.py``, ``update.py``. User: ``step.py``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastsnn.kernels.neurons.program import CompiledNeuron
from fastsnn.kernels.rate_classifier.parameters import Parameters
from fastsnn.kernels.rate_classifier.triton.encode import CHUNK, PixelIndex, encode_kernel
from fastsnn.kernels.rate_classifier.triton.kernels import step_kernel
from fastsnn.kernels.rate_classifier.triton.update import update_kernel
from fastsnn.kernels.triton import bf16_split, triton
from fastsnn.kernels.triton.program import device_function

MAX_GROUPS, PARTIAL_BYTES = 256, 1 << 25
"""Partial sums of the weight gradient, at most; but one for each sample of a batch if all of them fit in that memory,
which spares the step to clear a sum and to read what it adds to."""
BLOCK_STEPS = 8
"""Steps of a block: they share one launch of the encoder and, on a GPU, one of the graph."""
BLOCK_SAMPLES = 2048
"""About how many samples an evaluation runs in one block."""
BLOCK_BYTES = 1 << 26
"""Memory for the spikes of a block of more than one step."""
BLOCK_P = 4
"""Rows of the weights that one program trains."""
BLOCK_G, BLOCK_B = 64, 64
"""Partial sums, and samples, that a program reads at a time: the same for every batch size, so that none compiles."""
ENCODED = 128
"""Pixels that one program encodes."""
AHEAD = 16
"""The walk over time loads at most this many rows of currents ahead, also past their end: that hides a load's time."""


@dataclass(frozen=True)
class Problem:
    """What the launches of a classifier have in common."""

    T: int
    classes: int
    pixels: int
    seed: int
    """The 64-bit key, as the int64 of the same bits."""
    cross_entropy: bool
    has_bias: bool
    exact: bool
    """Products as three bf16 products on tensor cores, else in fp32."""
    neuron: CompiledNeuron

    @property
    def block_n(self) -> int:
        return 16 if self.classes <= 16 else 32

    @property
    def chunks(self) -> int:
        return -(-self.T // CHUNK)

    @property
    def block_t(self) -> int:
        """Time steps of a tile."""
        return min(CHUNK, max(16, triton.next_power_of_2(self.T)))

    @property
    def unroll(self) -> int:
        """How many time steps the walk takes at a time: chosen so that it runs past the end as little as possible."""
        steps = min(self.T, CHUNK)
        return min(range(AHEAD, 7, -1), key=lambda unroll: -(-steps // unroll) * unroll)


class Plan:
    """Runs batches of ``batch_size`` samples of ``data``, at most ``steps`` of them in a run.

    A block of batches is one launch of the encoder, then a step and an update for each batch (training), or one step
    and one count of the answers for all (evaluation).
    """

    def __init__(
        self, problem: Problem, parameters: Parameters, data: PixelIndex, batch_size: int, steps: int, training: bool
    ) -> None:
        self.problem, self.parameters, self.training = problem, parameters, training
        self.batch_size, self.steps, self.capacity = batch_size, steps, data.capacity
        self.data = data.row_ptr, data.entries, data.labels
        own = batch_size * 4 * (problem.pixels + 1) * problem.block_n <= PARTIAL_BYTES
        self.group = -(-batch_size // MAX_GROUPS) if training and not own else 1
        self.groups = -(-batch_size // self.group)
        spikes = batch_size * data.capacity * 4 * (1 + 4 * problem.chunks)
        batches = BLOCK_STEPS if training else -(-BLOCK_SAMPLES // batch_size)
        self.batches = max(1, min(batches, steps, BLOCK_BYTES // spikes))
        self._allocate()
        self._graph: torch.cuda.CUDAGraph | None = None

    def _allocate(self) -> None:
        problem, batch_size, batches = self.problem, self.batch_size, self.batches

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.parameters.weight.device)

        # Next step, samples of the run, seed, epoch, stream.
        self.job, self.order = buffer(5, dtype=torch.int64), buffer(self.steps * batch_size, dtype=torch.int64)
        self.schedule, self.hyper = buffer(self.steps, 2), buffer(5)
        self.losses, self.correct = buffer(self.steps), buffer(self.steps, dtype=torch.int64)
        # What the encoder writes and the step reads.
        self.sizes = buffer(batches, 2, dtype=torch.int32)
        self.samples = buffer(batches, batch_size, 2, dtype=torch.int32)
        self.pixels = buffer(batches, batch_size, self.capacity, dtype=torch.int32)
        self.words = buffer(batches, batch_size, problem.chunks, 8, self.capacity // 2, dtype=torch.int32)
        # What the step writes, some of it for itself alone.
        programs = self.groups if self.training else batches * batch_size
        self.currents = buffer(programs, problem.block_t + AHEAD, problem.block_n)
        self.h = buffer(programs, problem.chunks, problem.block_n, problem.block_t)
        self.spikes = buffer(batches, batch_size, problem.block_n)
        groups = self.groups if self.training else 1
        self.partial = buffer(groups, problem.pixels + 1, problem.block_n)
        self.stamps = buffer(groups, problem.pixels + 1, dtype=torch.int32)

    def run(self, order: Tensor, epoch: int, stream: int, use_graph: bool) -> tuple[Tensor, Tensor]:
        """Mean loss fp32 [steps] and correct answers int64 [steps] of samples ``order`` int64 [S], in batches."""
        steps = -(-len(order) // self.batch_size)
        self.order[: len(order)].copy_(order, non_blocking=True)
        self.stamps.zero_()
        if self.training:
            schedule, hyper = self.parameters.schedule(steps)
            _upload(schedule, self.schedule)
            _upload(hyper, self.hyper)
        if use_graph and self._graph is None:
            self._graph = self._capture()
        self._set_job(len(order), epoch, stream)
        try:
            for first in range(0, steps, self.batches):
                if use_graph:
                    assert self._graph is not None
                    self._graph.replay()
                else:
                    self._launch(min(self.batches, steps - first))
        except BaseException:  # KeyboardInterrupt too: some steps were taken
            steps = int(self.job[0])
            raise
        finally:
            if self.training:
                self.parameters.advance(steps)
        return self.losses[:steps].clone(), self.correct[:steps].clone()

    def _set_job(self, samples: int, epoch: int, stream: int) -> None:
        _upload(torch.tensor([0, samples, self.problem.seed, epoch, stream]), self.job)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """The launches of a block as a graph. Without samples they compute nothing: that compiles them first."""
        self._set_job(0, 0, 0)
        self._launch(self.batches)
        graph = torch.cuda.CUDAGraph()
        # torch's own capture stream belongs to the GPU that the process captured on first, which may be another one.
        stream = torch.cuda.Stream(self.parameters.weight.device)
        # Other threads may go on using CUDA meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._launch(self.batches)
        return graph

    def _launch(self, batches: int) -> None:
        self._encode()
        if self.training:
            for batch in range(batches):
                self._step(batch, 1)
                self._update(batch)
        else:
            self._step(0, batches)
            self._tally(batches)

    def _encode(self) -> None:
        blocks = -(-self.capacity // ENCODED)
        encode_kernel[self.batch_size, self.batches, blocks * self.problem.chunks](
            self.job, self.order, *self.data, self.sizes, self.samples, self.pixels, self.words,
            self.batch_size, self.capacity, self.problem.chunks, BLOCK_K=ENCODED, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip

    def _step(self, batch: int, batches: int) -> None:
        problem = self.problem
        # Over several chunks of time a third stage spills, and in 4 warps on sm_90 so does backward of 32 classes.
        long = problem.chunks > 1
        scale = 1 / problem.T if problem.cross_entropy else 2 / (problem.classes * problem.T)
        # Triton 3.3 takes 156 registers for the products in fp32, of which 128 do: a fourth block on a multiprocessor.
        # That spills if a program has several samples.
        narrow = not long and not problem.exact and problem.block_n == 16
        registers = 128 if narrow and self.group == 1 else None
        wide, newest = (
            problem.exact and problem.block_n > 16,
            bf16_split.capability(self.parameters.weight.device) >= 120,
        )
        if wide and (long or (self.training and newest)):
            registers = 255  # the most that there are; without a limit the compiler spills to fit a third block
        warps = 8 if long and self.training and problem.block_n > 16 else 4
        step_kernel[self.groups, batches](
            self.sizes, self.samples, self.pixels, self.words, self.parameters.weight, self.parameters.parts,
            self.currents, self.h, self.partial, self.stamps, self.spikes,
            batch, self.batch_size, self.capacity, problem.pixels, problem.T, 1 / problem.T, scale,
            problem.neuron.constants({})[0] or (0.0,), problem.neuron.constants({}, True)[0] or (0.0,),
            problem.neuron.neuron.rest()[0], STEP=device_function(problem.neuron.forward),
            STEP_BACK=device_function(problem.neuron.backward),
            CROSS_ENTROPY=problem.cross_entropy, HAS_BIAS=problem.has_bias, LONG=long, CLASSES=problem.classes,
            BLOCK_T=problem.block_t, BLOCK_N=problem.block_n, BLOCK_K=64 if problem.exact else 32, GROUP=self.group,
            UNROLL=problem.unroll, EXACT=problem.exact, BACKWARD=self.training,
            num_warps=warps, num_stages=2 if long else 3, maxnreg=registers, enable_fp_fusion=False,
        )  # fmt: skip

    def _update(self, batch: int) -> None:
        self._finish(batch, 1, self.problem.pixels)

    def _tally(self, batches: int) -> None:
        self._finish(0, batches, -1)

    def _finish(self, batch: int, batches: int, pixels: int) -> None:
        """Count losses and answers of ``batches`` from ``batch`` on, and train ``pixels`` + 1 rows of the weights."""
        problem, parameters = self.problem, self.parameters
        moments = parameters.moments or [parameters.weight] * 2  # without an optimizer nothing is trained
        update_kernel[-(-(pixels + 1) // BLOCK_P) + 1, batches](
            self.job, self.sizes, self.partial, self.stamps, parameters.weight, parameters.parts,
            *moments, self.schedule, self.hyper,
            self.samples, self.spikes, self.losses, self.correct,
            batch, self.batch_size, pixels, self.groups, 1 / problem.T,
            CLASSES=problem.classes, BLOCK_N=problem.block_n, BLOCK_P=BLOCK_P, BLOCK_G=BLOCK_G, BLOCK_B=BLOCK_B,
            CROSS_ENTROPY=problem.cross_entropy, EXACT=problem.exact, ADAM=parameters.adam,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip


def _upload(values: Tensor, buffer: Tensor) -> None:
    """Copy ``values`` to the start of ``buffer`` without waiting for the device."""
    if buffer.is_cuda:
        values = values.pin_memory()
    buffer[: len(values)].copy_(values, non_blocking=True)
