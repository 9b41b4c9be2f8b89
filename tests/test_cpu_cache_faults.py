"""Compiled CPU kernels on disk that are damaged, foreign or can't be kept: compiled again, and no reason to stop."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import pytest
from cache_tools import compiles, function, messages

import fastsnn
from fastsnn.kernels.numba import cache

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "garbage": lambda content: bytes(range(256)) * 8,
    "text": lambda content: "é".encode("latin-1") * 100,
    "head alone": lambda content: content[: len(cache.MAGIC) + 32],
    "one byte short": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "zeros within": lambda content: content[:2000] + bytes(4096) + content[6096:],
    "another format": lambda content: content.replace(b"kernel 1", b"kernel 2", 1),
    **{
        f"bit {at} of a thousand": lambda content, at=at: (  # type: ignore[misc]
            content[: (i := len(content) * at // 1000)] + bytes([content[i] ^ 1]) + content[i + 1 :]
        )
        for at in (0, 30, 500, 999)
    },
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_compiled_again_and_said_so(
    damage: str, cached_kernel: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = cached_kernel.read_bytes()
    cached_kernel.write_bytes(DAMAGE[damage](content))
    assert compiles(lambda: function()(21)) == (42, True)
    assert messages(caplog) == [f"compiling again: {cached_kernel} is damaged"]
    assert compiles(lambda: function()(21)) == (42, False), "it was mended"


def test_a_file_of_another_function_is_not_taken(cached_kernel: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert function(FACTOR=3)(21) == 63
    (other,) = (path for path in cached_kernel.parent.iterdir() if path != cached_kernel)
    shutil.copy(other, cached_kernel)
    assert compiles(lambda: function()(21)) == (42, True)
    assert messages(caplog) == [f"compiling again: {cached_kernel} is damaged"]


def test_a_pipe_or_a_folder_in_a_files_place(cached_kernel: Path, caplog: pytest.LogCaptureFixture) -> None:
    cached_kernel.unlink()
    os.mkfifo(cached_kernel)
    assert compiles(lambda: function()(21)) == (42, True)
    assert cached_kernel.is_file()
    assert messages(caplog) == []
    cached_kernel.unlink()
    cached_kernel.mkdir()
    assert compiles(lambda: function()(21)) == (42, True)
    (said,) = messages(caplog)
    assert "can't be kept" in said
    assert "Is a directory" in said


@pytest.mark.parametrize("broken", ["_rebuild", "_reduce"])
def test_a_numba_that_works_otherwise_inside(
    broken: str, cached_kernel: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(cache.CompileResult, broken)
    made = function() if broken == "_rebuild" else function(FACTOR=1.5)
    assert compiles(lambda: made(20)) == ((40, True) if broken == "_rebuild" else (30.0, True))
    assert f"has no attribute '{broken}'" in messages(caplog)[0]
    assert "\n" not in messages(caplog)[0]


def test_a_file_of_another_user_is_not_run(
    cached_kernel: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = max(os.geteuid(), Path(cache.__file__).stat().st_uid) + 1
    if os.geteuid() == 0:
        os.chown(cached_kernel, owner, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner)
        monkeypatch.setattr(Path, "stat", lambda self, **_: os.stat("/"))
    path = cache.folders()[0] / cached_kernel.name
    assert cache.read(cached_kernel, b"") is None
    assert messages(caplog) == [
        f"compiling again: {cached_kernel} belongs to another user, and code of theirs isn't run"
    ]
    assert path.parent.name.endswith(f"-{os.geteuid()}"), "each user of a shared folder writes one of their own"


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a file is in its place: root may write to any folder."""
    (tmp_path / "taken").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "taken"))
    for factor in (2, 3):
        for _ in range(2):
            assert compiles(lambda factor=factor: function(FACTOR=factor)(21)) == (21 * factor, True)
    (said,) = messages(caplog)
    assert said.startswith(f"compiled kernels can't be kept ({tmp_path / 'taken'}")
    assert said.endswith("set NUMBA_CACHE_DIR to a folder that can be written")


