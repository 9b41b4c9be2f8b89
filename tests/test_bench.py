"""bench/: the check of equal mathematics, the names, peers that break, and a run of everything in its smallest form."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import cases, correctness, fastsnn_tasks, machine, measure, page, peers, report, results, tasks
from bench.cases import Case
from bench.fastsnn_tasks import Fastsnn
from bench.peers import snntorch
from bench.peers.remote import Remote
from bench.results import Results
from fastsnn import LIF

CPU = torch.device("cpu")
TINY = cases.grid("tiny", gpu=False, cores=2)
CHECKED = [name for name, case in TINY.items() if case.task != "end_to_end" and case.neuron != "cuba"]
TRAINING = ("rate_step", "linear-24", "mlp", "shd", "csnn", "recurrent-shd")


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    intensity = torch.rand(8, 64, generator=generator) * (torch.rand(8, 64, generator=generator) < 0.5)
    return (intensity * 255).to(torch.uint8), torch.arange(8)


def verdict(peer: tasks.Peer, name: str) -> str | None:
    """What the check says of a peer's outputs."""
    case = TINY[name]
    check = correctness.build(case, *images())
    task = tasks.build(peer, case, cases.inputs(case, *images()), CPU)
    return check.failure(task.outputs(check.inputs))


class Right(tasks.Peer):
    """fastsnn's torch backend as a peer, with its neurons open to mutation."""

    name = "right"

    def __init__(self, **changed: Any) -> None:
        self.changed = changed

    def label(self) -> str:
        return type(self).__name__

    def network(self, case: Case) -> nn.Module:
        network = Fastsnn("fastsnn-torch", CPU).network(case)
        for module in network.modules():
            if hasattr(module, "neuron") and module.neuron.spikes:
                module.neuron = replace(module.neuron, **self.changed)  # type: ignore[type-var]
        return network


class Dim(Right):
    """An encoder whose spikes are 5 % too few."""

    def encode(self, pixels: Tensor, T: int) -> Tensor:
        return torch.bernoulli(0.95 * pixels.expand(T, *pixels.shape), generator=torch.Generator().manual_seed(0))


class Noisy(Right):
    """Gradients that are wrong by one part in ten thousand."""

    def network(self, case: Case) -> nn.Module:
        network = super().network(case)
        for parameter in network.parameters():
            parameter.register_hook(lambda grad: grad * 1.0001)
        return network


@pytest.mark.parametrize("name", CHECKED)
def test_the_check_passes_equal_mathematics(name: str) -> None:
    assert verdict(Right(), name) is None
    assert verdict(Fastsnn("fastsnn-numba", CPU), name) is None


@pytest.mark.parametrize("peer", ["spikingjelly-loop", "spikingjelly-multi", "snntorch"])
@pytest.mark.parametrize("name", TRAINING)
def test_peers_compute_the_same(peer: str, name: str) -> None:
    made, case = peers.create(peer, None), TINY[name]
    if case.task not in made.tasks:
        assert (peer, name) in {
            ("spikingjelly-loop", "recurrent-shd"), ("spikingjelly-loop", "csnn"), ("snntorch", "recurrent-shd"),
        }  # fmt: skip
        return
    assert set(case.neurons) <= set(made.kinds)
    assert verdict(made, name) is None


@pytest.mark.parametrize("name", ["scan", *TRAINING])
@pytest.mark.parametrize(
    ("changed", "what"),
    [({"alpha": 2.04}, "gradient"), ({"detach_reset": True}, "gradient"), ({"v_threshold": 1.1}, "C[14] ")],
)
def test_the_check_refuses_another_neuron(name: str, changed: dict[str, Any], what: str) -> None:
    assert re.search(what, str(verdict(Right(**changed), name)))


@pytest.mark.parametrize("name", TRAINING)
def test_the_check_refuses_wrong_gradients(name: str) -> None:
    assert "gradient of weight0" in str(verdict(Noisy(), name))


def test_the_check_refuses_another_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snntorch, "KEPT", 0.9001)
    assert "gradient of leak0" in str(verdict(snntorch.SnnTorch(), "shd"))


def test_the_check_refuses_another_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    check = correctness.build(TINY["rate_step"], *images())
    monkeypatch.setattr(tasks, "LEARNING_RATE", 1.001e-3)
    task = tasks.build(Right(), TINY["rate_step"], cases.inputs(TINY["rate_step"], *images()), CPU)
    assert "step of weight0" in str(check.failure(task.outputs(check.inputs)))


def test_the_check_refuses_a_one_layer_trainer_with_another_neuron(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastsnn_tasks.FusedTraining, "neuron", LIF(v_threshold=1.1, surrogate="atan", alpha=2.0))
    assert "losses of the samples" in str(verdict(Fastsnn("fastsnn-numba", CPU), "rate_step"))


