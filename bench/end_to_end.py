"""Seconds from the start of a process to a test accuracy: ``fastsnn train`` as a user runs it, and the peers' training.

A peer is run for a limited number of steps, and the rest is computed: its start, and as many steps as ours needed,
which is the same mathematics on the same data. It is not charged for evaluation.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from bench import machine, ours, race
from bench.cases import EPOCH_STEPS, Case
from bench.peers import remote
from bench.race import OursFailedError, Session
from bench.results import Row
from fastsnn.training.machine import cores

TARGET = {"mnist": 0.92, "digits": 0.0}
"""Test accuracy to reach; digits only shows that this runs."""
MOST_EPOCHS = 20
_CACHES = ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR")


def run(case: Case, session: Session, benchmark: BenchmarkFixture) -> None:
    """Ours with empty kernel caches and then with filled ones; then every peer that trains."""
    name = session.names(case)[0]
    backend = name.removeprefix("fastsnn-")
    label = ours.Ours(name, session.device).label()
    own = Row(name, label, case.to_dict(), session.data, "measured", ours=True, environment=session.environment)
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if session.size != "tiny":
            environment |= {cache: str(Path(folder) / cache) for cache in _CACHES}
            own.first_seconds, _ = _train(case, session, backend, environment)

        def target() -> float:
            seconds, found = _train(case, session, backend, environment)
            own.extra = found
            own.seconds.append(seconds)
            return seconds

        benchmark.pedantic(target, rounds=1 if session.size == "tiny" else 2)
    own.threads = cores() if session.device.type == "cpu" else None
    rows = [own]
    for gated in session.results.of("rate_step") or _gated(case, session):
        if not gated.ours:
            rows.append(_peer_row(gated, case, session, own))
    session.results.rows += rows


def _gated(case: Case, session: Session) -> list[Row]:
    """Rows of the training step, for a run that has not measured it: who passes the gate."""
    with ours.threads(cores()):
        return [row for row, _ in race.enter(replace(case, subject="rate_step"), session)]


def _train(case: Case, session: Session, backend: str, environment: dict[str, str]) -> tuple[float, dict[str, Any]]:
    """Seconds until an epoch of ``fastsnn train`` reaches the target, and that epoch's number and accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--dataset {session.data} -T {case.T} --backend {backend} --device {session.device}"
        options += f" --epochs {MOST_EPOCHS}" + " --train-samples 64 --test-samples 64" * (session.size == "tiny")
        command = [sys.executable, "-m", "fastsnn", "train", *options.split(), "--out", f"{folder}/run"]
        with open(Path(folder) / "log", "w+") as log:
            started = time.perf_counter()
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                found = _wait_for(Path(folder) / "run" / "metrics.csv", TARGET[session.data], process)
                seconds = time.perf_counter() - started
            finally:
                process.send_signal(signal.SIGINT)
                process.wait()
            if found is None:
                log.seek(0)
                raise OursFailedError(
                    f"fastsnn train ended before test accuracy {TARGET[session.data]}: {log.read()[-500:]}"
                )
    return seconds, found


def _wait_for(metrics: Path, target: float, process: "subprocess.Popen[bytes]") -> dict[str, Any] | None:
    """The first epoch at the target, as soon as its line is written; None where training ends without one."""
    while True:
        running = process.poll() is None
        if metrics.exists():
            for line in csv.DictReader(metrics.read_text().splitlines()):
                if float(line["test_accuracy"]) >= target:
                    return {"epoch": int(line["epoch"]), "test_accuracy": float(line["test_accuracy"])}
        if not running:
            return None
        time.sleep(0.01)


def _peer_row(gated: Row, case: Case, session: Session, own: Row) -> Row:
    """A peer's seconds to the target from its first steps; where it may not train, why."""
    row = Row(
        gated.implementation, gated.label, case.to_dict(), session.data, gated.status, gated.reason,
        threads=gated.threads, environment=gated.environment,
    )  # fmt: skip
    if gated.status != "measured":
        return row
    try:
        start, step, steps = _measure_peer(row.implementation, case, session, row.threads or cores())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        race.fail(row, error)
        return row
    row.status = "computed"
    needed = own.extra["epoch"] * EPOCH_STEPS
    row.seconds = [start + needed * step]
    row.reason = (
        f"{start:.1f} s to the first step, then {needed} steps at the {step * 1e3:.1f} ms of {steps} measured ones"
    )
    return row


def _measure_peer(name: str, case: Case, session: Session, threads: int) -> tuple[float, float, int]:
    """Seconds to the end of the first step, median seconds of a step, and how many were measured."""
    python = sys.executable
    if name == "spikingjelly2":
        assert session.peer_env is not None
        python = str(remote.python_of(session.peer_env))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, images=session.images[: case.B].numpy(), labels=session.labels[: case.B].numpy())
        arguments = [name, json.dumps(case.to_dict()), str(data), str(session.device), str(threads), session.size]
        started = time.time()
        done = subprocess.run(
            [python, "-m", "bench.train_peer", *arguments],
            cwd=machine.ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )
    if done.returncode:
        raise ValueError(f"exit code {done.returncode}: {done.stderr.strip()[-200:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["first_step_at"] - started, answer["step"], answer["steps"]
