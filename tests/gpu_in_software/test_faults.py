"""Kernels with a planted fault: each must be caught, and its mended twin must pass."""

import re

import pytest
import torch

from tests.gpu_in_software import targets
from tests.gpu_in_software.report import GpuError, Report, UnknownInstructionError
from tests.gpu_in_software.snippets import run

STORE = "mul.wide.u32 %rd1, %r196, 4; add.s64 %rd2, %rd30, %rd1; st.global.b32 [%rd2], %r0;\n"
"""%r0 to the thread's own element of tensor 0."""
OWN = "shl.b32 %r1, %r199, 2; mov.u32 %r2, smem; add.s32 %r3, %r2, %r1;\n"
"""%r3: the thread's own word of shared memory."""
OTHER = "add.s32 %r4, %r199, 32; and.b32 %r4, %r4, 63; shl.b32 %r4, %r4, 2; add.s32 %r4, %r2, %r4;\n"
"""%r4: a word of the other warp."""


def ints(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int32)


def kinds(report: Report) -> set[str]:
    return {fault.kind for fault in report.faults}


def test_missing_barrier() -> None:
    body = f"{OWN}{OTHER} st.shared.b32 [%r3], %r199; {{}} ld.shared.b32 %r0, [%r4];\n{STORE}"
    out = ints(64)
    report = run(body.format("bar.sync 0;"), out, threads=64, shared=256)
    assert not report.faults
    assert out.tolist() == [(n + 32) % 64 for n in range(64)]
    report = run(body.format(""), ints(64), threads=64, shared=256)
    assert kinds(report) == {"race between warps"}
    with pytest.raises(GpuError, match=r"race between warps: ld.shared.b32 .*: warp \d reads byte \d+ of the shared"):
        report.check()
    with_warps = run(body.format("bar.warp.sync -1;"), ints(64), threads=64, shared=256)
    assert "race between warps" in kinds(with_warps)


def test_write_after_read_without_a_barrier() -> None:
    body = f"{OWN}{OTHER} st.shared.b32 [%r3], %r199; bar.sync 0; ld.shared.b32 %r0, [%r4]; {{}}"
    body += f"st.shared.b32 [%r3], 99;\n{STORE}"
    assert not run(body.format("bar.sync 0;"), ints(64), threads=64, shared=256).faults
    assert kinds(run(body.format(""), ints(64), threads=64, shared=256)) == {"race between warps"}


def test_stores_of_the_same_value_are_no_race() -> None:
    body = "mov.u32 %r2, smem; st.shared.b32 [%r2], 5; bar.sync 0; ld.shared.b32 %r0, [%r2];\n" + STORE
    out = ints(64)
    assert not run(body, out, threads=64, shared=4).faults
    assert set(out.tolist()) == {5}


def test_race_in_a_single_warp_schedule_changes_results() -> None:
    """Without the barrier a warp that runs alone reads what the other one hasn't written."""
    body = f"{OWN}{OTHER} st.shared.b32 [%r3], %r199; {{}} ld.shared.b32 %r0, [%r4];\n{STORE}"
    for barrier, right in (("bar.sync 0;", True), ("", False)):
        out = ints(64)
        run(body.format(barrier), out, threads=64, shared=256, schedule="warps", track=False)
        assert (out.tolist() == [(n + 32) % 64 for n in range(64)]) == right


def test_different_values_at_one_place() -> None:
    body = "mov.u32 %r2, smem; st.shared.b32 [%r2], %r199; bar.sync 0; ld.shared.b32 %r0, [%r2];\n" + STORE
    assert "different values stored at one place at once" in kinds(run(body, ints(64), threads=64, shared=4))


def test_race_between_blocks() -> None:
    """Each block writes an element that the next one reads."""
    body = "mul.wide.u32 %rd1, %r198, 4; add.s64 %rd2, %rd30, %rd1; setp.eq.u32 %p1, %r199, 0;\n"
    body += "@%p1 st.global.b32 [%rd2], 7; ld.global.b32 %r0, [%rd2{}];\n"
    assert not run(body.format(""), ints(8), blocks=4).faults
    assert kinds(run(body.format(" + 4"), ints(8), blocks=4)) == {"race between blocks"}
    assert kinds(run(body.format(" + 4"), ints(8), blocks=4, lanes=32)) == {"race between blocks"}


