"""Write docs/performance.md: how long each GPU kernel should take, computed from the compiled code and published rates.

    python -m bench.prediction

Nothing in it was measured on a GPU. The kernels' registers and shared memory come from docs/compiled.md, rates and
latencies of the GPUs from the publications named below, and the rest is assumed; the page says all of it. Formulas:
``prediction_models.py``.
"""

from collections.abc import Iterator
from pathlib import Path

from bench.prediction_models import ASSUMED, GPUS, Estimate, Gpu, Sizes, linear_lif, scan, training_step

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
HEAD = """# How fast the GPU kernels should be

**Predicted, on paper: no GPU has confirmed a number on this page.** `python -m bench.prediction` computed it, from the
registers and shared memory of the compiled kernels ([compiled.md](compiled.md)), the bytes and instructions of each
kernel, and the published rates of four GPUs. What `pytest bench/ --benchmark-only` measures on a card counts instead.

## What it rests on
"""
SOURCES = """Peak rates are NVIDIA's: the data sheets of H100 SXM and H200 SXM, the Ada architecture paper, the product
page of the GTX 1070; bf16 dense, accumulated in fp32. Limits of a multiprocessor: CUDA C++ Programming Guide. Latencies
and the rates of L2 are assumptions, round numbers of the order that microbenchmarks report, as
[Luo et al.](https://arxiv.org/abs/2402.13499) for Hopper and Ada, and [Jia et al.](https://arxiv.org/abs/1804.06826)
for Pascal.
"""
SCAN = """## LIF scan

2^20 neurons: time, and how many times the loads in flight are that a copy's rate needs. Forward reads a current and
writes a spike and h, backward reads the gradient and h and writes a gradient: 12 bytes a step and neuron each. Time =
launch + bytes / rate, the rate being that of a copy or, if less, the loads in flight over the latency of memory.
"""
LAYER = """## Linear + LIF

Forward and backward of n to n neurons, B = 16, T = 500, fp32 accuracy, loss = spikes.sum(), x without gradient: time,
path, what bounds the products, and the GB to and from memory. Fused: three bf16 products for one in fp32; waves of
tiles x max(arithmetic, operands from L2), and the walk of a tile over its steps. Library: cuBLAS's products, and the
scan as above. A product in fp32 is 2 T B n^2 FLOPs in each direction, 2.1 TFLOP in all at n = 8192.
"""
STEP = """## The whole training step

784 -> 10 neurons on MNIST, Adam, replayed as a CUDA graph: time of a step, and its floor, what its bytes take at the
rate of L2, or its instructions at full issue. A kernel takes waves of blocks x max(the instructions of a block at the
latency of dependent ones, those of all resident blocks at the rate of issue).
"""
RUN = """## The run of 100 epochs

60,000 images in 938 steps, then 10,000 images forward alone, in five blocks. Without what the host does between
epochs: it shuffles and writes files.
"""


def page() -> str:
    """The page's text."""
    sizes = Sizes((PAGE.parent / "compiled.md").read_text(encoding="utf-8"))
    parts = (_gpus(), _occupancy(sizes), _scans(sizes), _layers(sizes), _steps(sizes), _epochs(sizes))
    return "\n".join([HEAD, *(line for part in parts for line in part)]) + "\n"


def _table(columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    for row in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(row)} |"
    yield ""


def _gpus() -> Iterator[str]:
    yield from _table(
        ["", *(gpu.name for gpu in GPUS)],
        [
            ["multiprocessors, clock", *(f"{gpu.multiprocessors}, {gpu.clock:.2f} GHz" for gpu in GPUS)],
            ["fp32, bf16 (TFLOP/s)", *(f"{gpu.fp32:.4g}, {gpu.bf16:.4g}" for gpu in GPUS)],
            ["memory, L2 (GB/s)", *(f"{gpu.memory:.0f}, {gpu.l2:.0f}" for gpu in GPUS)],
            ["latency of L2, of memory, of arithmetic (cycles)", *(", ".join(map(str, gpu.latencies)) for gpu in GPUS)],
            ["compiled as", *(gpu.target for gpu in GPUS)],
        ],
    )
    yield SOURCES
    yield "Assumed:"
    yield ""
    for text in ASSUMED:
        yield f"- {text}"
    yield ""


