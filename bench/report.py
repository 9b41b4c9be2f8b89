"""The results files as docs/benchmarks.md with its charts, and README's table: ``python -m bench.report``.

``--check`` writes nothing and fails where a committed file is not what the committed results make.
"""

import argparse
import sys
from pathlib import Path

from bench import machine, page, readme, results
from bench.results import Results

ROOT = machine.ROOT
PAGE = ROOT / "docs" / "benchmarks.md"


def committed() -> list[Results]:
    """The committed results, GPUs first."""
    files = [results.load(path) for path in sorted(results.FOLDER.glob("*.json"))]
    return sorted(files, key=lambda found: found.machine["kind"] != "cuda")


def stale() -> list[Path]:
    """Files that are not what the committed results make: a page's text, or a chart drawn from other results."""
    from bench import charts

    files = committed()
    wanted = {PAGE: page.text(files)} | readme.texts(files, ROOT)
    wrong = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    shown = {PAGE.parent / page.chart_path(found, name): found for found in files for name in page.charts(found)}
    return wrong + [path for path, found in shown.items() if charts.drawn_from(path) != found.digest()]


def write() -> None:
    """Make the page, its charts and the tables from the committed results."""
    from bench import charts

    files = committed()
    for path, text in ({PAGE: page.text(files)} | readme.texts(files, ROOT)).items():
        path.write_text(text, encoding="utf-8")
    for found in files:
        charts.draw(found, PAGE.parent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a committed file is out of date")
    if not parser.parse_args().check:
        write()
    found = stale()
    for path in found:
        print(f"{path.relative_to(ROOT)} does not match bench/results: run python -m bench.report", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
