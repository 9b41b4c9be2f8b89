"""The cases of ``fastsnn verify``: a grid of neurons, dtypes and odd shapes.

A case's name says what it holds, as in ``lif-soft-whole-detached-tau3.7-erf``:

    hard, rest, soft      the reset: to 0, to -0.3, or by subtraction
    decay, whole          the current is divided by tau, or taken whole
    attached, detached    whether the gradient sees the reset
"""

import math
from dataclasses import replace
from itertools import product

import torch

from fastsnn.kernels.neurons import IF, LI, LIF, NEURONS, SURROGATES, Neuron, SEAdLIF
from fastsnn.verify.case import Case

_ALPHAS = {name: row.alpha for name, row in SURROGATES.items()}
RESETS = {"hard": 0.0, "rest": -0.3, "soft": None}


def _neurons() -> list[tuple[str, LIF]]:
    """Every combination of the options, at a tau that is a power of two and at one that isn't."""
    found = []
    for reset, decay_input, detach_reset, tau in product(RESETS, (True, False), (False, True), (2.0, 3.7)):
        name = f"{reset}-{'decay' if decay_input else 'whole'}-{'detached' if detach_reset else 'attached'}-tau{tau:g}"
        threshold = 1.0 if tau == 2 else 1.1
        found.append((name, LIF(tau, threshold, RESETS[reset], decay_input, detach_reset)))
    return found


def _lif() -> list[Case]:
    cases = []
    for i, (name, neuron) in enumerate(_neurons()):
        for j, (surrogate, alpha) in enumerate(_ALPHAS.items()):
            # Off the default value an alpha that is ignored shows.
            alpha = alpha if neuron.tau == 2 else 1.3 * alpha
            changed = replace(neuron, surrogate=surrogate, alpha=alpha)
            # The quick grid holds every combination of options once and every surrogate three or four times.
            cases.append(
                Case(
                    f"lif-{name}-{surrogate}",
                    "lif",
                    changed,
                    state=bool(i % 2),
                    quick=i % len(SURROGATES) == j,
                )
            )
    return cases


def _lif_shapes() -> list[Case]:
    base = Case("", "lif-shapes", LIF(tau=3.7, v_reset=-0.3), state=True, quick=True)
    shapes = [
        replace(base, name="one", T=1, B=1, N=1),
        replace(base, name="one-step", T=1, B=5, N=7),
        replace(base, name="primes", T=7, B=3, N=131),
        replace(base, name="blocks", T=3, B=1, N=1031),
        replace(base, name="T131", T=131, B=2, N=13),
        replace(base, name="T259-soft", T=259, B=1, N=17, neuron=LIF(tau=3.7, v_reset=None), quick=False),
        replace(base, name="strided", T=5, B=4, N=9, strided=True),
        replace(base, name="empty", T=4, B=0, N=5),
        replace(base, name="half-a-million", T=3, B=1, N=2**19 + 3, quick=False, small=False),
        replace(base, name="fp16", dtype=torch.float16),
        replace(base, name="bf16", dtype=torch.bfloat16),
    ]
    return [replace(case, name=f"lif-{case.name}") for case in shapes]


def _threshold() -> list[Case]:
    """Neurons that reach the threshold exactly: they fire, and their gradient is not zero."""
    neuron = LIF()
    return [
        Case(f"threshold-{surrogate}", "threshold", replace(neuron, surrogate=surrogate, alpha=alpha), T=2, quick=True)
        for surrogate, alpha in _ALPHAS.items()
    ]


def neuron_cases(name: str, neuron: Neuron) -> list[Case]:
    """A neuron of any kind: given currents and behind a linear layer, with numbers for parameters and with learnt ones.

    All of its parameters learn that are finite, but for the surrogate's sharpness.
    """
    values = neuron.parameters()
    learn = tuple(field for field, value in values.items() if field != "alpha" and math.isfinite(value))
    scan = Case(f"neuron-{name}-scan", "neuron", neuron, state=True)
    layer = replace(scan, name=f"neuron-{name}-linear", K=37, N=19, dyadic=True, bias=True)
    cases = [scan, layer]
    if learn:
        cases += [
            replace(scan, name=f"neuron-{name}-learnt", learn=learn, quick=True),
            replace(layer, name=f"neuron-{name}-learnt-linear", learn=learn),
        ]
    if neuron.has_gradient:
        cases.append(Case(f"neuron-{name}-gradient", "neuron", neuron, hand_gradient=True, quick=True))
    return cases


def own_neuron_cases(name: str, neuron: Neuron) -> list[Case]:
    """What ``fastsnn verify --neuron`` runs: the cases of a registered neuron, other sizes, and float products."""
    cases = {case.name.removeprefix(f"neuron-{name}-"): case for case in neuron_cases(name, neuron)}
    scan, layer = cases["scan"], cases["linear"]
    sizes = [
        replace(scan, name="at-rest", state=False),
        replace(scan, name="one", T=1, B=1, N=1),
        replace(scan, name="primes", T=7, N=131),
        replace(scan, name="T131", T=131, B=2, N=13),
        replace(scan, name="empty", B=0),
        replace(layer, name="linear-random", dyadic=False),
        replace(layer, name="linear-T131", T=131, B=2, K=11, N=13),
    ]
    return [*cases.values(), *(replace(case, name=f"neuron-{name}-{case.name}") for case in sizes)]


