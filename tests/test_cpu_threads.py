"""Workers of the CPU kernels: what one of them raises reaches the caller, and nobody waits for it forever."""

from typing import Any

import numba
import pytest
import torch
from lif_cases import neuron

from fastsnn.kernels.numba import threads
from fastsnn.kernels.rate_classifier.numba import step as rate_step


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_is_raised_after_all_are_done(failing: int) -> None:
    done = []

    def kernel(worker: int, workers: int, factor: int) -> None:
        if worker == failing:
            raise ZeroDivisionError("of a worker")
        done.append(factor * worker)

    with pytest.raises(ZeroDivisionError, match="of a worker"):
        threads.spread(kernel, 3, 10)
    assert sorted(done) == [10 * worker for worker in range(3) if worker != failing]


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_no_worker_waits_for_one_that_failed(
    failing: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when Ctrl-C comes while the kernels are compiled. The step is as good as new after it."""
    run = rate_step.run

    def interrupted(worker: int, *arguments: Any) -> None:
        if worker == failing:
            raise error
        run(worker, *arguments)

    weight = torch.nn.Parameter(torch.rand(3, 8, generator=torch.Generator().manual_seed(0)))
    initial, images = weight.detach().clone(), torch.full((40, 8), 200, dtype=torch.uint8)
    step = rate_step.RateStep(weight, None, torch.optim.SGD([weight], lr=1.0), T=9, seed=0, loss="mse", **neuron())
    data = step.prepare(images, torch.arange(40) % 3)
    monkeypatch.setattr(numba, "get_num_threads", lambda: 2)
    monkeypatch.setattr(rate_step, "run", interrupted)
    with pytest.raises(error):
        step.train(data, torch.arange(40), 0, 20)
    monkeypatch.setattr(rate_step, "run", run)
    step.sync()
    assert torch.equal(weight, initial)
    losses, _ = step.train(data, torch.arange(40), 0, 20)
    step.sync()
    assert len(losses) == 2
    assert not torch.equal(weight, initial)
