"""Files of a run that survive anything: written beside their place, flushed, then renamed; checked when read."""

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fastsnn.errors import RunFolderError
from fastsnn.files import check_regular

FORMAT = 1
"""Version of a checkpoint's contents; a newer one is refused."""


NAMES = ("last", "best")
"""Checkpoints of a run: last.pt, from which it goes on, and best.pt."""


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace ``path`` by ``content``: after a crash at any point it holds the old bytes or the new ones, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    if path.exists():
        check_regular(path)  # a file would take the place of /dev/null
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()  # on a full disk it would take what little is left
        raise


def pack(content: dict[str, Any]) -> memoryview:
    """A checkpoint of tensors and plain values, as the bytes of its file."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "digest": _digest(content), **content}, buffer)
    return buffer.getbuffer()


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`pack` made; raises RunFolderError that names the file where it is anything else.

    Nothing in the file is executed, and a digest over every value finds damage that the container does not notice.
    """
    try:
        check_regular(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not isinstance(content.get("format"), int):
            raise ValueError("it holds something else")
        version = content.pop("format")
        if version > FORMAT:
            raise ValueError(f"its format {version} is newer than this fastsnn's {FORMAT}: upgrade fastsnn")
        if content.pop("digest", None) != _digest(content):
            raise ValueError("it is damaged: its digest is wrong")
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} does not exist; is {path.parent} a run folder?") from error
    except Exception as error:  # damaged and foreign files make torch.load raise nearly anything
        reason = " ".join(str(error).split()).partition(". ")[0][:200] or type(error).__name__
        raise RunFolderError(f"{path} is not a checkpoint that can be read: {reason}") from error
    return content


def load_named(run: Path, name: str) -> dict[str, Any]:
    """What last.pt or best.pt of a run folder holds; raises ValueError for another name, else as :func:`load`."""
    return load(run / file_of(name))


def file_of(name: str) -> str:
    """last -> last.pt; raises ValueError for a name other than last and best."""
    if name not in NAMES:
        raise ValueError(f"checkpoint is {name!r}; allowed: {', '.join(NAMES)}")
    return f"{name}.pt"


def _digest(value: Any) -> str:
    hasher = hashlib.sha256()
    _feed(hasher, value)
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any) -> None:
    """Hash plain values by their text and tensors by type, shape and bytes."""
    if isinstance(value, torch.Tensor):
        hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
        hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        hasher.update(f"dict{len(value)}".encode())
        for key, item in value.items():
            hasher.update(repr(key).encode())
            _feed(hasher, item)
    elif isinstance(value, (list, tuple)):
        hasher.update(f"list{len(value)}".encode())
        for item in value:
            _feed(hasher, item)
    else:
        hasher.update(repr(value).encode())
