"""recipes/*.yaml: each trains as docs/recipes.md says, one to its number, and the page has what was measured."""

from pathlib import Path

import numpy as np
import pytest
from run_tools import Command
from source_files import REAL, needs_real, write_hdf5

from bench import recipes
from fastsnn.records import read_record

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "qtdb": "qtdb",
    "braille": "braille",
    "nmnist-1000": "NMNIST",
    "japanese-vowels": "JapaneseVowels",
    "fsdd": "fsdd",
}
"""Recipe -> its data in the folder of real recordings; the others are of MNIST, and SHD, which is made here."""


def marks(name: str) -> list[pytest.MarkDecorator]:
    if name in FOLDERS:
        return [needs_real(FOLDERS[name])]
    return [] if name == "shd" else [pytest.mark.mnist]


def test_every_recipe_is_on_the_page() -> None:
    files = {path.stem for path in (ROOT / "recipes").glob("*.yaml")} - {"published"}
    assert files == set(recipes.names())


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in recipes.names()])
def test_recipes_train(name: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--data-dir", str(REAL)] if name in FOLDERS else []
    if name == "shd":
        rng = np.random.default_rng(0)
        for part, count in (("train", 60), ("test", 20)):
            spikes = [(np.sort(rng.random(500)), rng.integers(0, 700, 500)) for _ in range(count)]
            write_hdf5(tmp_path / f"shd_{part}.h5", spikes, np.arange(count) % 20)
        arguments = ["--data-dir", str(tmp_path)]
    arguments += [
        "--train-samples",
        "40",
        "--test-samples",
        "8",
        "--batch-size",
        "8",
        "--epochs",
        "1",
        "--threads",
        "1",
    ]
    monkeypatch.chdir(ROOT)
    code, output, error = command(*recipes.command(name).split()[1:], *arguments, "--out", str(tmp_path / "run"))
    assert code == 0, output + error
    assert "test of epoch 1" in output
    assert read_record(tmp_path / "run").test_accuracy is not None


@needs_real("JapaneseVowels")
def test_a_recipe_reaches_its_number(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, output, error = command(
        *recipes.command("japanese-vowels").split()[1:], "--data-dir", str(REAL), "--out", str(tmp_path / "run")
    )
    assert code == 0, output + error
    measured = [run.test_accuracy or 0.0 for run in recipes.records("japanese-vowels")]
    assert len(measured) == 5
    assert (read_record(tmp_path / "run").test_accuracy or 0.0) >= min(measured) - 0.005


def test_the_page_has_what_was_measured() -> None:
    page = recipes.PAGE.read_text(encoding="utf-8")
    assert recipes.table() in page, "run `python -m bench.recipes --page`"
