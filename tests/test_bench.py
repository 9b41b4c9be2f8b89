"""bench/: the gate, the names, peers that break, and a run of everything in its smallest form."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import cases, gate, machine, page, peers, race, report, results, works
from bench.cases import Case
from bench.ours import Ours
from bench.peers.remote import Remote
from bench.results import Results
from fastsnn import LIF
from fastsnn.kernels import reference

CPU = torch.device("cpu")
TINY = cases.grid("tiny", gpu=False, cores=2)
GATED = ("rate_step", "scan", "linear-24", "mlp", "encoding")


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    intensity = torch.rand(8, 64, generator=generator) * (torch.rand(8, 64, generator=generator) < 0.5)
    return (intensity * 255).to(torch.uint8), torch.arange(8)


def verdict(peer: works.Peer, name: str) -> str | None:
    """What the gate says of a peer's work."""
    case = TINY[name]
    judge = gate.build(case, *images())
    work = peers.work(peer, case, cases.inputs(case, *images()), CPU)
    return judge.failure(work.outputs(judge.inputs))


class Right(works.Peer):
    """The reference as a peer, with its neuron open to mutation."""

    name = "right"

    def __init__(self, **changed: Any) -> None:
        self.neuron = LIF(**cases.NEURON | changed)

    def lif(self, current: Tensor) -> Tensor:
        return reference.scan(current, self.neuron)[0]


class Dim(Right):
    """An encoder whose spikes are 5 % too few."""

    def encode(self, pixels: Tensor, T: int) -> Tensor:
        return torch.bernoulli(0.95 * pixels.expand(T, *pixels.shape), generator=torch.Generator().manual_seed(0))


class Noisy(Right):
    """Gradients that are wrong by one part in ten thousand."""

    def network(self, weights: list[Tensor]) -> nn.Module:
        network = super().network(weights)
        for parameter in network.parameters():
            parameter.register_hook(lambda grad: grad * 1.0001)
        return network


@pytest.mark.parametrize("name", GATED)
def test_gate_passes_the_reference(name: str) -> None:
    assert verdict(Right(), name) is None


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("backend", ["fastsnn-torch", "fastsnn-numba"])
def test_gate_passes_ours(name: str, backend: str) -> None:
    assert verdict(Ours(backend, CPU), name) is None


@pytest.mark.parametrize("name", ["rate_step", "scan", "linear-24", "mlp"])
@pytest.mark.parametrize(
    ("changed", "what"),
    [({"alpha": 2.04}, "gradient"), ({"detach_reset": True}, "gradient"), ({"v_threshold": 1.1}, "spikes")],
)
def test_gate_refuses_another_neuron(name: str, changed: dict[str, Any], what: str) -> None:
    assert what in str(verdict(Right(**changed), name))


@pytest.mark.parametrize("name", ["rate_step", "linear-24", "mlp"])
def test_gate_refuses_wrong_gradients(name: str) -> None:
    assert "gradient of weight0" in str(verdict(Noisy(), name))


def test_gate_refuses_another_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "LEARNING_RATE", 1.001e-3)
    assert "step of weight0" in str(verdict(Right(), "rate_step"))


def test_gate_refuses_a_fused_step_with_another_neuron(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.ours.NEURON", cases.NEURON | {"v_threshold": 1.1})
    assert "losses of the samples" in str(verdict(Ours("fastsnn-numba", CPU), "rate_step"))


def test_gate_refuses_another_encoder() -> None:
    # 256 images, so that 5 % is far from chance.
    case = Case("encoding", "encoding", 32, 256, (64,), backward=False)
    judge = gate.build(case, *images())
    work = peers.work(Dim(), case, judge.inputs, CPU)
    assert "spikes in all" in str(judge.failure(work.outputs(judge.inputs)))


def test_a_worker_in_another_process_computes_the_same() -> None:
    case = TINY["linear-24"]
    judge = gate.build(case, *images())
    remote = Remote("spikingjelly2", Path(sys.prefix))
    try:
        work = remote.work(case, cases.inputs(case, *images()), CPU)
        assert judge.failure(work.outputs(judge.inputs)) is None
        assert work.timed() > 0
        with pytest.raises(RuntimeError, match="KeyError"):
            remote.call("timed", id=99, threads=1)
    finally:
        remote.close()


def test_a_missing_environment_is_named() -> None:
    with pytest.raises(ValueError, match=r"there is no .*nowhere"):
        Remote("spikingjelly2", Path("nowhere"))


def test_unknown_names_list_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown case 'nope'; valid: rate_step, scan, "):
        cases.select("scan,nope", TINY, "case")
    assert cases.select("scan, mlp", TINY, "case") == ["scan", "mlp"]


@pytest.mark.parametrize("gpu", [False, True])
def test_grids_hold_every_subject(gpu: bool) -> None:
    full = cases.grid("full", gpu, cores=4)
    assert {case.group for case in TINY.values()} == {case.group for case in full.values()}
    quick = cases.grid("quick", gpu, cores=4)
    assert all(full[name] == case for name, case in quick.items())
    assert ("scaling-threads-4" in full) is not gpu
    modules = {path.stem.removeprefix("bench_") for path in (report.ROOT / "bench").glob("bench_*.py")}
    assert modules == {case.group for case in full.values()}


def test_cases_survive_json() -> None:
    for case in TINY.values():
        assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case


class Rounds:
    """pytest-benchmark's fixture as far as the race uses it."""

    stats = None

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, target: Any, setup: Any, rounds: int) -> None:
        for _ in range(rounds):
            setup()
            target()


