"""A peer's training in a process of its own: ``python -m bench.train_peer PEER CASE DATA DEVICE THREADS GRID``.

Prints a JSON line: when the first step was done (Unix time), the median of the steps after it, and how many there were.
"""

import importlib
import json
import statistics
import sys
import time

import numpy as np
import torch

from bench.cases import Case, inputs

_SECONDS = {"tiny": 0.0}


def main(name: str, case: str, data: str, device: str, threads: str, grid: str) -> None:
    torch.set_num_threads(int(threads))
    peers = importlib.import_module("bench.peers")
    peer = (
        importlib.import_module("bench.peers.spikingjelly").MultiStep()
        if name == "spikingjelly2"
        else peers.create(name, None)
    )
    with np.load(data) as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    parsed = Case.from_dict(json.loads(case) | {"subject": "rate_step"})
    work = peers.work(peer, parsed, inputs(parsed, images, labels), torch.device(device))
    work.run()
    first_step_at = time.time()
    steps = [work.timed()]
    while time.time() - first_step_at < _SECONDS.get(grid, 4.0):
        steps.append(work.timed())
    print(json.dumps({"first_step_at": first_step_at, "step": statistics.median(steps), "steps": len(steps)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
