"""Show on this machine that every backend computes the same thing as eager PyTorch: ``fastsnn verify``.

The promises and their bounds are those of ``kernels/contract.py``; ``cases.py`` holds what is run, ``layers.py`` and
``training.py`` how it is checked, ``report.py`` what comes out. Tests: ``tests/test_verify.py``, where broken kernels
are fed to every check.
"""

import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby

import torch

from fastsnn import backends, devices
from fastsnn.config import is_device
from fastsnn.errors import BackendUnavailable
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.neuron_spec import parse_neuron
from fastsnn.verify import layers, training
from fastsnn.verify.case import Case
from fastsnn.verify.cases import CASES, own_neuron_cases
from fastsnn.verify.layers import Target
from fastsnn.verify.report import SCHEMA, Failure, Report, Row, Skipped, rerun_command

__all__ = ["CASES", "SCHEMA", "Case", "Report", "Row", "Target", "check", "verify"]

CHECKS = {
    "lif": layers.layer,
    "lif-shapes": layers.layer,
    "threshold": layers.threshold,
    "neuron": layers.neuron,
    "linear": layers.layer,
    "linear-random": layers.layer,
    "recurrent": layers.layer,
    "currents": layers.currents,
    "rate-step": training.rate_step,
    "training": training.training,
    "repeat": layers.repeat,
    "run": training.run,
}
"""Group of cases -> the function that runs one."""

_HALF = (torch.float16, torch.bfloat16)


def verify(
    backend: str | None = None,
    device: str | None = None,
    quick: bool = False,
    case: str | None = None,
    progress: Callable[[Row], None] = lambda row: None,
    cases: Iterable[Case] | None = None,
    neuron: str | None = None,
) -> Report:
    """Run the cases on every backend and device of this machine, or on those that are named.

    Args:
        backend: torch, cupy, triton or numba; default all that run here.
        device: cpu, cuda or cuda:N; default the CPU and the first GPU.
        quick: run a part of each group.
        case: run this case alone.
        progress: called with each row before its cases run.
        cases: run these, whatever ``quick`` and ``case`` say.
        neuron: run the cases of this neuron alone, as ``module:Class`` or ``plif(tau=3)`` (``fastsnn.neuron_spec``).

    Raises:
        ValueError: an unknown backend, device, case or neuron, or a case that the backend doesn't have.
        StepError: the neuron's step says what can't be compiled.
        BackendUnavailable: the backend that was named can't run here.
        DeviceUnavailable: the device that was named is not here.
    """
    if cases is None:
        known = _cases_of(neuron) if neuron else CASES
        cases = [_case(case, known)] if case else [each for each in known.values() if each.quick or not quick]
    chosen = list(cases)
    targets, skipped = find_targets(backend, device)
    report = Report(quick, neuron, skipped=skipped, devices=sorted({target.device for target in targets}, key=str))
    for target in targets:
        report.rows.extend(check(target, chosen, progress, case is not None, neuron))
    if case and not any(row.cases for row in report.rows):
        reasons = sorted({f"{row.backend}: {reason}" for row in report.rows for reason in row.refused})
        raise ValueError(f"case is {case!r}, which has nothing to run here; {'; '.join(reasons)}")
    return report


def find_targets(backend: str | None, device: str | None) -> tuple[list[Target], list[Skipped]]:
    """The backends and devices to run on, and the backends that can't run on any of the devices."""
    if backend is not None and backend not in backends.names():
        raise ValueError(f"backend is {backend!r}; allowed: {', '.join(backends.names())}")
    devices = _devices(device)
    targets, skipped = [], []
    for name in (backend,) if backend else backends.names():
        reasons = {place: backends.refusal(name, place) for place in devices}
        found = [Target(backends.load(name), place, _mode(name, place)) for place in devices if not reasons[place]]
        targets += found
        if not found:
            skipped.append(Skipped(name, str(reasons[devices[-1]])))
    if not targets:
        reason = "; ".join(f"backend {entry.backend} cannot run: {entry.reason}" for entry in skipped)
        raise BackendUnavailable(f"nothing to verify: {reason}")
    return targets, skipped


