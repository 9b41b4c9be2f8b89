"""The regression check of continuous integration: fastsnn must stay ahead of a peer in the same run by a given factor.

``python -m bench.regression RESULTS.json``, of a run with ``--threads 1``: ratios on one thread hold on a busy machine
of any speed. ``.ci/run`` has the command.
"""

import statistics
import sys
from pathlib import Path

from bench.results import Results, load, ratios

FLOORS = {
    "cpu": {
        ("rate_step", "spikingjelly-loop"): 13.0,
        ("rate_step", "spikingjelly-multi"): 18.0,
        ("scan", "spikingjelly-loop"): 1.5,
        ("scan", "spikingjelly-multi"): 4.0,
        ("linear-1024", "spikingjelly-loop"): 1.3,
        ("linear-1024", "spikingjelly-multi"): 3.0,
        ("encoding", "spikingjelly-loop"): 2.5,
        ("encoding", "spikingjelly-multi"): 2.2,
    },
}
"""(case, peer) -> how many times slower than fastsnn the peer must be, at least; at most half of what was measured."""


def failures(found: Results) -> list[str]:
    """Floors that the results do not reach, and those that they have no numbers for."""
    wrong = []
    for (case, peer), floor in FLOORS.get(found.machine["kind"], {}).items():
        own, row = found.ours(case), found.find(case, peer)
        if own is None or row is None or not row.seconds:
            wrong.append(f"{case}: there is no time of {peer} ({row.reason if row else 'not run'})")
            continue
        ratio = statistics.median(ratios(row, own))
        if ratio < floor:
            wrong.append(f"{case}: {peer} is {ratio:.2f} times slower than {own.label}; at least {floor:g} expected")
    return wrong


def main(path: str) -> int:
    wrong = failures(load(Path(path)))
    for line in wrong:
        print(line, file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
