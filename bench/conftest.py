"""Options and the common session of ``pytest bench/ --benchmark-only``."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bench import cases, machine, ours, peers, summary
from bench.peers import remote
from bench.race import Session
from bench.results import FOLDER, Results, load
from fastsnn import backends
from fastsnn.sources import images as data
from fastsnn.training.machine import cores


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastsnn", "fastsnn's benchmarks")
    group.addoption("--grid", choices=("full", "quick", "tiny"), default="full", help="how much to measure")
    group.addoption("--quick", dest="grid", action="store_const", const="quick", help="the same as --grid quick")
    group.addoption("--cases", help="comma-separated names of cases; default all")
    group.addoption("--peers", help="comma-separated names of peers; default all")
    group.addoption("--peer-env", type=Path, help="a virtual environment with SpikingJelly 2")
    group.addoption(
        "--threads",
        type=int,
        choices=range(1, cores() + 1),
        help="CPU threads of everybody; default see bench/cases.py",
    )
    group.addoption("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.addoption("--results", type=Path, help="results file; default bench/results/MACHINE.json with the full grid")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    # What a peer's library warns about is not for us to fix.
    config.addinivalue_line("filterwarnings", "ignore")
    try:
        cases.select(config.option.cases, _grid(config), "case")
        cases.select(config.option.peers, peers.MODULES, "peer")
        if config.option.peer_env is not None:
            remote.python_of(config.option.peer_env)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    chosen = cases.select(metafunc.config.option.cases, _grid(metafunc.config), "case")
    group = metafunc.module.__name__.rpartition("bench_")[2]
    mine = [case for name, case in _grid(metafunc.config).items() if case.group == group and name in chosen]
    metafunc.parametrize("case", mine, ids=[case.name for case in mine])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A module without a chosen case holds one test without parameters, which would be reported as skipped.
    kept = [item for item in items if isinstance(getattr(item, "callspec", None) and _case(item), cases.Case)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    # The grid's order: some rows are computed from others.
    order = list(_grid(config))
    items[:] = sorted(kept, key=lambda item: order.index(_case(item).name))


@pytest.fixture(scope="session")
def bench_session(request: pytest.FixtureRequest) -> Iterator[Session]:
    option = request.config.option
    device = _device(request.config)
    size = option.grid
    path = option.results or (FOLDER / f"{machine.slug(machine.device_name(device))}.json" if size == "full" else None)
    if path is not None and path.exists():
        load(path)  # a file that can't be merged with is refused before anything is measured
    results = Results(machine.describe(device, quick=size != "full"))
    request.config.stash[summary.RESULTS] = results, path
    images, labels, name = _images(size)
    session = Session(
        device,
        size,
        _peer_names(request.config),
        option.peer_env,
        images,
        labels,
        name,
        results,
        results.environment(machine.environment()),
    )
    for backend in ours.NAMES:
        if reason := ours.refusal(backend, device):
            results.notes.append(f"{backend}: {reason}")
    yield session
    session.close()


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Keep what is measured case by case: a run that is stopped loses one."""
    results, path = item.config.stash.get(summary.RESULTS, (None, None))
    if results is not None and path is not None and results.rows:
        results.write(path)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if summary.RESULTS in config.stash:
        results, path = config.stash[summary.RESULTS]
        for line in summary.lines(results, path):
            terminalreporter.write_line(line)


def _images(size: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Training images uint8 [D, P] with their labels: MNIST where it is at hand, else digits."""
    # A folder may be what a failed download left; auto then falls back to digits.
    at_hand = size != "tiny" and (data.default_folder() / "MNIST" / "raw").exists()
    found = data.load("auto" if at_hand else "digits")
    images = found.train_images
    if size != "tiny" and found.name == "digits":
        # MNIST's shape: an 8 x 8 digit as 20 x 20 pixels in a frame of 28 x 28.
        square = F.interpolate(images.reshape(-1, 1, 8, 8), size=20)
        images = F.pad(square, (4, 4, 4, 4)).flatten(1)
    return images, found.train_labels, found.name


def _device(config: pytest.Config) -> torch.device:
    name = config.option.device
    return backends.choose_device() if name == "auto" else torch.device(name)


def _peer_names(config: pytest.Config) -> list[str]:
    """All peers unless some are named; those that take their time to compile are not part of a quick run on a CPU."""
    names = cases.select(config.option.peers, peers.MODULES, "peer")
    if config.option.peers is None and config.option.grid != "full" and _device(config).type == "cpu":
        names = [name for name in names if name not in ("torch-compile", "jax")]
    return names


def _grid(config: pytest.Config) -> dict[str, cases.Case]:
    grid = cases.grid(config.option.grid, _device(config).type == "cuda", cores())
    if threads := config.option.threads:
        grid = {name: replace(case, threads=threads) for name, case in grid.items()}
    return grid


def _case(item: pytest.Item) -> Any:
    return item.callspec.params["case"]  # type: ignore[attr-defined]
