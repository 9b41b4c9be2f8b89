"""Instructions that the lanes of a warp, or four warps, execute together."""

import re

from tests.gpu_in_software.ptx import Instruction, elements
from tests.gpu_in_software.translate import Writer, opcode

ALL = (-1, 0xFFFFFFFF)


@opcode("shfl.sync")
def shuffle(w: Writer, each: Instruction, parts: list[str]) -> None:
    """shfl.sync.mode.b32 d[|p], a, b, c, members; the members must be all lanes of the warp."""
    value, other, clamp = (w.read(operand, "u32") for operand in each.operands[1:4])
    if w.number(each.operands[4]) not in ALL:
        raise w.unknown("some lanes of a warp")
    to, _, inside = each.operands[0].partition("|")
    if parts[2] not in ("up", "down", "bfly", "idx"):
        raise w.unknown(f"unknown mode {parts[2]}")
    result = w.local(f"M.warps.shuffle(G, {parts[2]!r}, {value}, {other}, {clamp}, {w.where()})")
    w.write(to, "u32", f"{result}[0]")
    if inside:
        w.write(inside, "pred", f"{result}[1]")


@opcode("vote.sync")
def vote(w: Writer, each: Instruction, parts: list[str]) -> None:
    if w.number(each.operands[2]) not in ALL or parts[2] not in ("all", "any", "uni", "ballot"):
        raise w.unknown("unknown vote")
    value = w.read(each.operands[1], "pred")
    result = f"M.warps.vote(G, {parts[2]!r}, {value}, {w.where()})"
    w.write(each.operands[0], "u32" if parts[2] == "ballot" else "pred", result)


@opcode("redux.sync")
def reduce(w: Writer, each: Instruction, parts: list[str]) -> None:
    how, kind = parts[2], parts[3]
    value, members = w.read(each.operands[1], kind), w.read(each.operands[2], "u32")
    w.write(each.operands[0], kind, f"M.warps.reduce(G, {how!r}, {value}, {members}, {w.where()})")


@opcode("elect.sync")
def elect(w: Writer, each: Instruction, parts: list[str]) -> None:
    """The first lane of a warp is elected."""
    if w.number(each.operands[1]) not in ALL:
        raise w.unknown("some lanes of a warp")
    lane, _, chosen = each.operands[0].partition("|")
    w.write(lane, "u32", "U32(0)")
    w.write(chosen, "pred", f"M.warps.elect(G, {w.where()})")


@opcode("bar.warp.sync")
def warp_barrier(w: Writer, each: Instruction, parts: list[str]) -> None:
    """Lanes of a warp run in step here, so that nothing waits; the lanes named must be there."""
    if w.number(each.operands[0]) in ALL:
        w.lines.append(f"M.warps.whole(G, {w.where()})")


@opcode("fence.proxy.async", "fence.proxy.async.shared::cta")
def proxy_fence(w: Writer, each: Instruction, parts: list[str]) -> None:
    w.lines.append("M.shared.fence(G)")


@opcode(
    "membar.cta", "membar.gl", "fence.acq_rel.cta", "fence.acq_rel.gpu", "griddepcontrol", "wgmma.fence.sync.aligned"
)
def fence(w: Writer, each: Instruction, parts: list[str]) -> None:
    """Memory is in order here, and a kernel starts when the one before it has ended."""


@opcode("ldmatrix.sync.aligned.m8n8")
def load_matrix(w: Writer, each: Instruction, parts: list[str]) -> None:
    w.allow(parts[4:], "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16")
    registers = elements(each.operands[0])
    arguments = f"{w.address(each.operands[1])}, {len(registers)}, {'trans' in parts}, {w.where()}"
    w.write_all(registers, "u32", w.local(f"M.warps.load_matrix(G, {arguments})"))


@opcode("stmatrix.sync.aligned.m8n8")
def store_matrix(w: Writer, each: Instruction, parts: list[str]) -> None:
    w.allow(parts[4:], "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16")
    arguments = f"{w.address(each.operands[0])}, {w.sources(each.operands[1], 'u32')}, {'trans' in parts}"
    w.lines.append(f"M.warps.store_matrix(G, {arguments}, {w.where()})")


@opcode("mma.sync.aligned.m16n8k16.row.col.f32")
def product(w: Writer, each: Instruction, parts: list[str]) -> None:
    """bf16 or fp16 factors, accumulated in fp32."""
    kind = parts[7]
    if parts[7:] not in (["bf16", "bf16", "f32"], ["f16", "f16", "f32"]):
        raise w.unknown("unknown types")
    to, a, b, c = each.operands
    values = f"{w.sources(a, 'u32')}, {w.sources(b, 'u32')}, {w.sources(c, 'f32')}"
    w.write_all(elements(to), "f32", w.local(f"M.tensor_cores.mma(G, {kind!r}, {values}, {w.where()})"))


@opcode("wgmma.mma_async.sync.aligned")
def async_product(w: Writer, each: Instruction, parts: list[str]) -> None:
    """Four warps; A in registers or shared memory, B in shared memory. D is NaN until it is waited for."""
    shape = re.fullmatch(r"m64n(\d+)k16", parts[4])
    if not shape or parts[5:] not in (["f32", "bf16", "bf16"], ["f32", "f16", "f16"]):
        raise w.unknown("unknown shape or types")
    registers, in_registers = elements(each.operands[0]), each.operands[1].startswith("{")
    if len(registers) != int(shape[1]) // 2:
        raise w.unknown(f"{len(registers)} registers of D")
    a = w.sources(each.operands[1], "u32") if in_registers else w.read(each.operands[1], "u64")
    b, scale = w.read(each.operands[2], "u64"), w.read(each.operands[3], "pred")
    flags = [w.number(operand) for operand in each.operands[4:]]
    if flags[:2] != [1, 1]:
        raise w.unknown("negated factors")
    transposed = [0, *flags[2:]] if in_registers else flags[2:]
    slots = w.constant(tuple(w.program.slots.get(name) for name in registers))
    c = w.sources(each.operands[0], "f32")
    arguments = f"{parts[6]!r}, {slots}, {c}, {a}, {b}, {scale}, {transposed}, {w.where()}"
    w.write_all(registers, "f32", w.local(f"M.tensor_cores.wgmma(G, {arguments})"))


@opcode("wgmma.commit_group.sync.aligned")
def commit(w: Writer, each: Instruction, parts: list[str]) -> None:
    w.lines.append("M.tensor_cores.commit(G)")
