"""docs/benchmarks.md as text: for every results file the one table that a reader needs, then a table for every case."""

import statistics
from itertools import groupby

from bench import machine
from bench.results import Results, Row, quartiles, ratios

SECTIONS = {
    "rate_step": (
        "Training step of 784-10",
        "That of SpikingJelly's tutorial: MNIST, T = 100, batch 64; Poisson encoding, forward, mean squared error "
        "of the firing rates, backward, Adam. fastsnn's one-layer trainer has a kernel for all of it, which "
        "networks of several layers do not use.",
    ),
    "end_to_end": (
        "Seconds to 92 %",
        "From the start of the process to 92 % test accuracy on MNIST, with 784-10. The first call of fastsnn "
        "begins with empty kernel caches. Peers are not charged for their start.",
    ),
    "mlp": ("Training step of 784-800-10", "The same with a hidden layer, layer by layer."),
    "shd": (
        "Training step of the SHD protocol",
        "jaxpike's and Spyx's: 128-128-128-128-20, T = 256, batch 256; a learnt leak for each neuron, soft reset, "
        "leaky integrators as read-out, cross entropy of their mean potential, Adam. Random spikes of that shape, "
        "5 %.",
    ),
    "nmnist": ("Training step of 2312-512-10", "N-MNIST's shape, T = 30, batch 64; random events, 5 %."),
    "csnn": (
        "Training step of a convolutional network",
        "SpikingJelly's for Fashion-MNIST: two 3 x 3 convolutions of 128 channels with batch norm, IF neurons and "
        "pooling, 6272-2048-10 behind them; T = 4, batch 32. On a CPU nearly all of it is torch's convolution.",
    ),
    "recurrent": (
        "Recurrent layers",
        "LIF neurons whose spikes come back through a full matrix: forward, and gradients of both weights. shd: T "
        "= 250, batch 64, 140-256; braille: T = 152, batch 100, 128-200; smnist: T = 784, batch 32, 1-128. A "
        "tenth of the inputs spikes.",
    ),
    "scan": (
        "Neurons alone",
        "Random currents of 65,536 neurons (2^20 on a GPU) over T = 100 (128), forward and backward. scan is LIF "
        "with a hard reset; leaky learns a leak for each neuron; cuba is current-based; alif and seadlif are "
        "adaptive.",
    ),
    "linear": (
        "Linear layer and LIF neurons",
        "Open Neuromorphic's configuration, n to n, batch 16, T = 500: the sum of the spikes as loss, gradient of "
        "the weight. The input is dense and normal, or spikes of 5 %: sparse.",
    ),
    "encoding": ("Poisson encoding", "64 images, T = 100, to spikes as the next layer takes them."),
    "inference": ("One sample", "An image encoded over T = 100 and classified by 784-10, without gradients."),
    "rate_step-T": ("Training step of 784-10 over time steps", "T = 100 is above."),
    "mlp-threads": ("Training step of 784-800-10 on fewer threads", "All threads are above."),
}
"""Case, or the first part of its name -> heading, and what is measured."""

INTRODUCTION = """# Benchmarks

What a training step costs with fastsnn and with what one would use instead, on the same machine, doing the same
mathematics. `python -m bench.report` makes this page from `bench/results/*.json`; each file is of one machine, one
commit and one set of versions.
"""
METHOD = """## How it is measured

- **Equal mathematics first.** Before anything is timed, outputs, gradients and, where it trains, the weights after a
  step of Adam are held against fastsnn's equations in float64, with the tolerances of `kernels/contract.py`, on
  inputs for which no membrane comes near its threshold. What differs is *refused*, not timed. Surrogate: arctangent,
  alpha 2.
- **In turn.** fastsnn and the peers run round by round, in another order each time. *x fastsnn* is the median over
  rounds of their time divided by fastsnn's in the same round: above 1 they are slower. Quartiles in brackets.
- **Time** is wall time, the median over rounds; a call ends when the device is done. *First call* includes
  compilation and is in no other column. *Memory* is what a call adds at its peak. Peers on torch run at their fastest
  thread count.
- *Computed* is not measured: the row says from what.

Not among the peers:

- Spyx 1.0: its LIF neuron fires on the potential of the step before and subtracts the threshold without the leak:
  another recurrence, with other spikes.
- Sinabs: its arctangent needs code of one's own and its reset is detached; Rockpool has other dynamics.
- SpikingJelly's single-step loop in the convolutional network: its batch norm sees one time step at a time. Plain
  JAX could compute what it is skipped for; it was not written here.
- snnTorch's recurrent `RLeaky` resets a step later; Norse has no arctangent, so it is in forward cases only.
- snnTorch resets softly only once in two steps where a potential passes twice the threshold; the inputs here don't.
- SpikingJelly 2's multi-step mode takes its Triton kernels by itself on a GPU, where its rows measure them; its FlexSN,
  which makes such kernels of one's own neuron, has no row yet. Nothing on this page has run on a GPU so far.
"""
HOW = """## Add your card or machine

```bash
pip install -e ".[test,peers]"
pytest bench/ --benchmark-only --full
```

This writes one file, `bench/results/MACHINE.json`, after every case; called again on the same commit and versions it
starts over, so a stopped run loses nothing that it had written. Then `python -m bench.report` makes this page, its
charts and the READMEs' tables. Without `--full` the cases of the first table run, within ten minutes on two cores,
and nothing is kept unless `--results FILE` says where. `--cases` and `--peers` choose; a name that there is not lists
those that there are. `--peer-env` names an environment with SpikingJelly 2, which can't share one with the release
that has CuPy kernels: `python3 -m venv sj2 && sj2/bin/pip install torch spikingjelly==2.0.0`. MNIST is read from
`$FASTSNN_DATA`; without it scikit-learn's digits stand in, and the row says so. `bench/gpu_machine.sh` does it all on
a GPU machine without network.
"""


