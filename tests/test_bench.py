"""bench/: the gate, the names, the results file, the page made of it, and a run of everything in its smallest form."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import cases, gate, machine, peers, regression, report, results, summary, works
from bench.cases import Case
from bench.ours import Ours
from bench.peers.remote import Remote
from bench.results import Results, Row
from fastsnn.kernels import reference

CPU = torch.device("cpu")
TINY = cases.grid("tiny", gpu=False, cores=2)
GATED = ("rate_step", "lif", "linear_lif-24", "mlp", "encoding")


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
        self.neuron = cases.NEURON | changed

    def lif(self, current: Tensor) -> Tensor:
        return reference.lif(current, **self.neuron)[0]


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


@pytest.mark.parametrize("name", ["rate_step", "lif", "linear_lif-24", "mlp"])
@pytest.mark.parametrize(
    ("changed", "what"),
    [({"alpha": 2.04}, "gradient"), ({"detach_reset": True}, "gradient"), ({"v_threshold": 1.1}, "spikes")],
)
def test_gate_refuses_another_neuron(name: str, changed: dict[str, Any], what: str) -> None:
    assert what in str(verdict(Right(**changed), name))


@pytest.mark.parametrize("name", ["rate_step", "linear_lif-24", "mlp"])
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
    case = TINY["linear_lif-24"]
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
    with pytest.raises(ValueError, match=r"unknown case 'nope'; valid: rate_step, lif, "):
        cases.select("lif,nope", TINY, "case")
    assert cases.select("lif, mlp", TINY, "case") == ["lif", "mlp"]


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


def found(*rows: Row, kind: str = "cpu") -> Results:
    about = {"device": "Test 9000, 2 cores", "kind": kind, "cpu": "Test 9000", "cores": 2, "system": "Linux x86_64"}
    about |= {"peak_bandwidth": 1e10, "peak_flops": 1e11}
    return Results(about, {"abc-1": {"commit": "abc", "torch": "2.13.0"}}, list(rows))


def row(implementation: str, *seconds: float, name: str = "rate_step", **fields: Any) -> Row:
    values: dict[str, Any] = {"status": "measured", "environment": "abc-1", "seconds": list(seconds)} | fields
    values["ours"] = implementation.startswith("fastsnn")
    case = json.loads(json.dumps(TINY["rate_step"].to_dict() | {"name": name}))
    return Row(implementation, implementation, case, "mnist", **values)


def test_results_of_another_schema_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"schema": 99}')
    with pytest.raises(results.SchemaError, match=r"old\.json has schema 99; this version reads 1"):
        results.load(path)
    path.write_text("[]")
    with pytest.raises(results.SchemaError, match=r"old\.json is not a results file"):
        results.load(path)


def test_results_survive_the_file_and_new_cases_replace_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    before = found(row("fastsnn-numba", 1.0, 2.0), row("jax", 4.0, 4.0), row("fastsnn-numba", 5.0, name="lif"))
    before.write(path)
    assert results.load(path) == before
    again = found(row("fastsnn-numba", 3.0))
    again.environments = {"def-2": {"commit": "def"}}
    again.rows[0].environment = "def-2"
    again.write(path)
    merged = results.load(path)
    assert [(r.case["name"], r.implementation, r.seconds) for r in merged.rows] == [
        ("rate_step", "fastsnn-numba", [3.0]),
        ("lif", "fastsnn-numba", [5.0]),
    ]
    assert list(merged.environments) == ["abc-1", "def-2"]


def test_ratios_are_taken_round_by_round() -> None:
    own, other = row("fastsnn-numba", 1.0, 2.0, 4.0), row("jax", 3.0, 6.0, 12.0)
    assert results.ratios(other, own) == [3.0, 3.0, 3.0]
    assert results.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)


def test_shares_of_the_peak() -> None:
    about = found().machine
    lif = Case("lif", "lif", 10, 2, (1000,))
    assert results.shares(lif, 1e-3, about)["share_of_bandwidth"] == pytest.approx(5 * 4 * 20_000 / 1e-3 / 1e10)
    mlp = Case("mlp", "mlp", 10, 2, (5, 4, 3))
    assert results.shares(mlp, 1.0, about)["share_of_flops"] == pytest.approx(2 * 20 * (32 + 32 + 12) / 1e11)


def test_the_regression_check_goes_by_ratio() -> None:
    floors = {key: floor for key, floor in regression.FLOORS["cpu"].items() if key[0] == "rate_step"}
    rest = {key[0] for key in regression.FLOORS["cpu"]} - {"rate_step"}
    fast = found(row("fastsnn-numba", 1.0), *(row(peer, 2 * floor) for (_, peer), floor in floors.items()))
    assert all(line.split(":")[0] in rest for line in regression.failures(fast))
    slow = found(row("fastsnn-numba", 1.0), *(row(peer, 0.5 * floor) for (_, peer), floor in floors.items()))
    assert sum(line.startswith("rate_step") for line in regression.failures(slow)) == len(floors)
    assert regression.failures(found(kind="cuda")) == []


def test_the_page_tells_what_was_not_timed_and_where_ours_is_behind() -> None:
    own, fast = row("fastsnn-numba", 1.0, 1.0), row("jax", 0.5, 0.5)
    refused = row("snntorch", status="refused", reason="C4 gradient of weight0: 1, allowed 1e-05")
    text = report.page([found(own, fast, refused)])
    assert "- rate_step: jax needs 0.50 times our time" in text
    assert "Not timed: snntorch refused: C4 gradient of weight0: 1, allowed 1e-05." in text
    table = report.readme_table([found(own, row("spikingjelly-loop", 40.0, 50.0, status="computed", reason="x"), fast)])
    assert "| 1.00 s | 500 ms, 0.50 x (jax) | ≈ 45.0 s, 45.0 x |" in table
    assert "ahead of every peer" in report.page([found(own, row("jax", 2.0, 2.0))])
    assert any("refused: C4" in line for line in summary.lines(found(own, refused), None))


@pytest.mark.parametrize(("seconds", "text"), [(90.04, "90.0 s"), (1.0, "1.00 s"), (0.5, "500 ms"), (2e-6, "2.00 us")])
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert report.time_text(seconds) == text


def test_the_committed_page_is_what_the_committed_results_make() -> None:
    assert report.stale() == []


def test_charts_are_drawn(tmp_path: Path) -> None:
    from bench import charts

    numbers = [row("fastsnn-numba", 1.0, 1.2), row("jax", 4.0, 4.0)]
    linear = [replace(r, case=r.case | {"subject": "linear_lif"}) for r in numbers]
    sized = [
        replace(r, case=r.case | {"name": f"{stem}-{n}"})
        for stem in ("linear_lif", "scaling-T")
        for n in (8, 16)
        for r in linear
    ]
    charts.draw(found(*numbers, *sized), tmp_path / "chart")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chart-linear_lif.png",
        "chart-ratios.png",
        "chart-scaling.png",
    ]


def bench(*options: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=report.ROOT, env=environment, capture_output=True, text=True, check=False)


def test_an_unknown_case_ends_the_run() -> None:
    done = bench("--grid", "tiny", "--cases", "nope")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "unknown case 'nope'; valid: rate_step, lif" in done.stderr


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
    assert measured.machine["device"] == machine.device_name(CPU)
    assert report.SECTIONS["rate_step"] in report.page([measured])
