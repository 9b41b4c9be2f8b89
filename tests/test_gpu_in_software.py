"""A short selection of the GPU suite on pretended cards, and what bad requests get. All of it: tests/gpu_in_software/suite.py."""

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
SELECTION = {
    "sm_61": ["tests/test_lif.py::test_every_option", "-k", "v_reset=None"],
    "sm_90": [
        "tests/test_linear_lif.py::test_every_option_on_exact_currents",
        "tests/test_rate_step.py::test_step_of_every_neuron_and_surrogate",
        "-k", "fused and v_reset=-0.3-fused or loss=ce or erf",
    ],
}  # fmt: skip


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process without the interpreter of Triton, which pytest set for this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("target", SELECTION)
def test_selection(target: str) -> None:
    done = python("pytest", "-q", "-p", "no:cacheprovider", "--gpu", target, *SELECTION[target])
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"launches on {target}, in software" in done.stdout
    assert "launches, " in done.stdout


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
