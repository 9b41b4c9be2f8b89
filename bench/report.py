"""The results files as docs/benchmarks.md with its charts, and README's one table: ``python -m bench.report``.

``--check`` writes nothing and fails where the committed page is not what the committed results make.
"""

import argparse
import statistics
import sys
from pathlib import Path

from bench import machine, results
from bench.results import Results, Row, quartiles, ratios

ROOT = machine.ROOT
PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images"
READMES = (ROOT / "README.md", ROOT / "README_cn.md")
MARKERS = ("<!-- bench:start -->", "<!-- bench:end -->")

SECTIONS = {
    "rate_step": "One training step of the reference job: 784 → 10 LIF neurons, T = 100, batch 64, Poisson encoding, "
    "mean squared error of the firing rates, Adam",
    "rate_step-epoch": "An epoch of the reference job",
    "lif-forward": "LIF neurons over given currents, forward without gradients",
    "lif": "LIF neurons over given currents, forward and backward",
    "linear_lif": "Linear layer and LIF neurons, n → n, in Open Neuromorphic's configuration: batch 16, T = 500, dense "
    "normal input, gradient of the weight",
    "mlp": "One training step of 784-800-10, T = 100, batch 64, Poisson encoding",
    "encoding": "Poisson encoding alone: 64 images, T = 100, to float32 spikes",
    "end_to_end": "From the start of the process to 92 % test accuracy on MNIST",
    "scaling-T": "Scaling with T: the reference job's step",
    "scaling-B": "Scaling with the batch: the reference job's step",
    "scaling-N": "Scaling with the width: linear and LIF, 784 → N, T = 100, batch 16",
    "scaling-threads": "Scaling with CPU threads: the reference job's step",
}
"""Case, or the part of a case's name before its last number -> heading."""
HEADLINES = ("rate_step", "rate_step-epoch", "lif", "linear_lif", "mlp", "encoding", "end_to_end")

METHOD = """# Benchmarks

Made from `bench/results/*.json` by `python -m bench.report`; every number on this page is in one of those files.
`pytest bench/ --benchmark-only` measures this machine: see [how to measure](#how-to-measure).

How to read it:

- **Same work.** Every implementation computes the same LIF neuron (tau 2, threshold 1, hard reset to 0, arctangent
  surrogate). Before anything is timed its spikes, its gradients and, where it trains, its weights after one step are
  held against the float64 reference, with the tolerances of `kernels/contract.py`. What fails is *refused*, not timed.
- **Same load.** Ours and the peers run in turn, round by round, in one session. *x ours* is the median over rounds of
  their time divided by ours in the same round, with its quartiles: above 1 they are slower.
- **Time** is the median over rounds, with quartiles; a call ends when the device is done. *First call* includes
  compilation (Numba's machine code is read from its cache where an earlier process left it) and is in no other column.
- **Memory** is what a call adds at its peak to what was allocated before it. CPU implementations on torch run at their
  fastest thread count.
- **Share of peak** is the least traffic or arithmetic that the work needs, over what a copy or an fp32 matrix product
  reaches on the same machine.
- *Computed* is not measured: the row says from what.
"""
HOW = """## How to measure

```bash
pip install -e ".[test,peers]"
pytest bench/ --benchmark-only --peer-env PATH/TO/ENV/WITH/SPIKINGJELLY2
python -m bench.report
```

`--quick` takes about a minute, `--cases` and `--peers` choose, `bench/gpu_machine.sh` does it all on a GPU machine
without network. MNIST is read from `$FASTSNN_DATA`; without it scikit-learn's digits stand in, and the row says so.
"""


def section_of(case: str) -> str:
    """The section of a case: its own, or that of the series it belongs to."""
    if case in SECTIONS:
        return case
    parts = case.removesuffix("-forward").rsplit("-", 1)
    return parts[0]


