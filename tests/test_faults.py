"""The machine fails: one line that says what to do, exit 1, and the last checkpoint is as good as before."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from child import Child, Server
from run_tools import Command, arguments, assert_same_end, metrics, small

import fastsnn
from fastsnn import backends, checkpoint


def assert_refused(child: Child, *said: str) -> None:
    assert child.wait() == 1, child.stderr()
    assert child.stderr().startswith("fastsnn: ")
    assert child.stderr().count("\n") == 1, child.stderr()
    assert "Traceback" not in child.stderr()
    for part in said:
        assert part in child.stderr()


def assert_goes_on(server: Server, run: Path, folder: Path, epochs: int) -> None:
    """Resumed where nothing fails, the run ends as one that was left alone."""
    child = server.start(folder, "train", "--resume", run, "--epochs", epochs)
    assert child.wait() == 0, child.stderr()
    fastsnn.train(small(folder / "whole", epochs=epochs))
    assert_same_end(run, folder / "whole")


@pytest.mark.parametrize("room", [1, 3, 8], ids=lambda room: f"{room} KiB")
def test_a_file_that_may_not_grow(room: int, server: Server, run: Path, tmp_path: Path) -> None:
    """As a quota does it: nothing larger than so many KiB can be written."""
    before = (run / "last.pt").read_bytes()
    command = ["train", "--resume", run, "--epochs", 4]
    assert_refused(server.start(tmp_path, *command, file_limit=room * 1024), "can't write", "too large", "is intact")
    assert (run / "last.pt").read_bytes() == before
    assert not list(run.glob(".*.tmp")), "what was half written takes no room"
    assert len(metrics(run)) == 2
    assert_goes_on(server, run, tmp_path, epochs=4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 96 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)]
    try:
        subprocess.run(options, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up(small_disk: Path, server: Server, tmp_path: Path) -> None:
    run = small_disk / "run"
    first = server.start(tmp_path, "train", *arguments(epochs=2), "--out", run)
    assert first.wait() == 0, first.stderr()
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "other people's data").write_bytes(bytes(free - 4096))
    before = (run / "last.pt").read_bytes()
    child = server.start(tmp_path, "train", "--resume", run, "--epochs", 4)
    assert_refused(child, "can't write", "No space left on device")
    assert (run / "last.pt").read_bytes() == before
    checkpoint.load(run / "best.pt")
    (small_disk / "other people's data").unlink()
    assert_goes_on(server, run, tmp_path, epochs=4)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.parametrize("command", ["--resume", "--out"])
def test_a_folder_that_is_read_only(command: str, server: Server, run: Path, public: Path) -> None:
    """To somebody who is not root, whom nothing stops."""
    run = shutil.copytree(run, public / "run")
    run.chmod(0o555)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in run.iterdir())
    options: list[Any] = ["--resume", run] if command == "--resume" else [*arguments(), "--out", run / "new"]
    said = ["can't write to the run folder" if command == "--resume" else "can't make the run folder", str(run)]
    child = server.start(public / "log", "train", *options, user=65534 if os.getuid() == 0 else 0)
    assert_refused(child, *said, "Permission denied")
    run.chmod(0o755)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in run.iterdir()) == before


def test_memory_that_is_not_there(server: Server, run: Path, tmp_path: Path) -> None:
    """A batch that needs 1.1 GB where 0.3 may be had: the message names batch size and T."""
    options = arguments(T=60_000, epochs=1)
    child = server.start(tmp_path, "train", *options, "--out", tmp_path / "large", memory_limit=300 * 2**20)
    assert_refused(child, "cpu ran out of memory", "--batch-size (now 16)", "-T (now 60000)")


def test_a_network_that_diverges(server: Server, run: Path, tmp_path: Path) -> None:
    child = server.start(tmp_path, "train", *arguments(lr=1e37), "--out", tmp_path / "lost")
    assert_refused(child, "NaN or infinite in epoch 1, step ", "lower --lr (now 1e+37)")


def test_a_folder_that_another_process_uses(server: Server, run: Path, tmp_path: Path) -> None:
    first = server.start(tmp_path / "first", "train", "--resume", run, "--epochs", 5000)
    first.wait_for("run folder")
    for options in (["--resume", run], [*arguments(), "--out", run, "--overwrite"]):
        second = server.start(tmp_path / "second", "train", *options)
        assert_refused(second, f"run folder {run} is in use by another process")
    looked = server.start(tmp_path / "third", "eval", run)
    assert looked.wait() == 0, "looking at it is allowed"
    first.kill()
    assert first.wait() == -9
    again = server.start(tmp_path / "fourth", "train", "--resume", run, "--epochs", len(metrics(run)))
    assert again.wait() == 0, again.stderr()


def test_nobody_reads_the_output(server: Server, run: Path, tmp_path: Path) -> None:
    """As in `fastsnn train | head`, which stops a run as a signal does, with SIGPIPE's exit code."""
    child = server.start(tmp_path, "train", "--resume", run, "--epochs", 4, closed=True)
    assert child.wait() == 141
    assert child.stderr() == (
        f"stopped in epoch 3 after 0 samples and saved; go on with: fastsnn train --resume {run}\n"
    )
    assert_goes_on(server, run, tmp_path, epochs=4)
    for arguments_ in (["eval", run], ["eval", run, "--json"]):
        child = server.start(tmp_path, *arguments_, closed=True)
        assert (child.wait(), child.stderr()) == (141, "")


