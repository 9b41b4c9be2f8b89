"""Time against T, batch size, width and CPU threads."""

from pytest_benchmark.fixture import BenchmarkFixture

from bench import race
from bench.cases import Case
from bench.race import Session


def test_scaling(case: Case, bench_session: Session, benchmark: BenchmarkFixture) -> None:
    race.run(case, bench_session, benchmark)
