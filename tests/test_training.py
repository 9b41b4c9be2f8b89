"""fastsnn.train and evaluate: the same bits after any interruption, and what goes wrong is said."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tools import StopAfter, assert_same, assert_same_run, metrics, small

import fastsnn
from fastsnn import backends, checkpoint
from fastsnn.errors import FastSNNError, Interrupted, TrainingDiverged
from fastsnn.networks import network_of
from fastsnn.training.autograd_step import AutogradStep
from fastsnn.training.machine import cores
from fastsnn.training.splits import permutation

PATHS = {
    "adam": {},
    "sgd": {"optimizer": "sgd", "lr": 0.5, "bias": True},
    "hidden": {"hidden": (12,), "bias": True, "loss": "ce"},
    "two threads": {"threads": 2},
    # The fused step takes eight batches a call.
    "numba fused": {"backend": "numba", "step": "fused", "batch_size": 4},
    "numba fused sgd": {"backend": "numba", "batch_size": 4, "optimizer": "sgd", "lr": 0.5, "bias": True, "loss": "ce"},
    "numba layers": {"backend": "numba", "step": "autograd"},
}


@pytest.mark.parametrize("options", PATHS.values(), ids=PATHS)
def test_an_interrupted_run_ends_with_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    """Stopped after an epoch, in the middle of one (twice), and after the last batch of one, before its test."""
    if options.get("threads", 1) > cores():
        pytest.skip("needs two cores")
    one, other = tmp_path / "uninterrupted", tmp_path / "interrupted"
    history = fastsnn.train(small(one, **options))
    rates = [row.train_loss for row in history.epochs]
    assert rates[0] > rates[-1], "the run learns nothing, so it tests nothing"

    fastsnn.train(small(other, **options, epochs=1))
    config = small(other, **options)
    for epoch, images in ((2, 32), (2, 64), (2, 70), (3, 16)):
        with pytest.raises(Interrupted) as stopped:
            fastsnn.train(config, resume=other, monitor=StopAfter(epoch, images))
        assert stopped.value.signal_number == 15
        assert f"fastsnn train --resume {other}" in str(stopped.value)
        state = checkpoint.load(other / "last.pt")
        assert len(state["history"]) == epoch - 1 == len(metrics(other))
        assert 0 < len(state["progress"]["losses"]) <= 18
    resumed = fastsnn.train(config, resume=other)
    assert_same_run(other, one)
    assert_same([vars(row) for row in resumed.epochs], [vars(row) for row in history.epochs])


def test_the_same_run_twice_is_the_same(tmp_path: Path) -> None:
    for name in ("one", "other"):
        fastsnn.train(small(tmp_path / name, epochs=2))
    assert_same_run(tmp_path / "one", tmp_path / "other")
    fastsnn.train(small(tmp_path / "seed", epochs=2, seed=1))
    assert metrics(tmp_path / "seed") != metrics(tmp_path / "one")


def test_numba_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    for step in ("fused", "autograd"):
        for threads in (1, cores()):
            fastsnn.train(small(tmp_path / f"{step}-{threads}", epochs=2, backend="numba", step=step, threads=threads))
        found, expected = (checkpoint.load(tmp_path / f"{step}-{threads}" / "last.pt") for threads in (cores(), 1))
        for part in ("model", "optimizer", "history"):
            assert_same(found[part], expected[part], part)


def test_a_numba_run_goes_on_with_fewer_cores_and_a_torch_run_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in ("numba", "torch"):
        fastsnn.train(small(tmp_path / backend, epochs=1, backend=backend, threads=cores()))
        text = (tmp_path / backend / "config.yaml").read_text()
        (tmp_path / backend / "config.yaml").write_text(text.replace(f"threads: {cores()}", "threads: 512"))
    fastsnn.train(small(tmp_path / "numba", epochs=2, backend="numba", threads=None), resume=tmp_path / "numba")
    with pytest.raises(ValueError, match=f"threads is 512; allowed: 1 to {cores()}, the cores of this machine"):
        fastsnn.train(small(tmp_path / "torch", epochs=2, threads=None), resume=tmp_path / "torch")
    fastsnn.evaluate(tmp_path / "torch")


@pytest.mark.parametrize("options", [PATHS["adam"], PATHS["hidden"], PATHS["numba fused"]], ids=str)
def test_eval_reproduces_the_last_row(options: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    last = fastsnn.train(small(run, **options, epochs=2)).epochs[-1]
    found = fastsnn.evaluate(run)
    assert (found["test_loss"], found["test_accuracy"]) == (last.test_loss, last.test_accuracy)
    assert (found["epoch"], found["steps"], found["run"]) == (2, 0, str(run))
    row = metrics(run)[-1]
    assert (row["test_loss"], row["test_accuracy"]) == (str(last.test_loss), str(last.test_accuracy))
    for backend in ("torch", "numba"):
        other = fastsnn.evaluate(run, backend=backend)
        assert other["backend"] == backend
        assert other["test_loss"] == pytest.approx(last.test_loss, abs=3e-5)
    assert fastsnn.evaluate(run, device="cpu")["backend"] == backends.choose(torch.device("cpu"))[0]


def test_eval_of_a_run_stopped_in_an_epoch_says_where(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        fastsnn.train(small(run), monitor=StopAfter(2, 48))
    found = fastsnn.evaluate(run)
    assert (found["epoch"], found["steps"]) == (1, 3)


def test_the_backends_share_initial_weights_and_order_and_agree(tmp_path: Path) -> None:
    weights = [
        network_of(small(tmp_path, hidden=(12,)), (64,), 10, backend).state_dict() for backend in ("torch", "numba")
    ]
    assert_same(dict(weights[0]), dict(weights[1]))
    histories = [
        fastsnn.train(small(tmp_path / name, epochs=2, lr=1e-3, **options)).epochs
        for name, options in {
            "torch": {},
            "layers": {"backend": "numba", "step": "autograd"},
            "fused": {"backend": "numba", "step": "fused"},
        }.items()
    ]
    for epochs in histories[1:]:
        for row, expected in zip(epochs, histories[0], strict=True):
            assert row.train_loss == pytest.approx(expected.train_loss, abs=3e-5)
            assert row.test_loss == pytest.approx(expected.test_loss, abs=3e-5)


def test_initial_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(3)  # whatever the caller drew before
        return network_of(small(tmp_path), (64,), 10, "torch", seed=seed)[0].weight

    before = torch.get_rng_state()
    assert torch.equal(weights(5), weights(5))
    assert not torch.equal(weights(5), weights(6))
    torch.set_rng_state(before)
    first = torch.rand(1)
    torch.set_rng_state(before)
    network_of(small(tmp_path), (64,), 10, "torch")
    assert torch.equal(torch.rand(1), first), "the caller's generator was moved"


def test_permutation() -> None:
    orders = {(seed, epoch): permutation(seed, epoch, 1000) for seed in (0, 1, 2**64 - 1) for epoch in (1, 2)}
    for order in orders.values():
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert len({tuple(order.tolist()) for order in orders.values()}) == len(orders)
    assert torch.equal(permutation(0, 1, 1000), orders[0, 1])


def test_the_mean_loss_weighs_the_smaller_last_batch_by_its_size(tmp_path: Path) -> None:
    """70 samples at 16 are four batches of 16 and one of 6."""
    with pytest.raises(Interrupted):
        fastsnn.train(small(tmp_path / "run"), monitor=StopAfter(1, 70))
    progress = checkpoint.load(tmp_path / "run" / "last.pt")["progress"]
    losses = progress["losses"].double()
    row = fastsnn.train(small(tmp_path / "run", epochs=1), resume=tmp_path / "run").epochs[0]
    assert row.train_loss == pytest.approx(float((losses[:4].sum() * 16 + losses[4] * 6) / 70), rel=1e-12)
    assert row.train_accuracy == int(progress["correct"].sum()) / 70


def test_the_library_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    history = fastsnn.train(small(tmp_path / "run", epochs=1))
    fastsnn.evaluate(history.run)
    assert capfd.readouterr() == ("", "")
    assert history.run == tmp_path / "run"
    assert (history.backend, history.step, history.device, len(history.epochs)) == ("torch", "autograd", "cpu", 1)


@pytest.mark.parametrize("options", [{}, {"backend": "numba"}], ids=str)
def test_torch_computes_on_as_many_threads_as_are_asked_for(options: dict[str, Any]) -> None:
    """In a new process: Numba, when it starts, sets the number of OpenMP's threads, which is torch's."""
    program = (
        "import sys, tempfile, torch, numba, fastsnn\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from run_tools import small\n"
        "class Watch(fastsnn.Monitor):\n"
        "    def epoch(self, metrics): seen.append((torch.get_num_threads(), numba.get_num_threads()))\n"
        "seen, torch_threads = [], torch.get_num_threads()\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        f"    fastsnn.train(small(Path(folder), epochs=1, **{options}), monitor=Watch())\n"
        "assert seen == [(1, 1)], seen\n"
        "assert torch.get_num_threads() == torch_threads\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(Path(__file__).parent)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(cores())})


def test_the_callers_settings_of_torch_are_kept(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fastsnn.train(small(tmp_path / "run", epochs=1, threads=1, deterministic=True))
    fastsnn.evaluate(tmp_path / "run")
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_a_monitor_sees_every_batch_and_epoch(tmp_path: Path) -> None:
    class Log(fastsnn.Monitor):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def start(self, *arguments: Any) -> None:
            self.seen.append(arguments)

        def batches(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            self.seen.append((epoch, images))
            self.last = loss, accuracy

        def epoch(self, metrics: Any) -> None:
            self.seen.append(metrics.epoch)
            assert self.last == pytest.approx((metrics.train_loss, metrics.train_accuracy), rel=0.1)

    log = Log()
    fastsnn.train(small(tmp_path / "run", epochs=2), monitor=log)
    batches = [*range(16, 70, 16), 70]
    steps = [[*((epoch, images) for images in batches), epoch] for epoch in (1, 2)]
    assert log.seen == [(tmp_path / "run", "digits", 70, 2, 0), *steps[0], *steps[1]]


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    messages: list[str] = []

    class Listener(fastsnn.Monitor):
        def message(self, text: str) -> None:
            messages.append(text)

    run = tmp_path / "run"
    fastsnn.train(small(run, epochs=2))
    before = checkpoint.load(run / "last.pt")
    history = fastsnn.train(small(run, epochs=2), resume=run, monitor=Listener())
    assert len(history.epochs) == 2
    assert messages[-1] == "all 2 epochs are done; a larger --epochs goes on"
    assert_same(checkpoint.load(run / "last.pt"), before)


def test_resume_takes_what_was_chosen_then(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fastsnn.train(small(run, epochs=1))
    open_ = {"dataset": "auto", "backend": "auto", "device": "auto", "step": "auto", "threads": None}
    fastsnn.train(small(run, epochs=2, **open_), resume=run)
    fastsnn.train(small(tmp_path / "whole", epochs=2))
    assert_same_run(run, tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "value"), [("tau", 3.0), ("seed", 1), ("hidden", (5,)), ("backend", "numba"), ("T", 9)]
)
def test_resume_refuses_what_would_change_the_result(name: str, value: Any, tmp_path: Path) -> None:
    fastsnn.train(small(tmp_path / "run", epochs=1))
    with pytest.raises(ValueError, match=rf"{name} is .*, but this run was started with .*--resume can change epochs"):
        fastsnn.train(small(tmp_path / "run", **{name: value}), resume=tmp_path / "run")


@pytest.mark.parametrize("options", [{}, {"backend": "numba"}, {"hidden": (12,)}], ids=str)
def test_a_network_that_diverges_keeps_the_last_good_checkpoint(options: dict[str, Any], tmp_path: Path) -> None:
    """NaN weights never spike, so the loss stays finite: it is the weights that are looked at."""
    run = tmp_path / "run"
    options = {"lr": 1e37} | options
    with pytest.raises(
        TrainingDiverged, match=r"weights became NaN or infinite in epoch 1, step \d+: lower --lr"
    ) as lost:
        fastsnn.train(small(run, **options, epochs=9))
    assert "kept" not in str(lost.value)
    assert not (run / "last.pt").exists()
    config = small(tmp_path / "good", **options | {"lr": 0.05}, epochs=1)
    fastsnn.train(config)
    before = (tmp_path / "good" / "last.pt").read_bytes()
    with pytest.raises(TrainingDiverged, match=r"in epoch 2, step .*; the last good checkpoint is kept in .*last\.pt"):
        fastsnn.train(small(tmp_path / "good", **options, epochs=9), resume=tmp_path / "good")
    assert (tmp_path / "good" / "last.pt").read_bytes() == before


@pytest.mark.parametrize("where", ["train", "evaluate"])
def test_a_loss_that_is_not_finite_names_its_step(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = AutogradStep.train

    def train(self: Any, *arguments: Any) -> Any:
        results = original(self, *arguments)
        self.calls = getattr(self, "calls", 0) + 1
        return results._replace(losses=results.losses * float("inf")) if self.calls == 8 else results

    monkeypatch.setattr(AutogradStep, "train", train)
    with pytest.raises(TrainingDiverged, match=r"the loss became NaN or infinite in epoch 2, step 3: .* kept in"):
        fastsnn.train(small(tmp_path / "run"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError("Unable to allocate 7.11 PiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["train", "evaluate", "outputs"])
def test_out_of_memory_names_the_knobs(
    error: Exception, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(AutogradStep, where, fail)
    with pytest.raises(FastSNNError, match=r"cpu ran out of memory: lower --batch-size \(now 16\) or -T \(now 4\)"):
        fastsnn.train(small(tmp_path / "run"))


def test_other_errors_of_torch_are_not_called_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(AutogradStep, "train", fail)
    with pytest.raises(RuntimeError, match="something else"):
        fastsnn.train(small(tmp_path / "run"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"step": "fused"}, "step fused does not cover this run: backend is torch"),
        (
            {"backend": "numba", "step": "fused", "hidden": (5,)},
            "the network is not one LinearLIF, and the fused step trains one layer",
        ),
        ({"amp": "bf16"}, "amp is bf16; allowed: off on cpu, which gains nothing from it"),
        ({"amp": "fp16", "backend": "numba"}, "amp is fp16; allowed: off on cpu"),
    ],
)
def test_options_that_do_not_fit_together(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        fastsnn.train(small(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists(), "a refused run leaves no folder"


def test_deterministic_changes_nothing_on_the_cpu(tmp_path: Path) -> None:
    for name in ("one", "other"):
        fastsnn.train(small(tmp_path / name, epochs=1, deterministic=name == "one"))
    found, expected = (checkpoint.load(tmp_path / name / "last.pt") for name in ("one", "other"))
    assert_same(found["model"], expected["model"])


@pytest.mark.mnist
def test_mnist_reaches_90_percent_in_an_epoch(tmp_path: Path) -> None:
    """On the fused CPU step, which computes what the torch backend does."""
    config = fastsnn.Config(dataset="mnist", backend="numba", step="fused", epochs=1, out=tmp_path / "run")
    (row,) = fastsnn.train(config).epochs
    assert 0.90 <= row.test_accuracy <= 0.925
    assert fastsnn.evaluate(tmp_path / "run")["test_accuracy"] == row.test_accuracy
