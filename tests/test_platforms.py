"""What Windows and macOS lack, taken away: the CPU path must import, train and evaluate without it.

This is no run on those systems; it shows that nothing on the way needs a module, a function or a signal of POSIX alone.
"""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = """
import os, platform, signal, sys
{torch_first}
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD", "pthread_sigmask"):
    vars(signal).pop(name, None)
for name in ("fork", "getuid", "geteuid", "sched_getaffinity", "sched_yield", "sysconf", "statvfs", "mkfifo", "uname"):
    vars(os).pop(name, None)
platform.system = lambda: {system!r}
sys.platform = {platform!r}
"""
IMPORTED_BEFORE = (
    "import cyclopts, filelock, matplotlib.figure, numba, pkgutil, rich.progress, sklearn.datasets, torch, yaml"
)
"""Packages of others look at the system for themselves."""

IMPORT_ALL = """
import fastsnn
for module in pkgutil.walk_packages(fastsnn.__path__, "fastsnn."):
    if not any(part in module.name for part in (".triton", "__main__", "cupy", "spikingjelly", "accelerated")):
        __import__(module.name)
"""

TRAIN = """
sys.argv = ["fastsnn", "train", "--dataset", "digits", "--train-samples", "64", "--test-samples", "20", "-T", "4",
            "--epochs", "1", "--backend", "numba", "--threads", "1", "--out", "run"]
from fastsnn.cli import main
main()
sys.argv = ["fastsnn", "eval", "run"]
main()
sys.argv = ["fastsnn", "runs", "."]
main()
"""

SYSTEMS = [("Windows", "win32"), ("Darwin", "darwin")]


def ended(program: str, folder: Path, system: str, platform: str) -> subprocess.CompletedProcess[str]:
    head = WITHOUT.format(torch_first=IMPORTED_BEFORE, system=system, platform=platform)
    return subprocess.run([sys.executable, "-c", head + program], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(("system", "platform"), SYSTEMS)
def test_every_module_of_the_cpu_path_imports(system: str, platform: str, tmp_path: Path) -> None:
    done = ended(IMPORT_ALL, tmp_path, system, platform)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_on_the_cpu_trains(tmp_path: Path) -> None:
    done = ended(TRAIN, tmp_path, "Windows", "win32")
    assert done.returncode == 0, done.stderr
    assert "digits: best test accuracy" in done.stdout
    assert "epoch 1: test loss" in done.stdout
    assert "run" in done.stdout.splitlines()[-1]


def test_importing_everything_warns_of_nothing(tmp_path: Path) -> None:
    program = "import fastsnn\nfor name in fastsnn.__all__: getattr(fastsnn, name)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