def section_of(case: str) -> str:
    """The section of a case: its own, or that of the series it belongs to."""
    return max((section for section in SECTIONS if case.startswith(section)), key=len)


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
    """Median ratio to fastsnn and its quartiles."""
    if own is None or row is own:
        return ""
    found = ratios(row, own)
    low, high = quartiles(found)
    spread = f" ({three(low)} to {three(high)})" if len(found) > 1 else ""
    return f"**{three(statistics.median(found))}**{spread}"


def text(files: list[Results]) -> str:
    """The whole page."""
    from bench.readme import ENGLISH, table

    parts = [INTRODUCTION]
    for found in files:
        device, charts_of = found.machine["device"], chart_path(found, "ratios")
        parts += [f"## {device}\n", table([found], ENGLISH), "", *_behind(found), *_conditions(found)]
        parts += [f"![How many times slower than fastsnn, {device}]({charts_of})\n"]
    parts.append(METHOD)
    for found in files:
        parts.append(_cases(found))
    return "\n".join([*parts, HOW])


def charts(found: Results) -> list[str]:
    """Names of the charts that there are results for."""
    return ["ratios", *(["time-steps"] if any(section_of(case) == "rate_step-T" for case in found.cases()) else [])]


def chart_path(found: Results, chart: str) -> str:
    """Where a chart lies, seen from the page."""
    return f"images/bench-{machine.slug(found.machine['device'])}-{chart}.png"


def _conditions(found: Results) -> list[str]:
    about = found.machine
    facts = [f"{about['cores']} cores of {about['cpu']}", about["system"]]
    if about["kind"] == "cuda":
        facts = [f"driver {' '.join(about['driver'])}", f"CUDA {about['cuda']}", *facts]
    versions = ", ".join(f"{name} {version}" for name, version in found.environment.items())
    return ["Measured on:", "", *(f"- {note}" for note in ["; ".join(facts), *found.notes, versions]), ""]


def _cases(found: Results) -> str:
    lines = [f"## Every case: {found.machine['device']}", ""]
    sections = list(SECTIONS)
    in_order = sorted(found.cases(), key=lambda case: sections.index(section_of(case)))
    for section, group in groupby(in_order, section_of):
        cases = list(group)
        heading, what = SECTIONS[section]
        lines += [f"### {heading}", "", what, ""]
        if section == "rate_step-T":
            lines += [f"![{heading}]({chart_path(found, 'time-steps')})", ""]
        for case in cases:
            lines += _table(found, case, titled=len(cases) > 1)
    return "\n".join(lines)


def _behind(found: Results) -> list[str]:
    """Where fastsnn is not the fastest, or not by more than its measurements scatter."""
    behind, close = [], []
    for case in found.cases():
        own = found.ours(case)
        for row in found.of(case):
            if not own or not row.seconds or row.ours:
                continue
            compared = ratios(row, own)
            middle, (low, high) = statistics.median(compared), quartiles(compared)
            if middle < 1:
                behind.append(f"- {case}: {row.label} needs {middle:.2f} times fastsnn's time")
            elif low < 1:
                close.append(f"- {case}: {row.label} needs {middle:.2f} ({low:.2f} to {high:.2f}) times fastsnn's time")
    lines = ["Where fastsnn is behind:", "", *behind, ""] if behind else []
    if close:
        lines += ["Where the quartiles reach below 1, so that neither is clearly ahead:", "", *close, ""]
    if not behind:
        lines = [f"fastsnn is ahead of every peer in every {'case but these' if close else 'case'}.", "", *lines]
    return lines


def _table(found: Results, case: str, titled: bool) -> list[str]:
    own = found.ours(case)
    rows = found.of(case)
    lines = [f"**{case}**", ""] if titled else []
    lines.append("| | time | x fastsnn | first call | memory | threads | rounds | |")
    lines.append("| --- |" + " ---: |" * 6 + " --- |")
    for row in [row for row in rows if row.seconds]:
        low, high = row.quartiles
        spread = f" ({time_text(low)} to {time_text(high)})" if len(row.seconds) > 1 else ""
        cells = [
            row.label,
            f"{time_text(row.median)}{spread}",
            ratio_text(row, own),
            time_text(row.first_seconds) if row.first_seconds else "",
            f"{row.peak_memory / 1e6:.1f} MB" if row.peak_memory is not None else "",
            str(row.threads or ""),
            str(len(row.seconds)) if row.status == "measured" else "",
            _remark(row),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    missing: dict[str, list[str]] = {}
    for row in rows:
        if not row.seconds:
            missing.setdefault(f"{row.status}: {row.reason}", []).append(row.label)
    reasons = [f"{', '.join(labels)} {reason}" for reason, labels in missing.items()]
    return [*lines, "", *([f"Not timed: {'; '.join(reasons)}.", ""] if reasons else [])]


def _remark(row: Row) -> str:
    if row.status == "computed":
        return f"computed: {row.reason}"
    parts = [] if row.data in ("random", "mnist") else [f"on {row.data}"]
    if "epoch" in row.extra:
        parts.append(f"test accuracy {row.extra['test_accuracy']:.2%} after epoch {row.extra['epoch']}")
    return ", ".join(parts)
