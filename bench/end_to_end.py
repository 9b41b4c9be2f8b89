"""Seconds from the start of a process to a test accuracy: ``fastsnn train`` as a user runs it, and the peers' training.

A peer's time is computed: as many of its measured steps as fastsnn needed, which is the same mathematics on the same
data. It is not charged for its start, for compilation or for evaluation.
"""

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import measure
from bench.cases import EPOCH_STEPS, Case
from bench.measure import FastsnnFailedError, Session
from bench.results import Row
from fastsnn.training.machine import cores

TARGET = {"mnist": 0.92, "digits": 0.0}
"""Test accuracy to reach; digits only shows that this runs."""
MOST_EPOCHS = 20
_CACHES = ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR")


def run(case: Case, session: Session, benchmark: BenchmarkFixture) -> None:
    """fastsnn with empty kernel caches and then with filled ones; then every peer that was timed on the step."""
    if session.size == "full" and session.data != "mnist":
        pytest.skip("it needs MNIST's raw files under $FASTSNN_DATA")
    name = session.names(case)[0]
    label = f"{session.implementation(name).label()}, one-layer trainer"
    own = Row(name, label, case.to_dict(), session.data, "measured")
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if session.size != "tiny":
            environment |= {cache: str(Path(folder) / cache) for cache in _CACHES}
            own.first_seconds, _ = _train(case, session, name, environment)

        def target() -> None:
            seconds, own.extra = _train(case, session, name, environment)
            own.seconds.append(seconds)

        benchmark.pedantic(target, rounds=1 if session.size == "tiny" else 2)
    own.threads = cores() if session.device.type == "cpu" else None
    steps = own.extra["epoch"] * EPOCH_STEPS
    rows = [own]
    for step in session.results.of("rate_step"):
        if step.seconds and not step.ours:
            reason = f"{steps} of its steps, without its start"
            rows.append(
                replace(
                    step, case=case.to_dict(), status="computed", reason=reason, seconds=[steps * step.median],
                    first_seconds=None, peak_memory=None,
                )
            )  # fmt: skip
    session.results.replace(rows)
    for line in measure.summary(session.results, case.name):
        session.say(line)


def _train(case: Case, session: Session, name: str, environment: dict[str, str]) -> tuple[float, dict[str, Any]]:
    """Seconds until an epoch of ``fastsnn train`` reaches the target, and that epoch's number and accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--dataset {session.data} -T {case.T} --backend {name.removeprefix('fastsnn-')}"
        options += f" --device {session.device} --epochs {MOST_EPOCHS}"
        options += " --train-samples 64 --test-samples 64" * (session.size == "tiny")
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
                raise FastsnnFailedError(
                    f"fastsnn train ended before test accuracy {TARGET[session.data]}: {log.read()[-500:]}"
                )
    return seconds, found


def _wait_for(metrics: Path, target: float, process: "subprocess.Popen[bytes]") -> dict[str, Any] | None:
    """The first epoch at the target, as soon as its line is written; None if training ends without one."""
    while True:
        running = process.poll() is None
        if metrics.exists():
            for line in csv.DictReader(metrics.read_text().splitlines()):
                if float(line["test_accuracy"]) >= target:
                    return {"epoch": int(line["epoch"]), "test_accuracy": float(line["test_accuracy"])}
        if not running:
            return None
        time.sleep(0.01)
