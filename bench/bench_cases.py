"""Every case of ``bench/cases.py``."""

from pytest_benchmark.fixture import BenchmarkFixture

from bench import end_to_end, measure
from bench.cases import Case
from bench.measure import Session


def test_case(case: Case, bench_session: Session, benchmark: BenchmarkFixture) -> None:
    (end_to_end if case.task == "end_to_end" else measure).run(case, bench_session, benchmark)
