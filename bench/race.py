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
from fastsnn.training.machine import cores


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


REST = 0.05
"""Seconds before each round: a library's threads go on spinning for a while after its own, at the cost of the next."""
EFFORTS = {"tiny": Effort(0.0, 1, 1), "quick": Effort(2.0, 3, 15), "full": Effort(8.0, 7, 30)}


@dataclass
class Entrant:
    """An implementation that passed the gate, and its rounds."""

    row: Row
    work: Work
    seconds: list[float] = field(default_factory=list)

    def take_turn(self) -> None:
        """One more round; where it breaks, the row says how and keeps no time."""
        time.sleep(REST)
        try:
            self.seconds.append(self.work.timed())
        except Exception as error:
            self.seconds = []
            fail(self.row, error)


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
        usable = [name for name in ours.NAMES if ours.refusal(name, self.device) is None]
        usable.sort(key=["fastsnn-triton", "fastsnn-numba", "fastsnn-torch"].index)
        # Encoding has one implementation on each device.
        wanted = [*(usable[1:] if case.subject != "encoding" else ()), *self.peer_names]
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
    with ours.threads(case.threads or cores()):
        entered = enter(case, session)
        entrants = [Entrant(row, work) for row, work in entered if work is not None]
        _time(entrants, EFFORTS[session.size], benchmark)
        for entrant in entrants:
            if entrant.row.status != "measured":
                continue
            entrant.row.seconds = [seconds / case.steps for seconds in entrant.seconds]
            for name, value in shares(case, entrant.row.median, session.results.machine).items():
                setattr(entrant.row, name, value)
            if hasattr(entrant.work, "close"):
                entrant.work.close()
    rows = [row for row, _ in entered]
    session.results.rows += rows
    benchmark.extra_info["rows"] = [(row.label, row.status, row.reason, row.seconds) for row in rows]


def enter(case: Case, session: Session) -> list[tuple[Row, Work | None]]:
    """Each implementation's row and, where it passes the gate, its work; ours first, or an OursFailedError."""
    x = cases.inputs(case, session.images, session.labels)
    own_gate = gate.build(case, session.images, session.labels)
    entered: list[tuple[Row, Work | None]] = []
    for name in session.names(case):
        row, work = _enter(name, case, x, own_gate, session)
        if not entered and work is None:
            raise OursFailedError(f"{row.label}: {row.status}: {row.reason}")
        entered.append((row, work))
    return entered


def fail(row: Row, error: Exception) -> None:
    """Record that an implementation broke, and how."""
    row.status, row.reason = "failed", f"{type(error).__name__}: {error}".splitlines()[0]


def _enter(name: str, case: Case, x: dict[str, Tensor], own_gate: Gate, session: Session) -> tuple[Row, Work | None]:
    """An implementation's row and, where it passes the gate, its work, warmed up and at its fastest thread count."""
    row = Row(
        name, name, case.to_dict(), session.data, "measured", ours=name in ours.NAMES, environment=session.environment
    )
    if case.subject in ("scan", "linear"):
        row.data = "random"
    try:
        if reason := _refusal(name, case, session):
            row.status, row.reason = "skipped", reason
            row.label = session.made[name].label() if name in session.made else name
            return row, None
        implementation = session.implementation(name)
        row.label = implementation.label()
        if hasattr(implementation, "versions"):
            commit = session.results.environments[session.environment]["commit"]
            row.environment = session.results.environment({"commit": commit} | implementation.versions())
        work: Work = peers.work(implementation, case, x, session.device)
        started = time.perf_counter()
        work.run()
        row.first_seconds = time.perf_counter() - started
        if failure := own_gate.failure(work.outputs(own_gate.inputs)):
            row.status, row.reason = "refused", failure
            return row, None
        row.threads = _tuned_threads(work, name, case, session)
        row.peak_memory = (
            work.peak_memory() if hasattr(work, "peak_memory") else works.peak_memory(work, session.device)
        )
    except Exception as error:  # a peer may break in any way; the page says how
        fail(row, error)
        return row, None
    return row, work


def _refusal(name: str, case: Case, session: Session) -> str | None:
    """Why an implementation does not take part in a case."""
    if name in ours.NAMES:
        return None
    if reason := peers.refusal(name, session.device, session.peer_env):
        return reason
    implementation = session.implementation(name)
    if case.backward and implementation.forward_only:
        return "forward only: it has no arctangent surrogate"
    return None if case.subject in implementation.subjects else f"it has nothing of its own for {case.subject}"


def _tuned_threads(work: Work, name: str, case: Case, session: Session) -> int | None:
    """Set a torch implementation on a CPU to its fastest thread count, unless the case says; ours and JAX take all."""
    if session.device.type != "cpu":
        return None
    if case.threads is None and name not in ("jax", "fastsnn-numba") and session.size != "tiny":
        works.use_fastest_threads(work, cases.thread_counts(cores()))
    return work.threads


def _time(entrants: list[Entrant], effort: Effort, benchmark: BenchmarkFixture) -> None:
    """Fill in every entrant's seconds, round by round, after a round that only shows how long one takes."""
    own, *others = entrants
    order = random.Random(0)

    def others_in_turn() -> None:
        for entrant in order.sample(others, len(others)):
            if entrant.row.status == "measured":
                entrant.take_turn()
        torch.set_num_threads(own.work.threads)
        time.sleep(REST)

    others_in_turn()
    one_round = own.work.timed() + sum(entrant.seconds.pop() for entrant in others if entrant.seconds)
    benchmark.pedantic(own.work.run, setup=others_in_turn, rounds=effort.rounds(one_round))
    own.seconds = list(benchmark.stats.stats.data) if benchmark.stats else [own.work.timed()]
