"""Compile the Triton kernels for GPUs that are not here, and check what the compiler made of them.

    python -m tests.compile_targets [--targets 61,80,90] [--quick] [--json FILE] [CASE ...]

A case runs a launcher of the package on tensors without memory, with every launch recorded instead of made; what was
recorded is compiled as that GPU's driver would get it. So the variants and their options are those of the code, for
each target its own. Each is checked for

    spills     none
    shared     no more static shared memory than a block has there
    tensor     products on tensor cores from sm_80 on
    PTX        no approximate division or square root, and no fused multiply-add but those of a product in fp32
               or of a logarithm

Needs no GPU, and must not run under TRITON_INTERPRET. A variant that Triton's cache holds is not compiled again. Cases:
``compile_cases.py``. Tests: ``test_compile_targets.py``.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from fastsnn.kernels.rate_classifier.triton.kernels import FMA_INPUTS
from fastsnn.kernels.triton import bf16_split

TARGETS = (61, 70, 75, 80, 86, 89, 90, 100, 120)
SHARED_KB = {61: 48, 70: 96, 75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Shared memory that one block can have."""
TENSOR = r"wgmma\.mma_async|mma\.sync|tcgen05\.mma"
APPROXIMATE = r"div\.full|div\.approx|rcp\.approx|\bsqrt\.approx"
POINTERS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "u8", "int32": "i32", "int64": "i64"}


