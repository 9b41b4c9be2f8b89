"""Kill training runs at random times, resume them, and compare every bit with a run that was left alone.

    python tests/kill_runs.py --kills 1000 --seed 0

A run is killed again and again (SIGKILL; every fourth time SIGTERM, which saves in the middle of an epoch) until it is
done. Its writes are slowed at each stage from outside the product, so that kills meet them too; after each kill every
file must be whole or absent. The suite does the same with fewer kills: ``tests/test_interruption.py``.
"""

import argparse
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from child import Server
from run_tools import arguments, assert_same_run

from fastsnn import checkpoint
from fastsnn.monitor import COLUMNS

RUNS: dict[str, dict[str, Any]] = {
    "torch, adam": {"epochs": 5},
    "torch, sgd": {"epochs": 5, "optimizer": "sgd", "lr": 0.5},
    "numba, fused": {"epochs": 9, "backend": "numba", "batch_size": 4},
}
LONGEST = 0.4
"""Seconds after which a process is killed at the latest, from its start or from the beginning of training."""
PAUSE = 0.008
"""Seconds that each stage of a write is stretched by."""


def kill_runs(server: Server, kills: int, seed: int, folder: Path, every: int = 0) -> Counter[str]:
    """Counts what the killed processes were doing; raises AssertionError where a run is not as it should be."""
    chance, seen = random.Random(seed), Counter[str]()
    for name, options in RUNS.items():
        command = ["train", *arguments(**options), "--out", folder / name]
        assert server.start(folder / f"{name} output", *command).wait() == 0
    number = 0
    while seen["SIGKILL"] < kills:
        name = list(RUNS)[number % len(RUNS)]
        number += 1
        run = folder / f"{number}"
        _finish_despite_kills(server, run, RUNS[name], chance, seen)
        assert_same_run(run, folder / name)
        seen["runs, each equal to the last bit"] += 1
        if every and number % every == 0:
            print(f"{seen['SIGKILL']} kills, {number} runs", flush=True)
    return seen


def _finish_despite_kills(
    server: Server, run: Path, options: dict[str, Any], chance: random.Random, seen: Counter[str]
) -> None:
    while True:
        started = (run / "config.yaml").exists()
        command = ["--resume", run] if started else [*arguments(**options), "--out", run]
        child = server.start(run.with_name(f"{run.name} output"), "train", *command, pause=PAUSE)
        if chance.random() < 0.75:
            child.wait_for("run folder")
        number = chance.choice([signal.SIGKILL] * 3 + [signal.SIGTERM])
        code = child.wait_or_kill(chance.uniform(0, LONGEST), number)
        if code == 0:
            return
        if number == signal.SIGTERM:
            assert code in (143, -15), (code, child.stderr())  # -15: it had not set its handler yet
            assert child.stderr().count("\n") == (code == 143), child.stderr()
            seen["SIGTERM"] += 1
        else:
            assert code == -9, (code, child.stderr())
            assert child.stderr() == ""
            seen["SIGKILL"] += 1
            seen[f"SIGKILL, {child.phase()}"] += 1
        _check_files(run)


def _check_files(run: Path) -> None:
    """Each is whole or absent."""
    for name in ("last.pt", "best.pt"):
        if (run / name).exists():
            checkpoint.load(run / name)
    if (run / "config.yaml").exists():
        assert yaml.safe_load((run / "config.yaml").read_text())["environment"]["fastsnn"]
    if (run / "metrics.csv").exists():
        header, *lines = (run / "metrics.csv").read_text().split("\n")
        # The output layer's firing rate is known when an epoch is done.
        assert header == ",".join([*COLUMNS, "firing_rate_1"] if lines[0] else COLUMNS)
        assert lines.pop() == ""
        assert [line.count(",") for line in lines] == [8] * len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Server() as server:
        seen = kill_runs(server, options.kills, options.seed, Path(folder), every=10)
    for what, count in sorted(seen.items()):
        print(f"{count:6} {what}")


if __name__ == "__main__":
    sys.exit(main())
