"""Compiled CPU kernels on disk: found again by what they were made from, and by no date."""

import os
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from cache_tools import SOURCE, compiles, function, messages
from numba.core import types

from fastsnn.kernels.numba import cache
from fastsnn.kernels.rate_classifier.numba.kernels import Problem


def test_what_is_kept_is_found_again(cached_kernel: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert compiles(lambda: function()(21)) == (42, False)
    assert compiles(lambda: function()(21.0)) == (42.0, True), "another signature"
    assert compiles(lambda: function()(21.0)) == (42.0, False)
    assert len(list(cached_kernel.parent.iterdir())) == 2
    assert messages(caplog) == []


def test_another_code_or_constant_is_another_function(cached_kernel: Path) -> None:
    assert compiles(lambda: function(FACTOR=3)(21)) == (63, True)
    assert compiles(lambda: function(SOURCE.replace("*", "+"))(21)) == (23, True)
    assert compiles(lambda: function(SOURCE.replace("FACTOR", "4"))(21)) == (84, True)
    assert compiles(lambda: function()(21)) == (42, False)


def test_another_callee_is_another_function(cache_folder: Path) -> None:
    def calling(factor: int) -> Any:
        return function("def double(x):\n    return inner(x)\n", inner=function(FACTOR=factor))

    assert compiles(lambda: calling(2)(21)) == (42, True)
    assert compiles(lambda: calling(2)(21)) == (42, False)
    assert compiles(lambda: calling(5)(21)) == (105, True)


def test_a_type_of_numba_is_known_by_its_key() -> None:
    class Program(types.Type):
        def __init__(self, text: str) -> None:
            super().__init__(name="Program")
            self.text = text

        @property
        def key(self) -> Any:
            return (self.name, self.text)

    assert cache.describe((Program("v + x"), types.int64)) == cache.describe((Program("v + x"), types.int64))
    assert cache.describe(Program("v + x")) != cache.describe(Program("v - x"))
    arrays = [types.Array(types.float32, 2, layout, aligned=aligned) for layout in "CA" for aligned in (True, False)]
    assert len({cache.describe(array) for array in arrays}) == 4
    work = numba.typeof(Problem(*[np.float32(1)] * len(Problem._fields)))
    assert "columns" in cache.describe(work), "the fields of a named tuple in their order"


def test_what_has_no_lasting_description_is_not_kept(cache_folder: Path) -> None:
    with pytest.raises(cache.Unstable):
        cache.describe(object())
    made = function("def double(x, y=thing):\n    return x * 2\n", thing=object())
    assert made(21, 1) == 42
    assert function(__name__="made_up")(21) == 42
    assert not cache_folder.exists()


def stamp() -> str:
    cache.stamp.cache_clear()
    return cache.stamp()


def test_the_stamp_is_of_every_source_and_of_no_time(kernel_sources: Path) -> None:
    before = stamp()
    for path in kernel_sources.rglob("*.py"):
        os.utime(path, (1, 1))
    assert stamp() == before
    for path in sorted(kernel_sources.rglob("*.py")):
        text, times = path.read_bytes(), (path.stat().st_atime, path.stat().st_mtime)
        path.write_bytes(text.replace(b"e", b"a", 1))
        os.utime(path, times)
        assert stamp() != before, path
        path.write_bytes(text)
    (kernel_sources / "numba" / "scan.py").rename(kernel_sources / "numba" / "scans.py")
    assert stamp() != before


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        ("fastsnn.kernels.numba.cache.np", "__version__", "9.9"),
        ("fastsnn.kernels.numba.cache.numba", "__version__", "9.9"),
        ("fastsnn.kernels.numba.cache.llvmlite", "__version__", "9.9"),
        ("sys", "version", "4.0"),
        ("fastsnn.kernels.numba.cache.binding", "get_host_cpu_name", lambda: "another"),
        ("fastsnn.kernels.numba.cache.config", "BOUNDSCHECK", 1),
        ("fastsnn.kernels.numba.cache.config", "OPT", 0),
        ("fastsnn.kernels.numba.cache.config", "ENABLE_AVX", 0),
    ],
)
def test_the_stamp_is_of_versions_processor_and_settings(
    owner: str, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stamp()
    monkeypatch.setattr(f"{owner}.{name}", value)
    assert stamp() != before
    monkeypatch.undo()
    monkeypatch.setattr(numba.config, "CACHE_DIR", "elsewhere")
    assert stamp() == before, "where it is kept changes no machine code"
