"""The folder of a run: config.yaml, metrics.csv, TensorBoard events, last.pt and best.pt."""

import csv
import io
import platform
import time
from dataclasses import asdict, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from torch import nn

from fastsnn import checkpoint
from fastsnn.config import MANAGEMENT, Config, recorded_config
from fastsnn.errors import RunFolderError
from fastsnn.monitor import EpochMetrics

CHANGEABLE_ON_RESUME = (*MANAGEMENT, "epochs")


class Run:
    """An open run folder; as a context manager it is locked against other processes.

    Where it is not ``writable`` (another process of the run writes it, or nobody does) it is only read.
    """

    def __init__(self, path: Path, config: Config, state: dict[str, Any] | None, writable: bool) -> None:
        self.path, self.config, self.checkpoint = path, config, state
        self._lock = FileLock(path / ".lock") if writable else None
        self._writer: Any = None

    @classmethod
    def create(cls, config: Config, writable: bool = True) -> "Run":
        """A new, empty folder; raises RunFolderError where it holds something and ``overwrite`` is not set."""
        path = config.out or Path("runs") / (config.name or f"{config.dataset}-{time.strftime('%Y%m%d-%H%M%S')}")
        if not writable:
            return cls(path, config, None, writable)
        try:
            path.mkdir(parents=True, exist_ok=True)
            entries = [entry for entry in path.iterdir() if entry.name != ".lock"]
        except OSError as error:
            raise RunFolderError(
                f"can't make the run folder {path}: {error.strerror}; name another with --out"
            ) from error
        if entries and not config.overwrite:
            raise RunFolderError(
                f"run folder {path} is not empty: go on with it (--resume {path}), replace it (--overwrite), "
                "or name another (--name, --out)"
            )
        return cls(path, config, None, writable)

    @classmethod
    def reopen(cls, path: Path, changes: Config | None = None, *, writable: bool = True) -> "Run":
        """A run that was started before; ``changes`` may differ in what does not change its results."""
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise RunFolderError(f"{path} is not a run folder: it has no config.yaml")
        config = recorded_config(path)
        if changes is not None:
            before, after = config.to_dict(), changes.to_dict()
            for name, value in after.items():
                if value != before[name] and name not in CHANGEABLE_ON_RESUME:
                    raise ValueError(
                        f"{name} is {value!r}, but this run was started with {before[name]!r}; --resume can change "
                        f"{', '.join(CHANGEABLE_ON_RESUME)} only"
                    )
            config = changes
        state = checkpoint.load(path / "last.pt") if (path / "last.pt").exists() else None
        return cls(path, replace(config, out=path, overwrite=False), state, writable)

    def __enter__(self) -> "Run":
        if self._lock is not None:
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise RunFolderError(f"run folder {self.path} is in use by another process") from error
            except OSError as error:
                raise RunFolderError(f"can't write to the run folder {self.path}: {error.strerror}") from error
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._lock is not None:
            self._lock.release()
            if [entry.name for entry in self.path.iterdir()] == [".lock"]:
                # Nothing was started: leave no empty folder behind.
                (self.path / ".lock").unlink()
                self.path.rmdir()

    def start(self, environment: dict[str, Any], history: list[EpochMetrics]) -> None:
        """Record what runs; what an earlier run left is removed where there is no checkpoint to go on from."""
        if self._lock is None:
            return
        if self.checkpoint is None:
            for pattern in ("*.pt", "metrics.csv", "events.out.tfevents.*"):
                for left in self.path.glob(pattern):
                    left.unlink()
        recorded = self.config.to_dict() | {"environment": environment}
        self._write("config.yaml", yaml.safe_dump(recorded, sort_keys=False).encode())
        self._write("metrics.csv", _csv(history))
        # Importing TensorBoard takes a second: not before something is written to it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.path), purge_step=len(history) + 1)  # type: ignore[no-untyped-call]

    def save(self, state: dict[str, Any], history: list[EpochMetrics]) -> None:
        """Write last.pt, from which the run goes on; the history in it is what metrics.csv is made from."""
        content = state | {"history": [asdict(row) for row in history], "config": self.config.to_dict()}
        if self._lock is None:
            return
        self._guard("last.pt", lambda path: checkpoint.save(path, content))

    def save_epoch(self, state: dict[str, Any], history: list[EpochMetrics], best: bool) -> None:
        """Everything that is written when an epoch ends."""
        self.save(state, history)
        if self._lock is None:
            return
        if best:
            self._write("best.pt", (self.path / "last.pt").read_bytes())
        self._write("metrics.csv", _csv(history))
        metrics = asdict(history[-1])
        epoch = metrics.pop("epoch")
        for name, value in metrics.items():
            self._writer.add_scalar(name.replace("_", "/", 1), value, epoch)
        self._writer.flush()

    def _write(self, name: str, content: bytes) -> None:
        self._guard(name, lambda path: checkpoint.write_atomically(path, content))

    def _guard(self, name: str, write: Any) -> None:
        path = self.path / name
        try:
            write(path)
        except OSError as error:
            raise RunFolderError(
                f"can't write {path}: {error.strerror or error}; the previous file is intact"
            ) from error


def load_state(network: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load weights; raises RunFolderError where they are another network's."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:40])
        raise RunFolderError(f"the checkpoint in {path} is of another network: {reason}") from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {
        "fastsnn": metadata.version("fastsnn"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    for package in ("numpy", "numba", "triton", "spikingjelly", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _csv(history: list[EpochMetrics]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(EpochMetrics)], lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow(asdict(row))
    return buffer.getvalue().encode()
