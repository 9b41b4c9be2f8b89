"""The list of mutations and its table belong to the code as it is; ``python -m tests.mutations`` makes the runs."""

import subprocess
import sys
from collections import Counter, defaultdict

import mutations
import pytest

MUTATIONS = mutations.mutations()
SCAN = {"no-op", "charge", "fire", "reset", "tail mask", "last step", "dX", "first state"}
RATE_STEP = {"no-op", "charge", "fire", "surrogate", "tail mask", "last step", "time carry", "dW", "dbias"}
RATE_STEP |= {"random numbers", "optimizer", "loss scale"}
KINDS = {
    "neurons": {"no-op", "charge", "reset", "gradient"},
    "triton-scan": SCAN | {"surrogate", "time carry"},
    "numba-scan": SCAN,
    "triton-linear": {"no-op", "charge", "tail mask", "last step", "time carry", "dW", "dX", "dbias"},
    "numba-linear": {"no-op", "charge", "dW", "dX", "dbias"},
    "numba-recurrent": {
        "no-op",
        "charge",
        "dW",
        "dbias",
        "dV",
        "time carry",
        "first output",
        "last tile",
        "what fired",
    },
    "triton-recurrent": {"no-op", "charge", "tail mask", "packing", "dX", "parameters", "dV", "dbias", "first output"},
    "segments": {"no-op", "start", "kept", "sums", "time carry"},
    "language": {"approximate operations"},
    "triton-rate-step": RATE_STEP | {"reset"},
    "numba-rate-step": RATE_STEP,
    "torch-philox": {"no-op", "random numbers"},
    "triton-philox": {"no-op", "pixels", "time", "random numbers"},
    "triton-rate-step-fp32": {"no-op", "products"},
    "numba-spike-products": {"no-op", "currents", "last step", "tail mask", "dW", "dbias", "packing"},
}
"""Kernel -> what at least one mutation must hit."""


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_fits_the_code(mutation: mutations.Mutation) -> None:
    text = (mutations.ROOT / mutation.file).read_text()
    assert mutation.apply(text) != text


def test_every_part_of_every_kernel_is_hit() -> None:
    found = defaultdict(set)
    for mutation in MUTATIONS:
        found[mutation.kernel].add(mutation.kind)
    assert found.keys() == KINDS.keys()
    assert {kernel: kinds - found[kernel] for kernel, kinds in KINDS.items() if kinds - found[kernel]} == {}
    assert [name for name, count in Counter(mutation.name for mutation in MUTATIONS).items() if count > 1] == []


def test_text_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stands 2 times in .*; allowed: once"):
        MUTATIONS[0].apply(2 * MUTATIONS[0].old)


def test_one_run_is_red_and_a_no_op_is_green() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.mutations", "--only", "torch-philox"],
        cwd=mutations.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    lines = [line for line in found.stdout.splitlines() if "torch-philox" in line]
    assert [line.split()[0] for line in lines] == ["green", "red", "red"]
    assert "test_philox.py::test_" in lines[1]
