"""Options and the common session of ``pytest bench/ --benchmark-only``."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bench import cases, fastsnn_tasks, machine, peers
from bench.measure import Session
from bench.peers import remote
from bench.results import FOLDER, Results, load
from fastsnn import backends
from fastsnn.sources import images as data
from fastsnn.training.machine import cores

SESSION = pytest.StashKey[tuple[Session, Path | None]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastsnn", "fastsnn's benchmarks")
    group.addoption("--full", action="store_true", help="every case; writes the machine's file")
    group.addoption("--tiny", action="store_true", help="every kind of case in its smallest form: does it run?")
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
    group.addoption("--note", action="append", default=[], help="what the page should say of the machine")
    group.addoption("--results", type=Path, help="results file; default bench/results/MACHINE.json with --full")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    # What a peer's library warns about is not for us to fix.
    config.addinivalue_line("filterwarnings", "ignore")
    option = config.option
    try:
        cases.select(option.cases, _grid(config), "case")
        cases.select(option.peers, peers.MODULES, "peer")
        if option.peer_env is not None:
            remote.python_of(option.peer_env)
        if option.results is not None and option.results.exists():
            load(option.results)  # a file of another kind is refused before anything is measured
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    partly = option.cases is not None or option.peers is not None or option.threads is not None
    if partly and option.full and option.results is None:
        raise pytest.UsageError(
            "--cases, --peers and --threads measure a part only: name a file for it, --results FILE"
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        grid = _grid(metafunc.config)
        chosen = cases.select(metafunc.config.option.cases, grid, "case")
        metafunc.parametrize("case", [grid[name] for name in grid if name in chosen], ids=lambda case: case.name)


@pytest.fixture(scope="session")
def bench_session(request: pytest.FixtureRequest) -> Iterator[Session]:
    option = request.config.option
    device, size = _device(request.config), _size(request.config)
    path = option.results
    if path is None and option.full:
        path = FOLDER / f"{machine.slug(machine.device_name(device))}.json"
    results = Results(machine.describe(device), machine.environment())
    if path is not None:
        results.start_from(path)
    results.notes += option.note
    for backend in fastsnn_tasks.NAMES:
        if reason := fastsnn_tasks.refusal(backend, device):
            results.notes.append(f"{backend}: {reason}")
    names = cases.select(option.peers, peers.MODULES, "peer")
    session = Session(device, size, names, option.peer_env, *_images(size), results)
    request.config.stash[SESSION] = session, path
    manager = request.config.pluginmanager
    terminal: Any = manager.get_plugin("terminalreporter")
    capture: Any = manager.get_plugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(line)

    session.say = say
    say(f"\nfastsnn bench on {results.machine['device']}; results: {path or 'not kept (--results FILE)'}")
    yield session
    session.close()


@pytest.fixture(autouse=True)
def progress(request: pytest.FixtureRequest, bench_session: Session) -> Iterator[None]:
    """Say what runs, what is left and how long it may take."""
    items = request.session.items
    done = items.index(request.node)
    if not done:
        bench_session.started = time.perf_counter()
    passed = time.perf_counter() - bench_session.started
    left = f", about {passed / done * (len(items) - done) / 60:.0f} min left" if done else ""
    case: Any = request.node.callspec.params["case"]  # type: ignore[attr-defined]
    bench_session.say(f"\n[{done + 1} of {len(items)}, {passed / 60:.1f} min{left}] {case.name}")
    yield
    # Case by case: a run that is stopped loses one.
    _, path = request.config.stash[SESSION]
    if path is not None and bench_session.results.rows:
        bench_session.results.write(path)


def _images(size: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Training images uint8 [D, P] with their labels: MNIST if it is at hand, else digits."""
    # A folder may be what a failed download left; auto then falls back to digits.
    at_hand = size != "tiny" and (data.default_folder() / "MNIST" / "raw").exists()
    found = data.load("auto" if at_hand else "digits")
    images = found.train_images
    if size != "tiny" and found.name == "digits":
        # MNIST's shape: an 8 x 8 digit as 20 x 20 pixels in a frame of 28 x 28.
        square = F.interpolate(images.reshape(-1, 1, 8, 8), size=20)
        images = F.pad(square, (4, 4, 4, 4)).flatten(1)
    return images, found.train_labels, found.name


def _size(config: pytest.Config) -> str:
    return "tiny" if config.option.tiny else "full" if config.option.full else "main"


def _device(config: pytest.Config) -> torch.device:
    name = config.option.device
    return backends.choose_device() if name == "auto" else torch.device(name)


def _grid(config: pytest.Config) -> dict[str, cases.Case]:
    grid = cases.grid(_size(config), _device(config).type == "cuda", cores())
    if threads := config.option.threads:
        grid = {name: replace(case, threads=threads) for name, case in grid.items()}
    return grid