@dataclass(frozen=True)
class Variant:
    """A launch as the compiler sees it."""

    kernel: Any
    signature: dict[str, Any]
    constants: dict[str, Any]
    aligned: tuple[int, ...]
    """Positions of the arguments that are multiples of 16."""
    options: dict[str, Any]

    def compile(self, target: int) -> Any:
        attributes = {(i,): [["tt.divisibility", 16]] for i in self.aligned}
        source = ASTSource(self.kernel, self.signature, self.constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", target, 32), options=self.options)


@contextmanager
def recording() -> Iterator[list[Variant]]:
    """Within it kernels are not launched but listed."""
    variants: list[Variant] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        variants.append(variant_of(kernel, args, kwargs))

    with mock.patch.object(JITFunction, "run", run):
        yield variants


def variant_of(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant:
    """What Triton's launcher would make of the arguments: their types, and the integers that it specializes on."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, aligned = {}, {}, []
    for i, parameter in enumerate(kernel.params):
        value, specialized = values.pop(parameter.name), not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1 and specialized):
            kind, constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            kind = "*" + POINTERS[str(value.dtype).removeprefix("torch.")]
            aligned += [i] * (value.data_ptr() % 16 == 0)
        elif isinstance(value, bool):
            kind = "i1"
        elif isinstance(value, tuple):  # of a neuron's scalars
            kind = ("fp32",) * len(value)
        elif isinstance(value, int):
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned += [i] * (value % 16 == 0 and specialized)
        else:
            kind = "fp32"
        signature[parameter.name] = kind
    return Variant(kernel, signature, constants, tuple(aligned), values)


@dataclass(frozen=True)
class Report:
    """What became of one variant on one target."""

    case: str
    kernel: str
    target: int
    triton: str
    """Triton's version."""
    registers: int
    threads: int
    spilled: int
    """Bytes of stack."""
    shared: int
    """Bytes."""
    tensor: str
    """The tensor instruction of its products, or ffma; empty without a product."""
    faults: tuple[str, ...]

    def __str__(self) -> str:
        size = f"{self.registers:3} registers, {self.shared / 1024:5.1f} KB shared, {self.threads} threads"
        return f"sm_{self.target:<4} {self.case:24} {self.kernel:27} {size} {self.tensor:16} {'; '.join(self.faults)}"


def inspect(case: str, variant: Variant, target: int) -> Report:
    compiled = variant.compile(target)
    ptx = compiled.asm["ptx"]
    registers, stack = resources(compiled.asm["cubin"])
    product = "tt.dot" in compiled.asm["ttir"]
    instructions = re.findall(TENSOR, ptx)
    threads = 32 * variant.options.get("num_warps", 4)
    faults = []
    if stack:
        faults.append(f"{stack} bytes spilled")
    if compiled.metadata.shared > 1024 * SHARED_KB[target]:
        faults.append(f"{compiled.metadata.shared} bytes of shared memory, {SHARED_KB[target]} KB exist")
    if product and target >= 80 and not instructions:
        faults.append("no tensor instructions")
    if approximate := sorted(set(re.findall(APPROXIMATE, ptx))):
        faults.append(", ".join(approximate))
    if variant.options.get("enable_fp_fusion") is not False:
        faults.append("launched without enable_fp_fusion=False")
    fused = len(re.findall(r"\bfma\.", ptx))
    logarithm = "math.log" in compiled.asm["ttir"]  # a polynomial
    if fused and not logarithm and (not product or instructions or fused % products_per_thread(variant, threads)):
        faults.append(f"{fused} fma")
    tensor = (instructions[0] if instructions else "ffma") if product else ""
    name, version = variant.kernel.__name__, triton.__version__
    shared = compiled.metadata.shared
    return Report(case, name, target, version, registers, threads, stack, shared, tensor, tuple(faults))


def products_per_thread(variant: Variant, threads: int) -> int:
    """Multiply-adds that one thread makes of a tile's product in fp32."""
    constants = variant.constants
    if "BLOCK_T" in constants:
        # The whole step's first product goes fewer inputs at a time than the second.
        return max(constants["BLOCK_T"] * constants["BLOCK_N"] * FMA_INPUTS.value // threads, 1)
    rows = constants["SAMPLES"] * constants.get("STEPS", 1) if "SAMPLES" in constants else constants["BLOCK_M"]
    return max(rows * constants["BLOCK_N"] * constants["BLOCK_K"] // threads, 1)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        output = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", output)
    assert found, output
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class Case:
    name: str
    quick: bool
    """Whether the test suite compiles it."""
    run: Callable[[int], None]
    """Makes the launches for a target, as 90 for sm_90."""


CASES: list[Case] = []


def case(name: str, run: Callable[[int], None], quick: bool = False) -> None:
    """Add a case; the modules that define kernels do so in ``compile_cases.py``."""
    CASES.append(Case(name, quick, run))


def check(case: Case, target: int) -> Iterator[Report]:
    """A report for each different variant that the case launches."""
    with (
        recording() as variants,
        mock.patch.object(bf16_split, "capability", return_value=target),
        mock.patch.object(bf16_split, "multiprocessors", return_value=132),
    ):
        case.run(target)
    for variant in {repr(variant): variant for variant in variants}.values():
        yield inspect(case.name, variant, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)), help="compute capabilities, as 61,80,90")
    parser.add_argument("--quick", action="store_true", help="only the cases of the test suite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names of cases; default all")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set; interpreted kernels can't be compiled")
    if unknown := set(options.cases) - {case.name for case in CASES}:
        parser.error(f"no case {sorted(unknown)}; there are {', '.join(case.name for case in CASES)}")
    chosen = [c for c in CASES if (c.name in options.cases or not options.cases) and (c.quick or not options.quick)]
    reports = []
    for target in map(int, options.targets.split(",")):
        for each in chosen:
            for report in check(each, target):
                print(report, flush=True)
                reports.append(report)
    if options.json:
        options.json.write_text(json.dumps([asdict(report) for report in reports], indent=1))
    faulty = sum(bool(report.faults) for report in reports)
    print(f"{len(reports)} kernels, {faulty} with faults")
    return 1 if faulty else 0


if __name__ == "__main__":
    # As ``python -m`` this module is __main__; the cases register with the one that they import.
    from tests import compile_cases

    sys.exit(compile_cases.compile_targets.main())
