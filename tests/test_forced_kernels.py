"""Each kernel called by itself, with its launches counted, against the reference: no other path can pass for it.

The cases and their bounds are those of ``fastsnn verify``. ``tests/mutations.py`` breaks the kernels one line at a time
and expects these tests to fail.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
import torch

from fastsnn.backends import Backend
from fastsnn.kernels import contract
from fastsnn.kernels.numba import lif as cpu_lif
from fastsnn.kernels.rate_classifier.numba import step as cpu_rate_step
from fastsnn.kernels.rate_classifier.triton import launch as rate_step_launch
from fastsnn.kernels.rate_classifier.triton import step as rate_step
from fastsnn.kernels.triton import lif, linear_lif, linear_lif_forward, planes
from fastsnn.verify import CASES, CHECKS, Target

GPU = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")

LIF = [
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
LINEAR_LIF = [
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


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("another operator was called than the one under test")


def check(case: str, name: str, lif: Any = refuse, linear_lif: Any = refuse, rate_step: Any = None) -> None:
    device = GPU if name == "triton" else CPU
    mode = "cpu" if name == "numba" else "gpu" if device.type == "cuda" else "interpreter"
    target = Target(Backend(name, lif, linear_lif, rate_step), device, mode)
    contract.require(*CHECKS[CASES[case].group](CASES[case], target))


@pytest.mark.parametrize("case", LIF)
def test_triton_lif(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with launched(monkeypatch, lif, "lif_forward_kernel", "lif_backward_kernel"):
        check(case, "triton", lif=lif.lif)


@pytest.mark.parametrize("case", LIF)
def test_numba_lif(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with launched(monkeypatch, cpu_lif, "forward", "backward"):
        check(case, "numba", lif=cpu_lif.lif)


@pytest.mark.parametrize("case", LINEAR_LIF)
def test_triton_linear_lif(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        stack.enter_context(launched(monkeypatch, linear_lif_forward, "linear_lif_forward_kernel"))
        if case not in FORWARD:
            stack.enter_context(launched(monkeypatch, lif, "lif_backward_kernel"))
            if planes.capability(GPU) >= 80:  # below, backward's products are the library's
                stack.enter_context(launched(monkeypatch, planes, "matmul_kernel"))
        check(case, "triton", linear_lif=partial(linear_lif.linear_lif, path="fused"))


@pytest.mark.parametrize("case", LINEAR_LIF)
def test_numba_linear_lif(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with launched(monkeypatch, cpu_lif, "forward", *["backward"] * (case not in FORWARD)):
        check(case, "numba", linear_lif=cpu_lif.linear_lif)


@pytest.mark.parametrize("case", RATE_STEP)
def test_triton_rate_step(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = ["encode_kernel", "step_kernel", "update_kernel"]
    with launched(monkeypatch, rate_step_launch, *kernels):
        check(case, "triton", rate_step=rate_step)


@pytest.mark.parametrize("case", RATE_STEP)
def test_numba_rate_step(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with launched(monkeypatch, cpu_rate_step, "run"):
        check(case, "numba", rate_step=cpu_rate_step)
