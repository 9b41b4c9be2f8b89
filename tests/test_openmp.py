"""torch's threads sleep while they have nothing to do, so that kernels of ours that follow have the cores."""

import os
import time

import pytest
import torch

from fastsnn.kernels.numba import openmp


def _burnt(seconds: float) -> float:
    """Seconds of CPU time that the process spends while this thread sleeps, just after an operator of torch."""
    values = torch.ones(1 << 20)
    values.add_(1)
    started = time.process_time()
    time.sleep(seconds)
    return time.process_time() - started


@pytest.mark.skipif((os.cpu_count() or 1) < 2 or torch.get_num_threads() < 2, reason="torch has one thread here")
def test_idle_threads_of_torch_sleep() -> None:
    if not openmp.rest():
        pytest.skip("torch has another OpenMP than GNU's, or the environment says how its threads wait")
    assert min(_burnt(0.03) for _ in range(5)) < 1e-3


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_the_environment_has_its_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "active")
    assert not openmp.rest.__wrapped__()
