"""docs/compiled.md: what the compiler made of every kernel for every target, and of which code.

``python -m tests.compile_targets --write PYTHON`` writes it. The page carries a fingerprint of the code that it belongs
to, which comments, docstrings and the layout of lines don't change.
"""

import hashlib
import io
import json
import re
import subprocess
import tempfile
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.compile_targets import SHARED_KB, Report

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "compiled.md"
HEAD = """# Compiled for GPUs that are not here

Every Triton kernel in every variant that its options make, as the compiler leaves it for each generation of GPU.
Nothing here was run on a GPU: the code was compiled, its resources read from the cubin, and its PTX searched.

`python -m tests.compile_targets --write PYTHON` wrote this page, PYTHON being that of an environment with the oldest
Triton that is supported. Code: {fingerprint}. The tests compile some of the variants anew and check that the rest of
the page belongs to the code as it is.

A variant is *ok* where it

- spills no register,
- needs no more shared memory than a block has on that GPU,
- multiplies on tensor cores from sm_80 on (below it, in fp32: `ffma`),
- has neither an approximate division or square root in its PTX, nor a fused multiply-add besides those of an fp32
  product or of a logarithm: rounding is that of the equations.
"""
VARIANTS = """
## Every variant

Registers x threads of a block, then KB of shared memory; the most that any launch of the case takes. Cases:
`tests/compile_cases.py`. Empty: that target has no such launch (below sm_80 the library makes the gradients' products).
"""


def reports_of(python: str) -> list[Report]:
    """What the Triton of another interpreter makes of all cases for sm_61."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reports.json"
        command = [python, "-m", "tests.compile_targets", "--targets", "61", "--json", file]
        subprocess.run(command, cwd=ROOT, check=False)  # faults make it fail, and are reported all the same
        return [Report(**row | {"faults": tuple(row["faults"])}) for row in json.loads(file.read_text())]


def page(reports: list[Report]) -> str:
    """The page's text."""
    return "\n".join([HEAD.format(fingerprint=fingerprint()), *_summary(reports), VARIANTS, *_variants(reports)])


def _summary(reports: list[Report]) -> Iterator[str]:
    """A line for each kernel and target."""
    groups = defaultdict(list)
    for report in reports:
        groups[report.kernel, report.target, report.triton].append(report)
    yield "| kernel | target | Triton | variants | registers | spilled | shared memory | product | verdict |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for (kernel, target, version), group in sorted(groups.items(), key=lambda item: item[0][0]):
        registers = sorted(report.registers for report in group)
        shared = max(report.shared for report in group) / 1024
        faults = {fault for report in group for fault in report.faults}
        yield _row(
            f"`{kernel}`",
            f"sm_{target}",
            version,
            len(group),
            " to ".join(map(str, sorted({registers[0], registers[-1]}))),
            f"{sum(report.spilled for report in group)} bytes",
            f"{shared:.1f} of {SHARED_KB[target]} KB",
            ", ".join(f"`{name}`" for name in sorted({report.tensor for report in group} - {""})),
            "; ".join(sorted(faults)) or "ok",
        )


def _variants(reports: list[Report]) -> Iterator[str]:
    """For each kernel a line for each case, with a column for each target."""
    columns = list(dict.fromkeys((report.target, report.triton) for report in reports))
    newest = reports[0].triton
    names = [f"sm_{target}" + ("" if version == newest else f", Triton {version}") for target, version in columns]
    cells: dict[tuple[str, str], dict[tuple[int, str], list[Report]]] = defaultdict(lambda: defaultdict(list))
    for report in reports:
        cells[report.kernel, report.case][report.target, report.triton].append(report)
    for kernel in sorted({kernel for kernel, _ in cells}):
        yield from ("", f"### {kernel}", "", _row("case", *names), _row(*["---"] * (1 + len(names))))
        for (owner, case), row in cells.items():
            if owner == kernel:
                yield _row(case, *(_cell(row[column]) for column in columns))


def _cell(reports: list[Report]) -> str:
    if not reports:
        return ""
    registers, shared = max(report.registers for report in reports), max(report.shared for report in reports)
    faults = sorted({f"**{fault}**" for report in reports for fault in report.faults})
    return "; ".join([f"{registers} x {reports[0].threads}, {shared / 1024:.1f}", *faults])


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def sources() -> list[Path]:
    """The modules that define or launch Triton kernels, and those that a neuron's program is made by."""
    files = sorted((ROOT / "kernels").rglob("*.py"))
    return [f for f in files if f.parent.name == "neurons" or "fastsnn.kernels.triton" in f.read_text()]


def fingerprint() -> str:
    """Of these modules and of the cases."""
    digest = hashlib.sha256()
    for file in [*sources(), ROOT / "tests" / "compile_cases.py"]:
        digest.update(f"{file.relative_to(ROOT).as_posix()}:{code(file.read_text())}".encode())
    return digest.hexdigest()[:16]


def code(source: str) -> str:
    """What a module does, the same text under every Python: its tokens without comments, docstrings and blanks."""
    parts, at_start = [], True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        if at_start and token.type in (tokenize.STRING, tokenize.NEWLINE):  # a docstring and its end
            continue
        at_start = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        blocks = {tokenize.INDENT: "{", tokenize.DEDENT: "}", tokenize.NEWLINE: ";"}
        parts.append(blocks.get(token.type, re.sub(r"\s", "", token.string)))
    return "".join(parts)
