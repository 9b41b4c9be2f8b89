"""What is measured: cases with a name, a shape and random inputs that are built outside every timed call.

Imports torch and NumPy only, because a peer's worker process runs it in an environment without fastsnn.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

NEURON: dict[str, Any] = {
    "tau": 2.0,
    "v_threshold": 1.0,
    "v_reset": 0.0,
    "decay_input": True,
    "detach_reset": False,
    "surrogate": "atan",
    "alpha": 2.0,
}
"""The neuron of every case, SpikingJelly's LIFNode(2.0, ATan()): each peer is set up to compute the same."""
LEARNING_RATE = 1e-3
EPOCH_STEPS = 938
"""Steps of an epoch: 60,000 images in batches of 64."""


@dataclass(frozen=True)
class Case:
    """One piece of work that ours and the peers do in turn."""

    name: str
    subject: str
    T: int
    B: int
    sizes: tuple[int, ...]
    """Neurons, or the layer sizes of a network from input to output."""
    backward: bool = True
    steps: int = 1
    """Training steps in one timed call; times are per step."""
    peers: tuple[str, ...] = ()
    """The only peers that take part; empty: all."""
    threads: int | None = None
    """CPU threads; None: all of them for ours, the fastest count for the others."""

    @property
    def group(self) -> str:
        """The bench_<group>.py that measures it."""
        return "scaling" if self.name.startswith("scaling-") else self.subject

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Case":
        return cls(**values | {"sizes": tuple(values["sizes"]), "peers": tuple(values["peers"])})

    def with_batch(self, B: int) -> "Case":
        """The same work on another number of samples, in one training step."""
        return Case(**self.to_dict() | {"sizes": self.sizes, "B": B, "steps": 1})


def grid(size: str, gpu: bool, cores: int) -> dict[str, Case]:
    """Name -> case, in the order in which they run; ``size`` is tiny (does it run?), quick or full."""
    if size == "tiny":
        return _named(_tiny())
    cases = [
        Case("rate_step", "rate_step", 100, 64, (784, 10), steps=32),
        *_scan(1 << 20 if gpu else 1 << 16, 128 if gpu else 100),
        *_linear((256, 1024, 4096, 16384) if gpu else (256, 512, 1024)),
        Case("mlp", "mlp", 100, 64, (784, 800, 10)),
        Case("encoding", "encoding", 100, 64, (784,), backward=False),
    ]
    if size == "quick":
        quick = {"rate_step", "scan", "linear-256", "encoding"} | ({"linear-4096", "mlp"} if gpu else set())
        return _named(case for case in cases if case.name in quick)
    end_to_end = Case("end_to_end", "end_to_end", 100, 64, (784, 10))
    epoch = Case("rate_step-epoch", "rate_step", 100, 64, (784, 10), steps=EPOCH_STEPS, peers=("none",))
    return _named([*cases, epoch, *_scaling(gpu, cores), end_to_end])


def _named(cases: Iterable[Case]) -> dict[str, Case]:
    return {case.name: case for case in cases}


def _tiny() -> list[Case]:
    return [
        Case("rate_step", "rate_step", 8, 4, (64, 10), steps=2),
        Case("scan", "scan", 8, 4, (16,)),
        Case("scan-forward", "scan", 8, 4, (16,), backward=False),
        Case("linear-24", "linear", 8, 4, (24, 24)),
        Case("linear-24-forward", "linear", 8, 4, (24, 24), backward=False),
        Case("mlp", "mlp", 8, 4, (64, 12, 10)),
        Case("encoding", "encoding", 8, 4, (64,), backward=False),
        Case("scaling-T-8", "rate_step", 8, 4, (64, 10), peers=("spikingjelly-multi",)),
        Case("end_to_end", "end_to_end", 8, 64, (64, 10)),
        Case("scaling-threads-1", "rate_step", 8, 4, (64, 10), peers=("fastsnn-torch",), threads=1),
    ]


def _scan(neurons: int, T: int) -> list[Case]:
    return [
        Case("scan-forward", "scan", T, 64, (neurons // 64,), backward=False),
        Case("scan", "scan", T, 64, (neurons // 64,)),
    ]


def _linear(sizes: tuple[int, ...]) -> list[Case]:
    """Open Neuromorphic's configuration: n inputs to n neurons, batch 16, 500 steps, dense random input."""
    forward = [Case(f"linear-{sizes[0]}-forward", "linear", 500, 16, (sizes[0], sizes[0]), backward=False)]
    return forward + [Case(f"linear-{n}", "linear", 500, 16, (n, n)) for n in sizes]


def _scaling(gpu: bool, cores: int) -> list[Case]:
    """The reference job's step and linear+LIF with one dimension varied, against SpikingJelly's multi-step mode."""
    peers = ("spikingjelly-cupy" if gpu else "spikingjelly-multi",)
    sizes = (784, 10)
    times = [Case(f"scaling-T-{T}", "rate_step", T, 64, sizes, steps=16, peers=peers) for T in (25, 50, 100, 200, 400)]
    batches = [Case(f"scaling-B-{B}", "rate_step", 100, B, sizes, steps=16, peers=peers) for B in (16, 64, 256)]
    widths = [Case(f"scaling-N-{N}", "linear", 100, 16, (784, N), peers=peers) for N in (10, 100, 1000)]
    threads = [
        Case(f"scaling-threads-{n}", "rate_step", 100, 64, sizes, steps=64, peers=("fastsnn-torch",), threads=n)
        for n in thread_counts(cores)
    ]
    return times + batches + widths + ([] if gpu else threads)


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and all cores."""
    return sorted({2**i for i in range(int(math.log2(cores)) + 1)} | {cores})


def select(names: str | None, known: Iterable[str], what: str) -> list[str]:
    """The names in a comma-separated list, all where it is None; a ValueError lists the valid ones."""
    known = list(known)
    chosen = known if names is None else [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"unknown {what} {', '.join(map(repr, unknown))}; valid: {', '.join(known)}")
    return chosen


def inputs(case: Case, images: Tensor, labels: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The case's inputs on the CPU: random currents and weights; ``images`` uint8 [D, P] with their ``labels`` [D]."""
    generator = torch.Generator().manual_seed(seed)
    if case.subject == "scan":
        shape = (case.T, case.B, *case.sizes)
        return {name: torch.randn(shape, generator=generator) * scale for name, scale in (("current", 2), ("grad", 1))}
    weights = {
        f"weight{i}": (torch.rand(N, K, generator=generator) * 2 - 1) / math.sqrt(K)
        for i, (K, N) in enumerate(zip(case.sizes[:-1], case.sizes[1:], strict=True))
    }
    if case.subject == "linear":
        x = torch.randn(case.T, case.B, case.sizes[0], generator=generator)
        # Three times nn.Linear's range, so that a fair share of the neurons fires.
        return {"x": x, "weight0": 3 * weights["weight0"]}
    samples = torch.arange(case.B * case.steps) % len(images)
    return weights | {"images": images[samples], "labels": labels[samples]}
