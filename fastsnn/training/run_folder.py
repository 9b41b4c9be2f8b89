"""The folder of a run: config.yaml, metrics.csv, TensorBoard events, last.pt and best.pt."""

import csv
import io
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from torch import nn

from fastsnn import checkpoint
from fastsnn.config import PLACE, Config, FitConfig
from fastsnn.errors import RunFolderError
from fastsnn.files import missing, remove_empty
from fastsnn.monitor import COLUMNS, EpochMetrics
from fastsnn.recorded import recorded_options
from fastsnn.text import printable
from fastsnn.training.events import EventFile
from fastsnn.training.resuming import absolute, changed, check_place, check_same_run

DRAWN = ("report.html", "plots/*.png", "plots/*.svg", "plots/*.pdf")
"""What plot and report make of a run."""
RELEASE = 1.0
"""Seconds in which the system gives up the lock of a process that was just killed."""


class Run:
    """An open run folder; as a context manager it is locked against other processes.

    If it is not ``writable`` (another process of the run writes it, or nobody does) it is only read.
    """

    def __init__(self, path: Path, config: FitConfig, state: dict[str, Any] | None, writable: bool) -> None:
        self.path, self.config, self.checkpoint = path, config, state
        self.given: dict[str, str] | None = None
        """What the folder can't make again: network and data that were given to ``fastsnn.fit``."""
        self._lock = FileLock(path / ".lock") if writable else None
        self._events: EventFile | None = None
        self._new_folders: list[Path] = []

    @classmethod
    def create(cls, config: FitConfig, data: str, writable: bool = True) -> "Run":
        """A new, empty folder; raises RunFolderError if it holds something and ``overwrite`` is not set.

        A folder that nobody named is called after the ``data`` and the time.
        """
        path = config.out or Path("runs") / (config.name or f"{Path(data).stem}-{time.strftime('%Y%m%d-%H%M%S')}")
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in str(path)):
            option, given = ("out", config.out) if config.out else ("name", config.name)
            raise ValueError(f"{option} is '{printable(str(given))}'; allowed: UTF-8 without control characters")
        if not writable:
            return cls(path, config, None, writable)
        new_folders = missing(path.parent)
        try:
            path = _make_folder(path, exist_ok=bool(config.out or config.name))
            entries = [entry for entry in path.iterdir() if entry.name != ".lock" and entry.suffix != ".tmp"]
        except OSError as error:
            raise RunFolderError(
                f"can't make the run folder {path}: {error.strerror}; name another with --out"
            ) from error
        if entries and not config.overwrite:
            raise RunFolderError(
                f"run folder {path} is not empty: go on with it (--resume {path}), replace it (--overwrite), "
                "or name another (--name, --out)"
            )
        run = cls(path, config, None, writable)
        run._new_folders = new_folders
        return run

    @classmethod
    def reopen(
        cls,
        path: Path,
        changes: FitConfig | None = None,
        *,
        kind: type[FitConfig] = Config,
        name: str = "last.pt",
        writable: bool = True,
    ) -> "Run":
        """A run that was started before; ``changes`` may differ in what :data:`CHANGEABLE_ON_RESUME` names.

        ``kind`` is Config for a run of `fastsnn train`, FitConfig for one of ``fastsnn.fit``; ``name`` is the
        checkpoint to load. One that has none yet is reopened without.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise RunFolderError(f"{path} is not a run folder: it has no config.yaml")
        config = recorded_options(path, kind)
        if changes is not None:
            check_place(path, changes)
            config = changed(config, changes)
        state = _checkpoint(path, name) if any((path / file).exists() for file in ("last.pt", "best.pt")) else None
        if state is not None:
            check_same_run(path / name, config, state)
        return cls(path, replace(config, out=path, overwrite=False), state, writable)

    def __enter__(self) -> "Run":
        if self._lock is not None:
            try:
                self._lock.acquire(timeout=RELEASE)
            except Timeout as error:
                raise RunFolderError(f"run folder {self.path} is in use by another process") from error
            except OSError as error:
                raise RunFolderError(f"can't write to the run folder {self.path}: {error.strerror}") from error
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            if self._events is not None:
                self._events.close()
        if self._lock is not None:
            self._lock.release()
            with suppress(OSError):
                if [entry.name for entry in self.path.iterdir()] == [".lock"]:
                    # Nothing was started: leave no empty folder behind.
                    (self.path / ".lock").unlink()
                    remove_empty([self.path, *self._new_folders])

    def start(self, environment: dict[str, Any], history: list[EpochMetrics]) -> None:
        """Record what runs; what an earlier run left is removed where there is no checkpoint to go on from."""
        if self._lock is None:
            return
        if self.checkpoint is None:
            # config.yaml first: without it nothing takes the folder for a run that can go on.
            for pattern in ("config.yaml", "*.pt", "metrics.csv", "events.out.tfevents.*", ".*.tmp", *DRAWN):
                for left in self.path.glob(pattern):
                    left.unlink()
            remove_empty([self.path / "plots"])
        elif len(self.checkpoint["history"]) == 1 and not (self.path / "best.pt").exists():
            self._write("best.pt", checkpoint.pack(self.checkpoint))  # killed between the two
        self._write("config.yaml", yaml.safe_dump(self._recorded() | {"environment": environment}, sort_keys=False))
        self._write("metrics.csv", _csv(history))
        with self._explained("TensorBoard's events"):
            self._events = EventFile(self.path, len(history) + 1)

    def save(self, state: dict[str, Any], history: list[EpochMetrics], best: bool = False) -> None:
        """Write last.pt, from which the run goes on; the history in it is what metrics.csv is made from.

        best.pt comes first: a run that is killed between the two makes it again. The first time it comes last, since a
        best.pt without a last.pt is a run that lost it.
        """
        if self._lock is None:
            return
        content = state | {"history": [asdict(row) for row in history], "config": self._recorded()}
        packed = checkpoint.pack(content)
        names = ["best.pt", "last.pt"] if best else ["last.pt"]
        for name in names if (self.path / "last.pt").exists() else reversed(names):
            self._write(name, packed)

    def save_epoch(self, state: dict[str, Any], history: list[EpochMetrics], best: bool) -> None:
        """Everything that is written when an epoch ends."""
        self.save(state, history, best)
        if self._lock is None:
            return
        self._write("metrics.csv", _csv(history))
        self._show(history[-1])

    def save_test(self, state: dict[str, Any], history: list[EpochMetrics], tested: EpochMetrics) -> None:
        """The history once more, in which the epoch ``tested`` now has its test loss and accuracy."""
        self.save(state, history)
        if self._lock is None:
            return
        self._write("metrics.csv", _csv(history))
        self._show(tested, "test_loss", "test_accuracy")

    def _show(self, row: EpochMetrics, *names: str) -> None:
        """Write numbers of an epoch (default all that it has) for TensorBoard."""
        columns = row.columns()
        epoch = columns.pop("epoch")
        given = {name: value for name, value in columns.items() if value is not None and name in (names or columns)}
        assert self._events is not None
        with self._explained("TensorBoard's events"):
            self._events.scalars({name.replace("_", "/", 1): value for name, value in given.items()}, epoch)

    def _recorded(self) -> dict[str, Any]:
        """The options that belong to the run, wherever it is put and from wherever it is resumed."""
        recorded = {name: value for name, value in self.config.to_dict().items() if name not in PLACE}
        return absolute(recorded) if self.given is None else absolute(recorded) | {"given": self.given}

    def _write(self, name: str, content: str | bytes | memoryview) -> None:
        path = self.path / name
        with self._explained(name):
            checkpoint.write_atomically(path, content.encode() if isinstance(content, str) else content)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        path = self.path / name
        try:
            yield
        except OSError as error:
            kept = "; the previous file is intact" if path.exists() else ""
            raise RunFolderError(f"can't write {path}: {error.strerror or error}{kept}") from error


def _checkpoint(run: Path, name: str) -> dict[str, Any]:
    """What last.pt or best.pt holds; if last.pt can't be read, RunFolderError says whether best.pt can."""
    try:
        if not (run / name).exists():
            raise RunFolderError(f"{run / name} is missing")
        return checkpoint.load(run / name)
    except RunFolderError as error:
        if name != "last.pt":
            raise
        try:
            epoch = len(checkpoint.load(run / "best.pt")["history"])
        except RunFolderError:
            raise error from error.__cause__
        raise RunFolderError(
            f"{error}; best.pt beside it is sound: copied to last.pt, it lets the run go on from epoch {epoch}"
        ) from error


def _make_folder(path: Path, exist_ok: bool) -> Path:
    """Make ``path``; where it must be new and is there already, path-2, path-3 and so on."""
    new, number = path, 1
    while True:
        try:
            new.mkdir(parents=True, exist_ok=exist_ok)
            return new
        except FileExistsError:
            if exist_ok:
                raise
            number += 1
            new = path.with_name(f"{path.name}-{number}")


def load_state(network: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load weights; raises RunFolderError if they are another network's."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:40])
        raise RunFolderError(f"the checkpoint in {path} is of another network: {reason}") from error


def _csv(history: list[EpochMetrics]) -> str:
    rows = [row.columns() for row in history]
    names = dict.fromkeys(COLUMNS) | {name: None for row in rows for name in row}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
