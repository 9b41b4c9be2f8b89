"""Files of options that nobody should give: refused in one line, or obeyed; never a hang or a traceback."""

from pathlib import Path

import pytest
import yaml
from run_tools import Command, arguments, assert_refused, metrics

FEW = arguments(epochs=1)

BILLION = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(9 * ['*' + before])}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES: dict[str, tuple[str | bytes, int, str]] = {
    "aliases without bound": (BILLION + "hidden: *i\n", 1, "*a: write the value out"),
    "an alias": ("T: &t 4\nepochs: *t\n", 1, "*t: write the value out"),
    "an alias to itself": ("hidden: &h [*h]\n", 1, "*h: write the value out"),
    "a merged alias": ("base: &b {T: 4}\n<<: *b\n", 1, "*b: write the value out"),
    "one byte too large": ("#" * 65_536 + "\n", 1, "it has 65,537 bytes, more than 65,536"),
    "lists in lists": ("hidden: " + "[" * 500 + "]" * 500, 1, "nested more than 10 deep"),
    "mappings in mappings": ("hidden: " + "{a: " * 50 + "1" + "}" * 50, 1, "nested more than 10 deep"),
    "an option twice": ("epochs: 3\nT: 4\nepochs: 5\n", 1, "epochs is given twice"),
    "a number of 5,000 digits": ("T: " + "9" * 5000, 1, "can't be read as YAML"),
    "not UTF-8": (b"name: \xff\xfe\n", 1, "it is no UTF-8 text, by byte 6"),
    "UTF-16": ("epochs: 3".encode("utf-16"), 1, "it is no UTF-8 text, by byte 0"),
    "a zero byte": (b"epochs: 3\0\n", 1, "can't be read as YAML"),
    "an escape": (b"name: a\x1b[2J\n", 1, "can't be read as YAML"),
    "a tag of Python": ("T: !!python/object/apply:os.getpid []", 1, "can't be read as YAML"),
    "a tag of somebody": ("T: !mine 4", 1, "can't be read as YAML"),
    "two documents": ("T: 4\n---\nT: 5\n", 1, "can't be read as YAML"),
    "text alone": ("epochs", 1, "holds no options"),
    "a list": ("- epochs: 3\n", 1, "holds no options"),
    "JSON cut off": ('{"epochs": 3', 1, "can't be read as YAML"),
    "an option of nobody": ("epoch: 3\n", 2, "has the unknown option 'epoch'"),
    "a number for a name": ("3: 4\n", 2, "has the unknown option 3"),
    "yes for a name": ("yes: 4\n", 2, "has the unknown option True"),
    "a list for a name": ("? [a]\n: 4\n", 1, "can't be read as YAML"),
    "no value": ("lr:\n", 2, "lr is None; allowed: a number"),
    "a mapping for a number": ("T: {a: 3}\n", 2, "T is {'a': 3}; allowed: an integer"),
    "text for a number": ("T: many\n", 2, "T is 'many'; allowed: an integer"),
    "a date for a number": ("T: 2001-01-01\n", 2, "allowed: an integer"),
    "infinity": ("lr: .inf\n", 2, "lr is inf"),
    "not a number": ("tau: .nan\n", 2, "tau is nan"),
    "T past all bounds": (
        "T: 10000000000000000000000\n",
        2,
        "T is 10000000000000000000000; allowed: 1 or more, up to 2147483647",
    ),
    "epochs past all bounds": ("epochs: 2147483648\n", 2, "epochs is 2147483648; allowed: 1 or more, up to 2147483647"),
    "batches past all bounds": ("batch_size: 1e30\n", 2, "batch_size is '1e30'; allowed: an integer"),
    "a layer past all bounds": (
        "hidden: [10, 9999999999]\n",
        2,
        "hidden is 9999999999; allowed: 1 or more, up to 2147483",
    ),
    "1,001 layers": (f"hidden: [{', '.join(1001 * ['1'])}]\n", 2, "hidden has 1001 sizes; allowed: 1000 at most"),
    "a layer of text": ("hidden: [ten]\n", 2, "hidden is 'ten'; allowed: an integer"),
    "samples past all bounds": ("train_samples: 99999999999999999999\n", 2, "train_samples is 99999999999999999999"),
    "a name that is a path": ("name: ../elsewhere\n", 2, "name is '../elsewhere'; allowed: a folder name"),
    "overwrite": ("overwrite: true\n", 2, "sets overwrite; give --overwrite on the command line"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_options(case: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, code, said = FILES[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(command("train", "--config", path), code, said, "mine.yaml")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_file_says_where_a_run_is_put(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``name`` and ``out`` are obeyed, also after a byte order mark; the command line stands above them."""
    monkeypatch.chdir(tmp_path)
    options = dict(zip([name[2:].replace("-", "_") for name in FEW[::2]], map(yaml.safe_load, FEW[1::2]), strict=True))
    path = tmp_path / "mine.yaml"
    for place, folder in (({"name": "mine"}, "runs/mine"), ({"out": "there"}, "there")):
        path.write_text(yaml.safe_dump(options | place), encoding="utf-8-sig")
        code, _, stderr = command("train", "--config", path)
        assert (code, stderr) == (0, "")
        assert (tmp_path / folder / "last.pt").exists()
        assert_refused(command("train", "--config", path), 1, "is not empty")
    code, _, stderr = command("train", "--config", path, "--out", "elsewhere")
    assert (code, stderr) == (0, "")
    assert (tmp_path / "elsewhere" / "last.pt").exists()


def test_a_recorded_run_that_was_told_to_go_elsewhere(command: Command, run: Path, tmp_path: Path) -> None:
    """``out`` and ``overwrite`` in a run folder's own file change nothing: a run goes on where it is."""
    with (run / "config.yaml").open("a") as file:
        file.write(f"out: {tmp_path / 'elsewhere'}\noverwrite: true\n")
    code, _, stderr = command("train", "--resume", run, "--epochs", 3)
    assert (code, stderr) == (0, "")
    assert len(metrics(run)) == 3
    assert not (tmp_path / "elsewhere").exists()
