"""``fastsnn verify``: its cases, what it runs where, its report, its command, and every backend of this machine.

That each check can fail is the subject of ``tests/test_verify_broken.py``.
"""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fastsnn import backends, cli, verify
from fastsnn.backends import TorchBackend
from fastsnn.errors import BackendUnavailable
from fastsnn.kernels import reference
from fastsnn.kernels.neurons import NEURONS, SURROGATES, StepError
from fastsnn.kernels.triton import bf16_split
from fastsnn.kernels.triton.linear_forward import choose_tile
from fastsnn.verify import CASES, CHECKS, Target
from fastsnn.verify.case import draw
from fastsnn.verify.cases import GRID

CPU = torch.device("cpu")

SELECTION = [
    "lif-hard-decay-attached-tau2-atan",
    "lif-soft-whole-detached-tau3.7-erf",
    "lif-rest-decay-attached-tau3.7-rectangle",
    "lif-primes",
    "lif-T131",
    "lif-empty",
    "lif-bf16",
    "threshold-atan",
    "threshold-soft_sign",
    "neuron-if-scan",
    "neuron-plif-learnt",
    "neuron-cuba-learnt-linear",
    "neuron-alif-learnt",
    "neuron-se-adlif-linear",
    "neuron-read-out-scan",
    "neuron-lif-gradient",
    "linear-hard-decay-attached-tau2",
    "linear-soft-whole-attached-tau3.7",
    "linear-random-primes",
    "linear-random-strided",
    "linear-random-uint8",
    "linear-random-T131",
    "linear-random-empty",
    "recurrent-exact",
    "recurrent-se-adlif",
    "currents-K61",
    "rate-step-one-step",
    "rate-step-hard-whole-detached-tau3.7",
    "rate-step-if-soft",
    "training-fused-short-sgd",
    "repeat-layer",
    "run-layers",
    "run-fused",
]
"""At least one case of each group, for the test suite."""
SLOW_IN_INTERPRETER = {"lif-T131", "linear-random-T131", "run-fused"}


@pytest.mark.parametrize("backend", backends.names())
def test_this_machine_keeps_the_contract(backend: str) -> None:
    device = torch.device("cuda:0" if torch.cuda.is_available() and backend != "numba" else "cpu")
    if backend == "cupy" and device.type == "cpu":
        pytest.skip("needs a CUDA device, and this machine has none")
    interpreted = backend == "triton" and device.type == "cpu"
    names = [name for name in SELECTION if not (interpreted and name in SLOW_IN_INTERPRETER)]
    report = verify.verify(backend, str(device), cases=[CASES[name] for name in names])
    assert [str(failure) for row in report.rows for failure in row.failures] == []
    assert sum(row.cases for row in report.rows) >= 12


def test_the_selection_of_this_file_has_every_group() -> None:
    assert {CASES[name].group for name in SELECTION} >= set(CHECKS) - {"lif-shapes"}


def test_names_are_unique_and_groups_stand_together() -> None:
    assert len(CASES) == len(GRID)
    groups = [case.group for case in GRID]
    assert list(dict.fromkeys(groups)) == list(CHECKS)
    assert sum(a != b for a, b in itertools.pairwise(groups)) == len(CHECKS) - 1
    assert all(name.startswith(case.group.removesuffix("-shapes")) for name, case in CASES.items())


def test_the_grid_holds_every_neuron_with_every_surrogate_and_odd_shapes() -> None:
    neurons = Counter(
        (n.v_reset, n.decay_input, n.detach_reset, n.tau == 2, n.surrogate)
        for n in (case.neuron for case in GRID if case.group == "lif")
    )
    assert len(neurons) == 3 * 2 * 2 * 2 * len(SURROGATES)
    quick = [case for case in GRID if case.quick]
    assert {case.group for case in quick} == set(CHECKS)
    lif = [case.neuron for case in quick if case.group == "lif"]
    assert len({(n.v_reset, n.decay_input, n.detach_reset, n.tau) for n in lif}) == len(lif) == 24
    assert set(Counter(n.surrogate for n in lif).values()) <= {3, 4}
    assert {n.surrogate for n in lif} == set(SURROGATES)
    assert {case.neuron.surrogate for case in GRID if case.group == "rate-step"} == set(SURROGATES)
    for group in ("lif-shapes", "linear-random"):
        cases = [case for case in quick if case.group == group]
        assert {1, 131} <= {case.T for case in cases}
        assert {0, 1} <= {case.B for case in cases}
        assert max(case.N for case in cases) > 128
        assert any(case.strided for case in cases)
        assert {torch.float32, torch.float16} <= {case.dtype for case in cases}


