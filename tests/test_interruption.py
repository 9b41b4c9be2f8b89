"""Runs that are killed or told to stop: nothing is lost, and what follows is the same to the last bit."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from child import Server
from kill_runs import kill_runs
from run_tools import arguments, assert_same_end, assert_same_run, metrics, small

import fastsnn

BACKENDS: dict[str, dict[str, Any]] = {"torch": {}, "numba": {"backend": "numba", "batch_size": 4}}
STAGES = ["half written", "before fsync", "before rename", "after rename"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of two epochs for each backend that was left alone."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return {name: fastsnn.train(small(folder / name, epochs=2, **options)).run for name, options in BACKENDS.items()}


def test_runs_killed_at_random_end_with_the_same_bits(server: Server, tmp_path: Path) -> None:
    seen = kill_runs(server, kills=10, seed=0, folder=tmp_path)
    assert seen["SIGKILL"] >= 10
    assert sum(count for what, count in seen.items() if re.search(r"SIGKILL, .*(pt|csv)", what)) >= 2, seen
    assert seen["SIGTERM"] >= 1


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("file", ["best.pt", "last.pt", "metrics.csv"])
def test_a_kill_at_each_stage_of_each_write(
    file: str, stage: str, server: Server, uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    """metrics.csv is written when a run starts and after each epoch: the third time follows the second epoch."""
    backend = ("torch", "numba")[STAGES.index(stage) % 2]
    options = arguments(epochs=2, **BACKENDS[backend])
    run, times = tmp_path / "run", 3 if file == "metrics.csv" else 2
    child = server.start(tmp_path, "train", *options, "--out", run, die_at=f"{file}, {stage}", times=times)
    assert child.wait() == -signal.SIGKILL, child.stderr()
    resumed = server.start(tmp_path, "train", "--resume", run)
    assert resumed.wait() == 0, resumed.stderr()
    assert_same_run(run, uninterrupted[backend])
    assert not list(run.glob(".*.tmp")), "what was half written is cleared away"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_after_the_batch_and_says_how_to_go_on(
    name: str, backend: str, server: Server, tmp_path: Path
) -> None:
    """Ctrl-C exits with 130, SIGTERM with 143, a terminal that closes with 129."""
    number, run = signal.Signals[name], tmp_path / "my run"
    options = arguments(epochs=900, **BACKENDS[backend])
    child = server.start(tmp_path, "train", *options, "--out", run)
    child.wait_for("  2/900 ")
    child.kill(number)
    assert child.wait() == 128 + number
    said = re.fullmatch(r"stopped in epoch (\d+) after ([\d,]+) samples and saved; go on with: (.*)\n", child.stderr())
    assert said, child.stderr()
    assert said[3] == f"fastsnn train --resume '{run}'"
    epoch = int(said[1])
    assert len(metrics(run)) == epoch - 1
    resumed = server.start(tmp_path, "train", "--resume", run, "--epochs", epoch)
    assert resumed.wait() == 0, resumed.stderr()
    fastsnn.train(small(tmp_path / "whole", epochs=epoch, **BACKENDS[backend]))
    assert_same_end(run, tmp_path / "whole")


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT"), ("SIGHUP", "SIGTERM")])
def test_a_second_signal_ends_at_once(first: str, second: str, server: Server, tmp_path: Path) -> None:
    child = server.start(tmp_path, "train", *arguments(), "--out", tmp_path / "run", slow=30)
    child.wait_for("told to stop by None;", child.phase)
    child.kill(signal.Signals[first])
    # Of two signals that arrive together Python answers the one with the lower number first.
    child.wait_for(f"told to stop by {int(signal.Signals[first])};", child.phase)
    child.kill(signal.Signals[second])
    assert child.wait() == 128 + signal.Signals[second]
    assert child.stderr() == ""
    assert not (tmp_path / "run" / "last.pt").exists(), "the batch did not end"
    again = server.start(tmp_path, "train", "--resume", tmp_path / "run")
    assert again.wait() == 0, "the folder is free again"


def test_a_signal_that_the_caller_ignores_stays_ignored(server: Server, tmp_path: Path) -> None:
    """As under nohup."""
    child = server.start(tmp_path, "train", *arguments(epochs=30), "--out", tmp_path / "run", ignored=signal.SIGHUP)
    child.wait_for("  1/30 ")
    child.kill(signal.SIGHUP)
    assert child.wait() == 0, child.stderr()
    assert len(metrics(tmp_path / "run")) == 30


def test_a_stop_before_training_leaves_nothing(server: Server, tmp_path: Path) -> None:
    """Stopped while the data are being fetched, which here takes long."""
    child = server.start(tmp_path, "train", "--out", tmp_path / "new" / "run", stall=60)
    assert child.wait_or_kill(0.5, signal.SIGTERM) == 143
    assert child.stderr() == "stopped before training began\n"
    assert not (tmp_path / "new").exists()


INTERRUPTED_IMPORT = """
import os, signal, sys

module = sys.argv.pop()

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.meta_path.insert(0, Interrupt())
from fastsnn.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("module", "code", "said"),
    [("cyclopts", -signal.SIGINT, ""), ("torch", 130, "interrupted\n")],
)
def test_ctrl_c_while_the_program_is_imported_is_no_traceback(
    module: str, code: int, said: str, tmp_path: Path
) -> None:
    """Of a process that SIGINT ended a shell says 130, too."""
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, "train", "--out", str(tmp_path / "run"), module]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    assert (done.returncode, done.stderr, done.stdout) == (code, said, "")
    assert not (tmp_path / "run").exists()
