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
TARGETS = ("sm_61", "sm_80", "sm_89", "sm_90")
FILES = (
    "test_lif", "test_linear_lif", "test_linear_lif_modules", "test_planes", "test_packed", "test_rate_step",
    "test_forced_kernels", "test_encoding", "test_layers", "test_spikingjelly_gpu",
)  # fmt: skip
"""Of tests/: those whose kernels run on a GPU."""


@dataclass(frozen=True)
class Part:
    name: str
    command: tuple[str, ...]
    """Arguments of python."""


def parts(target: str, cupy: bool) -> list[Part]:
    """What runs on ``target``; with ``cupy`` also SpikingJelly's own kernels."""
    files = [f"tests/{name}.py" for name in FILES if cupy or "spikingjelly" not in name]
    tests = Part("tests", ("-m", "pytest", "-q", "--gpu", target, "-p", "no:cacheprovider", *files))
    found = [tests]
    for backend in ("triton", "cupy") if cupy else ("triton",):
        command = ("-m", "tests.gpu_in_software", "--gpu", target)
        found.append(Part(f"verify {backend}", (*command, "verify", "--backend", backend, "--device", "cuda")))
    return found


def run(target: str, python: str, part: Part, folder: Path) -> dict[str, Any]:
    """Run one part and return its log, with its seconds."""
    log = folder / f"{target} {part.name}.json"
    where = 4 if part.name != "tests" else len(part.command)
    option = "--gpu-log" if part.name == "tests" else "--log"
    command = [python, *part.command[:where], option, str(log), *part.command[where:]]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    started = time.perf_counter()
    log.unlink(missing_ok=True)
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


def page(logs: list[dict[str, Any]]) -> str:
    lines = []
    for log in logs:
        passed, failed = cases(log)
        faults = len(log.get("faults", []))
        launches, programs, instructions = (
            sum(entry[key] for entry in log.get("kernels", {}).values())
            for key in ("launches", "programs", "thread_instructions")
        )
        columns = (
            log["target"], log["versions"], log["part"], f"{passed}, **{failed}**" if failed else passed,
            f"{launches:,}", f"{programs:,}", f"{instructions / 1e6:,.0f} M", faults or "none",
            f"{log['seconds'] / 60:.1f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, columns))} |")
    head = HEAD.format(numpy=importlib.metadata.version("numpy"))
    return head + "\n".join([*lines, *_failures(logs)]) + "\n"


def _failures(logs: list[dict[str, Any]]) -> list[str]:
    """What failed, and the faults, by target."""
    lines: list[str] = []
    for log in logs:
        names, faults = log.get("failed", []), log.get("faults", [])
        if names or faults:
            lines += ["", f"## {log['target']}, {log['part']}", ""]
            lines += [f"- failed: `{name}`" for name in names]
            lines += [f"- fault: `{fault}`" for fault in faults[:20]]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floor", metavar="PYTHON", help="interpreter of the oldest stack, for sm_61")
    parser.add_argument("--targets", default=",".join(TARGETS), help="default %(default)s")
    parser.add_argument("--results", type=Path, default=Path(tempfile.gettempdir()) / "gpu_in_software")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)} from all of --results")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    code = 0
    for target in filter(None, options.targets.split(",")):
        old = target == "sm_61" and options.floor
        for part in parts(target, cupy=bool(old)):
            log = run(target, options.floor if old else sys.executable, part, options.results)
            code |= log["code"] != 0
            print(f"{target}, {part.name}: {', '.join(filter(None, cases(log)))} ({log['seconds']:.0f} s)", flush=True)
    if options.write:
        logs = [json.loads(path.read_text()) for path in sorted(options.results.glob("*.json"))]
        PAGE.write_text(page(logs), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
