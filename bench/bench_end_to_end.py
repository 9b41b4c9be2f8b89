"""From the start of the process to the target accuracy: ours to the end, the peers as far as patience goes."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import end_to_end
from bench.cases import Case
from bench.race import Session


def test_end_to_end(case: Case, bench_session: Session, benchmark: BenchmarkFixture) -> None:
    if bench_session.size == "full" and bench_session.data != "mnist":
        pytest.skip("it needs MNIST's raw files under $FASTSNN_DATA")
    end_to_end.run(case, bench_session, benchmark)