def test_the_check_refuses_another_encoder() -> None:
    # 256 images, so that 5 % is far from chance.
    case = Case("encoding", "encoding", 32, 256, (64,), backward=False)
    check = correctness.build(case, *images())
    task = tasks.build(Dim(), case, check.inputs, CPU)
    assert "spikes in all" in str(check.failure(task.outputs(check.inputs)))


def test_a_worker_in_another_process_computes_the_same() -> None:
    case = TINY["linear-24"]
    check = correctness.build(case, *images())
    remote = Remote("spikingjelly2", Path(sys.prefix))
    try:
        task = remote.task(case, cases.inputs(case, *images()), CPU)
        assert check.failure(task.outputs(check.inputs)) is None
        assert task.timed() > 0
        with pytest.raises(RuntimeError, match="KeyError"):
            remote.call("timed", id=99, threads=1)
    finally:
        remote.close()


def test_a_missing_environment_is_named() -> None:
    with pytest.raises(ValueError, match=r"there is no .*nowhere"):
        Remote("spikingjelly2", Path("nowhere"))


def test_unknown_names_list_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown case 'nope'; valid: rate_step, mlp, "):
        cases.select("scan,nope", TINY, "case")
    assert cases.select("scan, mlp", TINY, "case") == ["scan", "mlp"]


@pytest.mark.parametrize("gpu", [False, True])
def test_grids_hold_every_subject(gpu: bool) -> None:
    full = cases.grid("full", gpu, cores=4)
    assert {case.task for case in TINY.values()} == {case.task for case in full.values()}
    main = cases.grid("main", gpu, cores=4)
    assert list(full)[: len(main)] == list(main)
    assert all(full[name] == case for name, case in main.items())
    assert ("mlp-threads-2" in full) is not gpu
    assert all(page.section_of(name) for name in full)


def test_cases_survive_json() -> None:
    for case in TINY.values():
        assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case


class Rounds:
    """pytest-benchmark's fixture as far as it is used."""

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

    def network(self, case: Case) -> nn.Module:
        network = super().network(case)
        network.register_forward_pre_hook(self.count)
        return network

    def count(self, *_: object) -> None:
        self.calls += 1
        if self.calls > 3:  # warmed up, checked and weighed
            raise MemoryError("no more\nof it")


def create(name: str, peer_env: Path | None) -> tasks.Peer:
    peer = {"right": Right, "breaks": Breaks, "wrong": lambda: Right(alpha=3.0)}.get(name)
    if peer is None:
        raise ImportError(f"{name} does not import")
    return peer()


def test_a_peer_that_is_wrong_or_breaks_is_reported_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["right", "wrong", "breaks", "broken"]
    monkeypatch.setattr(peers, "MODULES", {name: (name, None) for name in names} | {"absent": ("absent", "nowhere")})
    monkeypatch.setattr(peers, "create", create)
    empty = Results({}, {"commit": "abc"})
    said: list[str] = []
    session = measure.Session(CPU, "tiny", [*names, "absent"], None, *images(), "digits", empty, said.append)
    measure.run(TINY["scan"], session, Rounds())  # type: ignore[arg-type]
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
    assert any("refused: C4" in line for line in said)


def bench(*options: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=report.ROOT, env=environment, capture_output=True, text=True, check=False)


def test_an_unknown_case_ends_the_run() -> None:
    done = bench("--tiny", "--cases", "nope")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "unknown case 'nope'; valid: rate_step, mlp" in done.stderr


def test_a_part_of_the_grid_needs_a_file_of_its_own() -> None:
    done = bench("--full", "--cases", "scan")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "name a file for it, --results FILE" in done.stderr


def test_everything_runs_in_its_smallest_form(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    done = bench("--tiny", "--peers", "spikingjelly-multi", "--results", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"[{len(TINY)} of {len(TINY)}, " in done.stdout
    measured = results.load(path)
    assert measured.cases() == list(TINY)
    for name in TINY:
        own = measured.ours(name)
        assert own is not None
        assert own.implementation == "fastsnn-numba"
        assert ("one-layer trainer" in own.label) is (name.startswith("rate_step") or name == "end_to_end")
        without = {"spikingjelly-multi"} if name == "scan-cuba" else set()
        assert all(r.status in ("measured", "computed") for r in measured.of(name) if r.implementation not in without)
    for r in (r for r in measured.rows if r.status == "measured" and r.case["task"] != "end_to_end"):
        assert r.first_seconds is not None
        assert (r.peak_memory is None) is (machine.platform.system() != "Linux")
    assert {"commit", "python", "torch", "numba"} <= set(measured.environment)
    assert measured.machine["device"] == machine.device_name(CPU)
    assert page.SECTIONS["rate_step"][0] in page.text([measured])
