"""LIF neurons over given currents, forward and with gradients."""

from pytest_benchmark.fixture import BenchmarkFixture

from bench import race
from bench.cases import Case
from bench.race import Session


def test_scan(case: Case, bench_session: Session, benchmark: BenchmarkFixture) -> None:
    race.run(case, bench_session, benchmark)
