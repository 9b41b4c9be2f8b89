"""Files that are given by name: a pipe or a device would be read for ever, and a folder is none."""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_regular(path: Path, most: int | None = None) -> None:
    """Raise OSError, whose ``strerror`` says why, if ``path`` is no regular file or has more than ``most`` bytes."""
    status = path.stat()
    for is_kind, called in _KINDS:
        if is_kind(status.st_mode):
            raise OSError(None, f"it is {called}, not a file", str(path))
    if most is not None and status.st_size > most:
        raise OSError(None, f"it has {status.st_size:,} bytes, more than {most:,}", str(path))


def missing(path: Path) -> list[Path]:
    """``path`` and the folders above it that don't exist yet, the innermost first."""
    found = []
    for folder in (path, *path.parents):
        if folder.exists() or folder.is_symlink():
            break
        found.append(folder)
    return found


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the innermost first, as far as they are empty."""
    for folder in folders:
        with suppress(OSError):
            os.rmdir(folder)
