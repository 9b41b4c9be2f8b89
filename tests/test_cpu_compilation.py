"""Compiled CPU kernels are kept on disk where that is possible, and whoever waits for the compiler is told."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from numba.core import caching
if sys.argv[1:] == ["unwritable"]:
    caching.CompileResultCacheImpl._locator_classes = []  # as where Numba could write to no folder

import torch
from fastsnn.kernels.numba import before_compiling, philox

words = torch.tensor([5], dtype=torch.int32)
with before_compiling(lambda: print("compiling")):
    for _ in range(2):
        print(philox.unpack(words, 3).tolist())
"""
SPIKES = ["[1.0, 0.0, 1.0]"] * 2


def run(cache: Path | None, *arguments: str) -> list[str]:
    """What a new process prints, with its cache of compiled functions in a folder or, for None, where Numba looks."""
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    environment |= {"NUMBA_CACHE_DIR": str(cache)} if cache else {}
    command = [sys.executable, "-c", CODE, *arguments]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True, timeout=300)
    return done.stdout.splitlines()


def test_compiled_once_on_a_machine_and_said_so(tmp_path: Path) -> None:
    assert run(tmp_path) == ["compiling", *SPIKES]
    assert list(tmp_path.rglob("*.nbi"))
    assert run(tmp_path) == SPIKES


def test_without_a_writable_folder_every_process_compiles() -> None:
    for _ in range(2):
        assert run(None, "unwritable") == ["compiling", *SPIKES]
