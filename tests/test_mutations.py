"""The list of mutations and its table belong to the code as it is; ``python -m tests.mutations`` makes the runs."""

import subprocess
import sys
from collections import Counter, defaultdict

import mutations
import pytest

MUTATIONS = mutations.mutations()
LIF = {"no-op", "charge", "fire", "reset", "detach", "surrogate", "tail mask", "last step", "dX", "dv_init"}
LINEAR_LIF = {"charge", "dW", "dX", "dbias", "dv_init"}
RATE_STEP = LIF - {"dX", "dv_init"} | {"time carry", "dW", "dbias", "random numbers", "optimizer", "loss scale"}
KINDS = {
    "triton-lif": LIF | {"time carry"},
    "numba-lif": LIF,
    "triton-linear-lif": LINEAR_LIF | {"no-op", "fire", "reset", "tail mask", "last step", "time carry"},
    "numba-linear-lif": LINEAR_LIF,  # its scan is numba-lif's, its products torch's
    "triton-rate-step": RATE_STEP,
    "numba-rate-step": RATE_STEP,
    "torch-philox": {"no-op", "random numbers"},
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


def test_table_is_that_of_the_list_and_nothing_survived() -> None:
    """After a change of the list: ``python -m tests.mutations --only NAME --write docs/mutations.md``."""
    rows = mutations.rows(mutations.TABLE.read_text())
    assert list(rows) == [mutation.fingerprint for mutation in MUTATIONS]
    for mutation in MUTATIONS:
        found = rows[mutation.fingerprint]
        assert found.startswith(f"| {mutation.name} | `{mutation.file}` | {mutations.expected(mutation)} |"), found


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
