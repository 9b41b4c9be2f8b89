"""bench/: the results file, the regression check, and the page, tables and charts made of results."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import cases, measure, page, readme, regression, report, results
from bench.results import Results, Row

TINY = cases.grid("tiny", gpu=False, cores=2)


def found(*rows: Row, kind: str = "cpu") -> Results:
    about = {"device": "Test 9000, 2 cores", "kind": kind, "cpu": "Test 9000", "cores": 2, "system": "Linux x86_64"}
    return Results(about, {"commit": "abc", "torch": "2.13.0"}, list(rows))


def row(implementation: str, *seconds: float, name: str = "rate_step", **fields: Any) -> Row:
    values: dict[str, Any] = {"status": "measured", "seconds": list(seconds)} | fields
    case = json.loads(json.dumps(TINY["rate_step"].to_dict() | {"name": name}))
    return Row(implementation, implementation, case, "mnist", **values)


def test_results_of_another_schema_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"schema": 99}')
    with pytest.raises(results.SchemaError, match=r"old\.json has schema 99; this version reads 2"):
        results.load(path)
    path.write_text("[]")
    with pytest.raises(results.SchemaError, match=r"old\.json is not a results file"):
        results.load(path)


def test_results_survive_the_file(tmp_path: Path) -> None:
    before = found(row("fastsnn-numba", 1.0, 2.0), row("jax", 4.0, 4.0), row("fastsnn-numba", 5.0, name="scan"))
    before.write(tmp_path / "machine.json")
    assert results.load(tmp_path / "machine.json") == before


def test_a_file_is_of_one_commit_and_one_set_of_versions(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    found(row("fastsnn-numba", 1.0), row("fastsnn-numba", 5.0, name="scan")).write(path)
    again = found()
    again.start_from(path)
    again.replace([row("fastsnn-numba", 3.0)])
    assert [(r.case["name"], r.seconds) for r in again.rows] == [("scan", [5.0]), ("rate_step", [3.0])]
    for changed in ({"commit": "def"}, {"torch": "2.14.0"}):
        other = found()
        other.environment |= changed
        other.start_from(path)
        assert other.rows == []


def test_ratios_are_taken_round_by_round() -> None:
    own, other = row("fastsnn-numba", 1.0, 2.0, 4.0), row("jax", 3.0, 6.0, 12.0)
    assert results.ratios(other, own) == [3.0, 3.0, 3.0]
    assert results.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)


def test_the_regression_check_goes_by_ratio() -> None:
    floors = {key: floor for key, floor in regression.FLOORS["cpu"].items() if key[0] == "rate_step"}
    rest = {key[0] for key in regression.FLOORS["cpu"]} - {"rate_step"}
    fast = found(row("fastsnn-numba", 1.0), *(row(peer, 2 * floor) for (_, peer), floor in floors.items()))
    assert all(line.split(":")[0] in rest for line in regression.failures(fast))
    slow = found(row("fastsnn-numba", 1.0), *(row(peer, 0.5 * floor) for (_, peer), floor in floors.items()))
    assert sum(line.startswith("rate_step") for line in regression.failures(slow)) == len(floors)
    assert regression.failures(found(kind="cuda")) == []


def test_the_page_tells_what_was_not_timed_and_where_ours_is_behind() -> None:
    own, fast = row("fastsnn-numba", 1.0, 1.0), row("jax", 0.5, 0.5)
    refused = row("snntorch", status="refused", reason="C4 gradient of weight0: 1, allowed 1e-05")
    text = page.text([found(own, fast, refused)])
    assert "- rate_step: jax needs 0.50 times fastsnn's time" in text
    assert "Not timed: snntorch refused: C4 gradient of weight0: 1, allowed 1e-05." in text
    loop = row("spikingjelly-loop", 40.0, 50.0, status="computed", reason="x")
    table = readme.table([found(own, loop, fast)], readme.ENGLISH)
    assert "| 1.00 s | 500 ms, 0.50 x (jax) | ≈ 45.0 s, 45.0 x |" in table
    assert "ahead of every peer" in page.text([found(own, row("jax", 2.0, 2.0))])
    assert any("refused: C4" in line for line in measure.summary(found(own, refused), "rate_step"))


@pytest.mark.parametrize(("seconds", "text"), [(90.04, "90.0 s"), (1.0, "1.00 s"), (0.5, "500 ms"), (2e-6, "2.00 us")])
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert page.time_text(seconds) == text


def test_the_committed_page_is_what_the_committed_results_make() -> None:
    assert report.stale() == []


def test_what_the_results_do_not_make_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import charts

    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "docs" / "benchmarks.md")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    (tmp_path / "docs").mkdir()
    for name in readme.WORDS:
        (tmp_path / name).write_text("\n".join(("# Title", *readme.MARKERS, "more")))
    measured = [
        replace(r, case=r.case | {"name": f"{stem}-{n}", "T": n})
        for stem in ("linear", "rate_step-T")
        for n in (8, 16)
        for r in (row("fastsnn-numba", 1.0, 1.2), row("jax", 4.0, 4.0))
    ]
    found(*measured).write(tmp_path / "machine.json")
    report.write()
    assert report.stale() == []
    drawn = sorted((tmp_path / "docs" / "images").iterdir())
    assert [path.stem.removeprefix("bench-test-9000-2-cores-") for path in drawn] == ["ratios", "time-steps"]

    drawn[0].unlink()
    (tmp_path / "README.md").write_text((tmp_path / "README.md").read_text().replace("fastest", "slowest"))
    assert report.stale() == [tmp_path / "README.md", drawn[0]]
    found(*measured, row("jax", 3.0, name="scan")).write(tmp_path / "machine.json")
    assert set(report.stale()) == {report.PAGE, tmp_path / "README.md", *drawn}
    assert charts.drawn_from(drawn[1]) is not None
