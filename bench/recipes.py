"""The recipes' numbers: ``python -m bench.recipes [NAME...] [--data-dir FOLDER] [--peers]`` in the root folder.

Each recipe is trained with five seeds, by the command that docs/recipes.md shows, in runs/recipes/NAME; a call that
was stopped goes on where it was. What each run recorded is kept in bench/results/recipes/NAME. With ``--peers`` one
training step is timed instead, fastsnn and a loop over time in turn (bench/recipe_peers.py). Either way the table in
docs/recipes.md is made again; ``--page`` does only that.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from fastsnn.comparison import Setting
from fastsnn.records import Record, read_record

ROOT = Path(__file__).parents[1]
RECIPES, RESULTS = ROOT / "recipes", ROOT / "bench" / "results" / "recipes"
PAGE, MARKERS = ROOT / "docs" / "recipes.md", ("<!-- recipes:start -->", "<!-- recipes:end -->")
SEEDS = "seed=0,1,2,3,4"


def names() -> list[str]:
    """The recipes, in the order of the page."""
    return list(published())


def published() -> dict[str, dict[str, str]]:
    """What the papers report, by recipe: the task, and the accuracy in percent with its source."""
    found: dict[str, dict[str, str]] = yaml.safe_load((RECIPES / "published.yaml").read_text(encoding="utf-8"))
    return found


def command(name: str) -> str:
    """The line that trains a recipe."""
    return f"fastsnn train --config recipes/{name}.yaml"


def train(name: str, data_dir: str | None, threads: int | None) -> None:
    """All seeds; what they recorded goes to the results."""
    folder = ROOT / "runs" / "recipes" / name
    words = [sys.executable, "-m", *command(name).split(), "--sweep", SEEDS, "--out", str(folder)]
    words += ["--data-dir", data_dir] if data_dir else []
    words += ["--threads", str(threads)] if threads else []
    subprocess.run(words, cwd=ROOT, check=True)
    for run in sorted(path.parent for path in folder.glob("*/config.yaml")):
        place = RESULTS / name / run.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / "metrics.csv", place / "metrics.csv")
        recorded = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) | {"data_dir": None}
        (place / "config.yaml").write_text(yaml.safe_dump(recorded, sort_keys=False), encoding="utf-8")


def records(name: str) -> list[Record]:
    """What is kept of a recipe's runs, by seed."""
    found = [read_record(path.parent) for path in (RESULTS / name).glob("*/config.yaml")]
    return sorted((run for run in found if run.test_accuracy is not None), key=lambda run: run.options["seed"])


def row(name: str, paper: dict[str, str], peers: dict[str, Any]) -> str:
    """A row of the table."""
    runs = records(name)
    setting = Setting({}, runs)
    reached, epoch, whole = "not measured", "", ""
    if setting.mean is not None:
        spread = "" if setting.deviation is None else f" ± {100 * setting.deviation:.2f}"
        reached = f"{100 * setting.mean:.2f}{spread} ({len(runs)} seed{'s' * (len(runs) > 1)})"
        seconds = [[line["train_seconds"] or 0.0 for line in run.epochs] for run in runs]
        epoch = f"{statistics.median(value for run in seconds for value in run):.3g} s"
        whole = f"{statistics.median(map(sum, seconds)) / 60:.2g} min"
    ratio = ""
    if name in peers:
        times = peers[name]["seconds"]
        ratio = f"{statistics.median(b / a for a, b in zip(times['fastsnn'], times['loop'], strict=True)):.2g} times"
    cells = [paper["task"], f"[{name}](../recipes/{name}.yaml)", reached, paper["accuracy"], epoch, whole, ratio]
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """The text between the page's markers."""
    file = RESULTS / "peers.json"
    peers = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    lines = [
        "| task | recipe | test accuracy, % | published, % | epoch | training | a loop over time takes |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
        *(row(name, paper, peers.get("recipes", {})) for name, paper in published().items()),
    ]
    machines = sorted({machine(run) for name in names() for run in records(name)})
    return "\n".join([*lines, "", f"Measured on: {'; '.join(machines) or 'nothing yet'}."])


def machine(run: Record) -> str:
    """Device and versions of a run."""
    found = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))["environment"]
    return f"{found['device_name']}, torch {found['torch']}, numba {found['numba']}"


def write_page() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    PAGE.write_text(f"{before}{MARKERS[0]}\n{table()}\n{MARKERS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes; default all")
    parser.add_argument("--data-dir", help="folder of the data sets; default $FASTSNN_DATA, else ~/.cache/fastsnn")
    parser.add_argument("--threads", type=int, help="CPU threads; default as many as there are cores")
    parser.add_argument("--peers", action="store_true", help="time a step beside a loop over time")
    parser.add_argument("--page", action="store_true", help="only make the table again")
    options = parser.parse_args()
    for name in options.names:
        if name not in names():
            parser.error(f"there is no recipe {name}; allowed: {', '.join(names())}")
    if options.peers:
        from bench.recipe_peers import measure

        measure(options.names or names(), options.data_dir)
    elif not options.page:
        for name in options.names or names():
            train(name, options.data_dir, options.threads)
    write_page()


if __name__ == "__main__":
    main()
