"""What is measured: cases with a name, a shape and random inputs that are built outside every timed call.

Imports torch only, because a peer's worker process runs it in an environment without fastsnn.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

LEARNING_RATE = 1e-3
KEPT = 0.9
"""What is left of a potential after a step, where a neuron learns it."""
_CURRENT = {"lif": 1.5, "leaky": 2.5, "if": 0.5, "cuba": 0.1, "alif": 10.0, "seadlif": 5.0}
"""Standard deviation of a current with which a fair share of these neurons fires."""
_DRIVE = {"leaky": 0.3}
"""Mean of the current: so that neurons fire though no potential passes twice the threshold, where snnTorch differs."""
EPOCH_STEPS = 938
"""Steps of an epoch: 60,000 images in batches of 64."""


@dataclass(frozen=True)
class Layer:
    """Modules without a state, and the neurons behind them."""

    modules: tuple[nn.Module, ...]
    neuron: str
    size: int


@dataclass(frozen=True)
class Case:
    """One piece of work that fastsnn and its peers do in turn."""

    name: str
    task: str
    """scan (neurons alone), layer, recurrent, training, csnn (a convolutional network's training), inference, encoding
    or end_to_end."""
    T: int
    B: int
    sizes: tuple[int, ...]
    """Neurons, or layer sizes from input to output; image side, channels and hidden neurons of csnn."""
    neuron: str = "lif"
    """lif (tau 2, hard reset), if, leaky (a learnt leak per neuron, soft reset), cuba, alif or seadlif."""
    readout: bool = False
    """Whether the last layer is a leaky integrator, trained by cross entropy of its mean potential."""
    density: float | None = None
    """Share of spikes in the input; None: images to encode, or dense normal input where there is nothing to train."""
    backward: bool = True
    steps: int = 1
    """Training steps in one timed call; times are per step."""
    peers: tuple[str, ...] = ()
    """The only peers that take part; empty: all."""
    threads: int | None = None
    """CPU threads; None: all of them for fastsnn, the fastest count for the others."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Case":
        return cls(**values | {"sizes": tuple(values["sizes"]), "peers": tuple(values["peers"])})

    @property
    def trains(self) -> bool:
        return self.task in ("training", "csnn")

    @property
    def encodes(self) -> bool:
        """Whether its inputs are images."""
        return self.density is None and self.task in ("training", "inference", "encoding", "end_to_end")

    @property
    def neurons(self) -> tuple[str, ...]:
        """The neuron of each layer."""
        return tuple(layer.neuron for layer in self.layers())

    def layers(self) -> list[Layer]:
        """The network's layers, with torch's initial weights."""
        if self.task in ("scan", "recurrent", "encoding"):
            return [Layer((), self.neuron, self.sizes[-1])] if self.task != "encoding" else []
        if self.task == "csnn":
            side, C, hidden = self.sizes
            first, second, third = ((nn.Conv2d(1, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)),
                (nn.MaxPool2d(2), nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)),
                (nn.MaxPool2d(2), nn.Flatten(), nn.Linear(C * (side // 4) ** 2, hidden, bias=False)))  # fmt: skip
            last = (nn.Linear(hidden, 10, bias=False),)
            parts = [(first, C), (second, C), (third, hidden), (last, 10)]
            return [Layer(modules, self.neuron, N) for modules, N in parts]
        pairs = list(zip(self.sizes[:-1], self.sizes[1:], strict=True))
        kinds = [self.neuron] * (len(pairs) - self.readout) + ["li"] * self.readout
        return [Layer((nn.Linear(K, N, bias=False),), kind, N) for (K, N), kind in zip(pairs, kinds, strict=True)]

    def smaller(self) -> "Case":
        """The same work on so few samples and steps that no membrane need come near the threshold."""
        shape: dict[str, Any] = {"T": min(self.T, 50), "B": min(self.B, 1 if len(self.sizes) > 3 else 2), "steps": 1}
        if self.task == "csnn":
            shape["sizes"] = tuple(min(size, least) for size, least in zip(self.sizes, (12, 8, 32), strict=True))
        return replace(self, **shape)


def grid(size: str, gpu: bool, cores: int) -> dict[str, Case]:
    """Name -> case, in the order in which they run; ``size`` is tiny (does it run?), main or full."""
    if size == "tiny":
        return _named(_tiny())
    neurons, T = (1 << 20, 128) if gpu else (1 << 16, 100)
    scan = Case("scan", "scan", T, 64, (neurons // 64,))
    linear = [_linear(n) for n in ((256, 1024, 4096, 16384) if gpu else (256, 512, 1024))]
    widest = linear[-1]
    main = [
        Case("rate_step", "training", 100, 64, (784, 10), steps=6),
        Case("mlp", "training", 100, 64, (784, 800, 10)),
        Case("shd", "training", 256, 256, (128, 128, 128, 128, 20), "leaky", readout=True, density=0.05),
        Case("nmnist", "training", 30, 64, (2312, 512, 10), density=0.05),
        Case("csnn", "csnn", 4, 32, (28, 128, 2048), "if", density=0.5),
        Case("recurrent-shd", "recurrent", 250, 64, (140, 256), density=0.1),
        scan,
        widest,
        replace(widest, name=f"{widest.name}-sparse", density=0.05),
        Case("encoding", "encoding", 100, 64, (784,), backward=False),
        Case("inference", "inference", 100, 1, (784, 10), backward=False),
    ]
    if size == "main":
        return _named(main)
    peer = ("spikingjelly-cupy" if gpu else "spikingjelly-multi",)
    series = [replace(main[0], name=f"rate_step-T-{T}", T=T, steps=4, peers=peer) for T in (25, 50, 200, 400)]
    threads = [replace(main[1], name=f"mlp-threads-{n}", threads=n) for n in thread_counts(cores)[:-1]]
    return _named([
        *main,
        Case("recurrent-braille", "recurrent", 152, 100, (128, 200), density=0.1),
        Case("recurrent-smnist", "recurrent", 784, 32, (1, 128), density=0.1),
        *(replace(scan, name=f"scan-{kind}", neuron=kind) for kind in ("leaky", "cuba", "alif", "seadlif")),
        replace(scan, name="scan-forward", backward=False),
        replace(linear[0], name=f"{linear[0].name}-forward", backward=False),
        *linear[:-1],
        *series,
        *([] if gpu else threads),
        Case("end_to_end", "end_to_end", 100, 64, (784, 10)),
    ])  # fmt: skip


def _named(cases: Iterable[Case]) -> dict[str, Case]:
    return {case.name: case for case in cases}


def _linear(n: int) -> Case:
    """Open Neuromorphic's configuration: n inputs to n neurons, batch 16, 500 steps, dense normal input."""
    return Case(f"linear-{n}", "layer", 500, 16, (n, n))


def _tiny() -> list[Case]:
    return [
        Case("rate_step", "training", 8, 4, (64, 10), steps=2),
        Case("mlp", "training", 8, 4, (64, 12, 10)),
        Case("shd", "training", 9, 4, (16, 12, 12, 5), "leaky", readout=True, density=0.3),
        Case("csnn", "csnn", 3, 2, (8, 4, 12), "if", density=0.5),
        Case("recurrent-shd", "recurrent", 8, 4, (5, 20), density=0.3),
        Case("scan", "scan", 8, 4, (16,)),
        Case("scan-cuba", "scan", 8, 4, (16,), "cuba"),
        Case("scan-forward", "scan", 8, 4, (16,), backward=False),
        Case("linear-24", "layer", 8, 4, (24, 24)),
        Case("linear-24-sparse", "layer", 8, 4, (24, 24), density=0.2),
        Case("encoding", "encoding", 8, 4, (64,), backward=False),
        Case("inference", "inference", 8, 1, (64, 10), backward=False),
        Case("rate_step-T-4", "training", 4, 4, (64, 10), peers=("spikingjelly-multi",)),
        Case("mlp-threads-1", "training", 8, 4, (64, 12, 10), peers=("fastsnn-torch",), threads=1),
        Case("end_to_end", "end_to_end", 8, 64, (64, 10)),
    ]


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
    """The case's inputs on the CPU: weights, and x or images; ``images`` uint8 [D, P] with their ``labels`` [D].

    Weights are so large that a fair share of the neurons fires, except where images are encoded and trained on.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {f"weight{i}": weight for i, weight in enumerate(_weights(case, generator))}
    if case.encodes:
        samples = (torch.arange(case.B * case.steps) + seed * case.B) % len(images)
        return found | {"images": images[samples], "labels": labels[samples]}
    shape: tuple[int, ...] = (case.T, case.B, case.sizes[0])
    if case.task == "csnn":
        shape = (case.T, case.B, 1, case.sizes[0], case.sizes[0])
    if case.density is None:
        found["x"] = torch.randn(shape, generator=generator)
        if case.task == "scan":
            found["x"] = found["x"] * _CURRENT[case.neuron] + _DRIVE.get(case.neuron, 0.0)
    else:
        found["x"] = (torch.rand(shape, generator=generator) < case.density).float()
    if case.task == "scan":
        found["grad"] = torch.randn(shape, generator=generator)
    if case.trains:
        classes = 10 if case.task == "csnn" else case.sizes[-1]
        found["labels"] = torch.randint(classes, (case.B,), generator=generator)
    return found


def _weights(case: Case, generator: torch.Generator) -> list[Tensor]:
    if case.task == "recurrent":
        (K, N), count = case.sizes, (case.density or 1) * case.sizes[0]
        drawn = torch.randn(N, K, generator=generator) * 0.8 / count**0.5 + 0.2 / count
        if K == 1:
            drawn = torch.rand(N, K, generator=generator) * 3.2
        return [drawn, torch.randn(N, N, generator=generator) * 0.3 / (0.08 * N) ** 0.5]
    shapes = [
        p.shape for layer in case.layers() for module in layer.modules for p in module.parameters() if p.dim() > 1
    ]
    drawn = [(torch.rand(shape, generator=generator) * 2 - 1) / shape[1:].numel() ** 0.5 for shape in shapes]
    if case.encodes:
        return drawn
    spread, mean = _CURRENT[case.neuron], _DRIVE.get(case.neuron, 0.0)
    rates = [case.density or 1.0] + [0.03 if case.neuron == "leaky" else 0.1] * len(drawn)
    return [
        weight * spread * (3 / rate) ** 0.5 + mean / (weight[0].numel() * rate)
        for weight, rate in zip(drawn, rates, strict=False)
    ]
