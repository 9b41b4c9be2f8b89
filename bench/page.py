"""docs/benchmarks.md as text: a part for every results file, a table for every case."""

import statistics
from itertools import groupby

from bench import machine
from bench.results import Results, Row, quartiles, ratios

SECTIONS = {
    "rate_step": (
        "Training step of the reference job",
        "That of SpikingJelly's tutorial: 784 → 10 LIF neurons, T = 100, batch 64; Poisson encoding, forward, mean "
        "squared error of the firing rates, backward, Adam.",
    ),
    "rate_step-epoch": ("Epoch of the reference job", "All training images once, with encoding, without evaluation."),
    "scan-forward": ("LIF neurons alone, forward", "Given random currents, without gradients."),
    "scan": ("LIF neurons alone, forward and backward", "Given random currents and gradients of the spikes."),
    "linear": (
        "Linear layer and LIF neurons",
        "Open Neuromorphic's configuration, n → n, batch 16, T = 500: dense normal input, the sum of the spikes as "
        "loss, gradient of the weight.",
    ),
    "mlp": ("Training step of 784-800-10", "As the reference job's, with a hidden layer."),
    "encoding": ("Poisson encoding", "64 images, T = 100, to spikes as the next layer takes them."),
    "end_to_end": ("Seconds to 92 %", "From the start of the process to 92 % test accuracy on MNIST."),
    "scaling-T": ("Scaling with the time steps", "The reference job's step."),
    "scaling-B": ("Scaling with the batch", "The reference job's step."),
    "scaling-N": ("Scaling with the width", "Linear layer and LIF neurons, 784 → N, T = 100, batch 16."),
    "scaling-threads": ("Scaling with CPU threads", "The reference job's step."),
}
"""Case, or the part of a case's name before its last number -> heading, and what is measured."""
_CHARTED = {"linear": "linear", "scaling-T": "scaling"}
"""Section -> the chart above its tables."""

