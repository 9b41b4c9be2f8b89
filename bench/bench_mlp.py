"""A training step of a network with one hidden layer, 784-800-10, encoding included."""

from pytest_benchmark.fixture import BenchmarkFixture

from bench import race
from bench.cases import Case
from bench.race import Session


def test_mlp(case: Case, bench_session: Session, benchmark: BenchmarkFixture) -> None:
    race.run(case, bench_session, benchmark)
