"""A peer in another environment (``--peer-env``), driven as a subprocess: see ``bench.peers.worker``.

It computes while this process waits, and measures its own time.
"""

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.cases import Case
from bench.tasks import Outputs

ROOT = Path(__file__).parents[2]


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment; ValueError where it has none."""
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        raise ValueError(f"--peer-env is {environment}; there is no {python}")
    return python


class Remote:
    """SpikingJelly 2 in an environment of its own; ValueError where that has no Python."""

    forward_only: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ("lif", "if", "leaky", "li")
    tasks: ClassVar[tuple[str, ...]] = ("training", "scan", "layer", "csnn", "recurrent", "inference", "encoding")

    def __init__(self, name: str, environment: Path) -> None:
        self.name = name
        python = python_of(environment)
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [str(python), "-m", "bench.peers.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.count = 0

    def label(self) -> str:
        return f"SpikingJelly {self.versions()['spikingjelly']} multi-step"

    def versions(self) -> dict[str, str]:
        """Of what the results depend on there."""
        return self.call("versions")

    def task(self, case: Case, x: dict[str, Tensor], device: torch.device) -> "RemoteTask":
        return RemoteTask(self, case, x, device)

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for the answer; RuntimeError with what the worker says where it fails."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"command": command} | arguments) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.name} ended with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def store(self, tensors: dict[str, Tensor]) -> str:
        """Write tensors to a file that the worker reads; its path."""
        self.count += 1
        path = Path(self.folder.name) / f"{self.count}.npz"
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(path, **arrays)
        return str(path)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # a worker that ended leaves its last command unread
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.folder.cleanup()


class RemoteTask:
    """A task whose every method is the worker's."""

    def __init__(self, peer: Remote, case: Case, x: dict[str, Tensor], device: torch.device) -> None:
        self.peer, self.threads = peer, torch.get_num_threads()
        path = peer.store(x)
        self.id = peer.call("make", case=case.to_dict(), inputs=path, device=str(device), threads=self.threads)["id"]
        Path(path).unlink()

    def run(self) -> None:
        self.timed()

    def timed(self) -> float:
        return float(self.peer.call("timed", id=self.id, threads=self.threads)["seconds"])

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        path = self.peer.store(x)
        answer = self.peer.call("outputs", id=self.id, inputs=path)
        with np.load(answer["outputs"]) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    def peak_memory(self) -> int | None:
        return self.peer.call("memory", id=self.id)["bytes"]

    def close(self) -> None:
        self.peer.call("drop", id=self.id)
