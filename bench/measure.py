"""fastsnn and its peers in turn, round by round, so that what slows the machine slows all of them.

pytest-benchmark times fastsnn; before each of its rounds every peer runs once, in another order each time.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench import cases, correctness, fastsnn_tasks, peers, tasks
from bench.cases import Case
from bench.results import Results, Row, ratios
from bench.tasks import Task
from fastsnn.training.machine import cores

REST = 0.05
"""Seconds before each round: a library's threads go on spinning for a while after its own, at the cost of the next."""


class FastsnnFailedError(AssertionError):
    """fastsnn itself failed: nothing is reported for the case."""


@dataclass(frozen=True)
class Effort:
    """How much time the rounds of a case may take."""

    seconds: float
    least: int
    most: int

    def rounds(self, one_round: float) -> int:
        return max(self.least, min(self.most, int(self.seconds / max(one_round, 1e-9))))


EFFORTS = {"tiny": Effort(0.0, 1, 1), "main": Effort(2.0, 2, 11), "full": Effort(6.0, 5, 15)}


@dataclass
class Entrant:
    """An implementation that computes the same, and its rounds."""

    row: Row
    task: Task
    seconds: list[float] = field(default_factory=list)

    def take_turn(self) -> None:
        """One more round; if it breaks, the row says how and keeps no time."""
        time.sleep(REST)
        try:
            self.seconds.append(self.task.timed())
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
    say: Callable[[str], None] = print
    made: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0

    def names(self, case: Case) -> list[str]:
        """Implementations of a case, fastsnn's fastest one first."""
        usable = [name for name in fastsnn_tasks.NAMES if fastsnn_tasks.refusal(name, self.device) is None]
        usable.sort(key=["fastsnn-triton", "fastsnn-numba", "fastsnn-torch"].index)
        # Encoding has one implementation on each device.
        wanted = [*(usable[1:] if case.task != "encoding" else ()), *self.peer_names]
        return usable[:1] + [name for name in wanted if not case.peers or name in case.peers]

    def implementation(self, name: str) -> Any:
        if name not in self.made:
            ours = name in fastsnn_tasks.NAMES
            self.made[name] = fastsnn_tasks.Fastsnn(name, self.device) if ours else peers.create(name, self.peer_env)
        return self.made[name]

    def close(self) -> None:
        for peer in self.made.values():
            if hasattr(peer, "close"):
                peer.close()


def run(case: Case, session: Session, benchmark: BenchmarkFixture) -> None:
    """Check every implementation of ``case``, time those that compute the same in turn, and record all of them."""
    with fastsnn_tasks.threads(case.threads or cores()):
        entered = enter(case, session)
        entrants = [Entrant(row, task) for row, task in entered if task is not None]
        _time(entrants, EFFORTS[session.size], benchmark)
        for entrant in entrants:
            if entrant.row.status == "measured":
                entrant.row.seconds = [seconds / case.steps for seconds in entrant.seconds]
            if hasattr(entrant.task, "close"):
                entrant.task.close()
    rows = [row for row, _ in entered]
    session.results.replace(rows)
    for line in summary(session.results, case.name):
        session.say(line)


def summary(results: Results, case: str) -> list[str]:
    """Median, ratio to fastsnn, and who did not take part and why."""
    own, lines = results.ours(case), []
    for row in results.of(case):
        if not row.seconds:
            lines.append(f"  {row.label:46} {row.status}: {row.reason}")
            continue
        ratio = f"{statistics.median(ratios(row, own)):7.2f} x" if own and row is not own else ""
        lines.append(f"  {row.label:46} {row.median * 1e3:11.3f} ms {ratio} {row.status if row.reason else ''}")
    return lines


def enter(case: Case, session: Session) -> list[tuple[Row, Task | None]]:
    """Each implementation's row and, if it computes the same, its task; fastsnn first, or a FastsnnFailedError."""
    x = cases.inputs(case, session.images, session.labels)
    check = correctness.build(case, session.images, session.labels)
    entered: list[tuple[Row, Task | None]] = []
    for name in session.names(case):
        data = session.data if case.encodes else "random"
        row, task = Row(name, name, case.to_dict(), data, "measured"), None
        try:
            task = _enter(row, case, x, check, session)
        except Exception as error:  # a peer may break in any way; the page says how
            fail(row, error)
        if not entered and task is None:
            raise FastsnnFailedError(f"{row.label}: {row.status}: {row.reason}")
        entered.append((row, task))
    return entered


def fail(row: Row, error: Exception) -> None:
    """Record that an implementation broke, and how."""
    row.status, row.reason = "failed", f"{type(error).__name__}: {error}".splitlines()[0]


def _enter(row: Row, case: Case, x: dict[str, Tensor], check: Any, session: Session) -> Task | None:
    """An implementation's task, warmed up and at its fastest thread count; None if the row says why not."""
    name = row.implementation
    reason = _refusal(name, case, session)
    if name in session.made:
        row.label = session.made[name].label()
    if reason:
        row.status, row.reason = "skipped", reason
        return None
    implementation = session.implementation(name)
    row.label = implementation.label()
    if row.ours and implementation.fuses(case):
        row.label += ", one-layer trainer"
    if hasattr(implementation, "versions"):
        session.results.environment[name] = ", ".join(" ".join(pair) for pair in implementation.versions().items())
    task: Task = tasks.build(implementation, case, x, session.device)
    started = time.perf_counter()
    task.run()
    row.first_seconds = time.perf_counter() - started
    if failure := check.failure(task.outputs(check.inputs)):
        row.status, row.reason = "refused", failure
        return None
    row.threads = _tuned_threads(task, name, case, session)
    row.peak_memory = tasks.peak_memory(task, session.device)
    return task


def _refusal(name: str, case: Case, session: Session) -> str | None:
    """Why an implementation does not take part in a case."""
    if name in fastsnn_tasks.NAMES:
        return None
    if reason := peers.refusal(name, session.device, session.peer_env):
        return reason
    peer = session.implementation(name)
    if case.backward and peer.forward_only:
        return "forward only: it has no arctangent surrogate"
    if absent := [kind for kind in dict.fromkeys(case.neurons) if kind not in peer.kinds]:
        return f"it has no neuron that computes the same as {', '.join(absent)}"
    return None if case.task in peer.tasks else f"it has nothing of its own for {case.task}"


def _tuned_threads(task: Task, name: str, case: Case, session: Session) -> int | None:
    """Set a torch implementation on a CPU to its fastest thread count, unless the case says; the others take all."""
    if session.device.type != "cpu":
        return None
    if case.threads is None and name not in ("jax", "jaxpike", "fastsnn-numba") and session.size != "tiny":
        tasks.use_fastest_threads(task, cases.thread_counts(cores()))
    return task.threads


def _time(entrants: list[Entrant], effort: Effort, benchmark: BenchmarkFixture) -> None:
    """Fill in every entrant's seconds, round by round, after a round that only shows how long one takes."""
    own, *others = entrants
    order = random.Random(0)

    def others_in_turn() -> None:
        for entrant in order.sample(others, len(others)):
            if entrant.row.status == "measured":
                entrant.take_turn()
        torch.set_num_threads(own.task.threads)
        time.sleep(REST)

    others_in_turn()
    one_round = own.task.timed() + sum(entrant.seconds.pop() for entrant in others if entrant.seconds)
    benchmark.pedantic(own.task.run, setup=others_in_turn, rounds=effort.rounds(one_round))
    own.seconds = list(benchmark.stats.stats.data) if benchmark.stats else [own.task.timed()]
