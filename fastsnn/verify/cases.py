"""The cases of ``fastsnn verify``: a grid of neurons, dtypes and odd shapes, and the inputs of each, drawn on the CPU.

A case's name says what it holds, as in ``lif-soft-whole-detached-tau3.7-erf``:

    hard, rest, soft      the reset: to 0, to -0.3, or by subtraction
    decay, whole          the current is divided by tau, or taken whole
    attached, detached    whether the gradient sees the reset

Shapes: T time steps, B samples, K inputs, N neurons.
"""

import zlib
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from fastsnn.kernels.reference import SURROGATES
from fastsnn.neuron import LIFParameters

RESETS = {"hard": 0.0, "rest": -0.3, "soft": None}


@dataclass(frozen=True)
class Case:
    """One check of one group; ``group`` names the row that it belongs to and the function that runs it."""

    name: str
    group: str
    neuron: LIFParameters = LIFParameters()  # noqa: RUF009 - frozen
    T: int = 12
    B: int = 3
    K: int = 0
    N: int = 31
    dtype: torch.dtype = torch.float32
    """Of the current, or of x and weight; the neuron's state is fp32 always."""
    x_dtype: torch.dtype | None = None
    """Of x, where it is not ``dtype``: bool or uint8 spikes."""
    dyadic: bool = False
    """Weights are multiples of 1/8 and inputs 0 or 1: currents are exact in whatever order they are summed."""
    dense: bool = False
    """No input is 0."""
    bias: bool = False
    v_init: bool = False
    strided: bool = False
    """The input is a transposed view."""
    loss: str = "mse"
    optimizer: str = "sgd"
    fused: bool = False
    """Train with the backend's fused step, not layer by layer."""
    batch_size: int = 0
    steps: int = 1
    quick: bool = False
    """Part of ``--quick``."""
    small: bool = True
    """Small enough for Triton's interpreter."""


class Inputs(NamedTuple):
    """The tensors of a case, on the CPU; ``x`` is the current [T, B, N] or the layer's input [T, B, K]."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    v_init: Tensor | None
    grad_spikes: Tensor
    grad_v: Tensor


def generator(case: Case) -> torch.Generator:
    """Random numbers that depend on the case's name alone."""
    return torch.Generator().manual_seed(zlib.crc32(case.name.encode()))


def draw(case: Case) -> Inputs:
    """Inputs under which neurons are neither silent nor saturated."""
    T, B, K, N = case.T, case.B, case.K, case.N
    random = generator(case)
    gain = 1.0 if case.neuron.decay_input else 1 / case.neuron.tau
    weight = bias = None
    if K:
        density = 1.0 if case.dense else min(0.3, 12 / K)
        count = density * K  # inputs that spike at a time step
        x = torch.rand(T, B, K, generator=random) < density
        spikes = x.to(case.x_dtype or case.dtype)
        if case.dyadic:
            weight, bias = dyadic(random, N, K), dyadic(random, N)
        else:
            weight = _normal(random, N, K) * 1.2 / count**0.5 + 1.8 / count
            bias = _normal(random, N) * 0.3
        weight, bias = weight.to(case.dtype), bias.to(case.dtype) if case.bias else None
        inputs = spikes if case.dyadic or case.x_dtype else (spikes * (_normal(random, T, B, K) + 1)).to(case.dtype)
    else:
        inputs = ((_normal(random, T, B, N) * 1.5 + 1.0) * gain).to(case.dtype)
    if case.strided:
        inputs = inputs.transpose(0, 1).contiguous().transpose(0, 1)
    v_init = torch.rand(B, N, generator=random) - 0.2 if case.v_init else None
    return Inputs(inputs, weight, bias, v_init, _normal(random, T, B, N).to(case.dtype), _normal(random, B, N))


def dyadic(random: torch.Generator, *shape: int) -> Tensor:
    """Multiples of 1/8 from -1/2 to 6/8."""
    return torch.randint(-4, 7, shape, generator=random) / 8


def _normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random)


def _neurons() -> list[tuple[str, LIFParameters]]:
    """Every combination of the options, at a tau that is a power of two and at one that isn't."""
    found = []
    for reset, decay_input, detach_reset, tau in product(RESETS, (True, False), (False, True), (2.0, 3.7)):
        name = f"{reset}-{'decay' if decay_input else 'whole'}-{'detached' if detach_reset else 'attached'}-tau{tau:g}"
        threshold = 1.0 if tau == 2 else 1.1
        found.append((name, LIFParameters(tau, threshold, RESETS[reset], decay_input, detach_reset)))
    return found