def test_out_of_bounds_lane() -> None:
    """One lane beyond the end; with a mask there is none."""
    with pytest.raises(
        GpuError, match=r"access out of bounds: st.global.*thread 31 of block 0: 4 bytes at .*\(1 lanes\)"
    ):
        run("mov.u32 %r0, 1;" + STORE, ints(31))
    masked = "mov.u32 %r0, 1; setp.lt.u32 %p1, %r196, 31;" + STORE.replace("st.global", "@%p1 st.global")
    assert not run(masked, ints(31)).faults


def test_between_two_views_of_a_tensor() -> None:
    """Memory of the same storage that the kernel wasn't given."""
    storage = ints(100)
    with pytest.raises(GpuError, match="access out of bounds"):
        run("mov.u32 %r0, 1;" + STORE, storage[4:20])
    assert storage.sum() == 0


def test_shared_memory_out_of_bounds() -> None:
    with pytest.raises(GpuError, match=r"shared access out of bounds: st.shared.* of 124"):
        run(OWN + "st.shared.b32 [%r3], 1;", ints(1), shared=124)


@pytest.mark.parametrize("space", ["global", "shared"])
def test_misaligned_access(space: str) -> None:
    address = "%rd30 + 4" if space == "global" else "smem + 4"
    with pytest.raises(GpuError, match="misaligned"):
        run(f"ld.{space}.v2.b32 {{%r0, %r1}}, [{address}];", ints(8), shared=32)
    run(f"ld.{space}.v2.b32 {{%r0, %r1}}, [{address.replace('4', '8')}];", ints(8), shared=32, track=False)


def test_uninitialised_shared_memory() -> None:
    body = OWN + "{} ld.shared.b32 %r0, [%r3];\n" + STORE
    assert not run(body.format("st.shared.b32 [%r3], 1;"), ints(32), shared=128).faults
    out = ints(32)
    assert kinds(run(body.format(""), out, shared=128)) == {"read of poison"}
    assert out.view(torch.float32).isnan().all()


def test_uninitialised_global_memory() -> None:
    """Of a tensor on the card that only its first half was written of."""
    from tests.gpu_in_software.tensors import unwritten

    memory = unwritten(torch.empty(64, dtype=torch.int32))
    fill = "mul.wide.u32 %rd1, %r199, 4; add.s64 %rd2, %rd30, %rd1; st.global.b32 [%rd2], 3;"
    load = "mul.wide.u32 %rd1, %r196, 4; add.s64 %rd2, %rd30, %rd1; ld.global.b32 %r0, [%rd2];"
    assert not run(fill, memory).faults
    assert not run(load, memory, blocks=1).faults
    report = run(load, memory, blocks=2)
    assert kinds(report) == {"read of poison"}
    assert "thread 0 of block 1 reads 128 bytes of tensor 0" in str(report.faults[0])


def test_uninitialised_register_is_nan() -> None:
    out = ints(32)
    run("add.rn.f32 %f0, %f1, 0f3F800000; mov.b32 %r0, %f0;" + STORE, out)
    assert out.view(torch.float32).isnan().all()


def test_barrier_that_not_all_threads_reach() -> None:
    body = "setp.lt.u32 %p1, %r199, 32; @%p1 bra $skip; bar.sync 0; $skip: bar.sync 0; bar.sync 0;"
    with pytest.raises(GpuError, match="barrier"):
        run(body, ints(1), threads=64).check()


def test_divergent_barrier() -> None:
    """Both warps wait, each at a barrier of its own."""
    body = "setp.lt.u32 %p1, %r199, 32; @%p1 bra $A; bar.sync 0; bra $B; $A: bar.sync 0; $B:"
    assert kinds(run(body, ints(1), threads=64)) == {"divergent barrier"}


