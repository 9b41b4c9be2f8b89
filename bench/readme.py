"""README's one table, in both languages: ours against the fastest peer and against SpikingJelly's loop, by machine."""
# ruff: noqa: RUF001 - Chinese has its own punctuation marks.

import statistics
from pathlib import Path

from bench.page import section_of, three, time_text
from bench.results import Results, Row, ratios

MARKERS = ("<!-- bench:start -->", "<!-- bench:end -->")
ENGLISH = {
    "machine": "On {device}, fp32, medians; ≈ is computed from measured steps ([all results](docs/benchmarks.md)):",
    "columns": "| | fastsnn | fastest peer | SpikingJelly's loop |",
    "rate_step": "training step, 784-10, T = 100, batch 64",
    "rate_step-epoch": "epoch of it",
    "scan": "LIF alone, forward + backward",
    "linear": "linear + LIF, n = {n}, forward + backward",
    "mlp": "training step, 784-800-10",
    "encoding": "Poisson encoding of a batch",
    "end_to_end": "process start to 92 % on MNIST",
}
CHINESE = {
    "machine": "在 {device} 上，fp32，取中位数；≈ 表示由实测的步推算（[全部结果](docs/benchmarks.md)）：",
    "columns": "| | fastsnn | 最快的对比实现 | SpikingJelly 的逐步循环 |",
    "rate_step": "训练一步，784-10，T = 100，batch 64",
    "rate_step-epoch": "它的一个 epoch",
    "scan": "单独的 LIF，前向 + 反向",
    "linear": "线性层 + LIF，n = {n}，前向 + 反向",
    "mlp": "训练一步，784-800-10",
    "encoding": "一个 batch 的泊松编码",
    "end_to_end": "从启动进程到 MNIST 上 92 %",
}
WORDS = {"README.md": ENGLISH, "README_cn.md": CHINESE}
_HEADLINES = tuple(ENGLISH)[2:]


def table(files: list[Results], words: dict[str, str]) -> str:
    """The text between the markers."""
    lines = []
    for found in files:
        lines += [words["machine"].format(device=found.machine["device"]), ""]
        lines += [words["columns"], "| --- | ---: | ---: | ---: |"]
        for case in headline_cases(found):
            own, loop = found.ours(case), found.find(case, "spikingjelly-loop")
            timed = [row for row in found.of(case) if row.seconds and not row.ours]
            if own is None or not timed:
                continue
            best = min(timed, key=lambda row: statistics.median(ratios(row, own)))
            cells = [headline(case, words), time_text(own.median), f"{_against(best, own)} ({best.label})"]
            cells.append(_against(loop, own) if loop and loop.seconds else "")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).strip()


def headline_cases(found: Results) -> list[str]:
    """The main cases in their order; of linear+LIF the largest."""
    last = {section_of(case): case for case in found.cases() if not case.endswith("-forward")}
    return [last[name] for name in _HEADLINES if name in last]


def headline(case: str, words: dict[str, str] = ENGLISH) -> str:
    """A case in a few words."""
    return words[section_of(case)].format(n=case.rsplit("-", 1)[-1])


def with_table(text: str, table: str) -> str:
    """README's text with the table between its markers; ValueError where it has none."""
    before, start, rest = text.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not (start and end):
        raise ValueError(f"there is no {MARKERS[0]} ... {MARKERS[1]} in it")
    return f"{before}{MARKERS[0]}\n{table}\n{MARKERS[1]}{after}"


def texts(files: list[Results], root: Path) -> dict[Path, str]:
    """Both READMEs as they should be."""
    return {
        root / name: with_table((root / name).read_text(encoding="utf-8"), table(files, words))
        for name, words in WORDS.items()
    }


def _against(row: Row, own: Row) -> str:
    about = "≈ " if row.status == "computed" else ""
    return f"{about}{time_text(row.median)}, {three(statistics.median(ratios(row, own)))} x"
