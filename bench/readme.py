"""The one table that a reader needs, in both languages: fastsnn against the fastest peer and SpikingJelly's loop."""
# ruff: noqa: RUF001 - Chinese has its own punctuation marks.

import statistics
from pathlib import Path

from bench.page import section_of, three, time_text
from bench.results import Results, Row, ratios

MARKERS = ("<!-- bench:start -->", "<!-- bench:end -->")
ENGLISH = {
    "machine": "On {device}, fp32, medians of rounds in turn; ≈ is computed from measured steps",
    "more": " ([all results](docs/benchmarks.md)):",
    "columns": "| | fastsnn | fastest peer | SpikingJelly |",
    "rate_step": "training step, 784-10, T = 100, batch 64 (one-layer trainer)",
    "end_to_end": "process start to 92 % on MNIST (one-layer trainer)",
    "mlp": "training step, 784-800-10, T = 100, batch 64",
    "shd": "training step, SHD protocol, T = 256, batch 256",
    "nmnist": "training step, N-MNIST 2312-512-10, T = 30, batch 64",
    "csnn": "training step, convolutional network, T = 4, batch 32",
    "recurrent-shd": "recurrent layer, 140-256, T = 250, batch 64",
    "scan": "LIF neurons alone, T = 100",
    "linear": "linear + LIF, n = {n}, dense input, T = 500, batch 16",
    "linear-sparse": "the same, spikes of 5 %",
    "encoding": "Poisson encoding of a batch",
    "inference": "one image, encoded and classified",
}
CHINESE = {
    "machine": "在 {device} 上，fp32，各实现轮流运行，取中位数；≈ 表示由实测的步推算",
    "more": "（[全部结果](docs/benchmarks.md)）：",
    "columns": "| | fastsnn | 最快的对比实现 | SpikingJelly |",
    "rate_step": "训练一步，784-10，T = 100，batch 64（单层训练器）",
    "end_to_end": "从启动进程到 MNIST 上 92 %（单层训练器）",
    "mlp": "训练一步，784-800-10，T = 100，batch 64",
    "shd": "训练一步，SHD 配置，T = 256，batch 256",
    "nmnist": "训练一步，N-MNIST 2312-512-10，T = 30，batch 64",
    "csnn": "训练一步，卷积网络，T = 4，batch 32",
    "recurrent-shd": "循环层，140-256，T = 250，batch 64",
    "scan": "单独的 LIF 神经元，T = 100",
    "linear": "线性层 + LIF，n = {n}，稠密输入，T = 500，batch 16",
    "linear-sparse": "同上，5 % 的脉冲",
    "encoding": "一个 batch 的泊松编码",
    "inference": "一张图像的编码与分类",
}
WORDS = {"README.md": ENGLISH, "README_cn.md": CHINESE}
_HEADLINES = tuple(ENGLISH)[3:]


def table(files: list[Results], words: dict[str, str], more: bool = False) -> str:
    """The table of each file; SpikingJelly in the faster of its modes. ``more`` adds a link to the page."""
    lines = []
    for found in files:
        lines += [words["machine"].format(device=found.machine["device"]) + (words["more"] if more else ":"), ""]
        lines += [words["columns"], "| --- | ---: | ---: | ---: |"]
        for name, case in headlines(found).items():
            own, best = found.ours(case), found.fastest_peer(case)
            if own is None or best is None:
                continue
            theirs = [row for row in found.of(case) if row.seconds and row.implementation.startswith("spikingjelly")]
            fastest = min(theirs, key=lambda row: statistics.median(ratios(row, own)), default=None)
            cells = [words[name].format(n=_size(case)), time_text(own.median), f"{_against(best, own)} ({best.label})"]
            lines.append("| " + " | ".join([*cells, _against(fastest, own) if fastest else ""]) + " |")
        lines.append("")
    return "\n".join(lines).strip()


def headlines(found: Results) -> dict[str, str]:
    """The main cases by the name of their words, in order; of linear + LIF the largest."""
    cases = found.cases()
    sizes = [case for case in cases if section_of(case) == "linear" and not case.endswith("-forward")]
    largest = max((_size(case) for case in sizes), default=0)
    wanted = {name: name for name in _HEADLINES} | {
        "linear": f"linear-{largest}",
        "linear-sparse": f"linear-{largest}-sparse",
    }
    return {name: case for name, case in wanted.items() if case in cases}


def headline(name: str, case: str) -> str:
    """A main case in a few words."""
    return ENGLISH[name].format(n=_size(case))


def with_table(text: str, table: str) -> str:
    """README's text with the table between its markers; ValueError if it has none."""
    before, start, rest = text.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not (start and end):
        raise ValueError(f"there is no {MARKERS[0]} ... {MARKERS[1]} in it")
    return f"{before}{MARKERS[0]}\n{table}\n{MARKERS[1]}{after}"


def texts(files: list[Results], root: Path) -> dict[Path, str]:
    """Both READMEs as they should be."""
    return {
        root / name: with_table((root / name).read_text(encoding="utf-8"), table(files, words, more=True))
        for name, words in WORDS.items()
    }


def _size(case: str) -> int:
    return int("".join(part for part in case.split("-") if part.isdigit()) or 0)


def _against(row: Row, own: Row) -> str:
    about = "≈ " if row.status == "computed" else ""
    return f"{about}{time_text(row.median)}, {three(statistics.median(ratios(row, own)))} x"
