"""The reference job, 784 -> 10 LIF neurons on MNIST with T = 100 and batch 64: its training step and an epoch of them.

An epoch of a peer takes minutes and is computed from its step.
"""

from dataclasses import replace

from pytest_benchmark.fixture import BenchmarkFixture

from bench import race
from bench.cases import Case
from bench.race import Session


def test_rate_step(case: Case, bench_session: Session, benchmark: BenchmarkFixture) -> None:
    if case.name != "rate_step-epoch":
        race.run(case, bench_session, benchmark)
        return
    steps = -(-len(bench_session.images) // case.B)
    race.run(replace(case, steps=steps), bench_session, benchmark)
    rows = bench_session.results.rows
    own = rows[-1]
    own.seconds = [seconds * steps for seconds in own.seconds]
    for row in bench_session.results.of("rate_step"):
        if row.seconds and row.implementation != own.implementation:
            epoch, reason = [seconds * steps for seconds in row.seconds], f"{steps} times its step"
            rows.append(
                replace(row, case=own.case, status="computed", reason=reason, seconds=epoch, first_seconds=None)
            )