def time_text(seconds: float) -> str:
    """Three significant digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale or unit == "us":
            return f"{_three(seconds / scale)} {unit}"
    raise AssertionError


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def ratio_text(row: Row, own: Row | None) -> str:
    """Median ratio to ours and its quartiles."""
    if own is None or row is own:
        return ""
    found = ratios(row, own)
    low, high = quartiles(found)
    spread = f" ({_three(low)} to {_three(high)})" if len(found) > 1 else ""
    return f"**{_three(statistics.median(found))}**{spread}"


def page(files: list[Results]) -> str:
    """docs/benchmarks.md."""
    return "\n".join([METHOD, *(_machine(found) for found in files), HOW])


def _machine(found: Results) -> str:
    about, name = found.machine, machine_slug(found)
    facts = [f"{about['cores']} cores of {about['cpu']}", about["system"]]
    if about["kind"] == "cuda":
        facts = [f"driver {' '.join(about['driver'])}", f"CUDA {about['cuda']}", *facts]
    facts.append(f"copy {about['peak_bandwidth'] / 1e9:.1f} GB/s")
    facts.append(f"fp32 matrix product {about['peak_flops'] / 1e9:.0f} GFLOP/s")
    lines = [f"## {about['device']}", "", "; ".join(facts) + ".", ""]
    lines += [f"- {note}" for note in found.notes] + [""] * bool(found.notes)
    lines += [f"![How many times slower than fastsnn]({_image(name, 'ratios')})", "", *_behind(found)]
    sections: dict[str, list[str]] = {}
    for case in found.cases():
        sections.setdefault(section_of(case), []).append(case)
    for section, members in sections.items():
        lines += [f"### {SECTIONS.get(section, section)}", ""]
        if chart := {"linear_lif": "linear_lif", "scaling-T": "scaling"}.get(section):
            lines += [f"![{SECTIONS[section]}]({_image(name, chart)})", ""]
        for case in members:
            lines += _table(found, case, titled=len(members) > 1)
    lines += ["### Versions", "", *_versions(found)]
    return "\n".join(lines)


def _behind(found: Results) -> list[str]:
    """Where ours is not the fastest."""
    lines = []
    for case in found.cases():
        own = found.ours(case)
        for row in found.of(case):
            if own and row.seconds and not row.ours and statistics.median(ratios(row, own)) < 1:
                lines.append(f"- {case}: {row.label} needs {statistics.median(ratios(row, own)):.2f} times our time")
    return ["Where ours is behind:" if lines else "Ours is ahead of every peer in every case.", "", *lines, ""]


def _table(found: Results, case: str, titled: bool) -> list[str]:
    own = found.ours(case)
    rows = found.of(case)
    lines = [f"**{case}**", ""] if titled else []
    lines += [
        "| | time | x ours | first call | memory | of peak | threads | rounds | |",
        "| --- |" + " ---: |" * 7 + " --- |",
    ]
    for row in [row for row in rows if row.seconds]:
        low, high = row.quartiles
        spread = f" ({time_text(low)} to {time_text(high)})" if len(row.seconds) > 1 else ""
        share = row.share_of_bandwidth or row.share_of_flops
        cells = [
            row.label,
            f"{time_text(row.median)}{spread}",
            ratio_text(row, own),
            time_text(row.first_seconds) if row.first_seconds else "",
            f"{row.peak_memory / 1e6:.1f} MB" if row.peak_memory is not None else "",
            f"{share:.0%}" if share else "",
            str(row.threads or ""),
            str(len(row.seconds)) if row.status == "measured" else "",
            _remark(row),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    missing = [f"{row.label} {row.status}: {row.reason}" for row in rows if not row.seconds]
    return [*lines, "", *([f"Not timed: {'; '.join(missing)}.", ""] if missing else [])]


def _remark(row: Row) -> str:
    if row.status == "computed":
        return f"computed: {row.reason}"
    parts = [] if row.data in ("random", "mnist") else [f"on {row.data}"]
    if "epoch" in row.extra:
        parts.append(f"test accuracy {row.extra['test_accuracy']:.2%} after epoch {row.extra['epoch']}")
    return ", ".join(parts)


def _versions(found: Results) -> list[str]:
    lines = []
    for versions in found.environments.values():
        packages = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "commit")
        cases = [case for case in found.cases() if found.environments[found.of(case)[0].environment] == versions]
        which = "" if len(found.environments) == 1 else f" ({', '.join(cases)})"
        lines.append(f"- commit {versions['commit']}{which}: {packages}")
    return [*lines, ""]


def readme_table(files: list[Results]) -> str:
    """README's table: per machine the headline cases, ours against the fastest peer and the tutorial's loop."""
    lines = []
    for found in files:
        lines += [f"On {found.machine['device']}, fp32, medians ([all results](docs/benchmarks.md)):", ""]
        lines += ["| | fastsnn | fastest peer | SpikingJelly's loop |", "| --- | ---: | ---: | ---: |"]
        for case in headline_cases(found):
            own = found.ours(case)
            timed = [row for row in found.of(case) if row.seconds and not row.ours]
            if own is None or not timed:
                continue
            best = min(timed, key=lambda row: statistics.median(ratios(row, own)))
            loop = found.find(case, "spikingjelly-loop")
            cells = [headline(case), f"{time_text(own.median)}", f"{_against(best, own)} ({best.label})"]
            lines.append("| " + " | ".join([*cells, _against(loop, own) if loop and loop.seconds else ""]) + " |")
        lines.append("")
    return "\n".join(lines).strip()


def _against(row: Row, own: Row) -> str:
    about = "≈ " if row.status == "computed" else ""
    return f"{about}{time_text(row.median)}, {_three(statistics.median(ratios(row, own)))} x"


def headline_cases(found: Results) -> list[str]:
    """The cases of the summary; of linear+LIF the largest."""
    last = {section_of(case): case for case in found.cases() if not case.endswith("-forward")}
    return [last[name] for name in HEADLINES if name in last]


def headline(case: str) -> str:
    """A case in a few words."""
    words = {
        "rate_step": "training step, 784-10, T = 100, batch 64",
        "rate_step-epoch": "epoch of it",
        "lif": "LIF alone, forward + backward",
        "linear_lif": f"linear + LIF, n = {case.rsplit('-', 1)[-1]}, forward + backward",
        "mlp": "training step, 784-800-10",
        "encoding": "Poisson encoding of a batch",
        "end_to_end": "process start to 92 % on MNIST",
    }
    return words[section_of(case)]


def machine_slug(found: Results) -> str:
    return machine.slug(found.machine["device"])


def _image(name: str, chart: str) -> str:
    return f"images/bench-{name}-{chart}.png"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def with_table(readme: str, table: str) -> str:
    """README's text with the table between its markers, where it has them."""
    if MARKERS[0] not in readme:
        return readme
    before, _, rest = readme.partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    return f"{before}{MARKERS[0]}\n{table}\n{MARKERS[1]}{after}"


