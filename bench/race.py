"""Ours and the peers in turn, round by round, so that what slows the machine slows all of them.

pytest-benchmark times ours; before each of its rounds every peer runs once, in another order each time.
"""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench import cases, gate, ours, peers, works
from bench.cases import Case
from bench.gate import Gate
from bench.results import Results, Row, shares
from bench.works import Work
from fastsnn.training import cores


class OursFailedError(AssertionError):
    """Our own implementation failed: nothing is reported for the case."""


@dataclass(frozen=True)
class Effort:
    """How much time the rounds of a case may take."""

    seconds: float
    least: int
    most: int

    def rounds(self, one_round: float) -> int:
        return max(self.least, min(self.most, int(self.seconds / max(one_round, 1e-9))))


EFFORTS = {"tiny": Effort(0.0, 1, 1), "quick": Effort(2.0, 3, 15), "full": Effort(8.0, 5, 30)}


@dataclass
class Entrant:
    """An implementation that passed the gate, and its rounds."""

    row: Row
    work: Work
    seconds: list[float] = field(default_factory=list)


@dataclass
class Session:
    """What is the same for all cases of a run."""

    device: torch.device
    size: str
    peer_names: list[str]
    peer_env: Path | None
    images: Tensor
    labels: Tensor
    data: str
    results: Results
    environment: str
    made: dict[str, Any] = field(default_factory=dict)

    def names(self, case: Case) -> list[str]:
        """Implementations of a case, our fastest one first."""
        usable = [name for name in ours.NAMES if ours.absent(name, self.device) is None]
        usable.sort(key=["fastsnn-triton", "fastsnn-numba", "fastsnn-torch"].index)
        wanted = [*usable[1:], *self.peer_names]
        return usable[:1] + [name for name in wanted if not case.peers or name in case.peers]

    def implementation(self, name: str) -> Any:
        if name not in self.made:
            self.made[name] = ours.Ours(name, self.device) if name in ours.NAMES else peers.create(name, self.peer_env)
        return self.made[name]

    def close(self) -> None:
        for peer in self.made.values():
            if hasattr(peer, "close"):
                peer.close()


def run(case: Case, session: Session, benchmark: BenchmarkFixture) -> None:
    """Gate every implementation of ``case``, time those that pass in turn, and record all of them."""
    x = cases.inputs(case, session.images, session.labels)
    with ours.threads(case.threads or cores()):
        threads = torch.get_num_threads()
        own_gate = gate.build(case, session.images, session.labels)
        first, *others = session.names(case)
        entrants, rows = [], []
        for name in (first, *others):
            row, work = _enter(name, case, x, own_gate, session)
            rows.append(row)
            if work is not None:
                entrants.append(Entrant(row, work))
        if rows[0].status != "measured":
            raise OursFailedError(f"{rows[0].label}: {rows[0].status}: {rows[0].reason}")
        _time(entrants, EFFORTS[session.size], threads, benchmark)
        for entrant in entrants:
            entrant.row.seconds = [seconds / case.steps for seconds in entrant.seconds]
            for name, value in shares(case, entrant.row.median, session.results.machine).items():
                setattr(entrant.row, name, value)
            if hasattr(entrant.work, "close"):
                entrant.work.close()
    session.results.rows += rows
    benchmark.extra_info["rows"] = [(row.label, row.status, row.reason, row.seconds) for row in rows]


def _enter(name: str, case: Case, x: dict[str, Tensor], own_gate: Gate, session: Session) -> tuple[Row, Work | None]:
    """An implementation's row and, where it passes the gate, its work, warmed up and at its fastest thread count."""
    row = Row(
        name, name, case.to_dict(), session.data, "measured", ours=name in ours.NAMES, environment=session.environment
    )
    if case.subject in ("lif", "linear_lif"):
        row.data = "random"
    if reason := _absent(name, case, session):
        row.status, row.reason = "skipped", reason
        row.label = session.made[name].label() if name in session.made else name
        return row, None
    try:
        implementation = session.implementation(name)
        row.label = implementation.label()
        work: Work = peers.work(implementation, case, x, session.device)
        started = time.perf_counter()
        work.run()
        row.first_seconds = time.perf_counter() - started
        if failure := own_gate.failure(work.outputs(own_gate.inputs)):
            row.status, row.reason = "refused", failure
            return row, None
        row.threads = _tuned_threads(work, name, session)
        row.peak_memory = (
            work.peak_memory() if hasattr(work, "peak_memory") else works.peak_memory(work, session.device)
        )
    except Exception as error:  # a peer may break in any way; the page says how
        row.status, row.reason = "failed", f"{type(error).__name__}: {error}".splitlines()[0]
        return row, None
    return row, work


def _absent(name: str, case: Case, session: Session) -> str | None:
    """Why an implementation does not take part in a case."""
    if name in ours.NAMES:
        return None
    if reason := peers.absent(name, session.device, session.peer_env):
        return reason
    implementation = session.implementation(name)
    if case.backward and implementation.forward_only:
        return "forward only: it has no arctangent surrogate"
    return None if case.subject in implementation.subjects else f"it has nothing of its own for {case.subject}"


def _tuned_threads(work: Work, name: str, session: Session) -> int | None:
    """Set a torch implementation on a CPU to its fastest thread count; ours and JAX take all."""
    if session.device.type != "cpu":
        return None
    if name not in ("jax", "fastsnn-numba") and session.size != "tiny":
        works.use_fastest_threads(work, cases.thread_counts(cores()))
    return work.threads


def _time(entrants: list[Entrant], effort: Effort, threads: int, benchmark: BenchmarkFixture) -> None:
    """Fill in every entrant's seconds, round by round."""
    own, *others = entrants
    order = random.Random(0)

    def others_in_turn() -> None:
        for entrant in order.sample(others, len(others)):
            entrant.seconds.append(entrant.work.timed())
        torch.set_num_threads(own.work.threads)

    one_round = sum(entrant.work.timed() for entrant in entrants)
    torch.set_num_threads(threads)
    benchmark.pedantic(own.work.run, setup=others_in_turn, rounds=effort.rounds(one_round))
    own.seconds = list(benchmark.stats.stats.data) if benchmark.stats else [own.work.timed()]
