"""fastsnn/cupy_stack.py: each way in which the cupy backend can be refused is one line that says what to run."""

from typing import Any

import pytest

from fastsnn.cupy_stack import CUPY_PIP, SPIKINGJELLY_PIP, CupyStack, refusal, version_numbers

WHOLE = CupyStack(
    packages={"spikingjelly": "0.0.0.0.14", "cupy-cuda12x": "14.2.0"},
    torch_cuda="12.6",
    capability=(6, 1),
    nvrtc=True,
    headers=True,
)


def changed(packages: dict[str, str | None] | None = None, **facts: Any) -> CupyStack:
    merged = {**WHOLE.packages, **(packages or {})}
    fields = {name: getattr(WHOLE, name) for name in WHOLE.__dataclass_fields__}
    return CupyStack(**fields | {"packages": {k: v for k, v in merged.items() if v is not None}} | facts)


@pytest.mark.parametrize(
    ("stack", "says", "run"),
    [
        (changed({"spikingjelly": None}), "SpikingJelly is not installed", SPIKINGJELLY_PIP),
        (changed({"spikingjelly": "2.0.0"}), "SpikingJelly 2.0.0 is not", SPIKINGJELLY_PIP),
        (changed({"spikingjelly": "0.0.0.0.12"}), "SpikingJelly 0.0.0.0.12 is not", SPIKINGJELLY_PIP),
        (
            changed(torch_cuda=None, capability=None),
            "built without CUDA",
            "pip install --force-reinstall torch torchvision",
        ),
        (changed(capability=None), "torch finds no CUDA GPU", CUPY_PIP[12]),
        (changed({"cupy-cuda12x": None}), "CuPy is not installed", CUPY_PIP[12]),
        (changed({"cupy-cuda12x": None}, torch_cuda="13.2", capability=(9, 0)), "CuPy is not installed", CUPY_PIP[13]),
        (
            changed({"cupy-cuda13x": "14.2.0"}),
            "cupy-cuda12x and cupy-cuda13x overwrite each other's files",
            f"pip uninstall -y cupy-cuda12x cupy-cuda13x && {CUPY_PIP[12]}",
        ),
        (
            changed({"cupy-cuda12x": "13.6.0"}),
            "cupy-cuda12x 13.6.0 is too old",
            f"pip uninstall -y cupy-cuda12x && {CUPY_PIP[12]}",
        ),
        (
            changed({"cupy-cuda12x": None, "cupy-cuda13x": "14.2.0"}),
            "CUDA 13 can't compile for this GPU (sm_61)",
            f"pip uninstall -y cupy-cuda13x && {CUPY_PIP[12]}",
        ),
        (changed(nvrtc=False), "CuPy finds no CUDA compiler (NVRTC)", CUPY_PIP[12]),
        (changed(headers=False), "CuPy finds no CUDA headers (cuda_fp16.h)", CUPY_PIP[12]),
    ],
)
def test_refusal_is_one_line_with_what_to_run(stack: CupyStack, says: str, run: str) -> None:
    reason = refusal(stack)
    assert reason is not None
    assert "\n" not in reason
    assert says in reason
    assert f"run: {run}" in reason


@pytest.mark.parametrize(
    "stack",
    [WHOLE, changed({"cupy-cuda12x": None, "cupy-cuda13x": "14.0.0"}, torch_cuda="13.2", capability=(7, 5))],
)
def test_a_whole_stack_has_no_refusal(stack: CupyStack) -> None:
    assert refusal(stack) is None


def test_version_numbers() -> None:
    assert version_numbers("0.0.0.0.14") == (0, 0, 0, 0, 14)
    assert version_numbers("2.7.1+cu126") == (2, 7, 1)
    assert version_numbers("2.0.0rc1") == (2, 0, 0)
    assert version_numbers("unknown") == ()
