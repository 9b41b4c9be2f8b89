"""Two processes train as one does with the same global batch."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def test_the_loss_curve_is_that_of_one_process(tmp_path: Path) -> None:
    # 1,437 = 22 x 65 + 7: every batch splits unevenly. bias and sgd: every parameter and optimizer state is summed.
    options = [*TRAIN, "--epochs", "2", "--batch-size", "65", "--bias", "--optimizer", "sgd", "--lr", "0.1"]
    subprocess.run(
        [sys.executable, "-m", "fastsnn", *options, "--out", str(tmp_path / "one")], check=True, env=environment()
    )
    done = subprocess.run(
        torchrun(*options, "--out", str(tmp_path / "two")), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/2") == 1, "one process speaks"
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


def _worker(launcher: int, rank: int) -> int:
    """Process id of the worker of that rank, among the launcher's children."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return int(child)
    raise AssertionError(f"no worker of rank {rank} among {children}")
