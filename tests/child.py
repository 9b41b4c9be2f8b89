"""The ``fastsnn`` command in processes of its own that start at once: a server that has imported everything forks them.

As a program this is the server: it reads one JSON request a line and answers each with one line.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PAUSE = 0.008
"""Seconds that a slowed write takes at each of its stages."""


class Server:
    """Forks children; as a context manager it ends with those that are left."""

    def __enter__(self) -> "Server":
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )
        assert self.ask({"ready": True}) is True
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]

    def ask(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, folder: Path, *arguments: object, **settings: Any) -> "Child":
        """``fastsnn ARGUMENTS``, with its output in ``folder``; see :func:`_settle` for the settings."""
        folder.mkdir(parents=True, exist_ok=True)
        request = {"folder": str(folder), "arguments": [str(part) for part in arguments], "settings": settings}
        return Child(self, folder, self.ask(request))


class Child:
    """A running command."""

    def __init__(self, server: Server, folder: Path, pid: int) -> None:
        self.server, self.folder, self.pid = server, folder, pid
        self.code: int | None = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.poll() is None:  # it is not waited for by anyone but the server, so its number is not used again
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None while it runs."""
        if self.code is None:
            self.code = self.server.ask({"poll": self.pid})
        return self.code

    def wait(self, timeout: float = 60) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, f"still running: {self.stdout()}"
            time.sleep(0.005)
        return code

    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def phase(self) -> str:
        """What a slowed child was doing last."""
        return (self.folder / "phase").read_text()

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Until it has printed ``text``."""
        deadline = time.monotonic() + timeout
        while text not in self.stdout():
            assert self.poll() is None, self.stderr()
            assert time.monotonic() < deadline, self.stdout()
            time.sleep(0.005)


def serve() -> None:
    """Import what a run needs, then fork."""
    import sklearn.datasets  # noqa: F401
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401

    import fastsnn.cli
    import fastsnn.kernels.cpu.rate_step
    import fastsnn.training  # noqa: F401

    codes: dict[int, int] = {}
    for line in sys.stdin:
        request, answer = json.loads(line), None
        while codes or "poll" in request:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            codes[pid] = os.waitstatus_to_exitcode(status)
        if "ready" in request:
            answer = True
        elif "poll" in request:
            answer = codes.get(request["poll"])
        else:
            answer = os.fork()
            if not answer:
                _run(request)
        print(json.dumps(answer), flush=True)


def _run(request: dict[str, Any]) -> None:
    """In the child: run the command and end."""
    folder = Path(request["folder"])
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    _settle(folder, **request["settings"])
    sys.argv = ["fastsnn", *request["arguments"]]
    code: Any = 0
    try:
        from fastsnn.cli import main

        main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 98
    os._exit(code)


def _settle(
    folder: Path, slowed: bool = False, file_limit: int = 0, memory_limit: int = 0, user: int = 0, closed: bool = False
) -> None:
    """What the child suffers: slow writes, a largest file size or address space in bytes, another user, no reader."""
    import resource

    if slowed:
        _slow_writes(folder / "phase")
    if file_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write fails instead of ending the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if memory_limit:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    if user:
        os.setgid(user)
        os.setuid(user)
    if closed:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)


def _slow_writes(phase: Path) -> None:
    """Stretch each stage of an atomic write, and note the stage, so that a kill at random times meets them all."""
    import io

    marker = os.open(phase, os.O_WRONLY | os.O_CREAT)
    path_open, fsync, replace = Path.open, os.fsync, os.replace
    writing = [""]

    def stage(text: str) -> None:
        os.pwrite(marker, text.ljust(40).encode(), 0)
        if text != "computing":
            time.sleep(PAUSE)

    class SlowFile(io.FileIO):
        def write(self, content: Any) -> int:
            half = len(content) // 2
            super().write(content[:half])
            stage(f"{writing[0]}, half written")
            return half + (super().write(content[half:]) or 0)

    def slow_open(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if self.suffix == ".tmp" and "w" in mode:
            writing[0] = self.name[1 : -len(".tmp")]
            return SlowFile(self, "wb")
        return path_open(self, mode, *arguments, **options)

    def slow_fsync(file: int) -> None:
        stage(f"{writing[0]}, before fsync")
        fsync(file)

    def slow_replace(source: Any, target: Any) -> None:
        stage(f"{writing[0]}, before rename")
        replace(source, target)
        stage(f"{writing[0]}, after rename")
        stage("computing")

    Path.open, os.fsync, os.replace = slow_open, slow_fsync, slow_replace  # type: ignore[assignment, method-assign]
    stage("computing")


if __name__ == "__main__":
    serve()
