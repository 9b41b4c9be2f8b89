"""``fastsnn doctor``: each environment that it should recognise, made up where it reads it."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from run_tools import Command

from fastsnn.cupy_stack import CUPY_PIP, SPIKINGJELLY_PIP
from fastsnn.doctor import CU126_PIP, TORCH_PIP, Row, diagnose, has_code_for, is_ten_series
from fastsnn.environment import GPU, Environment

H200 = GPU("NVIDIA H200", (9, 0), 141 * 2**30)
GTX_1070 = GPU("NVIDIA GeForce GTX 1070", (6, 1), 8 * 2**30)

NO_COMPILER = "Triton needs a C compiler, and finds none; on Debian and Ubuntu: sudo apt install gcc python3-dev"

HEALTHY = Environment(
    python="3.13.1",
    system="Linux x86_64",
    packages={
        "torch": "2.15.0",
        "torchvision": "0.30.0",
        "triton": "3.9.0",
        "numba": "0.68.1",
        "numpy": "2.4.6",
        "spikingjelly": "0.0.0.0.14",
        "cupy-cuda13x": "14.2.0",
    },
    torch_cuda="13.2",
    torch_architectures=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"),
    torch_gpus=(H200,),
    torch_triton="3.9.0",
    torchvision_error=None,
    triton_toolchain=None,
    driver="580.95.05",
    driver_gpus=(H200,),
    nvidia_devices=1,
    nvrtc=True,
    headers=Path("/usr/local/cuda/include"),
    data_folder=Path("/data"),
    mnist=True,
    disk_free=50 * 2**30,
    memory=64 * 2**30,
    memory_available=60 * 2**30,
    old_layout=(),
    backends=dict.fromkeys(("torch", "cupy", "triton"), ("cuda:0", None)) | {"numba": ("cpu", None)},
)

# The set of versions that the README gives to the owner of a GTX 10-series card.
TEN_SERIES = replace(
    HEALTHY,
    python="3.11.7",
    packages=HEALTHY.packages
    | {"torch": "2.7.1", "torchvision": "0.22.1", "triton": "3.3.1", "cupy-cuda12x": "14.2.0"},
    torch_cuda="12.6",
    torch_architectures=("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
    torch_gpus=(GTX_1070,),
    driver_gpus=(GTX_1070,),
    torch_triton="3.3.1",
)


def without(env: Environment, *packages: str) -> Environment:
    return replace(env, packages={name: version for name, version in env.packages.items() if name not in packages})


def having(env: Environment, **packages: str) -> Environment:
    added = {name.replace("_", "-"): version for name, version in packages.items()}
    return replace(env, packages=env.packages | added)


TEN_SERIES = without(TEN_SERIES, "cupy-cuda13x")


def rows(env: Environment) -> dict[str, Row]:
    return {row.name: row for row in diagnose(env)}


def test_a_healthy_machine() -> None:
    found = diagnose(HEALTHY)
    assert [row for row in found if row.verdict != "ok"] == []
    assert [row.name for row in found] == [
        "Python",
        "torch",
        "torchvision",
        "GPU",
        "NVIDIA driver",
        "Triton",
        "C compiler",
        "CuPy",
        "CUDA compiler",
        "SpikingJelly",
        "MNIST",
        "Disk",
        "Memory",
        "backend torch",
        "backend cupy",
        "backend triton",
        "backend numba",
    ]
    assert rows(HEALTHY)["GPU"].value == "NVIDIA H200, sm_90, 141.0 GiB"
    assert json.loads(json.dumps([asdict(row) for row in found]))[1] == {
        "name": "torch",
        "value": "2.15.0, CUDA 13.2",
        "verdict": "ok",
        "advice": "",
    }


def test_a_ten_series_card_with_its_working_set() -> None:
    found = rows(TEN_SERIES)
    assert {row.verdict for row in found.values()} == {"ok", "note"}
    row = found["GTX 10-series"]
    assert row.value == "fp32 only, no --amp"
    for part in (
        "Python 3.13 or older",
        "driver branch 580 or older",
        "pip install torch==2.7.1 torchvision==0.22.1",
        CUPY_PIP[12],
        CU126_PIP,
    ):
        assert part in row.advice


@pytest.mark.parametrize(
    ("env", "name", "verdict", "says"),
    [
        # a GTX 10-series card in the wrong surroundings
        (
            replace(TEN_SERIES, torch_architectures=HEALTHY.torch_architectures),
            "GPU",
            "problem",
            "has no code for it (sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120); run: pip install torch==2.7.1",
        ),
        (replace(TEN_SERIES, python="3.14.0"), "Python", "problem", "Python 3.13 or older"),
        (replace(TEN_SERIES, driver="590.12"), "NVIDIA driver", "problem", "install one of branch 580"),
        (
            without(having(TEN_SERIES, cupy_cuda13x="14.2.0"), "cupy-cuda12x"),
            "CuPy",
            "problem",
            f"can't compile for this GPU (sm_61); run: pip uninstall -y cupy-cuda13x && {CUPY_PIP[12]}",
        ),
        (
            replace(TEN_SERIES, torch_cuda=None, torch_gpus=(), torch_architectures=()),
            "torch",
            "problem",
            "can't use this machine's GPU; run: pip install torch==2.7.1 torchvision==0.22.1",
        ),
        # torch
        (
            replace(HEALTHY, torch_cuda=None, torch_gpus=(), torch_architectures=()),
            "torch",
            "problem",
            f"can't use this machine's GPU; run: {TORCH_PIP}",
        ),
        (
            replace(HEALTHY, system="Windows AMD64", torch_cuda=None, torch_gpus=(), torch_architectures=()),
            "torch",
            "problem",
            f"{TORCH_PIP} --index-url https://download.pytorch.org/whl/cu130",
        ),
        (
            replace(HEALTHY, torch_cuda=None, torch_gpus=(), driver_gpus=(), driver=None),
            "torch",
            "problem",
            "can't use this machine's GPU",
        ),
        (replace(HEALTHY, torch_gpus=()), "torch", "problem", "CUDA_VISIBLE_DEVICES"),
        (
            replace(HEALTHY, torchvision_error="operator torchvision::nms does not exist"),
            "torchvision",
            "problem",
            "(operator torchvision::nms does not exist); run: pip install --upgrade torch torchvision",
        ),
        (without(HEALTHY, "torchvision"), "torchvision", "note", "digits does not"),
        # GPU and driver
        (
            replace(HEALTHY, torch_gpus=(GPU("Tesla K80", (3, 7), None),)),
            "GPU",
            "problem",
            "nor has any that fastsnn works with",
        ),
        (replace(HEALTHY, driver="550.54.14"), "NVIDIA driver", "problem", "CUDA 13.2 needs 580.65.06 or newer"),
        (
            replace(HEALTHY, torch_gpus=(), driver_gpus=(), driver=None),
            "NVIDIA driver",
            "problem",
            "install NVIDIA's driver; for a GTX 10-series card one of branch 580 or older",
        ),
        # Triton, CuPy, SpikingJelly
        (without(HEALTHY, "triton"), "Triton", "problem", "pip install triton==3.9.0"),
        (replace(without(HEALTHY, "triton"), system="Darwin arm64"), "Triton", "note", "Linux only"),
        (replace(HEALTHY, triton_toolchain=NO_COMPILER), "C compiler", "problem", "sudo apt install gcc python3-dev"),
        (
            replace(HEALTHY, triton_toolchain=NO_COMPILER, torch_gpus=(), driver_gpus=()),
            "C compiler",
            "note",
            "only a GPU needs it: Triton needs a C compiler",
        ),
        (having(HEALTHY, triton="3.3.1"), "Triton", "problem", "torch was built with Triton 3.9.0"),
        (without(HEALTHY, "cupy-cuda13x"), "CuPy", "note", CUPY_PIP[13]),
        (
            having(HEALTHY, cupy_cuda12x="14.2.0"),
            "CuPy",
            "problem",
            "cupy-cuda12x and cupy-cuda13x overwrite each other's files; run: pip uninstall -y cupy-cuda12x",
        ),
        (
            without(having(HEALTHY, cupy_cuda12x="14.2.0"), "cupy-cuda13x"),
            "CuPy",
            "note",
            f"torch is built for CUDA 13.2; for one CUDA in both run: pip uninstall -y cupy-cuda12x && {CUPY_PIP[13]}",
        ),
        (
            having(HEALTHY, cupy_cuda13x="13.6.0"),
            "CuPy",
            "problem",
            f"13.6.0 is too old; run: pip uninstall -y cupy-cuda13x && {CUPY_PIP[13]}",
        ),
        (replace(HEALTHY, headers=None), "CUDA compiler", "problem", "finds no CUDA headers (cuda_fp16.h)"),
        (replace(HEALTHY, nvrtc=False), "CUDA compiler", "problem", "finds no CUDA compiler (NVRTC)"),
        (replace(without(HEALTHY, "cupy-cuda13x"), headers=None), "CUDA compiler", "note", "only --backend cupy"),
        (having(HEALTHY, spikingjelly="2.0.0"), "SpikingJelly", "problem", SPIKINGJELLY_PIP),
        (having(HEALTHY, spikingjelly="0.0.0.0.12"), "SpikingJelly", "problem", SPIKINGJELLY_PIP),
        (having(HEALTHY, spikingjelly="0.0.0.0.12"), "SpikingJelly", "problem", "not a release with activation_based"),
        (without(HEALTHY, "spikingjelly"), "SpikingJelly", "problem", SPIKINGJELLY_PIP),
        (
            replace(HEALTHY, old_layout=(Path("/home/me/train.py"), Path("/home/me/model.py"))),
            "clock_driven",
            "problem",
            "import spikingjelly.activation_based",
        ),
        # data, machine, backends
        (replace(HEALTHY, mnist=False), "MNIST", "note", "--dataset digits"),
        (replace(HEALTHY, disk_free=2**28), "Disk", "problem", "make room"),
        (replace(HEALTHY, memory_available=2**30), "Memory", "note", "--batch-size"),
        (
            replace(HEALTHY, backends={"triton": ("cuda:0", "its test kernel failed")}),
            "backend triton",
            "problem",
            "its test kernel failed",
        ),
        (
            replace(HEALTHY, backends={"triton": ("cpu", "it needs a CUDA GPU")}, torch_gpus=(), driver_gpus=()),
            "backend triton",
            "note",
            "it needs a CUDA GPU",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(env: Environment, name: str, verdict: str, says: str) -> None:
    row = rows(env)[name]
    assert (row.verdict, says in row.advice) == (verdict, True), row
    assert "\n" not in row.value + row.advice


def test_a_machine_without_a_gpu_has_no_problem() -> None:
    bare = replace(
        without(HEALTHY, "cupy-cuda13x"),
        torch_cuda=None,
        torch_architectures=(),
        torch_gpus=(),
        torch_triton=None,
        driver=None,
        driver_gpus=(),
        nvidia_devices=0,
        nvrtc=False,
        headers=None,
        memory=None,
        memory_available=None,
        backends={"torch": ("cpu", None), "cupy": ("cpu", "no GPU"), "triton": ("cpu", None), "numba": ("cpu", None)},
    )
    found = rows(bare)
    assert [row for row in found.values() if row.verdict == "problem"] == []
    assert found["GPU"].advice == "training runs on the CPU"
    assert found["backend triton"].value == "runs on cpu, in Triton's interpreter"


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("sm_60", (6, 1), True),  # a binary runs on later GPUs of its generation
        ("sm_61", (6, 0), False),
        ("sm_50 sm_70", (6, 1), False),
        ("sm_75 sm_80 sm_90", (6, 1), False),
        ("compute_50", (6, 1), True),  # PTX is compiled by the driver for any later GPU
        ("compute_70", (6, 1), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (9, 1), False),
        ("compute_90a", (10, 0), False),
        ("sm_100 sm_120", (12, 1), True),
        ("", (6, 1), False),
        ("gfx90a", (9, 0), False),
    ],
)
def test_architectures(architectures: str, capability: tuple[int, int], expected: bool) -> None:
    assert has_code_for(tuple(architectures.split()), capability) is expected


@pytest.mark.parametrize(
    ("gpu", "expected"), [(GTX_1070, True), (H200, False), (GPU("?", None, None), False), (None, False)]
)
def test_ten_series(gpu: GPU | None, expected: bool) -> None:
    assert is_ten_series(gpu) is expected


def test_the_table_leaves_what_is_to_be_copied_in_one_piece(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsnn.environment.read_environment", lambda: replace(TEN_SERIES, torch_cuda=None))
    code, stdout, stderr = command("doctor")
    assert (code, stderr) == (1, "")
    found = diagnose(replace(TEN_SERIES, torch_cuda=None))
    lines = [line.strip() for line in stdout.splitlines()]
    assert lines == [line for row in found for line in (_first_line(row), row.advice) if line]
    assert any("problem" in line for line in lines)


def _first_line(row: Row) -> str:
    return f"{row.name:<14}  {row.verdict:<7}  {row.value}"


def test_json_is_the_same(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsnn.environment.read_environment", lambda: HEALTHY)
    code, stdout, _ = command("doctor", "--json")
    assert code == 0
    assert json.loads(stdout) == [asdict(row) for row in diagnose(HEALTHY)]
