"""The Triton kernels compiled for GPUs that are not here; ``python -m tests.compile_targets`` does all variants."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from tests.compile_targets import Report

ROOT = Path(__file__).parent.parent
OLDEST = triton.__version__.startswith("3.3.")
"""The Triton of the 10-series, for which the newer targets are not compiled."""
KERNELS = {
    name
    for file in (ROOT / "kernels").rglob("*.py")
    if "triton" in file.parent.parts
    for name in re.findall(r"^def (\w+_kernel)\(", file.read_text(), re.M)
}
TENSOR_KERNELS = {"matmul_kernel", "split_kernel"}
"""Those that no GPU below sm_80 runs."""
FAULTS = {
    "sound": None,
    "sound product": None,
    "sound bf16 product": None,
    "spill": "bytes spilled",
    "division": "div.full",
    "root": "sqrt.approx",
    "fma": "fma",
    "contraction": "launched without enable_fp_fusion=False",
    "fma beside a product": "fma",
    "product in fp32": "no tensor instructions",
    "shared memory": "131072 bytes of shared memory, 48 KB exist",
}


def run(module: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """In a process that does not interpret: there, kernels can't be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Report]:
    file = tmp_path_factory.mktemp("compiled") / "reports.json"
    found = run("tests.compile_targets", "--quick", "--targets", "61" if OLDEST else "61,80,90", "--json", file)
    assert file.exists(), found.stderr
    return [Report(**row | {"faults": tuple(row["faults"])}) for row in json.loads(file.read_text())]


def test_no_variant_has_a_fault(reports: list[Report]) -> None:
    assert [str(report) for report in reports if report.faults] == []
    compiled = {report.kernel for report in reports}
    assert KERNELS - compiled == (TENSOR_KERNELS if OLDEST else set())


def test_products_are_on_tensor_cores_where_there_are_any(reports: list[Report]) -> None:
    # Those of a recurrent layer have tiles of 16 samples; wgmma takes 64 rows.
    wide = [report for report in reports if report.tensor and not report.case.startswith("recurrent")]
    found = {target: {report.tensor for report in wide if report.target == target} for target in (61, 80, 90)}
    assert found[61] == {"ffma"}
    if not OLDEST:
        assert found[80] == {"mma.sync"}
        assert found[90] == {"wgmma.mma_async"}


def test_every_fault_is_noticed() -> None:
    found = run("tests.compile_faults")
    assert found.returncode == 0, found.stderr
    faults = json.loads(found.stdout)
    assert faults.keys() == FAULTS.keys()
    for name, expected in FAULTS.items():
        assert (expected in "; ".join(faults[name])) if expected else faults[name] == [], (name, faults[name])


def test_what_a_run_compiles() -> None:
    """At most 5 kernels for a first training run, and none for another batch size or number of pixels.

    Another T costs those of the step, whose tiles depend on it; encoding layer by layer costs one kernel for all.
    """
    found = run("tests.compile_counts")
    assert found.returncode == 0, found.stderr
    counts = json.loads(found.stdout)
    assert len(counts["first run"]) <= 5, counts
    assert counts["batch sizes"] == []
    assert counts["data sets"] == []
    assert set(counts["T"]) <= {"step_kernel"}
    assert counts["encoding"] == ["poisson_kernel"]
    # A layer's tile depends on T and B, and a product's on whether its T * B rows are aligned; the loops on neither.
    assert set(counts["T and batch of layers"]) == {"linear_forward_kernel", "matmul_kernel"}
    assert len(counts["T and batch of layers"]) <= 5, counts