def test_the_grid_holds_every_registered_neuron_with_and_without_learnt_parameters() -> None:
    cases = [case for case in GRID if case.group == "neuron"]
    assert {type(case.neuron) for case in cases} == set(NEURONS.values())
    for kind in NEURONS.values():
        own = [case for case in cases if type(case.neuron) is kind and not case.hand_gradient]
        assert {(bool(case.learn), bool(case.K)) for case in own} == set(itertools.product((False, True), repeat=2))
        assert all(case.state for case in own)
        assert all(set(kind.learns) <= set(case.learn) for case in own if case.learn)
    assert {type(case.neuron) for case in cases if case.hand_gradient} == {
        kind for kind in NEURONS.values() if kind().has_gradient
    }


@pytest.mark.parametrize("group", ["lif", "lif-shapes", "neuron", "linear", "linear-random"])
def test_neurons_are_neither_silent_nor_saturated(group: str) -> None:
    for case in GRID:
        if case.group != group or not case.small or case.T * case.B * case.N < 30:
            continue
        x, weight, bias, states, parameters, *_ = draw(case)
        current = x.float() if weight is None else F.linear(x.to(weight.dtype), weight, bias).float()
        first = None if states is None else states.unbind()
        spikes, last = reference.scan(current, case.neuron, first, parameters)
        assert not case.neuron.spikes or 0.05 < spikes.mean() < 0.95, case.name
        assert all(state.unique().numel() > 1 for state in last), case.name


def test_inputs_depend_on_the_name_alone() -> None:
    first, second = (draw(CASES["linear-random-primes"]) for _ in range(2))
    pairs = [pair for pair in zip(first, second, strict=True) if isinstance(pair[0], torch.Tensor)]
    assert len(pairs) >= 6
    assert all(torch.equal(*pair) for pair in pairs)
    other = draw(CASES["linear-random-blocks"])
    assert not torch.equal(first.x[0, 0, :9], other.x[0, 0, :9])
    assert not draw(CASES["linear-random-strided"]).x.is_contiguous()


def test_exact_currents_are_exact() -> None:
    """In any order: as they are, reversed, and in float64."""
    for case in (case for case in GRID if case.dyadic and case.group == "linear"):
        x, weight, bias, *_ = draw(case)
        currents = [F.linear(x, weight, bias), F.linear(x.flip(-1), weight.flip(-1), bias)]
        exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        assert all(torch.equal(current.double(), exact) for current in currents)


class Posing(TorchBackend):
    """The torch backend under another name, which declines what that one does, with ``scan`` replaced."""

    def __init__(self, name: str, scan: Any = None) -> None:
        self.name = name
        self.neuron_refusal = backends.load(name).neuron_refusal  # type: ignore[method-assign]
        self.scan = scan or super().scan  # type: ignore[method-assign]


def torch_target(name: str = "torch", mode: str = "cpu", scan: Any = None) -> Target:
    return Target(Posing(name, scan), CPU, mode)


@pytest.mark.parametrize(
    ("case", "target", "reason"),
    [
        ("rate-step-T33", torch_target(), "no fused training step"),
        ("training-fused-sgd", torch_target(), "no fused training step"),
        ("currents-K61", torch_target(), "the yardstick"),
        ("lif-half-a-million", torch_target("triton", "interpreter"), "too large for Triton's interpreter"),
        ("threshold-erf", torch_target("cupy", "gpu"), "no CUDA code for the surrogate 'erf'"),
        ("neuron-cuba-scan", torch_target("cupy", "gpu"), "LIF neurons that spike, not CuBaLIF"),
        ("neuron-lif-gradient", torch_target("numba"), "on backend torch"),
        ("lif-bf16", torch_target("cupy", "gpu"), "half precision"),
    ],
)
def test_what_is_left_out_says_why(case: str, target: Target, reason: str) -> None:
    (row,) = verify.check(target, [CASES[case]])
    assert row.cases == 0
    assert row.ok
    (found,) = row.refused
    assert reason in found


def test_a_named_case_runs_in_the_interpreter_whatever_its_size() -> None:
    big = CASES["lif-half-a-million"]
    target = torch_target("triton", "interpreter", scan=lambda *arguments: 1 / 0)
    (row,) = verify.check(target, [big], named=True)
    assert (row.cases, len(row.failures)) == (1, 1)
    assert row.failures[0].command == (
        "TRITON_INTERPRET=1 fastsnn verify --backend triton --device cpu --case lif-half-a-million"
    )