def test_the_terminal_is_closed(server: Server, run: Path, tmp_path: Path) -> None:
    """As when a connection to another machine breaks: the run is saved, and goes on where it was stopped."""
    child = server.start(tmp_path, "train", "--resume", run, "--epochs", 20000, terminal=2)
    assert child.wait() == 129
    assert_goes_on(server, run, tmp_path, epochs=len(metrics(run)) + 1)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, tuple[int, int]], None]]:
    """A GPU that torch lists as available and has no code for."""
    ones = torch.ones

    def no_code(*arguments: Any, device: Any = "cpu", **options: Any) -> torch.Tensor:
        if str(device).startswith("cuda"):
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")
        return ones(*arguments, device=device, **options)

    def plug_in(name: str, capability: tuple[int, int]) -> None:
        found = {"is_available": True, "device_count": 1, "get_device_name": name, "get_device_capability": capability}
        for function, result in found.items():
            monkeypatch.setattr(torch.cuda, function, lambda *_, result=result: result)
        monkeypatch.setattr(torch, "ones", no_code)
        backends.cuda_refusal.cache_clear()
        backends.refusal.cache_clear()

    yield plug_in
    backends.cuda_refusal.cache_clear()
    backends.refusal.cache_clear()


@pytest.mark.parametrize(
    ("name", "capability", "pip"),
    [
        ("NVIDIA GeForce GTX 1070", (6, 1), "pip install torch==2.7.1 torchvision==0.22.1"),
        ("NVIDIA X", (13, 0), "pip install --upgrade torch torchvision"),
    ],
)
def test_a_card_that_this_torch_has_no_code_for(
    name: str, capability: tuple[int, int], pip: str, card: Any, command: Command, tmp_path: Path
) -> None:
    """`auto` takes the CPU and says why; a device that was asked for is refused."""
    card(name, capability)
    options = arguments(epochs=1, optimizer="sgd")  # torch's Adam looks at the card, too, which is none
    options.remove("--device")
    options.remove("cpu")
    code, stdout, stderr = command("train", *options, "--out", tmp_path / "run")
    assert (code, stderr) == (0, "")
    reason = (
        f"{name} (sm_{capability[0]}{capability[1]}) failed to run a kernel (CUDA error: no kernel image is available "
        f"for execution on the device); torch {torch.__version__} has no code for it: {pip}"
    )
    assert stdout.splitlines()[0] == f"not on the GPU: {reason}"
    assert "on cpu" in stdout.splitlines()[1]
    code, _, stderr = command("train", *options, "--device", "cuda", "--out", tmp_path / "other")
    assert (code, stderr.count("\n")) == (1, 1)
    assert reason in stderr
