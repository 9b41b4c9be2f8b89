"""The launches that ``compile_targets.py`` compiles: every operator in the variants that its options make.

Tensors are on torch's meta device: they have shapes, and no memory.
"""

from itertools import product
from typing import Any

import torch
from torch import Tensor

from fastsnn import LI, LIF, PLIF, Neuron, SEAdLIF
from fastsnn.kernels.neurons import SURROGATES
from fastsnn.kernels.neurons.program import CompiledNeuron, compile_neuron
from fastsnn.kernels.rate_classifier.parameters import Parameters
from fastsnn.kernels.rate_classifier.triton.encode import PixelIndex
from fastsnn.kernels.rate_classifier.triton.launch import Plan, Problem
from fastsnn.kernels.triton import bf16_split, linear, philox
from fastsnn.kernels.triton.linear_forward import linear_forward
from fastsnn.kernels.triton.recurrent import backward_loop, forward_loop
from fastsnn.kernels.triton.scan import scan_backward, scan_forward
from tests import compile_targets
from tests.compile_targets import case


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def prepare(learnt: bool, n: int, options: dict[str, Any]) -> tuple[CompiledNeuron, dict[str, Tensor]]:
    """A LIF neuron of tau 5, or a PLIF neuron whose w learns, one for each of n neurons."""
    options = {"tau": 5.0} | options
    if learnt:
        return compile_neuron(PLIF(**options), ("w",)), {"w": empty(n)}
    return compile_neuron(LIF(**options)), {}


def run_scan(
    n: int = 1 << 20, dtype: torch.dtype = torch.float32, state: bool = False, full: bool = True, learnt: bool = False,
    **options: Any,
) -> None:  # fmt: skip
    """The scan both ways; ``full`` keeps what backward needs, and adds the bf16 parts and the sum of the gradient."""
    neuron, parameters = prepare(learnt, n, options)
    current, states, kept = empty(16, n, dtype=dtype), empty(neuron.states, n), empty(neuron.kept, 16, n)
    first = states if state else None
    scan_forward(neuron, current, first, parameters, empty(16, n, dtype=dtype), states, kept if full else None)
    grad = empty(3, 16, n, dtype=torch.bfloat16) if full and state else current
    rows = empty(len(neuron.learnt_constants), n)
    total = states[0] if full else None
    scan_backward(neuron, current, first, kept, parameters, grad, states, rows, total)


