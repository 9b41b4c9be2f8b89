"""Break the kernels one line at a time and see the tests fail: ``python -m tests.mutations`` in the repository's root.

Each mutation of ``tests/mutations.yaml`` is made in a copy of the repository, laid out as an installed package, and the
tests of that kernel are run on it, each time in a process of its own without compiled code of earlier ones. A mutation
is red where an assertion failed; a crash, a time-out or a file that was never imported counts as nothing. No-ops must
stay green. Without a GPU the Triton kernels run in Triton's interpreter. The whole list takes long, so the suite itself
runs ``tests/test_mutations.py`` alone. Linux: the processes are forked, with everything imported but fastsnn.
"""

import argparse
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_suffix(".yaml")
NO_OP = "no-op"
TIME_LIMIT = 300
"""Seconds of processor time for the tests of one mutation: a busy machine changes nothing."""
TESTS = {
    "language": "tests/test_language.py::test_the_others_are_within_their_stated_error",
    "neurons": "tests/test_family.py::test_same_as_the_source",
    "numba-recurrent": "tests/test_recurrent.py",
    "triton-recurrent": "tests/test_recurrent.py",
    "numba-spike-products": "tests/test_spike_products.py",
    "segments": "tests/test_recompute.py",
    "torch-philox": "tests/test_philox.py",
    "triton-philox": "tests/test_triton_philox.py",
    "triton-rate-step-fp32": "tests/test_rate_step.py::test_products_in_fp32",
}
"""Tests of a kernel, where they are not its own of ``tests/test_forced_kernels.py``."""


class Mutation(NamedTuple):
    """``old``, which stands once in ``file``, becomes ``new``: one of ``tests`` must fail, unless it is a no-op."""

    kernel: str
    kind: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.kind}: {self.what}"

    def apply(self, text: str) -> str:
        """``text`` of the file with the mutation made. Raises ValueError where it doesn't fit."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.old!r} stands {count} times in {self.file}; allowed: once")
        return text.replace(self.old, self.new)


class Result(NamedTuple):
    """``outcome`` is red, green or why it is neither; ``test`` failed first, and ``message`` is what it said."""

    outcome: str
    test: str = ""
    message: str = ""


def mutations() -> list[Mutation]:
    listed = yaml.safe_load(LIST.read_text())
    return [
        Mutation(kernel, kind, entry["what"], entry["file"], entry["old"], entry["new"], _tests(kernel, entry))
        for kernel, kinds in listed.items()
        for kind, entries in kinds.items()
        for entry in entries
    ]


def _tests(kernel: str, entry: dict[str, list[str]]) -> tuple[str, ...]:
    test = TESTS.get(kernel, f"tests/test_forced_kernels.py::test_{kernel.replace('-', '_')}")
    return tuple(f"{test}[{case}]" for case in entry.get("cases", ())) or (test,)


def copy_repository(folder: Path) -> None:
    """The packages and tests; a copy of kernels/ takes the place of the link, as in an installed package."""
    skip = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / "fastsnn", folder / "fastsnn", ignore=skip)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=skip)
    shutil.copy(ROOT / "setup.cfg", folder)


def prepare(folder: Path) -> None:
    """Import what takes long, once for all processes, under the environment that the tests and the copy need."""
    assert "fastsnn" not in sys.modules
    os.environ |= {
        "NUMBA_CACHE_DIR": str(folder / "caches" / "numba"),
        "TRITON_CACHE_DIR": str(folder / "caches" / "triton"),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a process can't be forked after CUDA's own check
        "COLUMNS": "500",  # of pytest's summary, which shortens messages
    }
    for name in ("CI", "BUILD_NUMBER", "PYTEST_ADDOPTS"):
        # Under these pytest compares long values in full, for minutes, or writes to files of the run that started this.
        os.environ.pop(name, None)
    sys.dont_write_bytecode = True
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    for name in ("torch._dynamo", "triton", "numba", "sklearn.datasets", "pytest"):
        importlib.import_module(name)


def run(mutation: Mutation, folder: Path) -> Result:
    """Run the tests of a mutation in the copy ``folder``, which is then as before."""
    path = folder / "fastsnn" / mutation.file
    sound = path.read_text()
    imported, output = folder / "imported", folder / "output"
    leave_a_trace = f"\n__import__('pathlib').Path({str(imported)!r}).touch()\n"
    path.write_text(mutation.apply(sound) + leave_a_trace)
    process = multiprocessing.get_context("fork").Process(target=_pytest, args=(mutation.tests, folder, output))
    try:
        process.start()
        process.join(10 * TIME_LIMIT)
        if process.exitcode in (None, -signal.SIGXCPU):
            return Result(f"ran past {TIME_LIMIT} s")
        return _judge(process.exitcode, output.read_text(), imported.exists())
    finally:
        process.kill()
        path.write_text(sound)
        imported.unlink(missing_ok=True)
        shutil.rmtree(folder / "caches", ignore_errors=True)


def _pytest(tests: tuple[str, ...], folder: Path, output: Path) -> None:
    """The forked process: pytest in the copy, with its packages ahead of any others."""
    import resource

    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (TIME_LIMIT, TIME_LIMIT + 1))
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.chdir(folder)
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def _judge(status: int | None, output: str, imported: bool) -> Result:
    if not imported:
        return Result(f"the mutated file was not imported: {output[-1000:]}")
    if status == 0:
        return Result("green")
    failed = re.search(r"^FAILED .*?tests/(.+?) - (.*)$", output, re.MULTILINE)
    if failed is None:
        return Result(f"neither passed nor failed: {output[-1000:]}")
    # An assertion of a test, not an exception of a kernel that no longer runs.
    outcome = "red" if failed[2].startswith(("AssertionError", "assert ")) else "crashed"
    return Result(outcome, failed[1], failed[2].removeprefix("AssertionError: "))


def expected(mutation: Mutation) -> str:
    return "green" if mutation.kind == NO_OP else "red"


def outcomes(chosen: list[Mutation]) -> Iterator[tuple[Mutation, Result]]:
    with tempfile.TemporaryDirectory() as folder:
        copy_repository(Path(folder))
        prepare(Path(folder))
        for mutation in chosen:
            yield mutation, run(mutation, Path(folder))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="NAME", help="run the mutations whose name contains NAME")
    arguments = parser.parse_args()
    chosen = [mutation for mutation in mutations() if arguments.only in mutation.name]
    wrong = []
    for mutation, result in outcomes(chosen):
        print(f"{result.outcome:6} {mutation.name} {result.test} {result.message}", flush=True)
        if result.outcome != expected(mutation):
            wrong.append(mutation.name)
    print(f"{len(chosen) - len(wrong)} of {len(chosen)} as they should be", *wrong, sep="\n  ")
    return bool(wrong) or not chosen


if __name__ == "__main__":
    sys.exit(main())
