"""Neurons of a user's own: a step of five lines on every backend, gradients by hand, redefinitions, new processes."""

import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from neuron_cases import BACKENDS, DEVICE, case, check_neuron, device_of, gradients, leaves, linear_case
from torch import nn

import fastsnn
from fastsnn import LIF, LinearLIF, Neuron, PackedSpikes, Spiking
from fastsnn.kernels import contract, reference
from fastsnn.kernels.neurons import StepError
from fastsnn.kernels.neurons.program import compile_neuron

every = pytest.mark.parametrize("backend", ["torch", *BACKENDS])


@dataclass(frozen=True)
class Mine(Neuron):
    """A leak, a threshold and a reset."""

    tau: float = 3.0
    v_threshold: float = 1.0

    def step(self, x, v):  # type: ignore[no-untyped-def]
        h = v + (x - v) / self.tau
        s = self.spike(h - self.v_threshold)
        return s, (1 - s) * h


@dataclass(frozen=True)
class Filtered(Neuron):
    """Two states, an option, a rest that isn't 0 and a surrogate of its own choice."""

    states: ClassVar[tuple[str, ...]] = ("i", "v")
    decay: float = 0.7
    v_rest: float = -0.2
    v_threshold: float = 1.0
    soft: bool = False
    surrogate: str = field(default="sigmoid", kw_only=True)

    def rest(self) -> tuple[float, ...]:
        return 0.0, self.v_rest

    def step(self, x, i, v):  # type: ignore[no-untyped-def]
        i = self.decay * i + x
        h = v + (self.v_rest - v + i) * 0.4
        s = self.spike(h - self.v_threshold)
        return s, i, h - s * self.v_threshold if self.soft else h + s * (self.v_rest - h)


@dataclass(frozen=True)
class Leaky(Neuron):
    """A read-out."""

    spikes: ClassVar[bool] = False
    decay: float = 0.9

    def step(self, x, v):  # type: ignore[no-untyped-def]
        v = self.decay * v + x
        return v, v


NEURONS = [Mine(), Filtered(soft=True), Leaky()]
named = pytest.mark.parametrize("neuron", NEURONS, ids=lambda neuron: type(neuron).__name__)


@pytest.mark.parametrize("starts", [False, True], ids=["at rest", "from states"])
@named
@every
def test_scan(backend: str, neuron: Neuron, starts: bool) -> None:
    generator = torch.Generator().manual_seed(12)
    states = {name: torch.rand(3, 29, generator=generator) for name in neuron.states}
    check_neuron(backend, neuron, case(11, 3, 29)[0], states if starts else None)


@named
@every
def test_linear_and_modules(backend: str, neuron: Neuron) -> None:
    """The same numbers as the reference's from exact currents; gradients of weight and bias."""
    x, weight, bias, _, grad, _ = linear_case(9, 3, 17, 19, dyadic=True)
    device = device_of(backend)
    layer = LinearLIF(17, 19, neuron=neuron, backend=backend, device=device)
    layer.load_state_dict({"weight": weight, "bias": bias})
    output = layer(x.to(device))
    expected, _ = reference.linear(x, weight, bias, neuron)
    contract.require(contract.same_bits("output", output.detach(), expected))
    pair = Spiking(neuron, backend=backend)(nn.functional.linear(x, weight, bias).to(device))
    contract.require(contract.same_bits("output", pair, expected))
    found = torch.autograd.grad(output, (layer.weight, layer.bias), grad.to(device))
    exact = leaves(weight.double(), bias.double())
    replayed, _ = contract.replay(nn.functional.linear(x.double(), *exact), neuron, None, expected)
    for name, got, wanted in zip(("weight", "bias"), found, gradients([replayed], exact, grad), strict=True):
        contract.require(contract.gradient_error(name, got, wanted))


