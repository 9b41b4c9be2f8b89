"""Two processes train as one does with the same global batch."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tools import Command
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode

from fastsnn import backends
from fastsnn.config import FitConfig
from fastsnn.sources import Batch
from fastsnn.training import process_group
from fastsnn.training.autograd_step import AutogradStep
from fastsnn.training.process_group import ProcessGroup
from fastsnn.training.readouts import Objective

TRAIN = ["train", "--dataset", "digits", "--backend", "torch", "--device", "cpu", "--threads", "1", "-T", "8"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


def torchrun(*arguments: str) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", f"--master-port={port}", "-m", "fastsnn"]
    return [sys.executable, *launcher, *arguments]


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) for name in ("train_loss", "test_loss")]


def test_the_loss_curve_is_that_of_one_process(tmp_path: Path, command: Command) -> None:
    # 1,437 = 22 x 65 + 7: every batch splits unevenly. bias and sgd: every parameter and optimizer state is summed.
    options = [*TRAIN, "--epochs", "2", "--batch-size", "65", "--bias", "--optimizer", "sgd", "--lr", "0.1"]
    assert command(*options, "--out", str(tmp_path / "one"))[0] == 0
    done = subprocess.run(
        torchrun(*options, "--out", str(tmp_path / "two")), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  1/2 ") == 1, "one process speaks"
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 4
    assert two == pytest.approx(one, rel=0, abs=3e-5)


def test_a_killed_worker_ends_the_run_with_a_message(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = torchrun(*TRAIN, "--epochs", "2000", "--out", str(run))
    with subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as launched:
        deadline = time.monotonic() + 60
        while not (run / "last.pt").exists():
            assert launched.poll() is None, "the run ended"
            assert time.monotonic() < deadline, "the run did not start"
            time.sleep(0.1)
        os.kill(_worker(launched.pid, rank=1), signal.SIGKILL)
        _, stderr = launched.communicate(timeout=60)
    assert launched.returncode != 0
    assert "another process of this run has ended" in stderr or "saved; go on with" in stderr, stderr


class Waits(TorchDispatchMode):
    """Lists the operators that make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "nonzero", "is_nonzero"):
            self.names.append(name)
        return function(*args, **kwargs or {})


@pytest.fixture
def reduced(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All-reduces of a group whose other process brings the same numbers."""
    calls: list[Tensor] = []
    monkeypatch.setattr(distributed, "all_reduce", lambda flat: calls.append(flat.mul_(2).clone()))
    return calls


class Made:
    """A source whose time steps are its samples x [D, K], twice; every label is 0."""

    name, shape, classes, per_step, T = "made", (6,), 3, False, None

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def size(self, split: str) -> int:
        return len(self.x)

    def batch(self, split: str, ids: Tensor, T: int, *, seed: int = 0, epoch: int = 0) -> Batch:
        return Batch(self.x[ids].expand(T, len(ids), 6), torch.zeros(len(ids), dtype=torch.int64), None)

    def to(self, device: torch.device) -> "Made":
        return self


def test_a_step_makes_one_all_reduce_and_no_host_waits(reduced: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    # Labels are looked at on the CPU only.
    monkeypatch.setattr("fastsnn.training.readouts.check_labels", lambda output, labels: None)
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)).round()
    source = Made(x)
    network = torch.nn.Sequential(torch.nn.Linear(6, 3))
    group = ProcessGroup(rank=0, size=2)
    # On the CPU, but on no GPU, a step of Adam reads its own count, and mse's one_hot looks at the labels.
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    step = AutogradStep(network, source, optimizer, FitConfig(T=2), Objective(loss="ce"), group=group)
    with Waits() as waits:
        losses, correct, _ = step.train(torch.arange(8), 1, 4, [0.1, 0.1])
    assert len(reduced) == 2
    assert [len(losses), len(correct)] == [2, 2]
    assert reduced[0].numel() == 6 * 3 + 3 + 3 + group.size
    assert losses.tolist() == [flat[21] for flat in reduced]
    assert not waits.names
    # An evaluation makes one for all of its batches.
    reduced.clear()
    step.evaluate("test", torch.arange(8), 3)
    assert len(reduced) == 1


def test_sums_replace_gradients_and_totals(reduced: list[Tensor]) -> None:
    network = torch.nn.Linear(2, 2)
    network(torch.ones(1, 2)).sum().backward()
    network.weight.grad, expected = network.weight.grad.clone(), network.weight.grad * 2  # type: ignore[union-attr,operator]
    loss, correct = torch.tensor(0.5), torch.tensor(7)
    ProcessGroup(rank=1, size=2).sum_step(network, loss, correct)
    assert torch.equal(network.weight.grad, expected)
    assert (float(loss), int(correct), correct.dtype) == (1.0, 14, torch.int64)


def test_processes_agree_on_a_stop_signal(reduced: list[Tensor]) -> None:
    network, loss = torch.nn.Linear(2, 2), torch.tensor(0.5)
    group = ProcessGroup(rank=1, size=2)
    assert group.agreed_signal() == 0, "before the first step nobody has heard of anything"
    found = []
    for own in (0, 15, 15):
        group.signal = own
        group.sum_step(network, loss)
        found.append(group.agreed_signal())
    assert found == [0, 30, 30], "the other process brings it too, and the sum tells it as well"
    alone = ProcessGroup()
    alone.signal = 2
    assert alone.agreed_signal() == 2


def test_a_gpu_is_not_waited_for(reduced: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal that is looked at is that of two steps before, whose copy has long arrived."""

    class Event:
        waited = 0

        def synchronize(self) -> None:
            Event.waited += 1

    monkeypatch.setattr(process_group, "_fetched", lambda value: (value.clone(), Event()))
    group, found = ProcessGroup(rank=0, size=2), []
    for own in (15, 0, 0, 0):
        group.signal = own
        group.sum_step(torch.nn.Linear(2, 2), torch.tensor(0.5))
        found.append(group.agreed_signal())
    assert found == [0, 0, 30, 0]
    assert Event.waited == 2


def test_a_process_looks_at_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at another one opens a context there, of some 300 MB, in every process."""
    looked_at: list[int] = []
    monkeypatch.setattr(backends, "cuda_refusal", lambda index=0: looked_at.append(index) or "none here")
    assert backends.choose_device("torch", 3) == torch.device("cpu")
    monkeypatch.setattr(backends, "cuda_refusal", lambda index=0: looked_at.append(index))
    assert backends.choose_device("torch", 3) == torch.device("cuda:3")
    assert looked_at == [3, 3]
    current: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, **_: current.append(backend))
    ProcessGroup(rank=3, size=4, local_rank=3).join(torch.device("cuda:3"))
    assert current == [torch.device("cuda:3"), "nccl"], "before anything names no device"


def _worker(launcher: int, rank: int) -> int:
    """Process id of the worker of that rank, among the launcher's children."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return int(child)
    raise AssertionError(f"no worker of rank {rank} among {children}")