class Breaks(Right):
    """Works a few times, then no more."""

    calls = 0

    def lif(self, current: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3:  # warmed up, judged and weighed
            raise MemoryError("no more\nof it")
        return super().lif(current)


def create(name: str, peer_env: Path | None) -> works.Peer:
    peer = {"right": Right, "breaks": Breaks, "wrong": lambda: Right(alpha=3.0)}.get(name)
    if peer is None:
        raise ImportError(f"{name} does not import")
    return peer()


def test_a_peer_that_is_wrong_or_breaks_is_reported_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["right", "wrong", "breaks", "broken"]
    monkeypatch.setattr(peers, "MODULES", {name: (name, None) for name in names} | {"absent": ("absent", "nowhere")})
    monkeypatch.setattr(peers, "create", create)
    monkeypatch.setattr(Right, "label", lambda self: type(self).__name__)
    empty = Results({"peak_bandwidth": 1e10, "peak_flops": 1e11}, {"abc-1": {"commit": "abc"}})
    session = race.Session(CPU, "tiny", [*names, "absent"], None, *images(), "digits", empty, "abc-1")
    race.run(TINY["scan"], session, Rounds())  # type: ignore[arg-type]
    rows = {r.implementation: r for r in session.results.rows}
    assert {name: rows[name].status for name in rows} == {
        "fastsnn-numba": "measured", "fastsnn-torch": "measured", "right": "measured", "wrong": "refused",
        "breaks": "failed", "broken": "failed", "absent": "skipped",
    }  # fmt: skip
    assert all(bool(r.seconds) is (r.status == "measured") for r in rows.values())
    assert rows["wrong"].reason.startswith("C4 gradient of current")
    assert rows["breaks"].reason == "MemoryError: no more"
    assert rows["broken"].reason == "ImportError: broken does not import"
    assert rows["absent"].reason == "nowhere is not installed"


def bench(*options: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=report.ROOT, env=environment, capture_output=True, text=True, check=False)


def test_an_unknown_case_ends_the_run() -> None:
    done = bench("--grid", "tiny", "--cases", "nope")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "unknown case 'nope'; valid: rate_step, scan" in done.stderr


def test_everything_runs_in_its_smallest_form(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    done = bench("--grid", "tiny", "--peers", "spikingjelly-multi", "--results", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    measured = results.load(path)
    assert measured.cases() == list(TINY)
    for name in TINY:
        own = measured.ours(name)
        assert own is not None
        assert own.implementation == "fastsnn-numba"
        assert all(r.status in ("measured", "computed") for r in measured.of(name)), name
    for r in (r for r in measured.rows if r.status == "measured" and r.case["subject"] != "end_to_end"):
        assert r.first_seconds is not None
        assert (r.peak_memory is None) is (machine.platform.system() != "Linux")
        assert (r.share_of_bandwidth or r.share_of_flops or 0) > 0 or r.case["subject"] == "rate_step"
    assert {"commit", "python", "torch", "numba"} <= set(measured.environments[measured.rows[0].environment])
    assert min(measured.machine["peak_bandwidth"], measured.machine["peak_flops"]) > 0
    assert measured.machine["device"] == machine.device_name(CPU)
    assert page.SECTIONS["rate_step"][0] in page.text([measured])
