"""A short selection of the GPU suite on pretended cards; all of it: tests/gpu_in_software/suite.py."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="the tests themselves run on this GPU"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton is for Linux"),
]
ROOT = Path(__file__).parents[1]
OLDEST = importlib.metadata.version("triton").startswith("3.3.") if sys.platform.startswith("linux") else False
SELECTION = {
    "sm_61": "test_triton_scan and (primes or hard)",
    "sm_90": "test_triton_linear and (tau2 or uint8) or test_triton_rate_step and (T131 or adam)",
}
"""Target -> tests of test_forced_kernels.py."""
if OLDEST:  # the stack of the 10-series alone: on sm_90 its compiler leaves out a fence that the machine asks for
    del SELECTION["sm_90"]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process without the interpreter of Triton, which pytest set for this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("target", SELECTION)
def test_selection(target: str) -> None:
    tests = ("tests/test_forced_kernels.py", "-k", SELECTION[target])
    done = python("pytest", "-q", "-p", "no:cacheprovider", "--gpu", target, *tests)
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"launches on {target}, in software" in done.stdout
    assert " launches, " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pytest", "--gpu", "sm_42"), "target is 'sm_42'; allowed: sm_61, sm_75, sm_80, sm_86, sm_89, sm_90"),
        (("tests.gpu_in_software", "--gpu", "sm_42", "doctor"), "target is 'sm_42'; allowed: sm_61"),
    ],
)
def test_unknown_target(arguments: tuple[str, ...], message: str) -> None:
    done = python(*arguments)
    assert done.returncode != 0
    assert message in done.stderr