def run_linear(
    x: torch.dtype = torch.float32, weight: torch.dtype = torch.float32,
    T: int = 500, B: int = 16, N: int = 4096, K: int = 4096,
    bias: bool = True, state: bool = False, pack: bool = False, keep: bool = True, learnt: bool = False, **options: Any,
) -> None:  # fmt: skip
    neuron, parameters = prepare(learnt, N, options)
    output = empty(-(-T // 32), B, N, dtype=torch.int32) if pack else empty(T, B, N, dtype=weight)
    linear_forward(
        neuron, empty(T, B, K, dtype=x), empty(N, K, dtype=weight), empty(N, dtype=weight) if bias else None,
        empty(neuron.states, B, N) if state else None, parameters, output, empty(neuron.states, B, N),
        empty(neuron.kept, T, B, N) if keep else None,
    )  # fmt: skip


def run_gradients(sm: int, x: torch.dtype, T: int = 500, B: int = 16, N: int = 4096, K: int = 4096) -> None:
    """The products of backward; below sm_80 they are the library's."""
    if sm >= 80:
        grad = empty(3, T, B, N, dtype=torch.bfloat16)
        linear.weight_gradient(grad, empty(T, B, K, dtype=x), empty(N, K))
        linear.input_gradient(grad, empty(N, K), empty(T, B, K))


case("scan", lambda sm: run_scan(), quick=True)
case("scan-small", lambda sm: run_scan(4096, state=True, tau=2.0))
for surrogate in list(SURROGATES)[1:]:
    case(f"scan-{surrogate}", lambda sm, surrogate=surrogate: run_scan(surrogate=surrogate))
for name, options in {
    "soft": {"v_reset": None},
    "rest": {"v_reset": -0.25},
    "whole": {"decay_input": False},
    "rest-whole": {"v_reset": -0.25, "decay_input": False},
    "detached": {"detach_reset": True},
    "half": {"dtype": torch.float16, "full": False},
    "odd": {"n": (1 << 20) + 3},
    "parts": {"state": True},
    "learnt": {"learnt": True},
}.items():
    case(f"scan-{name}", lambda sm, options=options: run_scan(**options))

case("linear-float", lambda sm: run_linear(), quick=True)
case("linear-spikes", lambda sm: run_linear(torch.uint8), quick=True)
for tau, dtype in product((2.0, 5.0), (torch.float32, torch.uint8)):
    name = f"tau{tau:g}-{str(dtype).removeprefix('torch.')}"
    tuning = {"x": dtype, "tau": tau}
    case(f"linear-pack-{name}", lambda sm, o=tuning: run_linear(pack=True, keep=False, bias=False, **o))
    case(f"linear-T4-{name}", lambda sm, o=tuning: run_linear(T=4, B=4096, N=1000, K=777, **o))
    if tau == 5:  # what divides takes the most registers
        case(f"linear-v-{name}", lambda sm, o=tuning: run_linear(state=True, pack=True, v_reset=-0.25, **o))
        case(f"linear-classes-{name}", lambda sm, o=tuning: run_linear(T=100, B=64, N=10, K=784, bias=False, **o))
        case(f"linear-pack-T4-{name}", lambda sm, o=tuning: run_linear(T=4, B=4096, pack=True, keep=False, **o))
        for T in (1, 8, 20, 100):
            case(f"linear-T{T}-{name}", lambda sm, T=T, o=tuning: run_linear(T=T, B=4096, N=1000, K=777, **o))
case("linear-soft", lambda sm: run_linear(v_reset=None, decay_input=False))
case("linear-learnt", lambda sm: run_linear(learnt=True))
case("linear-half", lambda sm: run_linear(torch.float16, torch.float16))
case("linear-bfloat16", lambda sm: run_linear(torch.bfloat16, torch.bfloat16) if sm >= 80 else None)

case("gradients-float", lambda sm: run_gradients(sm, torch.float32), quick=True)
case("gradients-spikes", lambda sm: run_gradients(sm, torch.uint8))
case("gradients-odd", lambda sm: run_gradients(sm, torch.float32, N=10, K=777))
case("bf16_split", lambda sm: bf16_split.split(empty(4096, 777)) if sm >= 80 else None, quick=True)


def run_encoding() -> None:
    """Poisson encoding of bytes and of floats, and what packs and unpacks."""
    ids = empty(64, dtype=torch.int64)
    philox.poisson_spikes(empty(64, 784, dtype=torch.uint8), 100, 1, 2, 0, ids, False)
    philox.poisson_spikes(empty(64, 784), 100, 1, 2, 0, None, True)
    philox.pack(empty(500, 4096, dtype=torch.bool))
    for dtype in (torch.uint8, torch.float32):
        philox.unpack(empty(16, 4096, dtype=torch.int32), 500, dtype)


case("encoding", lambda sm: run_encoding(), quick=True)


def run_rate_step(
    sm: int, T: int = 100, classes: int = 10, pixels: int = 784, batch: int = 64, loss: str = "mse", bias: bool = False,
    adam: bool = True, **options: Any,
) -> None:  # fmt: skip
    """The launches of a training step and of an evaluation."""
    neuron = compile_neuron(LIF(**{"tau": 2.0} | options))
    problem = Problem(T, classes, pixels, 0, loss == "ce", bias, sm >= 80, neuron)
    weight, offset = torch.nn.Parameter(empty(classes, pixels)), torch.nn.Parameter(empty(classes))
    optimizer: Any = torch.optim.Adam([weight, offset]) if adam else torch.optim.SGD([weight, offset], lr=0.1)
    parameters = Parameters(weight, offset if bias else None, optimizer, problem.block_n, problem.exact)
    rows, entries = empty(60001, dtype=torch.int32), empty(9 << 20, dtype=torch.int32)
    data = PixelIndex(rows, entries, empty(60000, dtype=torch.int64), pixels, 352)
    training = Plan(problem, parameters, data, batch, 938, True)
    training._encode()
    training._step(0, 1)
    training._update(0)
    evaluation = Plan(problem, parameters, data, batch, 938, False)
    evaluation._step(0, evaluation.batches)
    evaluation._tally(evaluation.batches)


case("rate-step", run_rate_step, quick=True)
for name, options in {
    "general": {"tau": 5.0, "v_reset": -0.25, "loss": "ce", "bias": True, "adam": False, "surrogate": "erf"},
    "classes": {"classes": 32, "bias": True, "detach_reset": True, "surrogate": "sigmoid"},
    "short": {"T": 4, "v_reset": None, "surrogate": "soft_sign"},
    "long": {"T": 1000, "v_reset": None, "decay_input": False, "surrogate": "piecewise_quadratic"},
    "groups": {"batch": 1400, "surrogate": "rectangle"},
    "largest": {"T": 1024, "classes": 32, "pixels": 65535, "batch": 8192, "tau": 5.0, "v_reset": -0.25, "bias": True},
}.items():
    case(f"rate-step-{name}", lambda sm, options=options: run_rate_step(sm, **options))
__all__ = ["compile_targets"]


def run_recurrent(
    T: int = 100, B: int = 128, N: int = 256, neuron: Neuron | None = None, learn: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32, diagonal: bool = False, pack: bool = False, initial: bool = False,
    keep: bool = True,
) -> None:  # fmt: skip
    """The time loops of a recurrent layer; its products are those of a linear one."""
    prepared = compile_neuron(neuron or LIF(tau=5.0), learn)
    parameters = {name: empty(N) for name in learn}
    shape, weight = (T, B, N), empty(*(() if diagonal else (N,)), N, dtype=dtype)
    output = empty(-(-T // 32), B, N, dtype=torch.int32) if pack else empty(*shape, dtype=dtype)
    final, kept = empty(prepared.states, B, N), empty(prepared.kept, *shape) if keep else None
    first = empty(B, N) if initial else None
    forward_loop(prepared, empty(*shape), weight, None, first, parameters, output, final, kept)
    if kept is not None:
        rows = empty(len(prepared.learnt_constants), B, N)
        backward_loop(prepared, empty(*shape, dtype=dtype), None, kept, weight, parameters, final, rows, empty(B, N))


SE_ADLIF = {"neuron": SEAdLIF(), "learn": ("tau", "tau_w", "a", "b")}
case("recurrent", lambda sm: run_recurrent(), quick=True)
for name, options in {
    "small": {"B": 33, "N": 17},
    "large": {"N": 1000, "neuron": LIF(tau=5.0, v_reset=-0.25)},
    "diagonal": {"diagonal": True},
    "pack": {"pack": True, "keep": False},
    "initial": {"initial": True},
    "half": {"dtype": torch.float16},
    "se-adlif": {**SE_ADLIF, "initial": True},
    "se-adlif-large": {**SE_ADLIF, "N": 1000},
    "se-adlif-diagonal": {**SE_ADLIF, "diagonal": True},
    "li": {"neuron": LI()},
}.items():
    case(f"recurrent-{name}", lambda sm, options=options: run_recurrent(**options))
