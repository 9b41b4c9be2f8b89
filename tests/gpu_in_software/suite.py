"""The project's whole GPU suite and ``fastsnn verify`` on pretended cards of four targets.

    python -m tests.gpu_in_software.suite [--floor PYTHON] [--targets sm_61,sm_90] [--write] [--results FOLDER]

sm_61 runs with the oldest stack, whose interpreter --floor names; the others with this one's. Each part is a process of
its own, whose launches are left in --results as JSON. With --write they make docs/gpu_in_software.md.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gpu_in_software.md"
OUTCOMES = ("passed", "skipped", "failed", "error")
TARGETS = ("sm_61", "sm_80", "sm_89", "sm_90")
FILES = (
    "test_scan", "test_linear", "test_recurrent", "test_recurrent_layer", "test_bf16_split", "test_packed",
    "test_triton_philox", "test_rate_step", "test_forced_kernels", "test_nn", "test_spikingjelly_gpu",
)  # fmt: skip
"""Of tests/: those whose kernels run on a GPU."""


@dataclass(frozen=True)
class Part:
    name: str
    """A file of tests/, or "verify" with a backend."""
    command: tuple[str, ...]
    """Arguments of python; with --log its launches go to a file."""


def parts(target: str, cupy: bool, quick: bool) -> list[Part]:
    """What runs on ``target``; with ``cupy`` also SpikingJelly's own kernels."""
    found = []
    for name in FILES:
        if cupy or "spikingjelly" not in name:
            files = ("-p", "no:cacheprovider", f"tests/{name}.py", "-k", "not numba")
            test = ("-m", "pytest", "-q", *files, "--gpu", target, "--gpu-log")
            found.append(Part(name, test))
    for backend in ("triton", "cupy") if cupy else ("triton",):
        verify = ("verify", "--backend", backend, "--device", "cuda", *["--quick"] * quick)
        command = ("-m", "tests.gpu_in_software", "--gpu", target, "--command", " ".join(verify), "--log")
        found.append(Part(f"{verify[0]} {backend}{' quick' * quick}", command))
    return found


def run(target: str, python: str, part: Part, folder: Path) -> dict[str, Any]:
    """Run one part and return its log, with its seconds."""
    log = folder / f"{target} {part.name}.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    log.unlink(missing_ok=True)
    started = time.perf_counter()
    command = [python, *part.command, str(log)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    log.with_suffix(".txt").write_text(done.stdout + done.stderr)
    found = json.loads(log.read_text()) if log.exists() else {}
    found |= {"target": target, "part": part.name, "code": done.returncode, "seconds": time.perf_counter() - started}
    if part.name.startswith("verify"):
        found["verdict"] = next((line for line in reversed(done.stdout.splitlines()) if " cases " in line), "")
    found["versions"] = versions(python)
    log.write_text(json.dumps(found, indent=1))
    return found


def versions(python: str) -> str:
    """The stack of an interpreter, in words."""
    code = "from importlib.metadata import version as v; print('torch', v('torch') + ', Triton', v('triton'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def cases(log: dict[str, Any]) -> tuple[str, str]:
    """How many cases passed, and how many did not."""
    if "outcomes" not in log:
        return log.get("verdict", "").split(" (")[0] or "did not end", ""
    outcomes = log["outcomes"]
    bad = outcomes.get("failed", 0) + outcomes.get("error", 0)
    passed = f"{outcomes.get('passed', 0)} passed, {outcomes.get('skipped', 0)} left out"
    return passed, f"{bad} failed" if bad else ""


HEAD = """# The GPU suite in software

Triton compiles the kernels for each target, as on a card, and their PTX is executed on the CPU with checks of bounds,
alignment, poison (memory read before it is written), races between warps and between blocks, and barriers, by
[tests/gpu_in_software](../tests/gpu_in_software/__init__.py). It says nothing of ptxas, of the driver or of time.

Made by `python -m tests.gpu_in_software.suite --write` with NumPy {numpy}. "Left out" are tests that need what a
pretended card has not: a second card, a speed, torch.compile.

| target | stack | what | cases | launches | programs | thread instructions | faults | minutes |
| --- | --- | --- | --- | ---: | ---: | ---: | --- | ---: |
"""


@dataclass
class Row:
    """The parts of a target that make one row of the page."""

    target: str
    versions: str
    name: str
    logs: list[dict[str, Any]]

    def cases(self) -> str:
        if self.name != "tests":
            return cases(self.logs[0])[0]
        counts = {name: sum(log.get("outcomes", {}).get(name, 0) for log in self.logs) for name in OUTCOMES}
        found = [f"{counts['passed']} passed", f"{counts['skipped']} left out"]
        bad = counts["failed"] + counts["error"] + sum("outcomes" not in log for log in self.logs)
        return ", ".join(found + [f"**{bad} failed**"] * bool(bad))

    def total(self, key: str) -> int:
        return sum(entry[key] for log in self.logs for entry in log.get("kernels", {}).values())

    def __str__(self) -> str:
        columns = (
            self.target, self.versions, self.name, self.cases(), f"{self.total('launches'):,}",
            f"{self.total('programs'):,}", f"{self.total('thread_instructions') / 1e6:,.0f} M",
            sum(len(log.get("faults", [])) for log in self.logs) or "none",
            f"{sum(log['seconds'] for log in self.logs) / 60:.1f}",
        )  # fmt: skip
        return f"| {' | '.join(map(str, columns))} |"


def rows(logs: list[dict[str, Any]]) -> list[Row]:
    found: dict[tuple[str, str], Row] = {}
    for log in logs:
        name = log["part"] if log["part"].startswith("verify") else "tests"
        key = log["target"], name
        found.setdefault(key, Row(log["target"], log["versions"], name, [])).logs.append(log)
    return list(found.values())


def page(logs: list[dict[str, Any]]) -> str:
    head = HEAD.format(numpy=importlib.metadata.version("numpy"))
    return head + "\n".join([*map(str, rows(logs)), *_remarks(logs)]) + "\n"


def _remarks(logs: list[dict[str, Any]]) -> list[str]:
    """What failed, and the faults, by target."""
    lines: list[str] = []
    for row in rows(logs):
        names = [name for log in row.logs for name in log.get("failed", [])]
        faults = [fault for log in row.logs for fault in log.get("faults", [])]
        if names or faults:
            lines += ["", f"## {row.target}, {row.name}", ""]
            lines += [f"- failed: `{name}`" for name in names]
            lines += [f"- fault: `{fault}`" for fault in faults[:20]]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floor", metavar="PYTHON", help="interpreter of the oldest stack, for sm_61")
    parser.add_argument("--targets", default=",".join(TARGETS), help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="verify --quick")
    parser.add_argument("--parts", default="", help="files of tests, or verify; default all")
    parser.add_argument("--results", type=Path, default=Path(tempfile.gettempdir()) / "gpu_in_software")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)} from all of --results")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    code = 0
    for target in filter(None, options.targets.split(",")):
        old = target == "sm_61" and options.floor
        for part in parts(target, bool(old), options.quick):
            if options.parts and part.name.split()[0] not in options.parts.split(","):
                continue
            log = run(target, options.floor if old else sys.executable, part, options.results)
            code |= log["code"] != 0
            print(f"{target}, {part.name}: {', '.join(filter(None, cases(log)))} ({log['seconds']:.0f} s)", flush=True)
    if options.write:
        logs = [json.loads(path.read_text()) for path in sorted(options.results.glob("*.json"))]
        PAGE.write_text(page(logs), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