@every
def test_packed_spikes_between_layers_of_them(backend: str) -> None:
    device = device_of(backend)
    first = LinearLIF(17, 19, neuron=Filtered(), backend=backend, packed=True, device=device)
    second = LinearLIF(19, 5, neuron=Leaky(), backend=backend, device=device)
    x = 4 * linear_case(33, 3, 17, 19)[0].to(device)
    words = first(x)
    assert isinstance(words, PackedSpikes)
    contract.require(contract.same_bits("output", second(words), second(words.unpack())))
    with pytest.raises(ValueError, match="packed is True, but Leaky gives potentials, not spikes; allowed: False"):
        LinearLIF(17, 19, neuron=Leaky(), backend=backend, packed=True, device=device)(x)


def test_a_compiled_network_of_them() -> None:
    net = nn.Sequential(
        LinearLIF(17, 19, neuron=Filtered(), backend="triton", packed=True, device=DEVICE),
        LinearLIF(19, 5, neuron=fastsnn.PLIF(), backend="triton", device=DEVICE),
        Spiking(Mine(), learn=("tau",), size=(5,), backend="triton").to(DEVICE),
    )
    x = 4 * linear_case(6, 2, 17, 5)[0].to(DEVICE)
    results = []
    for run in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        spikes = run(x)
        results.append((spikes, *torch.autograd.grad(spikes.sum(), list(net.parameters()))))
    contract.require(*(contract.same_bits(str(i), *pair) for i, pair in enumerate(zip(*results, strict=True))))


def define(threshold: float) -> type[Neuron]:
    """A class of the same name each time, as a cell of a notebook that is run again."""

    @dataclass(frozen=True)
    class Cell(Neuron):
        def step(self, x, v):  # type: ignore[no-untyped-def]
            s = self.spike(v + x - threshold)
            return s, (v + x) * (1 - s)

    return Cell


@every
def test_a_class_that_is_defined_again_is_another_one(backend: str) -> None:
    current = case(9, 2, 7)[0]
    for kind in (define(0.5), define(2.5), define(0.5)):
        spikes, _ = fastsnn.scan(current.to(device_of(backend)), kind(), backend=backend)
        contract.require(contract.same_bits("spikes", spikes, reference.scan(current, kind())[0]))


def test_an_infinite_threshold_never_fires() -> None:
    """LIF as a read-out: its output is the potential."""
    current, v, *_ = case(11, 3, 29)
    for backend in ("torch", *BACKENDS):
        check_neuron(backend, LIF(v_threshold=math.inf), 1e6 * current, {"v": v})
        output, last = fastsnn.scan(current.to(device_of(backend)), LIF(v_threshold=math.inf), backend=backend)
        assert torch.equal(output[-1], last["v"])
        assert not ((output == 0) | (output == 1)).any()


@dataclass(frozen=True)
class ByHand(Mine):
    """Mine with a gradient by hand, which a ``factor`` other than 1 makes wrong."""

    factor: float = 1.0

    def gradient(self, x, v, grad_output, grad_v):  # type: ignore[no-untyped-def]
        h = v + (x - v) / self.tau
        s = self.spike(h - self.v_threshold)
        slope = self.surrogate_row.derivative(h - self.v_threshold, self.alpha)
        grad_h = (grad_output - h * grad_v) * slope * self.factor + (1 - s) * grad_v
        return grad_h / self.tau, grad_h * (1 - 1 / self.tau)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_by_hand_is_used_and_measured(backend: str) -> None:
    """C4 sees what is wrong with one; the derived one is right."""
    current, v, *_ = case(11, 3, 29)
    check_neuron(backend, ByHand(), current, {"v": v})
    with pytest.raises(AssertionError, match=r"C4 gradient of current: .*\[\d+, \d+, \d+\] is .* instead of"):
        check_neuron(backend, ByHand(factor=1.001), current, {"v": v})


def test_a_gradient_by_hand_gives_way_if_a_parameter_learns() -> None:
    """It says nothing of parameters: the derived one is taken, wrong factor or not."""
    current, v, *_ = case(11, 3, 29)
    wrong = ByHand(factor=2.0)
    assert compile_neuron(wrong).backward != compile_neuron(wrong, ("tau",)).backward
    check_neuron("triton", wrong, current, {"v": v}, {"tau": torch.full((29,), 3.0)})


