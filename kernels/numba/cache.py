"""Machine code on disk. Whether it is current is decided by content; modification times play no part.

A folder belongs to one state of all kernel sources, of the versions that compile them, of the processor and of Numba's
settings. A file in it belongs to one signature of one function, by the code of that function and of all that it calls.
Each file carries a digest of its content and is written under another name first. So a damaged or half-written file is
compiled again, and several processes may fill a folder at once. There is no index that could be damaged or stale.

Everything private of Numba that this needs is in this module, in :class:`DiskCache`. If a release of Numba changes it,
every process compiles the kernels anew and says so. Tests: ``tests/test_cpu_cache*.py``.
"""

import hashlib
import logging
import os
import pickle
import platform
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import binding
from numba.core import config, serialize, sigutils, types
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.environment import Environment

MAGIC = b"fastsnn kernel 1\n"
KEPT = 8
"""Folders of other sources, versions or processors that are left beside a new one."""
HARMLESS = re.compile(r".*NUM_THREADS|CACHE_.*|CUDA_.*|THREADING_.*|DUMP_.*|.*WARNINGS?|COLOR_SCHEME|DEBUG_CACHE")
"""Numba's settings that don't change machine code."""

logger = logging.getLogger("fastsnn.kernels")
_SOURCES = Path(__file__).resolve().parent.parent


def folders() -> list[Path]:
    """Where machine code is looked for, and kept in the first that can be written.

    $NUMBA_CACHE_DIR alone if it is set, with a part for each user; else beside the source, as Python's own caches are,
    and in the user's cache folder.
    """
    if config.CACHE_DIR:
        return [Path(config.CACHE_DIR) / f"fastsnn-{stamp()}{_user()}"]
    found = [_SOURCES / "__pycache__" / f"numba-{stamp()}"]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/.cache"))
    if caches.is_absolute():  # a container's user may have no home
        found.append(caches / "fastsnn" / "kernels" / f"numba-{stamp()}")
    return found


@lru_cache
def stamp() -> str:
    """Digest of the content of all kernel sources, of versions, processor and Numba's settings."""
    hasher = hashlib.sha256()
    for path in sorted(_SOURCES.rglob("*.py")):
        content = path.read_bytes()
        hasher.update(f"{path.relative_to(_SOURCES).as_posix()} {len(content)}\n".encode() + content)
    versions = (sys.version, platform.machine(), numba.__version__, llvmlite.__version__, np.__version__)
    processor = (binding.get_process_triple(), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())
    settings = {
        name: value
        for name, value in vars(config).items()
        if name.isupper() and isinstance(value, (int, float, str, type(None))) and not HARMLESS.fullmatch(name)
    }
    hasher.update(repr((versions, processor, sorted(settings.items(), key=str))).encode())
    return hasher.hexdigest()[:20]


def _user() -> str:
    return f"-{os.geteuid()}" if hasattr(os, "geteuid") else ""


class Unstable(Exception):  # noqa: N818 - it is an answer
    """What describes a function differs from process to process, so that its machine code can't be found again."""


def describe(value: Any, seen: set[int] | None = None) -> str:
    """What a signature or a function is, in a text that is the same in every process and for nothing else."""
    seen = set() if seen is None else seen
    if isinstance(value, types.Omitted):
        return f"omitted {describe(value.value, seen)}"
    if isinstance(value, types.Dispatcher):
        return describe(value.dispatcher, seen)
    if isinstance(value, types.Type):
        return f"{describe(type(value), seen)}[{describe(value.key, seen)}]"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}{getattr(value, '_fields', '')}"
    if isinstance(value, Dispatcher):
        return describe(value.py_func, seen) + describe(value.targetoptions, seen)
    if isinstance(value, FunctionType):
        return "".join(_describe_function(value, seen))
    if isinstance(value, CodeType):
        parts = (value.co_code, value.co_consts, value.co_names, value.co_varnames, value.co_freevars)
        return describe(parts, seen)
    if isinstance(value, (tuple, list)):
        return f"({', '.join(describe(item, seen) for item in value)})"
    if isinstance(value, (frozenset, set)):
        return f"{{{', '.join(sorted(describe(item, seen) for item in value))}}}"
    if isinstance(value, dict):
        return describe(sorted(value.items(), key=str), seen)
    if re.search(r" at 0x[0-9a-fA-F]+", text := f"{type(value).__name__} {value!r}") and not isinstance(value, str):
        raise Unstable(text)
    return text


def _describe_function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    """A function with the functions and constants that it names: a .pyc that is stale is another function."""
    name = f"{function.__module__}.{function.__qualname__}"
    yield name
    if id(function.__code__) in seen:
        return
    seen.add(id(function.__code__))
    yield describe(function.__code__, seen)
    yield describe(function.__defaults__, seen)
    for cell in function.__closure__ or ():
        yield describe(cell.cell_contents, seen)
    for global_ in function.__code__.co_names:
        value = function.__globals__.get(global_)
        if isinstance(value, (Dispatcher, int, float, str, tuple, np.generic)):
            yield f"{global_}={describe(value, seen)}"


