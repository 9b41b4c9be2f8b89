"""Each kernel called by itself, with its launches counted, against the reference: no other path can pass for it.

The cases and their bounds are those of ``fastsnn verify``. ``tests/mutations.py`` breaks the kernels one line at a time
and expects these tests to fail.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch

from fastsnn import backends
from fastsnn.builtin_backends import CompiledBackend
from fastsnn.kernels import contract, linear, scan
from fastsnn.kernels.numba import scan as numba_scan
from fastsnn.kernels.rate_classifier.numba import step as numba_rate_step
from fastsnn.kernels.rate_classifier.triton import launch as rate_step_launch
from fastsnn.kernels.triton import bf16_split, linear_forward
from fastsnn.kernels.triton import scan as triton_scan
from fastsnn.verify import CASES, CHECKS, Target

GPU = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")

SCAN = [
    "lif-hard-decay-attached-tau2-atan",
    "lif-hard-whole-detached-tau3.7-sigmoid",
    "lif-rest-decay-attached-tau3.7-erf",
    "lif-rest-whole-attached-tau3.7-piecewise_quadratic",
    "lif-soft-decay-attached-tau3.7-soft_sign",
    "lif-soft-whole-detached-tau2-rectangle",
    "lif-primes",
    "lif-T131",
    "threshold-atan",
]
LINEAR = [
    "linear-hard-decay-attached-tau2",
    "linear-soft-whole-attached-tau3.7",
    "linear-random-primes",
    "linear-random-uint8",
    "linear-random-T131",
    "currents-K61",
]
FORWARD = {"currents-K61"}
"""Cases without a backward pass."""
RATE_STEP = [
    "rate-step-hard-decay-attached-tau2",
    "rate-step-rest-whole-attached-tau3.7",
    "rate-step-soft-decay-detached-tau3.7",
    "rate-step-T131",
    "training-fused-short-sgd",
    "training-fused-short-adam",
]


class Counted:
    """A kernel that counts how often it is launched: ``kernel[grid](...)`` in Triton, ``kernel(...)`` in Numba."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid: Any) -> Any:
        self.launches += 1
        return self.kernel[grid]

    def __call__(self, *arguments: Any) -> Any:
        self.launches += 1
        return self.kernel(*arguments)


@contextmanager
def launched(monkeypatch: pytest.MonkeyPatch, module: Any, *names: str) -> Iterator[None]:
    """Each of these kernels of ``module`` must be launched meanwhile."""
    kernels = {name: Counted(getattr(module, name)) for name in names}
    for name, kernel in kernels.items():
        monkeypatch.setattr(module, name, kernel)
    yield
    assert [name for name, kernel in kernels.items() if not kernel.launches] == []


class Alone(CompiledBackend):
    """A backend that has one operation and no other."""

    def __init__(self, name: str, operation: str, path: str = "auto") -> None:
        self.name, self.operation, self.path = name, operation, path

    def refusal(self, device: torch.device) -> None:
        return None

    def scan(self, *arguments: Any) -> Any:
        assert self.operation == "scan"
        return scan.scan(*arguments, self.name)

    def linear(self, x: Any, *arguments: Any) -> Any:
        assert self.operation == "linear"
        *given, packed, _ = arguments
        return linear.linear(x, *given, self.name, packed, self.path)

    def rate_classifier(self) -> ModuleType:
        assert self.operation == "rate_classifier"
        module = backends.load(self.name).rate_classifier()
        assert module is not None
        return module


def check(case: str, name: str, operation: str, path: str = "auto") -> None:
    device = GPU if name == "triton" else CPU
    mode = "cpu" if name == "numba" else "gpu" if device.type == "cuda" else "interpreter"
    target = Target(Alone(name, operation, path), device, mode)
    contract.require(*CHECKS[CASES[case].group](CASES[case], target))


@pytest.mark.parametrize("case", SCAN)
def test_triton_scan(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with launched(monkeypatch, triton_scan, "scan_forward_kernel", "scan_backward_kernel"):
        check(case, "triton", "scan")


@pytest.mark.parametrize("case", SCAN)
def test_numba_scan(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with launched(monkeypatch, numba_scan, "forward", "backward"):
        check(case, "numba", "scan")


@pytest.mark.parametrize("case", LINEAR)
def test_triton_linear(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        stack.enter_context(launched(monkeypatch, linear_forward, "linear_forward_kernel"))
        if case not in FORWARD:
            stack.enter_context(launched(monkeypatch, triton_scan, "scan_backward_kernel"))
            if bf16_split.capability(GPU) >= 80:  # below, backward's products are the library's
                stack.enter_context(launched(monkeypatch, bf16_split, "matmul_kernel"))
        check(case, "triton", "linear", path="fused")


@pytest.mark.parametrize("case", LINEAR)
def test_numba_linear(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with launched(monkeypatch, numba_scan, "forward", *["backward"] * (case not in FORWARD)):
        check(case, "numba", "linear")


@pytest.mark.parametrize("case", RATE_STEP)
def test_triton_rate_step(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = ["encode_kernel", "step_kernel", "update_kernel"]
    with launched(monkeypatch, rate_step_launch, *kernels):
        check(case, "triton", "rate_classifier")


@pytest.mark.parametrize("case", RATE_STEP)
def test_numba_rate_step(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with launched(monkeypatch, numba_rate_step, "run"):
        check(case, "numba", "rate_classifier")
