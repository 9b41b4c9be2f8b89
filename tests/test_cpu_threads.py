"""Workers of the CPU kernels: what one of them raises reaches the caller, and nobody waits for it forever."""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from child import Server
from run_tools import arguments, assert_same_run, small

import fastsnn
from fastsnn import LIF
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
    step = rate_step.RateStep(weight, None, torch.optim.SGD([weight], lr=1.0), T=9, seed=0, loss="mse", neuron=LIF())
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


def steps(workers: int, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The weights after ten steps of a fused step, whose workers meet twice in each."""
    monkeypatch.setattr(numba, "get_num_threads", lambda: workers)
    weight = torch.nn.Parameter(torch.rand(3, 8, generator=torch.Generator().manual_seed(0)))
    step = rate_step.RateStep(weight, None, torch.optim.SGD([weight], lr=1.0), T=9, seed=0, loss="mse", neuron=LIF())
    data = step.prepare(torch.arange(320, dtype=torch.uint8).reshape(40, 8), torch.arange(40) % 3)
    step.train(data, torch.arange(40), 0, 4)
    step.sync()
    return weight.detach()


def scan(workers: int, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The gradient of a scan, whose workers don't meet."""
    monkeypatch.setattr("fastsnn.kernels.numba.scan.workers_for", lambda elements: workers)
    current = torch.linspace(0, 2, 70).reshape(7, 10).requires_grad_()
    fastsnn.scan(current, backend="numba")[0].sum().backward()
    assert current.grad is not None
    return current.grad


def no_more(most: int) -> Callable[..., Any]:
    """As where a limit lets only so many threads of a call start."""
    crews: list[Any] = []

    def start(function: Any, arguments: Any) -> None:
        crews.append(function.__self__)
        if crews.count(function.__self__) > most:
            raise RuntimeError("can't start new thread")
        threading.Thread(target=function, args=arguments).start()

    return start


@pytest.mark.parametrize("computed", [steps, scan])
@pytest.mark.parametrize("started", [0, 1, 2])
def test_threads_that_cannot_start(
    computed: Any, started: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same bits on those there are, and one line, however often it happens."""
    wanted = computed(4, monkeypatch)
    threads._tell_of_missing_threads.cache_clear()
    for _ in range(2):
        monkeypatch.setattr(threads, "start_new_thread", no_more(started))
        assert torch.equal(computed(4, monkeypatch), wanted)
    (said,) = {record.getMessage() for record in caplog.records}
    assert said.startswith(f"{started + 1} of 4 CPU threads could be started (can't start new thread)")


@pytest.mark.parametrize("late", [False, True])
def test_a_thread_that_never_runs_or_comes_late(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ran out of memory before its first line is not waited for; one that comes late leaves."""
    wanted, left = steps(2, monkeypatch), []
    monkeypatch.setattr(threads, "GRACE", 0.01)
    monkeypatch.setattr(threads, "start_new_thread", lambda function, _: left.append(threading.Thread(target=function)))
    assert torch.equal(steps(2, monkeypatch), wanted)
    for thread in left if late else ():
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("where", ["gather", "order", "end", "_look"])
@pytest.mark.parametrize("before", [True, False])
def test_an_interruption_leaves_nobody_behind(where: str, before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever Ctrl-C comes: the others leave, the caller hears of it, and the next call is as good as new."""
    original, pressed = getattr(threads._Crew, where), []

    def interrupted(self: Any, *given: Any) -> Any:
        result = original(self, *given) if not before else None
        if not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        return original(self, *given) if before else result

    before_ = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(threads._Crew, where, interrupted)
        patch.setattr(threads, "start_new_thread", lambda function, _: threading.Timer(0.02, function).start())
        with pytest.raises(KeyboardInterrupt):
            steps(3, patch)
    for _ in range(100):
        if threading.active_count() <= before_:
            break
        threading.Event().wait(0.01)
    assert threading.active_count() <= before_
    assert torch.isfinite(steps(3, monkeypatch)).all()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user, whose threads can be limited")
def test_a_real_limit_of_threads(server: Server, tmp_path: Path) -> None:
    options = {"backend": "numba", "threads": 2, "epochs": 1}
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        command = ["train", *arguments(**options), "--out", f"{name}/run"]
        child = server.start(Path(name), *command, user=65534, thread_limit=1)
        assert child.wait(20) == 0, child.stderr()
        output = child.stdout() + child.stderr()
        assert "1 of 2 CPU threads could be started (can't start new thread): computing on 1" in output
        assert "Traceback" not in output
        assert child.stderr().strip().count("\n") == 0
        whole = fastsnn.train(small(tmp_path / "whole", **options)).run
        assert_same_run(Path(name) / "run", whole)


def test_the_faster_number_of_workers_is_taken_and_looked_for_again() -> None:
    measured, seconds = threads.MeasuredWorkers(), {2: 3.0, 1: 1.0}
    taken = []
    for call in range(6 * threads.PROBE_EVERY):
        if call == 2 * threads.PROBE_EVERY:
            seconds = {2: 1.0, 1: 3.0}  # the other program has ended
        taken.append(workers := measured.choose(2))
        measured.note(workers, seconds[workers])
    assert taken[:6] == [2, 1] * 3
    assert taken[6 : threads.PROBE_EVERY - 1] == [1] * (threads.PROBE_EVERY - 7)
    assert taken[-threads.PROBE_EVERY :].count(2) == threads.PROBE_EVERY - 1


def test_a_step_on_a_busy_machine_ends_up_with_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with the same weights, bit for bit."""
    spread, used = threads.spread, []

    def slowed(kernel: Callable[..., None], workers: int, *arguments: Any, **options: Any) -> None:
        used.append(workers)
        spread(kernel, workers, *arguments, **options)
        time.sleep(0.02 * (workers - 1))

    def weights(workers: int) -> torch.Tensor:
        monkeypatch.setattr(numba, "get_num_threads", lambda: workers)
        weight = torch.nn.Parameter(torch.rand(3, 8, generator=torch.Generator().manual_seed(0)))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        step = rate_step.RateStep(weight, None, optimizer, T=9, seed=0, loss="mse", neuron=LIF())
        data = step.prepare(torch.arange(320, dtype=torch.uint8).reshape(40, 8), torch.arange(40) % 3)
        for epoch in range(10):
            step.train(data, torch.arange(40), epoch, 4)
        step.sync()
        return weight.detach()

    alone = weights(1)
    monkeypatch.setattr(rate_step, "spread", slowed)
    assert torch.equal(weights(2), alone)
    assert set(used[:6]) == {1, 2}
    assert set(used[6:]) == {1}
