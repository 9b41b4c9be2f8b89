"""Matrix instructions against NumPy's products, with the fragments laid out by the PTX ISA's formulas."""

import numpy as np
import pytest
import torch

from tests.gpu_in_software.report import GpuError, Report
from tests.gpu_in_software.snippets import run
from tests.gpu_in_software.values import f32_to_bf16

GENERATOR = np.random.default_rng(3)


def bf16(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of small integers as floats and as the bits of bf16."""
    values = GENERATOR.integers(-8, 9, (rows, columns)).astype(np.float32)
    return values, f32_to_bf16(values)


def words(halves: np.ndarray) -> torch.Tensor:
    """16-bit values as int32 words, two each."""
    return torch.from_numpy(np.ascontiguousarray(halves).view(np.int32).ravel().copy())


def row_of(lane: int, register: int) -> int:
    return lane // 4 + 8 * (register in (2, 3))


def column_of(lane: int, register: int) -> int:
    return lane % 4 * 2 + register % 2


LOAD = "mul.wide.u32 %rd1, %r196, {bytes}; add.s64 %rd2, %rd3{n}, %rd1;"
STORE4 = "mul.wide.u32 %rd1, %r196, 16; add.s64 %rd2, %rd32, %rd1; st.global.v4.b32 [%rd2], {%f0, %f1, %f2, %f3};"


@pytest.mark.parametrize("sums", ["exact", "truncating"])
@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_mma(kind: str, sums: str) -> None:
    (a, a_bits), (b, b_bits) = bf16(16, 16), bf16(16, 8)
    if kind == "f16":
        a_bits, b_bits = (matrix.astype(np.float16).view(np.uint16) for matrix in (a, b))
    left, right = np.zeros((32, 4, 2), np.uint16), np.zeros((32, 2, 2), np.uint16)
    for lane in range(32):
        for i in range(8):  # "Matrix Fragments for mma.m16n8k16 with floating point type"
            row = lane // 4 + 8 * (i in (2, 3, 6, 7))
            left[lane, i // 2, i % 2] = a_bits[row, lane % 4 * 2 + i % 2 + 8 * (i >= 4)]
        for i in range(4):
            right[lane, i // 2, i % 2] = b_bits[lane % 4 * 2 + i % 2 + 8 * (i >= 2), lane // 4]
    out = torch.zeros(128, dtype=torch.int32)
    body = LOAD.format(bytes=16, n=0) + "ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%rd2];"
    body += LOAD.format(bytes=8, n=1) + "ld.global.v2.b32 {%r4, %r5}, [%rd2];"
    body += "".join(f"mov.f32 %f{n}, 0f3F800000;" for n in range(4))
    body += f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{%f0, %f1, %f2, %f3}}, {{%r0, %r1, %r2, %r3}}, "
    body += "{%r4, %r5}, {%f0, %f1, %f2, %f3};" + STORE4
    run(body, words(left), words(right), out, sums=sums).check()
    found = out.view(torch.float32).view(32, 4).numpy()
    for lane in range(32):
        for register in range(4):
            expected = (a @ b + 1)[row_of(lane, register), column_of(lane, register)]
            assert found[lane, register] == expected


def test_truncating_sums_are_cut() -> None:
    """2^24 + 1 + 1 + ...: exactly it is more, a tensor core loses some of the ones; neither rounds up."""
    from tests.gpu_in_software.tensor_cores import exact, truncating

    a, b, c = np.ones((1, 1, 16)), np.full((1, 16, 1), 0.9), np.full((1, 1, 1), 2.0**24)
    assert exact(a, b, c)[0, 0, 0] == 2.0**24 + 14
    assert 2.0**24 <= truncating(a, b, c)[0, 0, 0] < 2.0**24 + 14


OWN16 = "shl.b32 %r1, %r199, 4; mov.u32 %r2, smem; add.s32 %r3, %r2, %r1;"


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed: bool) -> None:
    """Lanes 8 n to 8 n + 7 give the rows of matrix n; lane l gets row l / 4, columns 2 (l % 4) and the next."""
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    source, out = words(matrices), torch.zeros(128, dtype=torch.int32)
    body = OWN16 + LOAD.format(bytes=16, n=0) + "ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd2];"
    body += "st.shared.v4.b32 [%r3], {%r4, %r5, %r6, %r7}; bar.warp.sync -1;"
    trans = ".trans" if transposed else ""
    body += f"ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r3];"
    body += LOAD.format(bytes=16, n=1) + "st.global.v4.b32 [%rd2], {%r10, %r11, %r12, %r13};"
    run(body, source, out, shared=512).check()
    found = out.numpy().view(np.uint16).reshape(32, 4, 2)
    expected = matrices.swapaxes(1, 2) if transposed else matrices
    for lane in range(32):
        for number in range(4):
            row = expected[number, lane // 4]
            assert found[lane, number].tolist() == row[lane % 4 * 2 : lane % 4 * 2 + 2].tolist()


def test_stmatrix_is_the_inverse() -> None:
    source, out = words(np.arange(256, dtype=np.uint16)), torch.zeros(128, dtype=torch.int32)
    body = OWN16 + LOAD.format(bytes=16, n=0) + "ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd2];"
    body += "st.shared.v4.b32 [%r3], {%r4, %r5, %r6, %r7}; bar.warp.sync -1;"
    body += "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r10, %r11, %r12, %r13}, [%r3];"
    body += "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%r3 + 512], {%r10, %r11, %r12, %r13};"
    body += "ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3 + 512];"
    body += LOAD.format(bytes=16, n=1) + "st.global.v4.b32 [%rd2], {%r4, %r5, %r6, %r7};"
    run(body, source, out, shared=1024).check()
    assert torch.equal(out, source)


def swizzled(matrix: np.ndarray) -> np.ndarray:
    """[rows, 64] of 16 bits as wgmma reads it K-major, swizzled by 128 bytes: chunks of 16, xored with the row."""
    result = np.zeros_like(matrix)
    for row in range(len(matrix)):
        for chunk in range(8):
            to = chunk ^ (row % 8)
            result[row, 8 * to : 8 * to + 8] = matrix[row, 8 * chunk : 8 * chunk + 8]
    return result


WGMMA = """
mov.u32 %r2, smem; shl.b32 %r1, %r199, 4; add.s32 %r3, %r2, %r1; mul.wide.u32 %rd1, %r199, 16;
add.s64 %rd2, %rd30, %rd1; add.s64 %rd3, %rd31, %rd1; setp.lt.u32 %p1, %r199, 64;
{copies}
@%p1 ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd3];
@%p1 st.shared.v4.b32 [%r3 + 8192], {{%r4, %r5, %r6, %r7}};
{fence} bar.sync 0; {zero}
wgmma.fence.sync.aligned;
{products}
wgmma.commit_group.sync.aligned;
{wait}
mul.wide.u32 %rd1, %r199, 16; add.s64 %rd2, %rd32, %rd1; st.global.v4.b32 [%rd2], {{%f0, %f1, %f2, %f3}};
"""


def wgmma(
    fence: str = "fence.proxy.async.shared::cta;", wait: str = "wgmma.wait_group.sync.aligned 0;"
) -> tuple[Report, np.ndarray, np.ndarray]:
    """64 x 64 times 64 x 8 of four products, both factors in shared memory; the report, D and what it should be."""
    (a, a_bits), (b, b_bits) = bf16(64, 64), bf16(64, 8)
    out = torch.zeros(512, dtype=torch.int32)
    copies = "".join(
        f"ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd2 + {2048 * n}]; "
        f"st.shared.v4.b32 [%r3 + {2048 * n}], {{%r4, %r5, %r6, %r7}};\n"
        for n in range(4)
    )
    base = 1 << 62 | 64 << 32 | 1 << 16  # swizzle of 128 bytes, 1024 bytes between groups of 8 rows
    products = "".join(
        f"mov.u64 %rd10, {base + 2 * k}; mov.u64 %rd11, {base + 512 + 2 * k};\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %rd10, %rd11, "
        f"{int(k > 0)}, 1, 1, 0, 0;\n"
        for k in range(4)
    )
    zero = "".join(f"mov.f32 %f{n}, 0f42C80000;" for n in range(4))
    body = WGMMA.format(copies=copies, fence=fence, zero=zero, products=products, wait=wait)
    tensors = words(swizzled(a_bits)), words(swizzled(b_bits.T)), out
    report = run(body, *tensors, threads=128, shared=9216)
    return report, out.view(torch.float32).view(4, 32, 4).numpy(), a @ b


def test_wgmma() -> None:
    report, found, expected = wgmma()
    report.check()
    for warp in range(4):
        for lane in range(32):
            for register in range(4):
                row, column = row_of(lane, register), column_of(lane, register)
                assert found[warp, lane, register] == expected[16 * warp + row, column]


def test_wgmma_that_nobody_waits_for() -> None:
    _, found, _ = wgmma(wait="")
    assert np.isnan(found).all()


def test_wgmma_without_a_proxy_fence() -> None:
    report, _, _ = wgmma(fence="")
    with pytest.raises(GpuError, match="read without a proxy fence after the store"):
        report.check()
