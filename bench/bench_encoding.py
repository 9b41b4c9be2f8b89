"""Poisson encoding alone: uint8 images to spikes."""

from pytest_benchmark.fixture import BenchmarkFixture

from bench import race
from bench.cases import Case
from bench.race import Session


def test_encoding(case: Case, bench_session: Session, benchmark: BenchmarkFixture) -> None:
    race.run(case, bench_session, benchmark)