def test_half_precision_may_be_refused_by_name_and_nothing_else_may() -> None:
    def refusing(*arguments: Any) -> Any:
        raise TypeError("current has dtype bfloat16; allowed: float32")

    half, single = CASES["lif-bf16"], CASES["lif-one"]
    rows = list(verify.check(torch_target("numba", scan=refusing), [half, single]))
    assert [dict(row.refused) for row in rows] == [{"current has dtype bfloat16; allowed: float32": 1}]
    assert [failure.case for row in rows for failure in row.failures] == ["lif-one"]


def test_backends_that_cannot_run_are_skipped_or_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"cupy": "no CuPy", "triton": "no Triton"}
    posing = {name: Posing(name) for name in backends.names()}
    monkeypatch.setattr(backends, "refusal", lambda name, device: reasons.get(name))
    monkeypatch.setattr(backends, "load", posing.get)
    report = verify.verify(device="cpu", cases=[CASES["lif-one"]])
    assert {row.backend for row in report.rows} == {"torch", "numba"}
    assert [(skipped.backend, skipped.reason) for skipped in report.skipped] == [
        ("cupy", "no CuPy"),
        ("triton", "no Triton"),
    ]
    with pytest.raises(BackendUnavailable, match="backend cupy cannot run: no CuPy"):
        verify.verify("cupy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "jax"}, "backend is 'jax'; allowed: torch, cupy, triton, numba"),
        ({"device": "tpu"}, "device is 'tpu'; allowed: cpu, cuda, cuda:N"),
        ({"device": "mps"}, "device is 'mps'; allowed: cpu, cuda, cuda:N"),
        ({"case": "lif-on"}, "case is 'lif-on'; allowed: lif-one, lif-one-step$"),
        ({"case": "threshold-step"}, "allowed: threshold-atan, .*threshold-fast_sigmoid$"),
        ({"case": "lif-one", "neuron": "lif"}, "case is 'lif-one'; allowed: neuron-lif-scan, "),
        ({"neuron": "lfi"}, r"neuron is 'lfi' \(did you mean lif\?\); allowed: if, lif, "),
        ({"case": "currents-K61", "backend": "torch", "device": "cpu"}, "nothing to run here; torch: .*yardstick"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verify.verify(**arguments)  # type: ignore[arg-type]


def test_report_as_json() -> None:
    report = verify.verify("torch", "cpu", cases=[CASES["lif-one"], CASES["repeat-layer"], CASES["rate-step-T33"]])
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["schema"] == verify.SCHEMA
    assert found["ok"] is True
    assert found["machine"].keys() == {"system", "cpu", "threads", "cuda", "gpus"}
    assert {"fastsnn", "python", "torch"} <= found["versions"].keys()
    lif, repeat, refused = found["rows"]
    assert (lif["backend"], lif["device"], lif["mode"], lif["group"]) == ("torch", "cpu", "cpu", "lif-shapes")
    assert (lif["cases"], lif["ok"], lif["worst"]["case"]) == (1, True, "lif-one")
    assert repeat["worst"] | {"case": "", "what": ""} == {
        "promise": "C6",
        "error": 0,
        "bound": 0,
        "case": "",
        "what": "",
    }
    assert (refused["cases"], list(refused["refused"].values())) == (0, [1])


def command(*arguments: str) -> int:
    """The exit status of ``fastsnn verify`` in this process."""
    before, sys.argv = sys.argv, ["fastsnn", "verify", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def test_command_prints_a_row_per_group_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "card.json"
    assert command("--backend", "torch", "--device", "cpu", "--case", "lif-primes", "--json", str(path)) == 0
    text = capsys.readouterr().out
    assert "torch" in text
    assert "lif-shapes" in text
    assert "all 1 cases are correct" in text
    assert json.loads(path.read_text())["rows"][0]["worst"]["case"] == "lif-primes"


def test_command_on_a_broken_backend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1, and a command that runs the failed case alone; an error that is not finite is null in the JSON."""
    calls = []

    class Broken(TorchBackend):
        def scan(self, current: torch.Tensor, *arguments: Any) -> Any:
            calls.append(current.shape)
            spikes, state = super().scan(current, *arguments)
            return spikes, state + torch.nan

    monkeypatch.setattr(backends, "load", lambda name: Broken())
    path = tmp_path / "card.json"
    assert command("--backend", "torch", "--device", "cpu", "--case", "lif-T131", "--json", str(path)) == 1
    text = capsys.readouterr().out
    assert "FAIL torch on cpu: lif-T131: C1 state" in text
    assert "1 of 1 cases failed" in text
    row = json.loads(path.read_text())["rows"][0]
    assert (row["ok"], row["worst"]["error"]) == (False, None)
    (again,) = [line.partition("again: ")[2] for line in text.splitlines() if "again: " in line]
    assert row["failures"][0]["command"] == again
    before = len(calls)
    assert command(*shlex.split(again)[2:]) == 1
    assert set(calls[before:]) == {(131, 2, 13)}


def test_command_shows_the_traceback_of_a_named_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def crashing(*arguments: Any) -> Any:
        raise RuntimeError("no kernel image")

    posing = Posing("torch", crashing)
    monkeypatch.setattr(backends, "load", lambda name: posing)
    path = tmp_path / "card.json"
    assert command("--backend", "torch", "--device", "cpu", "--case", "lif-one", "--json", str(path)) == 1
    text = capsys.readouterr().out
    assert "lif-one: RuntimeError: no kernel image" in text
    assert "in crashing" in text
    assert "in crashing" not in path.read_text()


def test_command_names_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--case", "nothing") == 2
    assert command("--json", str(tmp_path / "no" / "card.json")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "case is 'nothing'; allowed: lif-hard-decay-attached-tau2-atan, " in lines[0]
    assert "json is " in lines[1]


NEURON = """
from dataclasses import dataclass

import fastsnn


@dataclass(frozen=True)
class Leaky(fastsnn.Neuron):
    beta: float = 0.5
    slip: bool = False

    def step(self, x, v):
        h = v * self.beta + x
        s = self.spike(h - 1.0)
        return s, h - s

    def gradient(self, x, v, grad_output, grad_v):
        h = v * self.beta + x
        slope = self.surrogate_row.derivative(h - 1.0, self.alpha)
        grad_h = (grad_output - grad_v) * slope + grad_v
        return grad_h, grad_h * (1 - self.beta if self.slip else self.beta)


@dataclass(frozen=True)
class Deciding(Leaky):
    def step(self, x, v):
        return (x, v) if v > 0 else (v, x)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file with neurons of one's own."""
    path = tmp_path / "own.py"
    path.write_text(NEURON)
    return path


def test_command_on_a_neuron_of_ones_own(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "card.json"
    spec = f"{own}:Leaky(beta=0.75)"
    assert command("--device", "cpu", "--backend", "torch", "--neuron", spec, "--json", str(path)) == 0
    assert "all 12 cases are correct" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["neuron"] == spec
    assert [row["group"] for row in found["rows"]] == ["neuron"]
    assert command("--device", "cpu", "--backend", "numba", "--neuron", spec, "--case", "neuron-leaky-learnt") == 0


def test_command_names_the_first_difference_of_a_gradient_by_hand(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = f"{own}:Leaky(beta=0.75, slip=true)"
    assert command("--device", "cpu", "--backend", "torch", "--neuron", spec) == 1
    text = capsys.readouterr().out
    assert "neuron-leaky-gradient: C4 gradient by hand of v: " in text
    assert "gradient by hand of x" not in text
    assert re.search(r"it is \S+, that of the step \S+, first at x = \S+, v = \S+, grad_output = \S+, grad_v = ", text)
    (again,) = [line.partition("again: ")[2] for line in text.splitlines() if "again: " in line]
    assert command(*shlex.split(again)[2:]) == 1


def test_a_step_that_cannot_be_compiled_is_named_before_anything_runs(own: Path) -> None:
    with pytest.raises(StepError, match=r"own\.py, line 27: .* write where\(condition, a, b\)"):
        verify.verify("torch", "cpu", neuron=f"{own}:Deciding")


def test_command_for_a_backend_that_cannot_run() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU, where triton runs only on request")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-m", "fastsnn", "verify", "--backend", "triton"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert len(found.stderr.splitlines()) == 1
    assert "TRITON_INTERPRET=1" in found.stderr


@pytest.mark.parametrize("name", ["linear-random-columns128", "currents-K4096-dense-columns128"])
@pytest.mark.parametrize("multiprocessors", [114, 132, 148, 160])
def test_a_case_takes_the_tile_of_128_columns(name: str, multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the GPUs that have it: an H100, an H200, a B200 and a B300."""
    case, device = CASES[name], torch.device("cuda")
    monkeypatch.setattr(bf16_split, "multiprocessors", lambda device: multiprocessors)
    monkeypatch.setattr(bf16_split, "capability", lambda device: 90)
    options = bf16_split.tile_options(device, torch.float32, bf16_split.arithmetic(device, case.dtype), case.K, case.N)
    assert choose_tile(case.T, case.B, case.N, options["BLOCK_N"], device)[1] == 128