def test_barrier_after_some_threads_have_ended() -> None:
    body = "setp.lt.u32 %p1, %r199, 32; @%p1 ret; bar.sync 0;"
    assert kinds(run(body, ints(1), threads=64)) == {"barrier after some threads have ended"}


def test_missing_lanes_of_a_warp() -> None:
    body = "setp.lt.u32 %p1, %r199, 3; @%p1 bra $A; shfl.sync.bfly.b32 %r0, %r199, 1, 31, -1; $A:"
    with pytest.raises(GpuError, match=r"lanes of a warp are missing: shfl.sync.bfly"):
        run(body, ints(1))


COPY = """
shl.b32 %r1, %r199, 4; mov.u32 %r2, smem; add.s32 %r3, %r2, %r1;
cvt.u64.u32 %rd1, %r1; add.s64 %rd2, %rd31, %rd1;
cp.async.cg.shared.global [%r3], [%rd2], 16; cp.async.commit_group; {wait} ld.shared.b32 %r0, [%r3 + 4];
"""


def test_copy_that_nobody_waits_for() -> None:
    source, out = torch.arange(128, dtype=torch.int32), ints(32)
    assert not run(COPY.format(wait="cp.async.wait_group 0;") + STORE, out, source, shared=512).faults
    assert out.tolist() == [4 * n + 1 for n in range(32)]
    found = run(COPY.format(wait="cp.async.wait_group 1;") + STORE, out, source, shared=512)
    assert kinds(found) >= {"read of a copy under way"}
    assert set(out.tolist()) == {-1}


def test_fma_where_none_may_be() -> None:
    """Of Triton's compiler, which fuses unless it is told not to: counted by opcode, and in the results."""
    x, y = torch.full((32,), 1 + 2.0**-12), torch.full((32,), -1 - 2.0**-11)
    load = "mul.wide.u32 %rd1, %r199, 4; add.s64 %rd2, %rd30, %rd1; add.s64 %rd3, %rd31, %rd1;\n"
    load += "ld.global.b32 %f1, [%rd2]; ld.global.b32 %f2, [%rd3];\n"
    separate = load + "mul.rn.f32 %f3, %f1, %f1; add.rn.f32 %f3, %f3, %f2; st.global.b32 [%rd3], %f3;"
    fused = load + "fma.rn.f32 %f3, %f1, %f1, %f2; st.global.b32 [%rd3], %f3;"
    for body, count, result in ((separate, 0, 0.0), (fused, 1, 2.0**-24)):
        out = y.clone()
        report = run(body, x, out)
        assert report.opcodes()["fma.rn.f32"] == count
        assert set(out.tolist()) == {result}


def test_unknown_barrier() -> None:
    with pytest.raises(UnknownInstructionError, match=r"bar.sync 1"):
        run("bar.sync 1, 32;", ints(1), threads=64)


@pytest.mark.parametrize(
    ("grid", "threads", "shared", "sm", "named"),
    [
        ((1, 70000, 1), 128, 0, 90, "the grid has 70000 blocks along y; allowed: 1 to 65535"),
        ((1, 1, 1), 2048, 0, 90, "a block has 2048 threads; allowed: 1 to 1024"),
        ((1, 1, 1), 128, 50000, 61, "a block needs 50000 bytes of shared memory; allowed: up to 49152"),
        ((1, 1, 1), 128, 0, 120, r"its PTX is for sm_120; allowed: PTX for sm_\d+ or earlier"),
    ],
)
def test_limits_of_the_target(grid: tuple[int, int, int], threads: int, shared: int, sm: int, named: str) -> None:
    target = targets.TARGETS["sm_61" if shared else "sm_90"]
    with pytest.raises(ValueError, match=named) as caught:
        targets.check_launch("k", min(sm, target.sm) if sm != 120 else sm, target, grid, threads, shared)
    assert "\n" not in str(caught.value)
    assert re.match("kernel k on sm_", str(caught.value))


def test_unknown_target() -> None:
    with pytest.raises(ValueError, match="target is 'sm_42'; allowed: sm_61, sm_75, sm_80"):
        targets.find_target("sm_42")
