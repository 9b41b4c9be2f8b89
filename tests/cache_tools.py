"""Kernels that no process has compiled yet, and caches for them; its fixtures are at hand everywhere."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import pytest

from fastsnn.kernels.numba import before_compiling, cache, jit

SOURCE = """
def double(x):
    return x * FACTOR
"""


def function(source: str = SOURCE, **names: Any) -> Any:
    """A kernel that no process has compiled yet, in a module of its own."""
    module: dict[str, Any] = {"__name__": __name__, "FACTOR": 2, **names}
    exec(source, module)
    return jit(module["double"], entry=True)


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache that is empty."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    return cache.folders()[0]


@pytest.fixture
def cached_kernel(cache_folder: Path) -> Path:
    """The one file of a cache that holds ``double`` of an integer."""
    assert function()(21) == 42
    (path,) = cache_folder.iterdir()
    return path


def compiles(call: Callable[[], Any]) -> tuple[Any, bool]:
    found: list[bool] = []
    with before_compiling(lambda: found.append(True)):
        return call(), bool(found)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture
def kernel_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the kernels whose content the cache is stamped by."""
    copy = tmp_path / "kernels"
    shutil.copytree(cache._SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "_SOURCES", copy)
    cache.stamp.cache_clear()
    yield copy
    cache.stamp.cache_clear()
