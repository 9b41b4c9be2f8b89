"""The ``fastsnn`` command in processes of its own that start at once: a server that has imported everything forks them.

As a program this is the server: it reads one JSON request a line and answers each with one line.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba.np.ufunc.parallel


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
        for name, text in (("phase", "starting"), ("stdout", ""), ("stderr", "")):
            (folder / name).write_text(text)
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

    def wait_or_kill(self, seconds: float, number: int = signal.SIGKILL) -> int:
        """Its exit code, after a signal where it has not ended in time."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if code is None:
            self.kill(number)
        return self.wait()

    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def phase(self) -> str:
        """What a watched child was doing last."""
        return (self.folder / "phase").read_text().strip()

    def wait_for(self, text: str, said: Callable[[], str] | None = None, timeout: float = 60) -> None:
        """Until it has printed ``text``, or another of these methods says it, or it has ended."""
        said = said or self.stdout
        deadline = time.monotonic() + timeout
        while text not in said() and self.poll() is None:
            assert time.monotonic() < deadline, said()
            time.sleep(0.002)


def serve() -> None:
    """Import and compile what a run needs, by making some, then fork. One thread, so that a fork is whole."""
    from run_tools import small

    import fastsnn.cli

    with tempfile.TemporaryDirectory() as folder:
        for backend in ("torch", "numba"):
            fastsnn.train(small(Path(folder) / backend, backend=backend, epochs=1))
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
    # Forked processes share this lock of Numba's: one that was killed with it would stop all that follow.
    numba.np.ufunc.parallel._set_init_process_lock()
    folder = Path(request["folder"])
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    encoding = request["settings"].pop("encoding", "utf-8")
    _settle(folder, **request["settings"])
    sys.stdout, sys.stderr = (open(stream, "w", closefd=False, encoding=encoding) for stream in (1, 2))  # noqa: SIM115
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
    folder: Path,
    pause: float = 0,
    die_at: str = "",
    times: int = 1,
    file_limit: int = 0,
    memory_limit: int = 0,
    thread_limit: int = 0,
    user: int = 0,
    closed: bool = False,
    terminal: float = 0,
    stall: float = 0,
    slow: float = 0,
    ignored: int = 0,
) -> None:
    """What the child suffers.

    A pause in seconds at each stage of a write, a kill when one is reached for so many times, a largest file and so
    much more address space in bytes, so many processes and threads of its user, another user, a standard output that
    nobody reads, a terminal that is closed after so many seconds, data that take so many seconds, batches that take so
    many seconds, a signal that is ignored. ``encoding``, that of the terminal, is seen to by :func:`_run`.
    """
    import fcntl
    import resource
    import termios

    if pause or die_at:
        _watch_writes(folder / "phase", pause, die_at, times)
    # A shell's background jobs ignore Ctrl-C, and so would these.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if ignored:
        signal.signal(ignored, signal.SIG_IGN)
    if file_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write fails instead of ending the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if memory_limit:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_limit,) * 2)
    if user:
        os.setgid(user)
        os.setuid(user)
    if thread_limit:
        resource.setrlimit(resource.RLIMIT_NPROC, (thread_limit,) * 2)
    if closed:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
    if stall:
        import fastsnn.training.command

        fastsnn.training.command.open_source = lambda *_, **__: time.sleep(stall)  # type: ignore[assignment, return-value]
    if slow:
        from fastsnn.training.autograd_step import AutogradStep

        train = AutogradStep.train

        def slowed(self: AutogradStep, *arguments: Any) -> Any:
            deadline = time.monotonic() + slow
            while time.monotonic() < deadline:
                terminal = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
                told = getattr(terminal, "stop_signal", None)
                (folder / "phase").write_text(f"in a batch, told to stop by {told};")
                time.sleep(0.01)
            return train(self, *arguments)

        AutogradStep.train = slowed  # type: ignore[assignment, method-assign]
    if terminal:
        master, slave = os.openpty()
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY)
        for stream in range(3):
            os.dup2(slave, stream)
        os.close(slave)
        threading.Timer(terminal, os.close, [master]).start()


def _watch_writes(phase: Path, pause: float, die_at: str, times: int) -> None:
    """Note each stage of an atomic write and stretch it, so that random kills meet them all; or die at one of them."""
    import io

    marker = os.open(phase, os.O_WRONLY)
    path_open, fsync, replace = Path.open, os.fsync, os.replace
    writing, reached = [""], [0]

    def stage(text: str) -> None:
        os.pwrite(marker, text.ljust(40).encode(), 0)
        reached[0] += text == die_at
        if reached[0] == times:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)

    class WatchedFile(io.FileIO):
        def write(self, content: Any) -> int:
            half = len(content) // 2
            super().write(content[:half])
            stage(f"{writing[0]}, half written")
            return half + (super().write(content[half:]) or 0)

    def watched_open(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if self.suffix == ".tmp" and "w" in mode:
            writing[0] = self.name[1 : -len(".tmp")]
            return WatchedFile(self, "wb")
        return path_open(self, mode, *arguments, **options)

    def watched_fsync(file: int) -> None:
        stage(f"{writing[0]}, before fsync")
        fsync(file)

    def watched_replace(source: Any, target: Any) -> None:
        stage(f"{writing[0]}, before rename")
        replace(source, target)
        stage(f"{writing[0]}, after rename")
        os.pwrite(marker, "computing".ljust(40).encode(), 0)

    Path.open, os.fsync, os.replace = watched_open, watched_fsync, watched_replace  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    serve()
