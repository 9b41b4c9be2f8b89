"""Count what the kernels do on pretended cards, and predict their time from it: docs/performance.md.

    python -m tests.gpu_in_software.performance [--floor PYTHON] [--targets sm_61,sm_90] [--write]

Needs MNIST in $FASTSNN_DATA. Each target is a process, whose counts go to bench/results/gpu_in_software/TARGET.json;
sm_61 takes the interpreter that --floor names. With --write the page is made from these files.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "gpu_in_software"
PAGE = ROOT / "docs" / "performance.md"


@dataclass(frozen=True)
class Card:
    """NVIDIA's numbers of a card."""

    name: str
    multiprocessors: int
    gigahertz: float
    """Boost clock."""
    gigabytes: float
    """Memory bandwidth, per second."""


CARDS = {
    "sm_61": Card("GTX 1070", 15, 1.683, 256),
    "sm_80": Card("A100 40 GB", 108, 1.410, 1555),
    "sm_89": Card("RTX 4090", 128, 2.520, 1008),
    "sm_90": Card("H100 SXM", 132, 1.980, 3350),
}
ISSUED = 4
"""Warp instructions that a multiprocessor starts in a cycle, at most: it has four schedulers."""


def predicted_microseconds(launch: dict[str, Any], card: Card) -> dict[str, float]:
    """Bounds from below on the time of a launch, by what could limit it."""
    cycles = 1e3 * card.gigahertz  # in a microsecond
    busy = max(launch["slowest"], launch["instructions"] / card.multiprocessors)
    passes = max(launch["slowest_passes"], launch["passes"] / card.multiprocessors)
    return {
        "issue": busy / ISSUED / cycles,
        "shared memory": passes / cycles,
        "memory": launch["sectors"] * 32 / (1e3 * card.gigabytes),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floor", metavar="PYTHON", help="interpreter of the oldest stack, for sm_61")
    parser.add_argument("--targets", default=",".join(CARDS), help="default %(default)s")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--count", metavar="TARGET", help="count in this process")
    options = parser.parse_args()
    if options.count:
        count(options.count)
        return 0
    code = 0
    for target in filter(None, options.targets.split(",")):
        python = options.floor if target == "sm_61" and options.floor else sys.executable
        command = [python, "-m", "tests.gpu_in_software.performance", "--count", target]
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        code |= subprocess.run(command, cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}).returncode
    if options.write:
        PAGE.write_text(page(), encoding="utf-8")
    return code


def count(target: str) -> None:
    """Run every subject on a pretended card and keep its counts."""
    from tests.gpu_in_software.card import start
    from tests.gpu_in_software.log import LOG
    from tests.gpu_in_software.report import Report
    from tests.gpu_in_software.targets import find_target

    start(find_target(target), track=False, count_memory=True)
    reports: list[Report] = []
    LOG.keep = reports.append
    found: dict[str, Any] = {}
    from tests.gpu_in_software import subjects

    for name, prepare in subjects.SUBJECTS.items():
        run: Callable[[], None] = prepare()
        reports.clear()
        before, waits = LOG.operations.total(), LOG.synchronizations.total()
        run()
        found[name] = {
            "kernels": [_counts(report) for report in reports],
            "torch": LOG.operations.total() - before,
            "waits": LOG.synchronizations.total() - waits,
        }
        print(f"{target}, {name}: {len(reports)} launches", flush=True)
    stack = {"torch": version("torch"), "triton": version("triton")}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{target}.json").write_text(json.dumps({"versions": stack, "subjects": found}, indent=1) + "\n")


def _counts(report: Any) -> dict[str, Any]:
    """A launch as numbers; passes of shared memory are taken as evenly spread as instructions."""
    sectors = passes = 0
    opcodes = {instruction.line: instruction.opcode for instruction in report.kernel.instructions}
    for line, access in report.accesses.items():
        if "shared" in opcodes[line]:
            passes += access.transactions
        else:
            sectors += access.transactions
    slowest = report.slowest_program()[1]
    return {
        "kernel": report.kernel.name, "programs": report.programs, "threads": report.threads,
        "instructions": report.warp_instructions, "slowest": slowest, "sectors": sectors, "passes": passes,
        "slowest_passes": round(passes * slowest / max(report.warp_instructions, 1)),
        "classes": dict(report.classes()),
    }  # fmt: skip


HEAD = """# What a GPU would do, by count

No GPU has run these kernels. Their compiled code (PTX) was executed in software, and its instructions and memory
accesses were counted: first batch of MNIST's training images, T = 100, batch 64, unless a row says more. Made by
`python -m tests.gpu_in_software.performance --write` from
[bench/results/gpu_in_software](../bench/results/gpu_in_software).

A row's time is a **prediction and a bound from below**: for each launch the largest of

- *issue*: warp instructions of the busiest multiprocessor (its share of all, but at least those of the slowest program)
  at four a cycle;
- *shared memory*: its passes over the banks, one a cycle;
- *memory*: 32-byte sectors that its loads and stores touch, at the card's bandwidth, as if no cache held any.

Left out: the driver and the time between launches (a few microseconds each, less in a CUDA graph), what ptxas does to
the code, the time that an instruction waits for the one before it, caches, and the clock under load. "torch" counts
launches of torch's own operators, which have no PTX here and no time in the sum; "waits" are those of the host.

| {cards} |
| {lines} |
{table}
"""


def page() -> str:
    """The page, from the results of all targets."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("sm_*.json"))}
    parts = [_head(found)]
    for name in dict.fromkeys(name for results in found.values() for name in results["subjects"]):
        parts += [f"\n## {name[0].upper() + name[1:]}\n\n{TABLE}"]
        counted = {target: results["subjects"].get(name) for target, results in found.items()}
        parts += [_row(target, subject) for target, subject in counted.items() if subject]
    return "\n".join(parts) + "\n"


TABLE = """| card | launches | torch | waits | instructions of the slowest program | predicted time | of it |
| --- | ---: | ---: | ---: | ---: | ---: | --- |"""


def _head(found: dict[str, Any]) -> str:
    columns = ["card", "target", "multiprocessors", "clock", "bandwidth", "compiled by"]
    rows = [
        [
            card.name, target, str(card.multiprocessors), f"{card.gigahertz:.2f} GHz", f"{card.gigabytes:g} GB/s",
            "torch {torch}, Triton {triton}".format(**found[target]["versions"]),
        ]
        for target, card in CARDS.items() if target in found
    ]  # fmt: skip
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return HEAD.format(cards=" | ".join(columns), lines=" | ".join(["---"] * len(columns)), table=table)


def _row(target: str, subject: dict[str, Any]) -> str:
    """One card's launches, summed up, and the share of each limit and kernel in its time."""
    total, parts = 0.0, dict[str, float]()
    for launch in subject["kernels"]:
        bounds = predicted_microseconds(launch, CARDS[target])
        limit = max(bounds, key=lambda name: bounds[name])
        total += bounds[limit]
        name = f"{launch['kernel'].removesuffix('_kernel')}, {limit}"
        parts[name] = parts.get(name, 0.0) + bounds[limit]
    largest = sorted(parts, key=lambda name: -parts[name])[:3]
    slowest = max((launch["slowest"] for launch in subject["kernels"]), default=0)
    shares = "; ".join(f"{name}: {parts[name] / total:.0%}" for name in largest)
    return (
        f"| {CARDS[target].name} | {len(subject['kernels'])} | {subject['torch']} | {subject['waits']} | {slowest:,} "
        f"| {total:,.1f} us | {shares} |"
    )


if __name__ == "__main__":
    sys.exit(main())
