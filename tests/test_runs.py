"""fastsnn.runs: what a run's folder holds, and which folders are refused."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from run_tools import Command, assert_refused, assert_same_run, metrics, small

import fastsnn
from fastsnn import checkpoint
from fastsnn.errors import RunFolderError
from fastsnn.training.loop import TrainingLoop
from fastsnn.training.process_group import ProcessGroup
from fastsnn.training.run_folder import Run


def test_files_of_a_run(run: Path) -> None:
    names = sorted(path.name for path in run.iterdir() if path.suffix != ".0" and not path.name.startswith("events"))
    assert names == [".lock", "best.pt", "config.yaml", "last.pt", "metrics.csv"]
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    header, *lines = (run / "metrics.csv").read_text().splitlines()
    assert header == (
        "epoch,train_loss,train_accuracy,test_loss,test_accuracy,train_seconds,test_seconds,samples_per_second,"
        "firing_rate_1"
    )
    assert [line.count(",") for line in lines] == [8, 8]
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert recorded["environment"]["torch"] == str(torch.__version__)
    assert (recorded["backend"], recorded["device"], recorded["threads"]) == ("torch", "cpu", 1)
    assert not {"out", "name", "overwrite"} & recorded.keys()


def test_tensorboard_shows_what_metrics_holds(run: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (file,) = run.glob("events.out.tfevents.*")
    seen = {
        (event.step, value.tag): value.tensor.float_val[0]
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    }
    expected = {
        (int(row["epoch"]), name.replace("_", "/", 1)): float(row[name])
        for row in metrics(run)
        for name in row.keys() - {"epoch"}
    }
    assert expected.keys() == {key for key in seen if not key[1].endswith(("seconds", "per_second"))}
    assert all(seen[key] == pytest.approx(value, rel=1e-6) for key, value in expected.items())


def test_best_is_the_last_of_the_best_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.1, 0.5, 0.5, 0.2])
    monkeypatch.setattr(TrainingLoop, "evaluate", lambda *_: (0.1, next(accuracies), 0.0))
    fastsnn.train(small(tmp_path / "run", epochs=4))
    assert [len(checkpoint.load(tmp_path / "run" / name)["history"]) for name in ("best.pt", "last.pt")] == [3, 4]


def test_a_config_of_a_run_starts_another_and_leaves_the_first_alone(
    run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "last.pt").read_bytes()
    monkeypatch.chdir(tmp_path)
    code, _, _ = command("train", "--config", run / "config.yaml", "--name", "again")
    assert code == 0
    assert (run / "last.pt").read_bytes() == before
    assert_same_run(tmp_path / "runs" / "again", run)


def test_a_non_empty_folder_is_refused_and_overwrite_replaces_it(run: Path, tmp_path: Path) -> None:
    (run / "notes.txt").write_text("mine")
    (run / "plots").mkdir()
    for drawn in ("plots/curves.png", "plots/raster.pdf", "report.html"):
        (run / drawn).write_text("of the old run")
    with pytest.raises(RunFolderError, match=rf"{run} is not empty: .*--resume {run}.*--overwrite.*--out"):
        fastsnn.train(small(run))
    fastsnn.train(small(run, epochs=1, seed=3, overwrite=True))
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "plots").exists()
    assert not (run / "report.html").exists()
    assert len(list(run.glob("events*"))) == 1
    fastsnn.train(small(tmp_path / "new", epochs=1, seed=3))
    assert_same_run(run, tmp_path / "new")


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastsnn.training.run_folder.time.strftime", lambda _: "now")
    paths = [Run.create(fastsnn.Config(), "digits").path for _ in range(3)]
    assert [path.name for path in paths] == ["digits-now", "digits-now-2", "digits-now-3"]
    assert Run.create(fastsnn.Config(name="mine"), "a").path == Run.create(fastsnn.Config(name="mine"), "b").path


def test_what_a_killed_start_left_is_no_content(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.tmp").write_text("half")
    (tmp_path / ".lock").touch()
    fastsnn.train(small(tmp_path, epochs=1))
    assert not (tmp_path / ".config.yaml.tmp").exists()


@pytest.mark.parametrize("name", ["", "config.yaml"])
def test_a_folder_that_is_no_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder: it has no config\.yaml"):
        fastsnn.train(resume=tmp_path / name)
    with pytest.raises(RunFolderError, match="is not a run folder"):
        fastsnn.evaluate(tmp_path / name)


def test_a_run_without_a_checkpoint(run: Path, tmp_path: Path) -> None:
    """eval has nothing to look at; resume starts from the beginning."""
    (run / "last.pt").unlink()
    (run / "best.pt").unlink()
    with pytest.raises(RunFolderError, match="has no checkpoint yet"):
        fastsnn.evaluate(run)
    fastsnn.train(resume=run)
    fastsnn.train(small(tmp_path / "new", epochs=2))
    assert_same_run(run, tmp_path / "new")


@pytest.mark.parametrize("said", ["name is other", "out is elsewhere", "overwrite is true"])
def test_resume_refuses_what_would_put_a_run_elsewhere(said: str, run: Path, command: Command) -> None:
    option, value = said.split(" is ")
    given = [f"--{option}", *([value] if value != "true" else [])]
    assert_refused(command("train", "--resume", run, *given), 2, said)
    code, _, _ = command("train", "--resume", run, "--out", run, "--name", run.name)
    assert code == 0


def test_a_run_that_has_lost_its_last_checkpoint_says_so(run: Path, command: Command) -> None:
    (run / "last.pt").unlink()
    assert_refused(command("train", "--resume", run), 1, "last.pt is missing", "best.pt beside it is sound")
    code, stdout, _ = command("eval", run, "--checkpoint", "best")
    assert (code, stdout[:6]) == (0, "epoch ")
    shutil.copy(run / "best.pt", run / "last.pt")
    code, _, _ = command("train", "--resume", run, "--epochs", 3)
    assert (code, len(metrics(run))) == (0, 3)


def test_the_group_is_left_however_a_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that still had gloo's threads when Python ends could abort."""
    left = []
    monkeypatch.setattr(ProcessGroup, "leave", lambda self: left.append(self))
    with pytest.raises(ValueError, match="amp is bf16"):
        fastsnn.train(small(tmp_path / "run", amp="bf16"))
    assert len(left) == 1
    monkeypatch.setattr("fastsnn.training.command.open_source", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fastsnn.train(small(tmp_path / "run"))
    assert len(left) == 2
