"""Models of the GPU kernels' time, from compiled sizes, published rates and assumptions; see ``prediction.py``."""

import re
from dataclasses import dataclass
from math import ceil
from unittest import mock

import torch

from fastsnn.kernels.rate_classifier.triton import launch as rate_step_launch
from fastsnn.kernels.triton import linear_lif as layer
from fastsnn.kernels.triton import planes
from fastsnn.kernels.triton.linear_lif_forward import choose_tile

COPY, TENSOR, LIBRARY, ISSUE = 0.9, 0.6, 0.85, 0.8
LAUNCH, NODE = 2.5, 1.2
STALL = 0.6
PIXELS = 150
ASSUMED = (
    f"a copy reaches {COPY:.0%} of the peak rate of memory",
    f"our products reach {TENSOR:.0%} of the tensor cores' peak, cuBLAS's in fp32 {LIBRARY:.0%} of theirs",
    f"a launch takes {LAUNCH} us on the device, or {NODE} us as a node of a CUDA graph",
    f"a multiprocessor issues {4 * ISSUE:.1f} instructions of a warp per cycle where warps abound; a warp alone waits "
    f"{STALL:.0%} of an arithmetic instruction's latency at each of its instructions",
    f"an image has {PIXELS} pixels that are not 0 (MNIST's mean)",
    "instructions are those of the compiled sm_90 code, loop by loop; a product in fp32 takes its multiply-adds and a "
    "third as many instructions again, a number of Philox 2.5 times the instructions on Pascal, where multiplying "
    "integers takes several",
)


@dataclass(frozen=True)
class Size:
    """What a block of a compiled kernel takes."""

    registers: int
    threads: int
    shared: float
    """KB"""


class Sizes:
    """The tables of docs/compiled.md."""

    def __init__(self, text: str) -> None:
        self._sizes: dict[tuple[str, str, str], Size] = {}
        for section in text.split("\n### ")[1:]:
            kernel, *lines = section.splitlines()
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
            for case, *cells in rows[2:]:
                for target, cell in zip(rows[0][1:], cells, strict=True):
                    if found := re.match(r"(\d+) x (\d+), ([\d.]+)", cell):
                        self._sizes[kernel, case, target] = Size(int(found[1]), int(found[2]), float(found[3]))

    def find(self, kernel: str, case: str, target: str) -> Size | None:
        return self._sizes.get((kernel, case, target))


