"""``pytest --gpu sm_90``: the tests run on a pretended card of that target.

    --gpu-schedule warps    each warp alone up to its next barrier, in random order: races that matter change results
    --gpu-sums truncating   tensor cores add as a model of the hardware's
    --gpu-perturb           approximate instructions are off by up to their stated error
    --gpu-untracked         no search for races and poison: nearly twice as fast

At the end the launches are listed, and with ``--gpu-log FILE`` written as JSON.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.gpu_in_software.card import start
from tests.gpu_in_software.log import LOG
from tests.gpu_in_software.targets import TARGETS, find_target

NOT_HERE = {
    "torch.compile": "torch.compile doesn't trace tensors of a pretended card",
    "opcheck": "opcheck doesn't take tensors of a pretended card",
    "elapsed_time": "a pretended card has no speed",
    "set_device": "a pretended card is alone",
}
"""What a test's text holds that can't run on the pretended card -> why it is skipped."""


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu", "a GPU in software")
    group.addoption("--gpu", metavar="TARGET", help=f"run on a pretended card: {', '.join(TARGETS)}")
    group.addoption("--gpu-schedule", default="batch", choices=("batch", "warps"))
    group.addoption("--gpu-sums", default="exact", choices=("exact", "truncating"))
    group.addoption("--gpu-perturb", action="store_true")
    group.addoption("--gpu-untracked", action="store_true")
    group.addoption("--gpu-log", type=Path, metavar="FILE")


def configure(config: pytest.Config) -> None:
    """Install the pretended card that ``--gpu`` asks for, before anything imports a kernel."""
    name = config.getoption("--gpu")
    if name is None:
        return
    try:
        target = find_target(name)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    options = {name: config.getoption(f"--gpu-{name}") for name in ("schedule", "sums", "perturb")}
    start(target, track=not config.getoption("--gpu-untracked"), **options)
    config.pluginmanager.register(Summary(config), "gpu_in_software")


class Summary:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if reason := refusal(item):
                item.add_marker(pytest.mark.skip(reason=reason))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section(f"launches on {self.config.getoption('--gpu')}, in software")
        terminalreporter.write_line(LOG.summary() or "none")
        if path := self.config.getoption("--gpu-log"):
            stats = {name: len(found) for name, found in terminalreporter.stats.items() if name}
            failed = [report.nodeid for report in terminalreporter.stats.get("failed", [])]
            LOG.write(path, outcomes=stats, failed=failed)


def refusal(item: pytest.Item) -> str | None:
    """Why a test can't run on the pretended card."""
    import inspect

    function = getattr(item, "function", None)
    text = inspect.getsource(function) if function else ""
    return next((reason for word, reason in NOT_HERE.items() if word in text), None)
