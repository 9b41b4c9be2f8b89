"""``fastsnn runs``, ``compare``, ``train --sweep``, and ``latest`` in a run's place."""

import json
import os
from pathlib import Path
from statistics import mean, stdev

import pytest
from PIL import Image
from run_tools import Command, arguments, assert_refused, metrics, small

import fastsnn
from fastsnn.errors import Interrupted
from fastsnn.records import named_run, read_record

SWEEP = ("--sweep", "tau=1.5,2", "seed=0,1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_trains_every_combination_and_compares_them(folder: Path, command: Command) -> None:
    code, stdout, stderr = command("train", *arguments(epochs=1), *SWEEP, "--name", "tau")
    assert (code, stderr) == (0, "")
    names = [f"tau={tau},seed={seed}" for tau in ("1.5", "2") for seed in (0, 1)]
    assert sorted(path.name for path in Path("runs/tau").iterdir()) == sorted([*names, "compare.png"])
    accuracies = [float(metrics(Path("runs/tau") / name)[-1]["test_accuracy"]) for name in names]
    *_, head, first, second, chart = stdout.splitlines()
    assert head.split() == ["tau", "seeds", "test", "accuracy", "deviation"]
    for line, tau, found in ((first, "1.5", accuracies[:2]), (second, "2.0", accuracies[2:])):
        assert line.split() == [tau, "2", f"{mean(found):.2%}", f"{stdev(found):.2%}"]
    assert chart == "runs/tau/compare.png"
    with Image.open(chart) as image:
        assert image.size[0] > 500
    fastsnn.train(small(folder / "alone", epochs=1, tau=1.5, seed=1))
    assert metrics(folder / "alone") == metrics(Path("runs/tau/tau=1.5,seed=1"))
    code, stdout, _ = command("compare", "runs/tau", "--json")
    rows = [json.loads(line) for line in stdout.splitlines()]
    assert [(row["options"], row["seeds"]) for row in rows] == [({"tau": tau}, [0, 1]) for tau in (1.5, 2.0)]
    assert rows[0]["mean"] == pytest.approx(mean(accuracies[:2]))


def test_a_sweep_that_was_stopped_goes_on(folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    train, calls = fastsnn.train, []

    def stopped(*given: object, **options: object) -> object:
        calls.append(options["resume"])
        if len(calls) == 2:
            raise Interrupted("by the test", 2)
        return train(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fastsnn, "train", stopped, raising=False)
    line = ("train", *arguments(epochs=1), "--sweep", "T=2,3,4", "--out", "sweep")
    code, _, stderr = command(*line)
    assert (code, stderr) == (130, "stopped in run 2 of 3 and saved; the same line with --out sweep goes on\n")
    written = Path("sweep/T=2/last.pt").stat().st_mtime_ns
    code, stdout, _ = command(*line)
    assert code == 0
    assert "all 1 epochs are done" in stdout
    assert Path("sweep/T=2/last.pt").stat().st_mtime_ns == written
    assert calls == [None, None, Path("sweep/T=2"), None, None]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["tua=1,2"], "sweep has the option 'tua' (did you mean tau?)"),
        (["tau"], "sweep is 'tau'; allowed: NAME=VALUE,VALUE"),
        (["tau=2,"], "sweep is 'tau=2,'"),
        (["tau=2,2"], "the combination tau=2 twice"),
        (["tau=2", "tau=3"], "sweep has tau twice"),
        (["tau=2,0.5"], "tau is 0.5; allowed: more than 1"),
        (["out=a,b"], "sweep has the option 'out'"),
        (["epochs=1,x"], "epochs is 'x'; allowed: an integer"),
        (["tau=2", "--plot"], "--sweep and --plot exclude each other"),
    ],
)
def test_a_sweep_is_refused_before_anything_runs(texts: list[str], said: str, folder: Path, command: Command) -> None:
    assert_refused(command("train", *arguments(), "--sweep", *texts), 2, said)
    assert not list(folder.iterdir())


def test_lists_are_swept_with_semicolons(folder: Path, command: Command) -> None:
    code, stdout, _ = command("train", *arguments(epochs=1), "--sweep", "hidden=6;6,5", "--name", "h")
    assert code == 0
    assert [line.split()[0] for line in stdout.splitlines()[-3:-1]] == ["6", "6,5"]


def test_runs_lists_the_newest_first_and_latest_is_that_one(folder: Path, command: Command) -> None:
    assert command("runs")[1] == "no runs in runs; fastsnn train makes one\n"
    assert_refused(command("eval", "latest"), 2, "there is no run in", "allowed: the path of a run folder")
    for name in ("old", "new"):
        fastsnn.train(small(folder / "runs" / name, epochs=1))
    for file in (folder / "runs" / "old").iterdir():
        os.utime(file, (1e9, 1e9))
    (folder / "runs" / "damaged").mkdir()
    (folder / "runs" / "damaged" / "config.yaml").write_text("- no")
    code, stdout, _ = command("runs")
    head, first, second = stdout.splitlines()
    assert code == 0
    assert head.split()[:3] == ["run", "data", "network"]
    accuracy = f"{float(metrics(folder / 'runs' / 'new')[-1]['test_accuracy']):.2%}"
    assert first.split()[:5] == ["runs/new", "digits", "lif", "1/1", accuracy]
    assert second.startswith("runs/old")
    rows = [json.loads(line) for line in command("runs", "--json")[1].splitlines()]
    assert [row["run"] for row in rows] == ["runs/new", "runs/old"]
    assert named_run("latest") == Path("runs/new")
    assert json.loads(command("eval", "latest", "--json")[1])["run"] == "runs/new"
    code, _, _ = command("train", "--resume", "latest", "--epochs", 2)
    assert (code, len(metrics(folder / "runs" / "new"))) == (0, 2)


def test_the_accuracy_that_is_compared_was_not_chosen_on_the_test_set(tmp_path: Path) -> None:
    chosen = fastsnn.train(small(tmp_path / "chosen", validation=0.3))
    last = fastsnn.train(small(tmp_path / "last"))
    assert read_record(chosen.run).test_accuracy == chosen.best.test_accuracy
    assert read_record(last.run).test_accuracy == last.epochs[-1].test_accuracy


def test_what_can_not_be_compared(folder: Path, command: Command) -> None:
    assert_refused(command("compare"), 2, "runs is empty")
    Path("empty").mkdir()
    assert_refused(command("compare", "empty"), 1, "empty is not a run folder")