def committed() -> list[Results]:
    """The committed results, GPUs first."""
    files = [results.load(path) for path in sorted(results.FOLDER.glob("*.json"))]
    return sorted(files, key=lambda found: found.machine["kind"] != "cuda")


def stale() -> list[Path]:
    """Files that are not what the committed results make; a missing chart counts."""
    files = committed()
    wanted = {PAGE: page(files)} | {path: with_table(_read(path), readme_table(files)) for path in READMES}
    wrong = [path for path, text in wanted.items() if _read(path) != text]
    charts = ("ratios", "linear_lif", "scaling")
    shown = [PAGE.parent / _image(machine_slug(found), chart) for found in files for chart in charts]
    return wrong + [path for path in shown if f"({path.relative_to(PAGE.parent)})" in page(files) and not path.exists()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a committed file is out of date")
    if parser.parse_args().check:
        for path in stale():
            print(f"{path.relative_to(ROOT)} does not match bench/results: run python -m bench.report", file=sys.stderr)
        return bool(stale())
    from bench import charts

    files = committed()
    IMAGES.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(files), encoding="utf-8")
    for path in READMES:
        path.write_text(with_table(_read(path), readme_table(files)), encoding="utf-8")
    for found in files:
        charts.draw(found, IMAGES / f"bench-{machine_slug(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