class DiskCache:
    """Takes the place of the cache of one dispatcher of Numba's: overloads on disk, by their signature."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @cached_property
    def _code(self) -> str:
        return describe(self._function)

    @property
    def cache_path(self) -> str:
        return str(folders()[0])

    def enable(self) -> None: ...

    def disable(self) -> None: ...

    def flush(self) -> None: ...

    def load_overload(self, signature: Any, target_context: Any) -> CompileResult | None:
        """The compiled function, or None if there is none on disk that can be used."""
        try:
            target_context.refresh()
            name, key = self._key(signature)
            for folder in folders():
                payload = read(folder / name, key)
                if payload is not None:
                    return CompileResult._rebuild(target_context, *pickle.loads(payload))
        except Exception as error:  # whatever it is, the compiler makes good for it
            logger.warning("compiling %s again: its cache failed (%s)", self._function.__qualname__, _line(error))
        return None

    def save_overload(self, signature: Any, result: CompileResult) -> None:
        """Keep a compiled function, if a folder can be written."""
        if result.library.has_dynamic_globals or any(not lifted.can_cache for lifted in result.lifted):
            return
        try:
            name, key = self._key(signature)
            reduced = result._reduce()
            for part in (*reduced, *reduced[-1]):
                if isinstance(part, Environment) and part.globals.get("__name__") not in sys.modules:
                    raise Unstable("another process can't import its module")
            write(name, key, serialize.dumps(reduced))
        except Unstable:
            pass
        except Exception as error:  # a run must not end for that
            _complain(_line(error))

    def _key(self, signature: Any) -> tuple[str, bytes]:
        """File name and content key of the machine code for a signature."""
        key = f"{self._code} {describe(sigutils.normalize_signature(signature))}".encode()
        name = re.sub(r"\W+", "-", f"{self._function.__module__.rpartition('.')[2]}-{self._function.__qualname__}")
        return f"{name}-{hashlib.sha256(key).hexdigest()[:24]}.bin", key


def read(path: Path, key: bytes) -> bytes | None:
    """What :func:`write` kept for ``key``; None, and a word about it, if the file isn't whole or can't be trusted."""
    try:
        if not path.is_file():  # a pipe would never end
            return None
        with path.open("rb") as file:
            if not _trusted(os.fstat(file.fileno())):
                logger.warning("compiling again: %s belongs to another user, and code of theirs isn't run", path)
                return None
            content = file.read()
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            _unreadable(path.parent, error.strerror or str(error))
        return None
    payload = content[len(MAGIC) + 32 :]
    if content[: len(MAGIC) + 32] != MAGIC + hashlib.sha256(key + payload).digest():
        logger.warning("compiling again: %s is damaged", path)
        return None
    _used(path.parent)
    return payload


def write(name: str, key: bytes, payload: bytes) -> None:
    """Keep ``payload`` in the first folder that can be written; if there is none, say so once."""
    errors = []
    for folder in folders():
        temporary = folder / f".{uuid.uuid4().hex}.tmp"
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                _prune(folder)
            temporary.write_bytes(MAGIC + hashlib.sha256(key + payload).digest() + payload)
            os.replace(temporary, folder / name)
            return
        except OSError as error:
            errors.append(f"{folder}: {error.strerror or error}")
            with suppress(OSError):
                temporary.unlink()
    _complain("; ".join(errors))


@lru_cache
def _unreadable(folder: Path, reason: str) -> None:
    logger.warning("compiling again: can't read the compiled kernels in %s (%s)", folder, reason)


@lru_cache
def _complain(reason: str) -> None:
    logger.warning(
        "compiled kernels can't be kept (%s): every process compiles them anew; set NUMBA_CACHE_DIR to a folder that "
        "can be written",
        reason,
    )


def _trusted(status: os.stat_result) -> bool:
    """Whether whoever wrote a file may have this process run it: this user, root, or the owner of the source."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid in (os.geteuid(), 0, Path(__file__).stat().st_uid)


@lru_cache
def _used(folder: Path) -> None:
    """Note that a folder is in use, so that it isn't the first to be removed."""
    with suppress(OSError):
        os.utime(folder)


def _prune(folder: Path) -> None:
    """Remove what killed writers left behind, and this user's folders that nothing has used for longest."""
    pattern = re.compile(re.sub(stamp(), "[0-9a-f]{20}", folder.name))
    with suppress(OSError):
        ours = [other for other in folder.parent.iterdir() if pattern.fullmatch(other.name) and other != folder]
        ours.sort(key=lambda path: path.stat().st_mtime)
        for left in [left for other in ours for left in other.glob(".*.tmp")]:
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()
        for other in ours[:-KEPT]:
            for file in (*other.glob("*.bin"), *other.glob(".*.tmp")):
                file.unlink()
            other.rmdir()


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
