"""Set-up shared by all tests: without a GPU the Triton kernels run in Triton's interpreter."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_tools import cache_folder, cached_kernel, kernel_sources  # noqa: F401 - fixtures

from tests.gpu_in_software import plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    plugin.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    # Triton reads the variable when a kernel is defined, so it must be set before anything imports one.
    if config.getoption("--gpu"):
        plugin.configure(config)
    elif not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from fastsnn.sources import default_folder
    from fastsnn.sources.mnist import HEADERS

    folder = default_folder()
    gpu, mnist = torch.cuda.is_available(), all((folder / "MNIST" / "raw" / file).is_file() for file in HEADERS)
    for item in items:
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and this machine has none"))
        if item.get_closest_marker("mnist") and not mnist:
            item.add_marker(pytest.mark.skip(reason=f"needs MNIST, and {folder} ($FASTSNN_DATA) has none"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    from run_tools import small

    import fastsnn

    return fastsnn.train(small(tmp_path_factory.mktemp("runs") / "run", epochs=2)).run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that the test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures, which take longest, out of a test that does not look at them."""
    from markupsafe import Markup

    from fastsnn import report

    monkeypatch.setattr(report, "figure_of", lambda name, _: report.PageFigure(name, "", Markup("<svg></svg>")))


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """A ``child.Server``, which starts ``fastsnn ARGUMENTS`` in processes of their own."""
    from child import Server

    with Server() as started:
        yield started


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run ``fastsnn ARGUMENTS`` in this process: its exit code, stdout and stderr."""
    from fastsnn import cli

    def call(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["fastsnn", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return call