def _lif() -> list[Case]:
    cases = []
    for i, (name, neuron) in enumerate(_neurons()):
        for j, (surrogate, alpha) in enumerate(SURROGATES.items()):
            # Off the default value an alpha that is ignored shows.
            alpha = alpha if neuron.tau == 2 else 1.3 * alpha
            changed = replace(neuron, surrogate=surrogate, alpha=alpha)
            # The quick grid holds every combination of options once and every surrogate four times.
            cases.append(
                Case(f"lif-{name}-{surrogate}", "lif", changed, v_init=bool(i % 2), quick=(i + i // 6) % 6 == j)
            )
    return cases


def _lif_shapes() -> list[Case]:
    base = Case("", "lif-shapes", LIFParameters(tau=3.7, v_reset=-0.3), v_init=True, quick=True)
    shapes = [
        replace(base, name="one", T=1, B=1, N=1),
        replace(base, name="one-step", T=1, B=5, N=7),
        replace(base, name="primes", T=7, B=3, N=131),
        replace(base, name="blocks", T=3, B=1, N=1031),
        replace(base, name="T131", T=131, B=2, N=13),
        replace(base, name="T259-soft", T=259, B=1, N=17, neuron=LIFParameters(tau=3.7, v_reset=None), quick=False),
        replace(base, name="strided", T=5, B=4, N=9, strided=True),
        replace(base, name="empty", T=4, B=0, N=5),
        replace(base, name="half-a-million", T=3, B=1, N=2**19 + 3, quick=False, small=False),
        replace(base, name="fp16", dtype=torch.float16),
        replace(base, name="bf16", dtype=torch.bfloat16),
    ]
    return [replace(case, name=f"lif-{case.name}") for case in shapes]


def _threshold() -> list[Case]:
    """Neurons that reach the threshold exactly: they fire, and their gradient is not zero."""
    neuron = LIFParameters()
    return [
        Case(f"threshold-{surrogate}", "threshold", replace(neuron, surrogate=surrogate, alpha=alpha), T=2, quick=True)
        for surrogate, alpha in SURROGATES.items()
    ]


def _linear() -> list[Case]:
    """Exact currents: every bit is that of the reference, whatever the order of summation."""
    cases = []
    for i, (name, neuron) in enumerate(_neurons()):
        surrogate = list(SURROGATES)[i // 2 % 6]
        cases.append(
            Case(f"linear-{name}", "linear", replace(neuron, surrogate=surrogate, alpha=None), K=37, N=19, dyadic=True,
                 bias=bool(i % 2), v_init=bool(i // 2 % 2), quick=i % 5 == 0)
        )  # fmt: skip
    return cases


def _linear_random() -> list[Case]:
    base = Case("", "linear-random", LIFParameters(tau=3.7), K=37, N=19, bias=True, v_init=True)
    soft, whole = LIFParameters(v_reset=None), LIFParameters(tau=3.7, decay_input=False, detach_reset=True)
    cases = [
        replace(base, name="one", T=1, B=1, K=1, N=1, quick=True),
        replace(base, name="primes", T=7, B=5, K=53, N=71, quick=True),
        replace(base, name="soft", neuron=soft, bias=False),
        replace(base, name="whole", neuron=whole, v_init=False, quick=True),
        replace(base, name="uint8", x_dtype=torch.uint8, quick=True),
        replace(base, name="bool", x_dtype=torch.bool),
        replace(base, name="strided", strided=True, quick=True),
        replace(base, name="blocks", T=3, B=2, K=130, N=131, quick=True),
        replace(base, name="T131", T=131, B=2, K=11, N=13, quick=True),
        replace(base, name="T259", T=259, B=1, K=5, N=3, neuron=soft),
        replace(base, name="empty", B=0, quick=True),
        replace(base, name="wide", T=16, B=16, K=784, N=301, small=False),
        replace(base, name="deep", T=100, B=64, K=1200, N=10, small=False),
        # With aligned rows sm_90 and sm_100 take tiles of 128 columns: backward from N or K = 128 on, forward if they
        # fill the GPU, as these do one of 108 to 188 multiprocessors.
        replace(base, name="aligned", T=16, B=8, K=256, N=128, small=False),
        replace(base, name="aligned-uint8", T=16, B=8, K=256, N=128, x_dtype=torch.uint8, small=False),
        replace(base, name="columns128", T=32, B=32, K=64, N=1536, small=False),
        replace(base, name="fp16", dtype=torch.float16, v_init=False, quick=True),
        replace(base, name="bf16", dtype=torch.bfloat16, v_init=False),
    ]
    return [replace(case, name=f"linear-random-{case.name}") for case in cases]


def _currents() -> list[Case]:
    # A neuron that only adds: the membrane is the current, bit for bit. See checks.currents.
    adder = LIFParameters(tau=2.0**30, v_threshold=1e30, decay_input=False)
    base = Case("", "currents", adder, T=3, B=6, N=67, bias=True)
    cases = [
        replace(base, name="K61", K=61, quick=True),
        replace(base, name="K784", K=784, T=2, B=4, N=10, quick=True),
        replace(base, name="K784-spikes", K=784, T=2, B=4, N=10, x_dtype=torch.uint8),
        replace(base, name="K4096", K=4096, B=48, N=130, small=False),
        # The largest errors that the order of summation makes, and rows that are aligned.
        replace(base, name="K4096-dense", K=4096, N=64, dense=True, small=False),
        replace(base, name="K4096-dense-columns128", K=4096, T=32, B=32, N=1536, dense=True, small=False),
    ]
    return [replace(case, name=f"currents-{case.name}") for case in cases]


def _rate_steps() -> list[Case]:
    """Fused training steps on exact currents: K pixels, N classes, B samples of which ``batch_size`` make a step."""
    base = Case("", "rate-step", B=3, K=23, N=5, batch_size=2, dyadic=True)
    cases = []
    for i, (name, neuron) in enumerate(_neurons()):
        surrogate = list(SURROGATES)[(i // 2 + i // 12) % 6]
        cases.append(
            replace(base, name=name, neuron=replace(neuron, surrogate=surrogate, alpha=None), bias=bool(i % 2),
                    loss=("mse", "ce")[i // 2 % 2], optimizer=("sgd", "adam")[i // 4 % 2], quick=i % 7 == 0)
        )  # fmt: skip
    cases += [
        replace(base, name="one-step", T=1, N=2, batch_size=1, neuron=LIFParameters(decay_input=False), quick=True),
        replace(base, name="one-pixel", T=5, N=3, K=1, neuron=LIFParameters(v_threshold=0.25)),
        replace(base, name="T33", T=33, optimizer="adam", bias=True),
        replace(base, name="T131", T=131, loss="ce"),
        replace(base, name="primes", T=31, B=5, K=131, N=17, batch_size=3, bias=True),
        replace(base, name="digits-sized", T=100, B=70, K=64, N=10, batch_size=64, optimizer="adam", small=False),
        replace(base, name="mnist-sized", T=100, B=64, K=784, N=10, batch_size=64, small=False),
    ]
    return [replace(case, name=f"rate-step-{case.name}") for case in cases]


def _training() -> list[Case]:
    """Runs on digits; ``small`` ones serve the interpreter."""
    base = Case("", "training", K=64, N=10)
    cases = []
    for fused in (False, True):
        path = "fused" if fused else "layers"
        short = replace(base, fused=fused, T=17, batch_size=2, steps=2)
        longer = replace(base, fused=fused, T=100, batch_size=64, steps=8, small=False)
        cases += [
            replace(short, name=f"{path}-short-sgd", bias=True, quick=True),
            replace(short, name=f"{path}-short-adam", optimizer="adam", quick=True),
            replace(longer, name=f"{path}-sgd"),
            replace(longer, name=f"{path}-adam", optimizer="adam"),
        ]
    return [replace(case, name=f"training-{case.name}") for case in cases]


def _repeats() -> list[Case]:
    """What must give the same bits twice: gradients with sums over many rows, and whole runs on digits."""
    layer = Case("repeat-layer", "repeat", LIFParameters(), T=6, B=9, K=33, N=21, bias=True, quick=True)
    run = Case("run-layers", "run", T=9, B=1, batch_size=2, steps=2, quick=True)
    longer = replace(run, T=50, B=100, batch_size=64, steps=6, quick=False, small=False)
    return [
        layer,
        replace(layer, name="repeat-layer-wide", T=64, B=64, K=784, N=256, quick=False, small=False),
        run,
        replace(run, name="run-fused", fused=True),
        replace(longer, name="run-layers-longer"),
        replace(longer, name="run-fused-longer", fused=True),
    ]


GRID = (
    *_lif(),
    *_lif_shapes(),
    *_threshold(),
    *_linear(),
    *_linear_random(),
    *_currents(),
    *_rate_steps(),
    *_training(),
    *_repeats(),
)
"""Every case, in the order in which they run."""
CASES = {case.name: case for case in GRID}
