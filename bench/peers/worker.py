"""The other end of ``bench.peers.remote``: does SpikingJelly's tasks in an environment without fastsnn.

Reads one JSON command a line from stdin and answers with one JSON line on what was stdout.
"""

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import tasks
from bench.cases import Case
from bench.peers.spikingjelly import MultiStep


class Worker:
    """The tasks made so far, by number."""

    def __init__(self) -> None:
        self.peer = MultiStep()
        self.tasks: dict[int, Any] = {}

    def versions(self) -> dict[str, Any]:
        packages = {name: importlib.metadata.version(name) for name in ("numpy", "torch", "spikingjelly")}
        return {"python": platform.python_version()} | packages

    def make(self, case: dict[str, Any], inputs: str, device: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        number = len(self.tasks)
        self.tasks[number] = tasks.build(self.peer, Case.from_dict(case), _load(inputs), torch.device(device))
        return {"id": number}

    def timed(self, id: int, threads: int) -> dict[str, Any]:
        self.tasks[id].threads = threads
        return {"seconds": self.tasks[id].timed()}

    def outputs(self, id: int, inputs: str) -> dict[str, Any]:
        found = self.tasks[id].outputs(_load(inputs))
        path = Path(inputs).with_suffix(".out.npz")
        np.savez(path, **{name: tensor.numpy() for name, tensor in found.items()})
        return {"outputs": str(path)}

    def memory(self, id: int) -> dict[str, Any]:
        return {"bytes": tasks.peak_memory(self.tasks[id], self.tasks[id].device)}

    def drop(self, id: int) -> dict[str, Any]:
        self.tasks[id] = None
        return {}


def _load(path: str) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def main() -> None:
    # Answers keep stdout to themselves: whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = getattr(worker, arguments.pop("command"))(**arguments)
        except Exception as error:  # the other end raises it
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