def test_a_gradient_by_hand_of_another_shape_is_refused() -> None:
    @dataclass(frozen=True)
    class Short(Mine):
        def gradient(self, x, v, grad_output, grad_v):  # type: ignore[no-untyped-def]
            return grad_output

    with pytest.raises(StepError, match=r"py, line \d+: Short.gradient returns 1 value; allowed: 2 \(x, v\)"):
        compile_neuron(Short())


MODULE = """
from dataclasses import dataclass
from fastsnn import Neuron

@dataclass(frozen=True)
class Kept(Neuron):
    tau: float = 3.0

    def step(self, x, v):
        h = v + (x - v) / self.tau - 0.125 * v
        s = self.spike(h - 1.0)
        return s, (1 - s) * h
"""

RUN = """
import sys
from contextlib import contextmanager
from unittest import mock

import torch, triton
import fastsnn
import changed, kept
from fastsnn.kernels.neurons.neuron import neuron_of
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.triton.program import device_function
from numba.core import event
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def kernel(x_ptr, out_ptr, tau, STEP: triton.language.constexpr):
    results = STEP((triton.language.load(x_ptr), triton.language.load(x_ptr + 1)), (tau, tau, tau, tau), ())
    triton.language.store(out_ptr, results[0])
    triton.language.store(out_ptr + 1, results[1])

def count(kind):
    lowered, make_ir = [], ASTSource.make_ir
    with (
        event.install_recorder("numba:compile") as compiled,
        mock.patch.object(ASTSource, "make_ir", lambda *a, **k: (lowered.append(1), make_ir(*a, **k))[1]),
    ):
        for tau in (3.0, 5.0):
            current = torch.ones(4, 2, 3, requires_grad=True)
            fastsnn.scan(current, kind(tau), backend="numba")[0].sum().backward()
            step = device_function(compile_neuron(kind(tau)).forward)
            signature = {"x_ptr": "*fp32", "out_ptr": "*fp32", "tau": "fp32", "STEP": "constexpr"}
            triton.compile(ASTSource(kernel, signature, {"STEP": step}), target=GPUTarget("cuda", 80, 32))
    return len(compiled.buffer), len(lowered)

assert neuron_of("kept:Kept(surrogate='atan', alpha=2.0, tau=4.0)") == kept.Kept(4.0)
print(count(kept.Kept), count(changed.Kept) if "changed" in sys.argv else (0, 0))
"""


def test_a_new_process_compiles_nothing_again(tmp_path: Path) -> None:
    """Programs are kept on disk, one for all values of a parameter; a step that changed is another one."""
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "kept.py").write_text(MODULE)
    (tmp_path / "changed.py").write_text(MODULE.replace("0.125", "0.25"))
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path / "numba"), "TRITON_CACHE_DIR": str(tmp_path / "triton")}

    def run(*arguments: str) -> list[int]:
        """Compilations of the neuron by Numba and by Triton, and of the changed one."""
        command = [sys.executable, "run.py", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return [int(number) for number in re.findall(r"\d+", done.stdout)]

    first, again = run(), run("changed")
    assert first[0] > 0
    assert first[1] == 1
    assert again[:2] == [0, 0]
    assert again[2] > 0
    assert again[3] == 1


def test_a_neuron_of_the_console_needs_no_file() -> None:
    """Defined where inspect finds no source: it runs, and what is refused still names its line."""
    code = """
from dataclasses import dataclass
import fastsnn

@dataclass(frozen=True)
class Here(fastsnn.Neuron):
    bad: bool = False
    def step(self, x, v):
        if self.bad:
            return x ** 2, v
        s = self.spike(v + x - 1.0)
        return s, (1 - s) * (v + x)
"""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "<stdin>", "exec"), names)
    current = torch.ones(3, 1, 1, device=DEVICE)
    assert fastsnn.scan(current, names["Here"](), backend="triton")[0].sum() == 3
    with pytest.raises(StepError, match=r"^<stdin>, line 10: the step uses \*\*; write a product; allowed: "):
        fastsnn.scan(current, names["Here"](bad=True), backend="triton")
