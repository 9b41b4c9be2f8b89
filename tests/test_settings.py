"""Settings of Numba and OpenMP in the environment: named at start, and no kernel is other for them unsaid."""

import runpy
from pathlib import Path

import numba
import pytest
from child import Server
from run_tools import Command, arguments

import fastsnn.kernels.numba
from fastsnn import notices, settings

HARMLESS = {
    "NUMBA_CACHE_DIR": "/tmp",
    "NUMBA_OPT": "3",
    "NUMBA_DISABLE_JIT": "0",
    "NUMBA_BOUNDSCHECK": "",
    "OMP_NUM_THREADS": "1",
    "OMP_DYNAMIC": "FALSE",
    "NUMBA_THREADING_LAYER": "omp",
}


@pytest.mark.parametrize("name", settings._NOTABLE)
def test_each_is_named_with_its_value_and_effect(name: str, tmp_path: Path) -> None:
    (line,) = settings.notable(HARMLESS | {name: "7"}, tmp_path)
    assert line.startswith(f"{name}=7 is set: ")
    assert "\n" not in line


def test_what_changes_nothing_is_not_named(tmp_path: Path) -> None:
    assert settings.notable(HARMLESS, tmp_path) == []
    harmless = {name: value for name, (value, _) in settings._NOTABLE.items() if value is not None}
    assert settings.notable(harmless, tmp_path) == []


def test_a_file_of_numbas_settings_is_named(tmp_path: Path) -> None:
    (tmp_path / ".numba_config.yaml").touch()
    (line,) = settings.notable({}, tmp_path)
    assert line.startswith(f"{tmp_path / '.numba_config.yaml'} is read by Numba")


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "1.5", "²"])
@pytest.mark.parametrize("name", ["NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER"])
def test_what_numba_fails_on_is_refused_by_its_name(
    name: str, value: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    code, stdout, stderr = command("train", "--dataset", "digits")
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert f"the environment variable {name} is {value!r}; allowed: " in stderr


@pytest.mark.parametrize("value", ["1", "yes"])
def test_kernels_that_may_not_be_compiled(value: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", value)
    code, _, stderr = command("eval", "run")
    assert (code, stderr.count("\n")) == (2, 1)
    assert f"NUMBA_DISABLE_JIT is '{value}'; allowed: 0 or unset" in stderr


def test_python_callers_hear_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(ImportError, match="NUMBA_DISABLE_JIT is set; allowed: 0 or unset"):
        runpy.run_path(fastsnn.kernels.numba.__file__, run_name="fastsnn.kernels.numba")


def test_a_run_and_an_evaluation_name_them(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OMP_DYNAMIC", "true")
    for name in ("one", "two"):
        code, stdout, _ = command("train", *arguments(epochs=1), "--out", tmp_path / name)
        assert code == 0
        assert stdout.startswith("OMP_DYNAMIC=true is set: torch may compute on fewer threads")
    caplog.clear()
    notices._said.clear()
    assert command("eval", tmp_path / "one")[0] == 0
    assert [record.getMessage()[:18] for record in caplog.records] == ["OMP_DYNAMIC=true i"]


def test_help_comes_before_any_of_them(server: Server, tmp_path: Path) -> None:
    child = server.start(tmp_path, "--help")
    assert (child.wait(), child.stderr()) == (0, "")
    assert "train" in child.stdout()