def _neuron_kinds() -> list[Case]:
    """Every registered neuron, and one that never fires."""
    known = {name: kind() for name, kind in NEURONS.items()} | {"read-out": LIF(v_threshold=math.inf)}
    return [case for name, neuron in known.items() for case in neuron_cases(name, neuron)]


def _linear() -> list[Case]:
    """Exact currents: every bit is that of the reference, whatever the order of summation."""
    cases = []
    for i, (name, neuron) in enumerate(_neurons()):
        surrogate = list(SURROGATES)[i // 2 % len(SURROGATES)]
        cases.append(
            Case(f"linear-{name}", "linear", replace(neuron, surrogate=surrogate, alpha=None), K=37, N=19, dyadic=True,
                 bias=bool(i % 2), state=bool(i // 2 % 2), quick=i % 5 == 0)
        )  # fmt: skip
    return cases


def _linear_random() -> list[Case]:
    base = Case("", "linear-random", LIF(tau=3.7), K=37, N=19, bias=True, state=True)
    soft, whole = LIF(v_reset=None), LIF(tau=3.7, decay_input=False, detach_reset=True)
    cases = [
        replace(base, name="one", T=1, B=1, K=1, N=1, quick=True),
        replace(base, name="primes", T=7, B=5, K=53, N=71, quick=True),
        replace(base, name="soft", neuron=soft, bias=False),
        replace(base, name="whole", neuron=whole, state=False, quick=True),
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
        replace(base, name="fp16", dtype=torch.float16, state=False, quick=True),
        replace(base, name="bf16", dtype=torch.bfloat16, state=False),
    ]
    return [replace(case, name=f"linear-random-{case.name}") for case in cases]


def _currents() -> list[Case]:
    # A neuron that only adds: the membrane is the current, bit for bit. See checks.currents.
    adder = LIF(tau=2.0**30, v_threshold=1e30, decay_input=False)
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


def _recurrent() -> list[Case]:
    """Layers whose outputs come back; on exact currents every bit is that of the reference."""
    base = Case("", "recurrent", LIF(tau=3.7), T=7, K=13, N=19, recurrent=True, bias=True, state=True)
    exact = replace(base, dyadic=True, neuron=LIF())
    adaptive = replace(base, neuron=SEAdLIF(tau=3.0, tau_w=9.0))
    cases = [
        replace(exact, name="exact", quick=True),
        replace(exact, name="exact-soft", neuron=LIF(v_reset=None, detach_reset=True), state=False),
        replace(exact, name="exact-diagonal", diagonal=True, quick=True),
        replace(base, name="random", quick=True),
        replace(base, name="diagonal", diagonal=True),
        replace(base, name="at-rest", state=False, bias=False),
        replace(base, name="one", T=1, B=1, K=1, N=1, quick=True),
        replace(base, name="primes", T=3, B=17, K=5, N=67),
        replace(base, name="T131", T=131, B=2, K=3, N=5),
        replace(base, name="empty", B=0, quick=True),
        replace(base, name="uint8", x_dtype=torch.uint8),
        replace(base, name="fp16", dtype=torch.float16, state=False),
        replace(adaptive, name="se-adlif", learn=("tau", "tau_w", "a", "b"), quick=True),
        replace(adaptive, name="se-adlif-diagonal", learn=("tau",), diagonal=True),
        replace(base, name="read-out", neuron=LI()),
        replace(base, name="aligned", T=50, B=40, K=64, N=256, small=False),
        replace(base, name="wide", T=20, B=33, K=700, N=1000, small=False),
    ]
    return [replace(case, name=f"recurrent-{case.name}") for case in cases]


def _rate_steps() -> list[Case]:
    """Fused training steps on exact currents: K pixels, N classes, B samples of which ``batch_size`` make a step."""
    base = Case("", "rate-step", B=3, K=23, N=5, batch_size=2, dyadic=True)
    cases = []
    for i, (name, neuron) in enumerate(_neurons()):
        surrogate = list(SURROGATES)[i // 2 % len(SURROGATES)]
        cases.append(
            replace(base, name=name, neuron=replace(neuron, surrogate=surrogate, alpha=None), bias=bool(i % 2),
                    loss=("mse", "ce")[i // 2 % 2], optimizer=("sgd", "adam")[i // 4 % 2], quick=i % 7 == 0)
        )  # fmt: skip
    cases += [
        replace(base, name="one-step", T=1, N=2, batch_size=1, neuron=LIF(decay_input=False), quick=True),
        replace(base, name="one-pixel", T=5, N=3, K=1, neuron=LIF(v_threshold=0.25)),
        replace(base, name="T33", T=33, optimizer="adam", bias=True),
        replace(base, name="T131", T=131, loss="ce"),
        replace(base, name="primes", T=31, B=5, K=131, N=17, batch_size=3, bias=True),
        replace(base, name="if", neuron=IF(v_threshold=2.0, surrogate="sigmoid"), bias=True, optimizer="adam"),
        replace(base, name="if-soft", neuron=IF(v_threshold=2.0, v_reset=None, detach_reset=True), loss="ce"),
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
    layer = Case("repeat-layer", "repeat", LIF(), T=6, B=9, K=33, N=21, bias=True, quick=True)
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
    *_neuron_kinds(),
    *_linear(),
    *_linear_random(),
    *_recurrent(),
    *_currents(),
    *_rate_steps(),
    *_training(),
    *_repeats(),
)
"""Every case, in the order in which they run."""
CASES = {case.name: case for case in GRID}