def _occupancy(sizes: Sizes) -> Iterator[str]:
    yield "## Occupancy"
    yield ""
    yield "Blocks that a multiprocessor holds at once, its share of the most warps, and what limits it."
    yield ""
    kernels = {
        "lif_forward_kernel": "lif",
        "lif_backward_kernel": "lif",
        "linear_lif_forward_kernel": "linear-float",
        "matmul_kernel": "gradients-float",
        "encode_kernel": "rate-step",
        "step_kernel": "rate-step",
        "update_kernel": "rate-step",
    }
    rows = []
    for kernel, case in kernels.items():
        cells = []
        for gpu in GPUS:
            cell = "the library's product"
            if size := sizes.find(kernel, case, gpu.target):
                blocks, limit = gpu.occupancy(size)
                cell = f"{blocks}, {100 * blocks * size.threads // gpu.threads} %, {limit}"
            cells.append(cell)
        rows.append([f"`{kernel}`", *cells])
    yield from _table(["kernel", *(gpu.name for gpu in GPUS)], rows)


def _estimates(label: str, rows: list[tuple[str, list[Estimate]]]) -> Iterator[str]:
    yield from _table(
        [label, *(gpu.name for gpu in GPUS)], [[name, *(estimate.cell() for estimate in row)] for name, row in rows]
    )


def _scans(sizes: Sizes) -> Iterator[str]:
    yield SCAN
    rows = [
        (f"T = {T}, {way}", [scan(gpu, sizes, 1 << 20, T, way) for gpu in GPUS])
        for T in (16, 128)
        for way in ("forward", "backward")
    ]
    yield from _estimates("", rows)


def _layers(sizes: Sizes) -> Iterator[str]:
    yield LAYER
    widths = [256, 512, 1024, 2048, 4096, 8192, 16384]
    yield from _estimates("n", [(str(n), [linear_lif(gpu, sizes, n) for gpu in GPUS]) for n in widths])


def _steps(sizes: Sizes) -> Iterator[str]:
    yield STEP
    rows = [(f"B = {B}, T = 100", [training_step(gpu, sizes, B, 100) for gpu in GPUS]) for B in (64, 256, 1024, 8192)]
    rows += [(f"B = 64, T = {T}", [training_step(gpu, sizes, 64, T) for gpu in GPUS]) for T in (10, 25, 500, 1000)]
    yield from _estimates("", rows)
    yield "Of the reference step, B = 64 and T = 100:"
    yield ""
    parts = [training_step(gpu, sizes, 64, 100).parts for gpu in GPUS]
    yield from _table(
        ["", *(gpu.name for gpu in GPUS)], [[name, *(f"{part[name]:.1f} us" for part in parts)] for name in parts[0]]
    )


def _epochs(sizes: Sizes) -> Iterator[str]:
    yield RUN

    def run(gpu: Gpu) -> list[str]:
        step = training_step(gpu, sizes, 64, 100)
        epoch, test = 938 * step.microseconds, 5 * training_step(gpu, sizes, 2200, 100, training=False).microseconds
        return [f"{epoch / 1e3:.0f} ms", f"{test / 1e3:.1f} ms", f"{(epoch + test) / 1e4:.1f} s"]

    columns = [run(gpu) for gpu in GPUS]
    names = ["training epoch", "evaluation", "100 epochs of both"]
    yield from _table(
        ["", *(gpu.name for gpu in GPUS)], [[name, *cells] for name, *cells in zip(names, *columns, strict=True)]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
