"""Without the C compiler that Triton needs: what is said, and that ``auto`` takes what is faster then."""

import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tools import small

import fastsnn
from fastsnn import backends, builtin_backends
from fastsnn.kernels import triton as triton_kernels
from fastsnn.monitor import Monitor

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def _nothing_cached(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(triton_kernels, "_driver_is_built", lambda: False)
    triton_kernels.toolchain_refusal.cache_clear()
    yield
    triton_kernels.toolchain_refusal.cache_clear()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, compiler: str | None, headers: bool) -> None:
    """Make ``folder`` all that there is of programs and headers."""
    if compiler:
        (folder / compiler).write_text("#!/bin/sh\n")
        (folder / compiler).chmod(0o755)
    if headers:
        (folder / "Python.h").touch()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sysconfig, "get_paths", lambda *_: {"include": str(folder)})
    for name in ("CC", "CPATH", "C_INCLUDE_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_compiler_and_headers_are_enough(compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, compiler, headers=True)
    assert triton_kernels.toolchain_refusal() is None


def test_one_named_by_the_environment_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, None, headers=False)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    monkeypatch.setenv("CC", "icx")
    monkeypatch.setenv("CPATH", f"/nowhere:{tmp_path / 'include'}")
    assert triton_kernels.toolchain_refusal() is None


@pytest.mark.parametrize(
    ("compiler", "headers", "said"),
    [(None, True, "Triton needs a C compiler"), ("gcc", False, "Triton needs Python's headers")],
)
def test_what_is_missing_is_one_line_that_says_what_to_install(
    compiler: str | None, headers: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, compiler, headers)
    reason = triton_kernels.toolchain_refusal()
    assert reason is not None
    assert reason.startswith(said)
    assert reason.endswith("sudo apt install gcc python3-dev")
    assert "\n" not in reason


def test_what_triton_has_built_before_needs_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, None, headers=False)
    monkeypatch.setattr(triton_kernels, "_driver_is_built", lambda: True)
    assert triton_kernels.toolchain_refusal() is None


def test_a_wait_for_the_compiler_is_announced_with_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each kernel, and by whatever ends the block it is over."""
    compiler = pytest.importorskip("triton.compiler.compiler")
    events: list[Any] = []

    class Source:
        def __init__(self, name: str) -> None:
            self.fn = type(name, (), {})

        def make_ir(self, target: str) -> None:
            events.append(target)

    monkeypatch.setattr(compiler, "ASTSource", Source)
    with suppress(KeyboardInterrupt), triton_kernels.before_compiling(lambda *said: events.append(said)):
        Source("encode_kernel").make_ir("sm_90")
        Source("step_kernel").make_ir("sm_90")
        raise KeyboardInterrupt
    Source("update_kernel").make_ir("sm_90")
    assert events == [("encode_kernel", 1), "sm_90", ("step_kernel", 2), "sm_90", "sm_90"]


def test_backend_triton_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin_backends, "toolchain_refusal", lambda: "no compiler")
    assert backends.load("triton").refusal(GPU) == "no compiler"
    assert backends.load("torch").refusal(GPU) is None


def machine(monkeypatch: pytest.MonkeyPatch, **reasons: str) -> None:
    """A machine with a GPU that torch computes on, and those backends that can't run on it or on the CPU."""
    monkeypatch.setattr(backends, "cuda_refusal", lambda index=0: None)
    monkeypatch.setattr(backends, "refusal", lambda name, device: reasons.get(name))


def test_auto_takes_the_gpu_with_any_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for reasons in ({}, {"triton": "no compiler"}, {"cupy": "not installed"}):
        machine(monkeypatch, **reasons)
        assert backends.choose_device() == GPU
        assert backends.slow_reason(GPU) is None


def test_auto_takes_the_cpu_if_the_gpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, triton="no compiler", cupy="not installed")
    assert backends.choose_device() == CPU
    assert backends.choose_device("torch") == GPU, "a backend that is asked for runs where it always did"
    reason = backends.gpu_refusal()
    assert reason is not None
    assert "slower than backend numba on the CPU" in reason
    assert "no compiler" in reason
    assert backends.slow_reason(GPU) == "backend triton cannot run on cuda:0: no compiler"
    assert backends.slow_reason(CPU) is None
    machine(monkeypatch, triton="no compiler", cupy="not installed", numba="broken")
    assert backends.choose_device() == GPU


def test_training_says_why_it_is_not_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monitor = Monitor()
    monkeypatch.setattr(monitor, "message", lines.append)
    monkeypatch.setattr(backends, "gpu_refusal", lambda backend, index: "no compiler")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # torch's Adam looks at the GPU, too, which is none.
    fastsnn.train(small(tmp_path / "run", device="auto", optimizer="sgd"), monitor=monitor)
    assert "not on the GPU: no compiler" in lines
