"""Take each barrier out of the Triton kernels and see the GPU in software report a race.

    python -m tests.gpu_in_software.barriers [--gpu sm_90] [--only recurrent]

Each ``tl.debug_barrier()`` is removed in a copy of the repository, and the tests of its kernel run there on a pretended
card until one fails. A barrier that nothing misses is redundant, or no case reaches it: the script ends with 1.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BARRIER = re.compile(r"^ *tl\.debug_barrier\(\)\n", re.MULTILINE)
TESTS = {
    "rate_classifier/triton/kernels.py": ("tests/test_rate_step.py", "tests/test_forced_kernels.py"),
    "rate_classifier/triton/update.py": ("tests/test_rate_step.py", "tests/test_forced_kernels.py"),
    "triton/linear_forward.py": ("tests/test_linear.py",),
    "triton/recurrent_kernels.py": ("tests/test_recurrent.py",),
}
"""File of kernels -> its tests."""


def copy_repository(folder: Path) -> None:
    """What the tests need; kernels/ takes the place of the link to it."""
    skip = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("fastsnn", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    shutil.copy(ROOT / "setup.cfg", folder)


def faults(folder: Path, tests: tuple[str, ...], gpu: str) -> str:
    """What the machine said first in the tests of ``folder``; empty if they passed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(folder), "TRITON_CACHE_DIR": str(folder / "cache")}
    options = ("-q", "-x", "-p", "no:cacheprovider", "-k", "not numba and not library", "--gpu", gpu)
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    said = re.search(r"race between .*", done.stdout)
    return said[0] if said else f"failed without a race: {done.stdout.splitlines()[-1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="sm_90", metavar="TARGET", help="default %(default)s")
    parser.add_argument("--only", default="", metavar="NAME", help="files whose name contains NAME")
    options = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_repository(folder)
        for name, tests in TESTS.items():
            path = folder / "fastsnn" / "kernels" / name
            sound = path.read_text()
            for found in BARRIER.finditer(sound) if options.only in name else ():
                path.write_text(sound[: found.start()] + sound[found.end() :])
                said = faults(folder, tests, options.gpu)
                missed += not said.startswith("race")
                line = sound.count("\n", 0, found.start()) + 1
                print(f"kernels/{name}:{line} without its barrier: {said or 'NOTHING MISSES IT'}", flush=True)
            path.write_text(sound)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
