"""What is worth knowing but ends nothing: a cache that was damaged, a backend that ``auto`` passed over.

Such notices go through Python's logging, by the logger ``fastsnn``: to stderr unless the program has set up something
else, and to the monitor of a run while one watches. Kernels use the logger ``fastsnn.kernels``, which is below it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fastsnn.monitor import Monitor

logger = logging.getLogger("fastsnn")
_said: set[str] = set()


def say_once(text: str) -> None:
    """Say ``text`` once in this process, and once more in each run that is watched."""
    if text not in _said:
        _said.add(text)
        logger.warning("%s", text)


@contextmanager
def told_to(monitor: Monitor | None) -> Iterator[None]:
    """In this block, notices are messages of ``monitor``; without one nothing changes."""
    if monitor is None:
        yield
        return
    handler = _ToMonitor(monitor)
    _said.clear()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _ToMonitor(logging.Handler):
    def __init__(self, monitor: Monitor) -> None:
        super().__init__(logging.WARNING)
        self.monitor = monitor

    def emit(self, record: logging.LogRecord) -> None:
        self.monitor.message(record.getMessage())