@dataclass(frozen=True)
class Gpu:
    name: str
    target: str
    """The column of docs/compiled.md."""
    multiprocessors: int
    clock: float
    """GHz"""
    fp32: float
    """TFLOP/s"""
    bf16: float
    """TFLOP/s on tensor cores, accumulated in fp32"""
    memory: float
    """GB/s"""
    l2: float
    """GB/s"""
    latencies: tuple[int, int, int]
    """Cycles: L2, memory, arithmetic."""
    threads: int
    """Of a multiprocessor, at most; so are the next two."""
    blocks: int
    shared: int
    """KB"""

    @property
    def capability(self) -> int:
        return int(re.findall(r"\d+", self.target)[0])

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")

    def occupancy(self, size: Size) -> tuple[int, str]:
        """Blocks that a multiprocessor holds at once, and what limits them."""
        registers = ceil(size.registers * 32 / 256) * 256 * size.threads // 32
        reserved = 1 if self.capability >= 80 else 0  # KB that the system takes of each block's shared memory
        limits = {"threads": self.threads // size.threads, "registers": 65536 // registers, "blocks": self.blocks}
        if size.shared:
            limits["shared memory"] = int(self.shared // (size.shared + reserved))
        name = min(limits, key=lambda name: limits[name])
        return limits[name], name

    def time(self, size: Size, programs: int, instructions: float, waits: float) -> float:
        """Microseconds of ``programs`` blocks; each warp issues ``instructions`` and waits ``waits`` times for L2."""
        held = self.occupancy(size)[0]
        waves = ceil(programs / (self.multiprocessors * held))
        resident = min(held, ceil(programs / self.multiprocessors))
        alone = instructions * max(1, STALL * self.latencies[2]) + waits * self.latencies[0]
        together = resident * size.threads / 32 * instructions / (4 * ISSUE)
        return waves * max(alone, together) / self.clock / 1e3


GPUS = (
    Gpu("H200 SXM", "sm_90", 132, 1.98, 66.9, 989, 4800, 5500, (270, 700, 4), 2048, 32, 228),
    Gpu("H100 SXM", "sm_90", 132, 1.98, 66.9, 989, 3350, 5500, (270, 700, 4), 2048, 32, 228),
    Gpu("RTX 4090", "sm_89", 128, 2.52, 82.6, 165.2, 1008, 4500, (270, 700, 4), 1536, 24, 100),
    Gpu("GTX 1070", "sm_61, Triton 3.3.1", 15, 1.68, 6.46, 0, 256, 700, (220, 600, 6), 2048, 32, 96),
)


@dataclass(frozen=True)
class Estimate:
    """Predicted time, what to say beside it, and its parts in microseconds."""

    microseconds: float
    note: str
    parts: dict[str, float]

    def cell(self) -> str:
        time = self.microseconds
        return f"{f'{time:.1f} us' if time < 1000 else f'{time / 1e3:.2f} ms'}, {self.note}"


def scan(gpu: Gpu, sizes: Sizes, n: int, T: int, way: str) -> Estimate:
    """The LIF scan with all it keeps: 12 bytes a step and neuron."""
    size = sizes.find(f"lif_{way}_kernel", "lif", gpu.target)
    assert size is not None
    share_read, in_flight = (1 / 3, 64) if way == "forward" else (2 / 3, 128)  # bytes of a thread's loads at a time
    threads = gpu.multiprocessors * gpu.occupancy(size)[0] * size.threads
    loads = threads * in_flight / (gpu.latencies[1] / gpu.clock)  # GB/s
    rate = COPY * gpu.memory
    time = LAUNCH + 12 * T * n / min(rate, loads / share_read) / 1e3
    return Estimate(time, f"{loads / share_read / rate:.1f}", {})


def linear_lif(gpu: Gpu, sizes: Sizes, n: int, T: int = 500, B: int = 16) -> Estimate:
    """Forward and backward of n to n neurons, by the path that ``choose_path`` takes there."""
    x, weight = (torch.empty(shape, device="meta") for shape in ((T, B, n), (n, n)))
    with (
        mock.patch.object(planes, "capability", return_value=gpu.capability),
        mock.patch.object(planes, "multiprocessors", return_value=gpu.multiprocessors),
    ):
        path = layer.choose_path("auto", x, weight)
        constants = planes.arithmetic(gpu.device, torch.float32)
        tile = planes.tile_options(gpu.device, torch.float32, constants)
        steps, block_n = choose_tile(T, B, n, tile["BLOCK_N"], gpu.device)
    if path == "library":
        products = 2 * 2 * T * B * n * n / (LIBRARY * gpu.fp32 * 1e6)
        scans = 2 * LAUNCH + (12 + 8) * T * B * n / (COPY * gpu.memory * 1e3)
        moved = 20 * T * B * n + 8 * n * n
        return Estimate(2 * LAUNCH + products + scans, f"library, fp32, {moved / 1e9:.2f} GB", {})
    rows, block_k = planes.ROWS, tile["BLOCK_K"]
    # A tile's stretch of the inner dimension: three products, or its operands' way from L2.
    compute = 3 * 2 * rows * block_n * block_k / (TENSOR * gpu.bf16 * 1e6 / gpu.multiprocessors)
    operands = (4 * rows + 6 * block_n) * block_k / (gpu.l2 * 1e3 / gpu.multiprocessors)
    walk = (steps / 16 * 2 * gpu.latencies[0] + steps * 6 * gpu.latencies[2]) / gpu.clock / 1e3
    waves = ceil(ceil(B / (rows // steps)) * ceil(n / block_n) / gpu.multiprocessors)
    forward = ceil(T / steps) * (LAUNCH + waves * (ceil(n / block_k) * max(compute, operands) + walk))
    tiles = ceil(n / rows) * ceil(n / tile["BLOCK_N"])
    wide = tile["BLOCK_N"] / block_n
    splits = max(min(gpu.multiprocessors // tiles, T * B // (8 * block_k)), 1)
    work = max(wide * compute, operands * (4 * rows + 6 * tile["BLOCK_N"]) / (4 * rows + 6 * block_n))
    gradient = LAUNCH + ceil(tiles * splits / gpu.multiprocessors) * ceil(T * B / block_k / splits) * work
    # Planes of the weight; h and spikes; backward reads h and writes the gradient's planes, which its product reads.
    moved = 10 * n * n + (8 + 4 + 6 + 6) * T * B * n + 2 * 4 * T * B * n + 4 * n * n
    scans = 2 * LAUNCH + (10 * n * n + 10 * T * B * n) / (COPY * gpu.memory * 1e3)
    time = max(forward + gradient + scans, moved / (COPY * gpu.memory * 1e3))
    bound = "tensor cores" if compute > operands else "L2"
    return Estimate(time, f"fused, {bound}, {moved / 1e9:.2f} GB", {})


def training_step(gpu: Gpu, sizes: Sizes, B: int, T: int, training: bool = True) -> Estimate:
    """A step of 784 -> 10 neurons in a block of eight, or its forward pass alone."""
    found = [sizes.find(f"{name}_kernel", "rate-step", gpu.target) for name in ("encode", "step", "update")]
    encode, step, update = (size for size in found if size is not None)
    chunks, block_t = ceil(T / 128), min(128, max(16, 2 ** (T - 1).bit_length()))
    tensor, part = gpu.bf16 > 0, max(block_t / 128, 0.25)
    own = B * 64 * 785 <= rate_step_launch.PARTIAL_BYTES
    group = ceil(B / rate_step_launch.MAX_GROUPS) if training and not own else 1
    groups, several = ceil(B / group), training and group * chunks > 1
    # Of one sample and chunk: currents, the walk (a chain of five instructions a step), and what lies between.
    block_k = 64 if tensor else 32
    tiles = ceil(PIXELS / block_k)
    product = 270 * part if tensor else block_t * 16 * block_k / 128 * 4 / 3
    walk = min(T, 128) * 5 * gpu.latencies[2] / max(1, STALL * gpu.latencies[2])
    counted = tiles * product + walk + 500 * part
    waits = 5
    if training:  # the recursion backward and the gradient of the weights
        counted += tiles * product + 1000 * part
        waits += 2 * tiles
    numbers, blocks = 16 * 66 * (1 if tensor else 2.5) + 250, B * chunks * ceil(PIXELS / 128)
    clear = 785 * 16 / 128 / 4 if several else 0
    parts = {
        "encode": gpu.time(encode, 8 * blocks, numbers, 4) / 8,
        "step": gpu.time(step, groups, group * chunks * counted + clear, 3 + group * chunks * waits),
    }
    if training:
        sums = gpu.time(update, 197, 700 + 170 * ceil(groups / 64), 4 + ceil(groups / 64))
        counts = gpu.time(update, 1, 300 + 158 * ceil(B / 64), 2 + ceil(B / 64))
        parts["update"] = max(sums, counts, 64 * groups * (785 if several else PIXELS) / (gpu.l2 * 1e3))
    parts["launches"] = NODE * (len(parts) - 1 + 1 / 8)
    # Entries and pixels; words twice or thrice, currents twice, h twice or thrice, weights; partial sums; optimizer.
    chunk_bytes = 16 * PIXELS * (3 if training else 2) + 64 * block_t * (5 if training else 4)
    moved = B * (24 * PIXELS + chunks * (chunk_bytes + 16 * PIXELS * (6 if tensor else 4)))
    moved += 64 * (2 * groups * PIXELS + 8 * 785) if training else 0
    issued = 4 * (blocks * numbers + B * chunks * counted)
    floor = max(moved / (gpu.l2 * 1e3), issued / (gpu.multiprocessors * 4 * gpu.clock * 1e3))
    return Estimate(sum(parts.values()), f"floor {floor:.1f} us", parts)
