"""The device that is named, and what `auto` passes over: said, always, and by its own name."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tools import Command, arguments, small

import fastsnn
from fastsnn import backends, devices, notices
from fastsnn.errors import BackendUnavailable, DeviceUnavailable


@pytest.fixture(autouse=True)
def _said_nothing() -> Iterator[None]:
    """Each test starts as a new process does."""
    for known in (backends.refusal, backends.cuda_refusal):
        known.cache_clear()
    notices._said.clear()
    yield
    for known in (backends.refusal, backends.cuda_refusal):
        known.cache_clear()


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what a machine without a GPU says")

WRONG = ["cuda:²", "cuda:٣", "cuda:99999999999999999999", "cuda:128", "cuda:007", "cuda:", "cuda:-1", "cuda: 0", "CPU"]


@pytest.mark.parametrize("name", [*WRONG, "meta", "", "mps"])
def test_what_is_no_device(name: str, command: Command, trained: Path) -> None:
    with pytest.raises(ValueError, match=r"^device is '.*'; allowed: auto, cpu, cuda, cuda:N$"):
        devices.find(name)
    for call in (["train", "--dataset", "digits"], ["eval", trained], ["verify", "--quick"]):
        code, stdout, stderr = command(*call, "--device", name)
        assert (code, stdout) == (2, "")
        assert f"device is {name!r}; allowed: " in stderr
        assert stderr.count("\n") == 1


@no_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", "cuda:127"])
def test_a_device_that_is_not_here_is_refused_by_its_own_name(name: str, command: Command, trained: Path) -> None:
    for call in (["train", "--dataset", "digits"], ["eval", trained], ["verify", "--quick"]):
        code, stdout, stderr = command(*call, "--device", name)
        assert (code, stdout) == (1, "")
        refused = f"fastsnn: device is {name}, but torch finds no CUDA GPU here; allowed here: auto, cpu; "
        assert stderr == refused + "see `fastsnn doctor`\n"


def test_a_gpu_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    unusable = {0: None, 1: "broken", 7: "there is no cuda:7; allowed: cuda:0 to cuda:1"}
    monkeypatch.setattr(backends, "cuda_refusal", lambda index=0: unusable[index])
    with pytest.raises(DeviceUnavailable) as refused:
        devices.find("cuda:7")
    assert str(refused.value).startswith("device is cuda:7, but there is no cuda:7")
    assert str(refused.value).endswith("allowed here: auto, cpu, cuda:0; see `fastsnn doctor`")


@no_gpu
@pytest.mark.parametrize(("visible", "said"), [(None, True), ("", False)])
def test_a_gpu_that_torch_does_not_find(
    visible: str | None, said: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "nvidia_devices", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.find("auto") == torch.device("cpu")
    assert ["this machine has one" in record.getMessage() for record in caplog.records] == [True] * said


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    """A numba backend whose kernels fail; returns what is said of it."""

    def fail(*_: Any, **__: Any) -> Any:
        raise EOFError("Ran out of input\nmore")

    load = backends.load
    replaced = backends.NumbaBackend()
    monkeypatch.setattr(replaced, "scan", fail)
    monkeypatch.setattr(backends, "load", lambda name: replaced if name == "numba" else load(name))
    return "backend auto takes torch on cpu: not numba, its test kernel failed: EOFError: Ran out of input"


def test_a_backend_that_auto_passes_over_is_named_once(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        fastsnn.scan(torch.ones(1, 1))
    assert [record.getMessage() for record in caplog.records] == [broken]
    assert caplog.records[0].levelno == logging.WARNING
    with pytest.raises(BackendUnavailable, match="Ran out of input"):
        fastsnn.scan(torch.ones(1, 1), backend="numba")


def test_every_run_says_it(broken: str, command: Command, tmp_path: Path) -> None:
    options = arguments(epochs=1, backend="auto")
    for name in ("one", "two"):
        code, stdout, stderr = command("train", *options, "--out", tmp_path / name)
        assert (code, stderr) == (0, "")
        assert stdout.splitlines()[0] == broken
        assert "backend torch" in stdout.splitlines()[1]


def test_a_run_without_a_monitor_says_it_by_logging(
    broken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fastsnn.train(small(tmp_path / "run", epochs=1, backend="auto"))
    assert broken in [record.getMessage() for record in caplog.records]


def test_an_error_without_a_text_is_a_reason_too(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError

    replaced = backends.NumbaBackend()
    monkeypatch.setattr(replaced, "scan", fail)
    monkeypatch.setattr(backends, "load", lambda name: replaced)
    assert backends.refusal("numba", torch.device("cpu")) == "its test kernel failed: MemoryError: no reason given"