def check(
    target: Target, cases: Iterable[Case], progress: Callable[[Row], None] = lambda row: None, named: bool = False,
    neuron: str | None = None,
) -> Iterator[Row]:  # fmt: skip
    """Run cases on one backend and device and yield a row for each group; ``named`` cases run whatever their size."""
    for group, members in groupby(cases, key=lambda case: case.group):
        row = Row(target.backend.name, str(target.device), target.mode, group)
        progress(row)
        started = time.perf_counter()
        for case in members:
            if reason := case_refusal(case, target, named):
                row.refused[reason] += 1
            else:
                _run(case, target, row, rerun_command(target, case.name, neuron))
        row.seconds = time.perf_counter() - started
        yield row


def case_refusal(case: Case, target: Target, named: bool = False) -> str | None:
    """Why a case is not for this backend and device; None where it is."""
    name, fused = target.backend.name, case.fused or case.group == "rate-step"
    if fused and target.backend.rate_classifier() is None:
        return "it has no fused training step"
    if case.group == "currents" and name == "torch" and target.device.type == "cpu":
        return "torch's product on the CPU is the yardstick of C2"
    if case.hand_gradient and (name != "torch" or target.device.type != "cpu"):
        return "the gradient that a neuron brings is compared with its step's on backend torch, on the CPU"
    if target.mode == "interpreter" and not case.small and not named:
        return "too large for Triton's interpreter"
    if name == "cupy" and case.dtype in _HALF:
        return "SpikingJelly's state is in half precision, for which nothing is promised"
    operation = "recurrent" if case.recurrent else "linear" if case.K else "scan"
    size = case.N if case.recurrent and not case.diagonal else 0
    return target.backend.neuron_refusal(case.neuron, torch.float32, bool(case.learn), operation, size)


def _run(case: Case, target: Target, row: Row, rerun: str) -> None:
    try:
        row.add(case.name, CHECKS[case.group](case, target), rerun)
    except training.Refused as refusal:
        row.refused[str(refusal)] += 1
    except Exception as error:
        message = " ".join(str(error).split())
        if case.dtype in _HALF and isinstance(error, (TypeError, ValueError)):
            # Half precision is opt-in: a backend may refuse it by name.
            row.refused[message] += 1
        else:
            row.cases += 1
            trace = "".join(traceback.format_exception(error))
            row.failures.append(Failure(case.name, f"{type(error).__name__}: {message}", rerun, trace))


def _cases_of(text: str) -> dict[str, Case]:
    """The cases of the neuron that a text names; raises StepError for a step that can't be compiled."""
    neuron = parse_neuron(text)
    compile_neuron(neuron)
    return {case.name: case for case in own_neuron_cases(type(neuron).__name__.lower(), neuron)}


def _case(name: str, cases: Mapping[str, Case]) -> Case:
    if name in cases:
        return cases[name]
    # The names that begin as this one does: all of them are too many to read.
    prefix = name
    while not any(known.startswith(prefix) for known in cases):
        prefix = prefix.rpartition("-")[0]
    raise ValueError(f"case is {name!r}; allowed: {', '.join(known for known in cases if known.startswith(prefix))}")


def _devices(name: str | None) -> list[torch.device]:
    if name is None:
        found = [torch.device("cpu")]
        return found if backends.cuda_refusal() else [*found, torch.device("cuda:0")]
    if name == "auto" or not is_device(name):
        raise ValueError(f"device is {name!r}; allowed: cpu, cuda, cuda:N")
    device = devices.find(name)
    return [torch.device("cuda:0") if name == "cuda" else device]


def _mode(name: str, device: torch.device) -> str:
    if name == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreter"
    return "gpu" if device.type == "cuda" else "cpu"
