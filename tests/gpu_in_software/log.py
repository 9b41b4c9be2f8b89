"""What was launched on the pretended card in this process, and how the machine is asked to run it."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu_in_software.report import Fault, Report


@dataclass
class KernelLog:
    """The launches of one kernel."""

    launches: int = 0
    programs: int = 0
    thread_instructions: int = 0
    warp_instructions: int = 0
    seconds: float = 0.0


@dataclass
class Log:
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of each `Machine`."""
    kernels: dict[str, KernelLog] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    operations: Counter[str] = field(default_factory=Counter)
    """torch's operations on tensors on the card, by name: each is at least one launch."""
    synchronizations: Counter[str] = field(default_factory=Counter)
    """What made the host wait for the card."""
    waits_forbidden: bool = False
    """An operation of torch that makes the host wait is an error: ``torch.cuda.set_sync_debug_mode("error")``."""
    rewrite: Callable[[str, str | None], str] | None = None
    """Changes the PTX of a launch, given with the kernel's name."""
    keep: Callable[[Report], None] | None = None
    """Called with each launch's report."""
    _captured: list[Callable[[], object]] | None = None

    def add(self, report: Report) -> None:
        entry = self.kernels.setdefault(report.kernel.name, KernelLog())
        entry.launches += 1
        entry.programs += report.programs
        entry.thread_instructions += report.thread_instructions
        entry.warp_instructions += report.warp_instructions
        entry.seconds += report.seconds
        self.faults += report.faults
        if self.keep:
            self.keep(report)

    def wait(self, operation: str) -> None:
        """Note that an operation of torch made the host wait. Raises RuntimeError where that is forbidden."""
        if self.waits_forbidden:
            raise RuntimeError(f"called a synchronizing CUDA operation ({operation})")
        self.synchronizations[operation] += 1

    def set_sync_debug_mode(self, mode: int | str) -> None:
        """``torch.cuda.set_sync_debug_mode``; a warning is left out."""
        self.waits_forbidden = mode in ("error", 2)

    def work(self, launch: Callable[[], object]) -> None:
        """Make a launch, or add it to the CUDA graph that is being captured."""
        if self._captured is None:
            launch()
        else:
            self._captured.append(launch)

    def capture(self, work: list[Callable[[], object]] | None) -> None:
        """Start to capture into ``work``, or end with None."""
        self._captured = work

    def is_capturing(self) -> bool:
        return self._captured is not None

    def write(self, path: Path, **more: Any) -> None:
        """All of it as JSON, with ``more``."""
        kernels = {name: asdict(entry) for name, entry in self.kernels.items()}
        faults = sorted({str(fault) for fault in self.faults})
        counts = {"operations": dict(self.operations), "synchronizations": dict(self.synchronizations)}
        path.write_text(json.dumps({"kernels": kernels, "faults": faults, **counts, **more}, indent=1))

    def summary(self) -> str:
        """One line for each kernel."""
        lines = []
        for name, entry in sorted(self.kernels.items()):
            rate = entry.thread_instructions / max(entry.seconds, 1e-9) / 1e6
            lines.append(
                f"{name}: {entry.launches} launches, {entry.programs} programs, {entry.seconds:.1f} s, "
                f"{rate:.0f} M thread instructions a second"
            )
        return "\n".join(lines)


LOG = Log()
