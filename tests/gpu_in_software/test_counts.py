"""What the machine counts: instructions by class, trips of loops, sectors of global memory, passes over the banks."""

import pytest
import torch

from tests.gpu_in_software.report import Access
from tests.gpu_in_software.snippets import run

LOOP = """
mov.u32 %r0, 0;
$loop: add.s32 %r0, %r0, 1; setp.le.u32 %p1, %r0, %r198; @%p1 bra $loop;
mul.wide.u32 %rd1, %r196, 4; add.s64 %rd2, %rd30, %rd1; st.global.b32 [%rd2], %r0;
"""


def test_trips_and_classes() -> None:
    """Block n goes round n + 1 times, with two warps each."""
    out = torch.zeros(256, dtype=torch.int32)
    report = run(LOOP, out, threads=64, blocks=4)
    assert out.view(4, 64)[:, 0].tolist() == [1, 2, 3, 4]
    assert report.trips() == {"$loop": (2.5, 4.0)}
    assert report.slowest_program()[0] == 3
    classes = report.classes()
    assert classes["global memory"] == 8
    assert classes["control"] == 20 + 8
    assert report.opcodes()["bra"] == 2 * (1 + 2 + 3 + 4)
    assert report.warp_instructions == classes.total()
    assert report.thread_instructions == 32 * report.warp_instructions


def test_both_ways_of_a_branch_count() -> None:
    body = "setp.lt.u32 %p1, %r199, 7; @%p1 bra $A; mov.u32 %r1, 1; bra $B; $A: mov.u32 %r1, 2; $B: mov.u32 %r0, %r1;"
    report = run(body, torch.zeros(1))
    assert report.opcodes()["mov.u32"] == 3 + 2 + 1


def access(body: str, words: int, shared: int = 0) -> Access:
    (found,) = run(body, torch.zeros(words), shared=shared, track=False, count_memory=True).accesses.values()
    return found


@pytest.mark.parametrize(("stride", "sectors", "ideal"), [(4, 4, 4), (8, 8, 4), (128, 32, 4), (0, 1, 1)])
def test_sectors(stride: int, sectors: int, ideal: int) -> None:
    body = f"mul.wide.u32 %rd1, %r199, {stride}; add.s64 %rd2, %rd30, %rd1; ld.global.b32 %r0, [%rd2];"
    assert access(body, 1024) == Access(1, sectors, ideal)


@pytest.mark.parametrize(
    ("stride", "kind", "passes", "ideal"),
    [(4, "b32", 1, 1), (8, "b32", 2, 1), (128, "b32", 32, 1), (0, "b32", 1, 1), (132, "b32", 1, 1),
     (16, "v4.b32", 4, 4), (128, "v4.b32", 32, 4), (144, "v4.b32", 4, 4)],
)  # fmt: skip
def test_bank_conflicts(stride: int, kind: str, passes: int, ideal: int) -> None:
    registers = "{%r4, %r5, %r6, %r7}" if "v4" in kind else "%r4"
    body = f"mul.lo.u32 %r1, %r199, {stride}; mov.u32 %r2, smem; add.s32 %r3, %r2, %r1;"
    body += f"ld.shared.{kind} {registers}, [%r3];"
    assert access(body, 1, shared=4800) == Access(1, passes, ideal)