def test_the_users_folder_serves_where_the_source_is_read_only(
    kernel_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what an administrator compiled beside the source is used."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    beside, users = cache.folders()
    assert function()(21) == 42
    assert len(list(beside.iterdir())) == 1
    saved = shutil.copytree(beside, tmp_path / "saved")
    shutil.rmtree(kernel_sources / "__pycache__")
    (kernel_sources / "__pycache__").touch()
    assert compiles(lambda: function()(21)) == (42, True)
    assert len(list(users.iterdir())) == 1
    assert compiles(lambda: function()(21)) == (42, False)
    shutil.rmtree(users)
    (kernel_sources / "__pycache__").unlink()
    shutil.copytree(saved, beside)
    assert compiles(lambda: function()(21)) == (42, False)
    assert not users.exists()


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that gives each user a number alone."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    (beside,) = cache.folders()
    assert beside.parent == cache._SOURCES / "__pycache__"


def test_only_the_oldest_folders_of_its_own_are_removed(cache_folder: Path) -> None:
    def other(name: str, age: float) -> Path:
        path = cache_folder.parent / name
        path.mkdir(parents=True)
        (path / "f.bin").touch()
        os.utime(path, (time.time() - age,) * 2)
        return path

    user = cache_folder.name.split("-")[2]
    ours = [other(f"fastsnn-{number:020x}-{user}", age=number) for number in range(cache.KEPT + 2)]
    foreign = [other(name, age=1e6) for name in ("fastsnn", "fastsnn-paper", f"fastsnn-{0:020x}-another", "numba_1")]
    left = ours[0] / ".x.tmp"
    left.touch()
    os.utime(left, (1, 1))
    os.utime(ours[0], (time.time(),) * 2)
    assert function()(21) == 42
    assert [path.exists() for path in ours] == [True] * cache.KEPT + [False] * 2
    assert all((path / "f.bin").exists() for path in foreign)
    assert not left.exists()


STEP = """
import torch
from fastsnn.kernels.neurons import LIF
from fastsnn.kernels.numba import before_compiling
from fastsnn.kernels.scan import scan

with before_compiling(lambda: print("compiling")):
    _, state = scan(torch.ones(1, 1, 1), LIF(), None, {}, "numba")
print(state.item())
"""


def start(root: Path, store: Path) -> subprocess.Popen[str]:
    """A process that runs one step of a neuron of the fastsnn in ``root``."""
    environment = os.environ | {"PYTHONPATH": str(root), "NUMBA_CACHE_DIR": str(store), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", STEP]
    return subprocess.Popen(
        command, env=environment, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ends(process: subprocess.Popen[str], said: str = "") -> list[str]:
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, said)
    return stdout.split()


def test_an_upgrade_whose_files_are_no_younger_and_damage(tmp_path: Path) -> None:
    """As in an image whose files all have one date. Two processes compile the old version at once."""
    ignored = shutil.ignore_patterns("__pycache__", "kernels")
    root, store = tmp_path / "site", tmp_path / "cache"
    shutil.copytree(Path(fastsnn.__file__).parent, root / "fastsnn", ignore=ignored)
    shutil.copytree(cache._SOURCES, root / "fastsnn" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    emitted = root / "fastsnn" / "kernels" / "numba" / "program.py"

    def dated() -> None:
        for path in root.rglob("*.py"):
            os.utime(path, (1e9, 1e9))

    dated()
    ended = [ends(process) for process in [start(root, store) for _ in range(2)]]
    assert {lines[-1] for lines in ended} == {"0.5"}
    assert ["compiling", "0.5"] in ended
    text = emitted.read_text()
    changed = text.replace("args[1], args[2])", "args[1], _negated(builder, args[2]))")
    assert changed != text
    emitted.write_text(changed)
    dated()
    assert ends(start(root, store)) == ["compiling", "-0.5"]
    old, _ = sorted(store.iterdir(), key=lambda path: path.stat().st_mtime)
    emitted.write_text(text)
    dated()
    assert ends(start(root, store)) == ["0.5"], "the old version's code is still there"
    (path,) = old.glob("scan_kernels-forward-*.bin")
    path.write_bytes(path.read_bytes()[:-100])
    assert ends(start(root, store), f"compiling again: {path} is damaged\n") == ["compiling", "0.5"]
