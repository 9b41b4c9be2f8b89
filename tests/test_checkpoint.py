"""fastsnn.checkpoint: files are written whole or not at all, and nothing damaged, foreign or malicious is believed."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tools import Command, assert_same, assert_same_end, small

import fastsnn
from fastsnn import checkpoint
from fastsnn.errors import RunFolderError

CONTENT = {
    "model": {"weight": torch.randn(3, 2), "empty": torch.zeros(0), "half": torch.ones(2, dtype=torch.bfloat16)},
    "numbers": [1, 2.5, float("nan"), None, True, "text"],
    "flags": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.write_atomically(path, checkpoint.pack(CONTENT))
    found = checkpoint.load(path)
    assert_same({**found, "numbers": str(found["numbers"])}, {**CONTENT, "numbers": str(CONTENT["numbers"])})
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["last.pt"]


def changed(content: dict[str, Any], *path: Any, to: Any) -> None:
    for name in path[:-1]:
        content = content[name]
    content[path[-1]] = to


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("model", "weight"), torch.zeros(3, 2)),
        (("model", "weight"), CONTENT["model"]["weight"].T),
        (("model", "half"), torch.ones(2, dtype=torch.float16)),
        (("numbers", 0), 1.0),
        (("numbers", 5), "texts"),
        (("flags",), torch.tensor([True, True])),
    ],
)
def test_the_digest_covers_every_value(path: tuple[Any, ...], to: Any, tmp_path: Path) -> None:
    other = pickle.loads(pickle.dumps(CONTENT))
    assert checkpoint._digest(other) == checkpoint._digest(CONTENT)
    changed(other, *path, to=to)
    assert checkpoint._digest(other) != checkpoint._digest(CONTENT)
    torch.save({"format": checkpoint.FORMAT, "digest": checkpoint._digest(CONTENT), **other}, tmp_path / "last.pt")
    with pytest.raises(RunFolderError, match="its digest is wrong"):
        checkpoint.load(tmp_path / "last.pt")


def test_a_newer_format_says_what_to_do(run: Path, command: Command) -> None:
    content = torch.load(run / "last.pt", weights_only=True)
    torch.save(content | {"format": checkpoint.FORMAT + 1}, run / "last.pt")
    code, _, stderr = command("train", "--resume", run)
    assert code == 1
    assert stderr.count("\n") == 1
    assert f"{run / 'last.pt'}" in stderr
    assert "is newer than this fastsnn's 1: upgrade fastsnn" in stderr


@pytest.mark.parametrize("content", [[1, 2], {"format": "1"}, {"model": {}}, torch.zeros(2), 3], ids=str)
def test_a_file_of_something_else(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(RunFolderError, match=r"last\.pt is not a checkpoint that can be read: it holds something else"):
        checkpoint.load(tmp_path / "last.pt")


def test_best_stands_in_for_a_damaged_last(run: Path, tmp_path: Path) -> None:
    last, best = run / "last.pt", run / "best.pt"
    last.write_bytes(last.read_bytes()[:900])
    epoch = len(checkpoint.load(best)["history"])
    with pytest.raises(
        RunFolderError, match=rf"last\.pt is not .*; best\.pt beside it is sound: .*from epoch {epoch}$"
    ):
        fastsnn.train(resume=run)
    shutil.copyfile(best, last)
    fastsnn.train(small(run, epochs=3), resume=run)
    fastsnn.train(small(tmp_path / "whole", epochs=3))
    assert_same_end(run, tmp_path / "whole")
    for path in (last, best):
        path.write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"last\.pt is not a checkpoint that can be read: [^;]*$"):
        fastsnn.evaluate(run)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"does not exist; is .* a run folder"):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hidden": (6,)}, r"hidden is \[6\] in the one and \[\] in the other"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd' in the one and 'adam' in the other"),
        ({"seed": 5}, "seed is 5 in the one and 0 in the other"),
    ],
)
def test_a_checkpoint_of_another_run(options: dict[str, Any], said: str, run: Path, tmp_path: Path) -> None:
    other = fastsnn.train(small(tmp_path / "other", epochs=1, **options)).run
    shutil.copyfile(other / "last.pt", run / "last.pt")
    for open_run in (lambda: fastsnn.train(resume=run), lambda: fastsnn.evaluate(run)):
        with pytest.raises(RunFolderError, match=f"is of another run than config.yaml beside it: {said}"):
            open_run()


def test_a_checkpoint_of_another_network_with_the_same_options(run: Path) -> None:
    state = checkpoint.load(run / "last.pt")
    state["model"]["0.weight"] = torch.zeros(10, 784)
    (run / "last.pt").write_bytes(checkpoint.pack(state))
    with pytest.raises(RunFolderError, match=r"is of another network: .*0\.weight"):
        fastsnn.evaluate(run)
    (run / "last.pt").write_bytes(checkpoint.pack({"model": state["model"]}))
    with pytest.raises(RunFolderError, match=r"last\.pt is not a checkpoint of a run"):
        fastsnn.evaluate(run)


def test_an_edited_config_is_noticed(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("tau: 2.0", "tau: 2.5"))
    with pytest.raises(RunFolderError, match=r"tau is 2\.0 in the one and 2\.5 in the other"):
        fastsnn.train(resume=run)


# Nothing that is code may run when a file is read.


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def poisoned(kind: str, run: Path, canary: Path) -> None:
    """Replace last.pt by an attack of some kind."""
    path = run / "last.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Malicious(canary)))
    elif kind == "torch.save":
        torch.save(checkpoint.load(path) | {"format": 1, "extra": Malicious(canary)}, path)
    elif kind == "legacy torch.save":
        torch.save({"format": 1, "extra": Malicious(canary)}, path, _use_new_zipfile_serialization=False)
    elif kind == "pickle inside the archive":
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, pickle.dumps(Malicious(canary)) if name.endswith("data.pkl") else part)
    elif kind == "TorchScript":
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in (parts | {f"{next(iter(parts)).partition('/')[0]}/constants.pkl": b""}).items():
                archive.writestr(name, part)
    elif kind == "YAML":
        (run / "config.yaml").write_text(f"lr: !!python/object/apply:os.mkdir ['{canary}']\n")


@pytest.mark.parametrize(
    "kind", ["pickle", "torch.save", "legacy torch.save", "pickle inside the archive", "TorchScript", "YAML"]
)
def test_nothing_in_a_file_is_executed(kind: str, run: Path, tmp_path: Path, command: Command) -> None:
    canary = tmp_path / "canary"
    poisoned(kind, run, canary)
    for arguments in (["eval", run], ["train", "--resume", run, "--epochs", "9"]):
        code, _, stderr = command(*arguments)
        assert code == 1
        assert stderr.count("\n") == 1
        assert str(run) in stderr
        assert not canary.exists()
    if kind == "pickle":
        pickle.loads((run / "last.pt").read_bytes())
        assert canary.exists(), "the attack works where it is let"
