"""Instructions that move values: between registers, from parameters, global and shared memory."""

from tests.gpu_in_software.ptx import SIZES, Instruction, elements
from tests.gpu_in_software.translate import CACHING, DTYPES, SIZE, Writer, opcode, unsigned


def _modifiers(w: Writer, parts: list[str]) -> int:
    """Check the modifiers of a load or store and return how many values a lane moves."""
    rest = [part for part in parts if not part.startswith(("L1::", "L2::"))]
    found = w.allow(rest, *CACHING, "v2", "v4", "v8")
    return next((int(part[1]) for part in found if part in ("v2", "v4", "v8")), 1)


@opcode("mov")
def move(w: Writer, each: Instruction, parts: list[str]) -> None:
    """Also between a register and a vector of its parts."""
    to, source, kind = *each.operands, parts[1]
    if to.startswith("{"):
        registers = elements(to)
        bits = SIZES[kind] * 8 // len(registers)
        value = w.read(source, f"u{SIZES[kind] * 8}")
        for index, register in enumerate(registers):
            shift = w.constant(_dtype(kind)(bits * index))
            w.write(register, f"u{bits}", f"({value} >> {shift}).astype(U{bits})")
    elif source.startswith("{"):
        registers = elements(source)
        wide, bits = f"U{SIZES[kind] * 8}", SIZES[kind] * 8 // len(registers)
        values = (f"({w.read(r, f'u{bits}')}.astype({wide}) << {wide}({bits * n}))" for n, r in enumerate(registers))
        w.write(to, kind, " | ".join(values))
    else:
        kind = kind if kind == "pred" else unsigned(kind)
        w.write(to, kind, w.read(source, kind))


def _dtype(kind: str) -> type:
    from tests.gpu_in_software.translate import NUMPY

    return NUMPY[f"U{SIZES[kind] * 8}"]


@opcode("cvta.to.global.u64", "cvta.global.u64")
def convert_address(w: Writer, each: Instruction, parts: list[str]) -> None:
    """Addresses of global memory are the same with and without a state space."""
    w.write(each.operands[0], "u64", w.read(each.operands[1], "u64"))


@opcode("ld.param")
def load_parameter(w: Writer, each: Instruction, parts: list[str]) -> None:
    w.allow(parts[2:-1])
    kind, name = parts[-1], each.operands[1].strip("[] ")
    index = [parameter for parameter, _ in w.kernel.parameters].index(name)
    w.write(each.operands[0], kind, f"M.parameter({index}, {DTYPES[kind]})")


@opcode("ld.global")
def load_global(w: Writer, each: Instruction, parts: list[str]) -> None:
    _load(w, each, parts, "M.memory")


@opcode("ld.shared", "ld.shared::cta")
def load_shared(w: Writer, each: Instruction, parts: list[str]) -> None:
    _load(w, each, parts, "M.shared")


def _load(w: Writer, each: Instruction, parts: list[str], memory: str) -> None:
    count, kind = _modifiers(w, parts[2:-1]), parts[-1]
    registers = elements(each.operands[0])
    if len(registers) != count:
        raise w.unknown(f"{len(registers)} registers for {count} values")
    dtype = DTYPES[kind]
    address, size = w.address(each.operands[1]), SIZE[dtype]
    values = w.local(f"{memory}.load(G, {address}, {size}, {count}, {w.predicate()}, {w.where()})")
    for index, register in enumerate(registers):
        narrow = f"{values}[{index}]"
        w.write(register, kind, narrow if dtype[0] == "U" else f"{narrow}.view({dtype})")


@opcode("st.global")
def store_global(w: Writer, each: Instruction, parts: list[str]) -> None:
    _store(w, each, parts, "M.memory")


@opcode("st.shared", "st.shared::cta")
def store_shared(w: Writer, each: Instruction, parts: list[str]) -> None:
    _store(w, each, parts, "M.shared")


def _store(w: Writer, each: Instruction, parts: list[str], memory: str) -> None:
    count, kind = _modifiers(w, parts[2:-1]), parts[-1]
    size = SIZE[DTYPES[kind]]
    if len(elements(each.operands[1])) != count:
        raise w.unknown(f"{len(elements(each.operands[1]))} registers for {count} values")
    address, values = w.address(each.operands[0]), w.sources(each.operands[1], f"u{8 * size}")
    w.lines.append(f"{memory}.store(G, {address}, {size}, {values}, {w.predicate()}, {w.where()})")


@opcode("cp.async.ca.shared.global", "cp.async.cg.shared.global")
def copy_async(w: Writer, each: Instruction, parts: list[str]) -> None:
    """Bytes of global memory to shared memory, of which those past the size given are zeros."""
    if strange := [part for part in parts[5:] if not part.startswith("L2::")]:
        raise w.unknown(f"unknown modifier {', '.join(strange)}")
    to, source, size, *taken = each.operands
    count = w.read(taken[0], "u32") if taken else f"U32({w.number(size)})"
    arguments = f"{w.address(to)}, {w.address(source)}, {w.number(size)}, {count}, {w.predicate()}, {w.where()}"
    w.lines.append(f"M.shared.copy_async(G, M.memory, {arguments})")


@opcode("cp.async.commit_group")
def commit(w: Writer, each: Instruction, parts: list[str]) -> None:
    w.lines.append("M.shared.commit(G)")


@opcode("cp.async.wait_group", "cp.async.wait_all")
def wait(w: Writer, each: Instruction, parts: list[str]) -> None:
    left = w.number(each.operands[0]) if each.operands else 0
    w.lines.append(f"M.shared.wait(G, {left}, {bool(not each.operands)})")