METHOD = """# Benchmarks

Made from `bench/results/*.json` by `python -m bench.report`; every number on this page is in one of those files.
`pytest bench/ --benchmark-only` measures this machine: see [how to measure](#how-to-measure).

How to read it:

- **Same work.** Every implementation computes the same LIF neuron (tau 2, threshold 1, hard reset to 0, arctangent
  surrogate). Before anything is timed its spikes, its gradients and, where it trains, its weights after one step are
  held against the float64 reference, with the tolerances of `kernels/contract.py`. What fails is *refused*, not timed.
- **Same load.** Ours and the peers run in turn, round by round, in one session. *x ours* is the median over rounds of
  their time divided by ours in the same round, with its quartiles: above 1 they are slower. Each waits a moment before
  its turn, since a library's threads spin for a while after their own.
- **Time** is the median over rounds, with quartiles; a call ends when the device is done. *First call* includes
  compilation and is in no other column. Numba's machine code comes from its cache where an earlier process left it;
  only the first call of *seconds to 92 %* begins with empty caches.
- **Memory** is what a call adds at its peak to what was allocated before it. CPU implementations on torch run at their
  fastest thread count.
- **Share of peak** is the least traffic or arithmetic that the work needs, over what a copy or an fp32 matrix product
  (on a CPU the faster of torch's and NumPy's) reaches on the same machine.
- *Computed* is not measured: the row says from what.
"""
HOW = """## How to measure

```bash
pip install -e ".[test,peers]"
python3 -m venv sj2 && sj2/bin/pip install torch spikingjelly==2.0.0
pytest bench/ --benchmark-only --peer-env sj2
python -m bench.report
```

`--quick` measures fewer cases and `--cases` and `--peers` choose; a name that there is not lists those that there are.
`bench/gpu_machine.sh` does it all on a GPU machine without network; its `results.json` belongs into `bench/results/`
under the card's name. MNIST is read from `$FASTSNN_DATA`; without it scikit-learn's digits stand in, and the row says
so.
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
            return f"{three(seconds / scale)} {unit}"
    raise AssertionError


def three(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def ratio_text(row: Row, own: Row | None) -> str:
    """Median ratio to ours and its quartiles."""
    if own is None or row is own:
        return ""
    found = ratios(row, own)
    low, high = quartiles(found)
    spread = f" ({three(low)} to {three(high)})" if len(found) > 1 else ""
    return f"**{three(statistics.median(found))}**{spread}"


def text(files: list[Results]) -> str:
    """The whole page."""
    return "\n".join([METHOD, *(_machine(found) for found in files), HOW])


def charts(found: Results) -> list[str]:
    """Names of the charts that there are results for."""
    sections = {section_of(case) for case in found.cases()}
    return ["ratios", *(chart for section, chart in _CHARTED.items() if section in sections)]


def chart_path(found: Results, chart: str) -> str:
    """Where a chart lies, seen from the page."""
    return f"images/bench-{machine.slug(found.machine['device'])}-{chart}.png"


def _machine(found: Results) -> str:
    about = found.machine
    facts = [f"{about['cores']} cores of {about['cpu']}", about["system"]]
    if about["kind"] == "cuda":
        facts = [f"driver {' '.join(about['driver'])}", f"CUDA {about['cuda']}", *facts]
    facts.append(f"a copy moves {about['peak_bandwidth'] / 1e9:.1f} GB/s")
    facts.append(f"an fp32 matrix product reaches {about['peak_flops'] / 1e9:.0f} GFLOP/s")
    lines = [f"## {about['device']}", "", "; ".join(facts) + ".", ""]
    lines += [f"- {note}" for note in found.notes] + [""] * bool(found.notes)
    lines += [f"![How many times slower than fastsnn]({chart_path(found, 'ratios')})", "", *_behind(found)]
    sections = list(SECTIONS)
    in_order = sorted(found.cases(), key=lambda case: sections.index(section_of(case)))
    for section, group in groupby(in_order, section_of):
        cases = list(group)
        heading, what = SECTIONS[section]
        lines += [f"### {heading}", "", what, ""]
        if chart := _CHARTED.get(section):
            lines += [f"![{heading}]({chart_path(found, chart)})", ""]
        for case in cases:
            lines += _table(found, case, titled=len(cases) > 1)
    lines += ["### Versions", "", *_versions(found)]
    return "\n".join(lines)


def _behind(found: Results) -> list[str]:
    """Where ours is not the fastest, or not by more than its measurements scatter."""
    behind, close = [], []
    for case in found.cases():
        own = found.ours(case)
        for row in found.of(case):
            if not own or not row.seconds or row.ours:
                continue
            compared = ratios(row, own)
            middle, (low, high) = statistics.median(compared), quartiles(compared)
            if middle < 1:
                behind.append(f"- {case}: {row.label} needs {middle:.2f} times our time")
            elif low < 1:
                close.append(f"- {case}: {row.label} needs {middle:.2f} ({low:.2f} to {high:.2f}) times our time")
    lines = ["Where ours is behind:", "", *behind, ""] if behind else []
    if close:
        lines += ["Where the quartiles reach below 1, so that neither is clearly ahead:", "", *close, ""]
    if not behind:
        where = "case but these" if close else "case"
        lines = [f"Ours is ahead of every peer in every {where}.", "", *lines]
    return lines


def _table(found: Results, case: str, titled: bool) -> list[str]:
    own = found.ours(case)
    rows = found.of(case)
    lines = [f"**{case}**", ""] if titled else []
    lines.append("| | time | x ours | first call | memory | of peak | threads | rounds | |")
    lines.append("| --- |" + " ---: |" * 7 + " --- |")
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
    """A line per environment: the cases that ran in it, or the peer whose own it is."""
    lines = []
    for key, versions in found.environments.items():
        rows = [row for row in found.rows if row.environment == key]
        names = [row.case["name"] for row in rows if row.ours] or [row.label for row in rows]
        which = ", ".join(dict.fromkeys(names))
        packages = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "commit")
        lines.append(f"- {which}: commit {versions['commit']}, {packages}")
    return [*lines, ""]
