"""A linear layer and its LIF neurons in Open Neuromorphic's configuration: n to n, batch 16, 500 time steps."""

from pytest_benchmark.fixture import BenchmarkFixture

from bench import race
from bench.cases import Case
from bench.race import Session


def test_linear(case: Case, bench_session: Session, benchmark: BenchmarkFixture) -> None:
    race.run(case, bench_session, benchmark)
