"""bench/gpu_machine.sh with stand-ins for Python, compute-sanitizer and timeout: what it runs, resumes and reports."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu_machine.sh"
PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *purelib*) dirname "$0" ;;
    *"fastsnn verify"*) printf "half a line" && exit 3 ;;
esac
"""
OTHERS = {
    "compute-sanitizer": '#!/usr/bin/env bash\necho "sanitizer $*" >>"$CALLS"\n',
    "timeout": '#!/usr/bin/env bash\necho "$2" >>"$LIMITS"\nshift 2\nexec "$@"\n',
}
STEPS = ["install", "doctor", "gpu-tests", "kernel-tests", "verify", "sanitizer-memcheck", "train", "train-cupy"]


class Machine:
    """A folder with the stand-ins, and what was called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.limits = folder, folder / "calls", folder / "limits"
        (folder / "bin").mkdir()
        (folder / "wheels").mkdir()
        for name, text in ({"python3": PYTHON} | OTHERS).items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        changed = {"PATH": path, "CALLS": str(self.calls), "LIMITS": str(self.limits)}
        changed |= {"ENVIRONMENT": str(self.folder / "environment"), "PYTHON": "python3"}
        command = ["bash", str(SCRIPT), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=os.environ | changed, capture_output=True, text=True, check=False
        )

    def ended(self) -> dict[str, str]:
        """How each step ended, in the order in which they did."""
        logs = sorted((self.folder / "out").glob("*.txt"), key=lambda path: path.stat().st_mtime_ns)
        return {path.stem: re.sub(r" after \d+ s", "", path.read_text().splitlines()[-1]) for path in logs}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_every_step_runs_and_leaves_a_file(machine: Machine) -> None:
    done = machine.run("wheels", "out", "--quick")
    passed = dict.fromkeys([*STEPS, "bench"], "== passed")
    assert machine.ended() == passed | {"verify": "== FAILED with exit status 3"}
    assert list(machine.ended()) == [*STEPS, "bench"]
    assert done.returncode == 1
    assert "== verify: FAILED with exit status 3" in done.stdout
    assert sum(map(int, machine.limits.read_text().split())) <= 600


def test_a_second_call_runs_only_what_did_not_end(machine: Machine) -> None:
    machine.run("wheels", "out", "--quick")
    log = machine.folder / "out" / "doctor.txt"
    log.write_text("$ python -m fastsnn doctor\nhalf a li")
    machine.calls.unlink()
    assert machine.run("wheels", "out", "--quick").returncode == 1
    steps = [line for line in machine.calls.read_text().splitlines() if not line.startswith("-c ")]
    assert steps == ["-m fastsnn doctor"]
    assert log.read_text().splitlines()[-1].startswith("== passed")


def test_the_full_form_runs_every_tool_and_every_benchmark(machine: Machine) -> None:
    machine.run("wheels", "out")
    tools = {f"sanitizer-{tool}" for tool in ("memcheck", "racecheck", "initcheck", "synccheck")}
    assert {"bench"} | tools < set(machine.ended())
    assert "--benchmark-only" in machine.calls.read_text()
    assert "--full" in machine.calls.read_text()


@pytest.mark.parametrize("arguments", [[], ["wheels"], ["nowhere", "out"], ["wheels", "out", "--fast"]])
def test_other_arguments_get_the_usage(machine: Machine, arguments: list[str]) -> None:
    done = machine.run(*arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert "usage: bash bench/gpu_machine.sh WHEELS OUT [--quick]" in done.stderr
    assert not (machine.folder / "out").exists()


@pytest.mark.parametrize("name", ["README.md", "README_cn.md"])
def test_the_readme_calls_it_rightly(machine: Machine, name: str) -> None:
    text = (SCRIPT.parents[1] / name).read_text(encoding="utf-8")
    (line,) = re.findall(r"^bash bench/gpu_machine\.sh .*$", text, re.MULTILINE)
    assert machine.run(*shlex.split(line)[2:]).returncode == 1
