"""What ``fastsnn verify`` found: one row per backend, device and group of cases, and the same as JSON."""

import math
import platform
import shlex
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import torch

from fastsnn import versions
from fastsnn.kernels.contract import Measurement
from fastsnn.verify.layers import Target

SCHEMA = 1
"""Version of the JSON; readers refuse a newer one."""


@dataclass(frozen=True)
class Failure:
    """A case that went wrong, and the command that runs it alone."""

    case: str
    message: str
    command: str
    traceback: str = ""
    """Of an exception; it has paths of this machine, so it is shown and not written to the JSON."""

    def to_dict(self) -> dict[str, str]:
        return {"case": self.case, "message": self.message, "command": self.command}


@dataclass
class Row:
    """The cases of one group on one backend and device."""

    backend: str
    device: str
    mode: str
    group: str
    cases: int = 0
    worst: Measurement | None = None
    """The measurement that used up most of its bound."""
    worst_case: str = ""
    explained: int = 0
    """Spikes that differ from float64's, each with its membrane at the threshold."""
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """Reason -> number of cases that the backend does not promise or that are too large for the interpreter."""

    @property
    def ok(self) -> bool:
        return not self.failures

    def add(self, case: str, measurements: list[Measurement], rerun: str) -> None:
        """Take in what a case measured."""
        self.cases += 1
        for found in measurements:
            self.explained += found.explained
            if self.worst is None or found.share > self.worst.share:
                self.worst, self.worst_case = found, case
        if failed := [str(found) for found in measurements if not found.ok]:
            self.failures.append(Failure(case, "; ".join(failed), rerun))

    def summary(self) -> str:
        """The worst error and its bound; those of spikes and potentials (C3) are in units of their own bounds."""
        worst = self.worst
        return "" if worst is None else f"{worst.promise} {worst.error:.2g} / {worst.bound:.2g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an error that is not finite is null, and its failure tells more."""
        worst = None
        if self.worst is not None:
            error = self.worst.error if math.isfinite(self.worst.error) else None
            worst = {"case": self.worst_case, "promise": self.worst.promise, "what": self.worst.what,
                     "error": error, "bound": self.worst.bound}  # fmt: skip
        return {
            "backend": self.backend,
            "device": self.device,
            "mode": self.mode,
            "group": self.group,
            "cases": self.cases,
            "refused": dict(self.refused),
            "worst": worst,
            "explained": self.explained,
            "seconds": round(self.seconds, 2),
            "ok": self.ok,
            "failures": [failure.to_dict() for failure in self.failures],
        }


@dataclass(frozen=True)
class Skipped:
    """A backend that did not run, and why."""

    backend: str
    reason: str


@dataclass
class Report:
    """Everything that one call of ``verify`` found."""

    quick: bool
    neuron: str | None = None
    """The neuron whose cases alone were run."""
    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    devices: list[torch.device] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    def refused(self) -> Counter[tuple[str, str]]:
        """(backend, reason) -> number of cases that were not run for it."""
        found: Counter[tuple[str, str]] = Counter()
        for row in self.rows:
            for reason, cases in row.refused.items():
                found[row.backend, reason] += cases
        return found

    def to_dict(self) -> dict[str, Any]:
        """The file that ``--json`` writes; it names the machine's parts, no host and no user."""
        return {
            "schema": SCHEMA,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "quick": self.quick,
            "neuron": self.neuron,
            "ok": self.ok,
            "machine": _machine(self.devices),
            "versions": versions.versions(),
            "rows": [row.to_dict() for row in self.rows],
            "skipped": [vars(skipped) for skipped in self.skipped],
        }


def rerun_command(target: Target, case: str, neuron: str | None = None) -> str:
    """The command that runs one case alone, as it ran here."""
    prefix = "TRITON_INTERPRET=1 " if target.mode == "interpreter" else ""
    of_neuron = f" --neuron {shlex.quote(neuron)}" if neuron else ""
    return f"{prefix}fastsnn verify --backend {target.backend.name} --device {target.device}{of_neuron} --case {case}"


def _machine(devices: list[torch.device]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": versions.cpu_name(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [],
    }
    for device in devices:
        if device.type == "cuda":
            gpu = torch.cuda.get_device_properties(device)
            found["gpus"].append(
                {
                    "device": str(device),
                    "name": gpu.name,
                    "capability": f"{gpu.major}.{gpu.minor}",
                    "memory_gib": round(gpu.total_memory / 2**30, 1),
                    "processors": gpu.multi_processor_count,
                }
            )
    return found
