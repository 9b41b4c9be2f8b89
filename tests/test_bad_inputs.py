"""Files and names that nobody should give: refused in one line, or obeyed; never a hang or a traceback."""

import os
import shutil
import subprocess
import sys
import xml.dom.minidom
from pathlib import Path
from typing import Any

import pytest
from run_tools import Command, arguments, assert_refused

import fastsnn
from fastsnn import checkpoint
from fastsnn.config import Config
from fastsnn.errors import DataUnavailable, RunFolderError
from fastsnn.files import check_regular
from fastsnn.sources import images as data
from fastsnn.sources import mnist
from fastsnn.text import printable, shell

FEW = arguments(epochs=1)


def make(kind: str, path: Path) -> str:
    """Put what is no file at ``path``; returns what it is called."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path)
        return "Too many levels of symbolic links"
    return f"it is a {kind}, not a file"


KINDS = ["pipe", "folder", "device", "loop"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["--config", "config.yaml", "last.pt", "raw"])
def test_what_is_no_file(kind: str, file: str, command: Command, run: Path, tmp_path: Path) -> None:
    """A pipe and a device would be read for ever."""
    if file == "--config":
        said = make(kind, tmp_path / "mine.yaml")
        assert_refused(command("train", "--config", tmp_path / "mine.yaml"), 1, "mine.yaml", said)
    elif file == "config.yaml":
        make(kind, run / file)
        for call in ("eval", "plot", "report"):
            assert_refused(command(call, run), 1, f"{run} is not a run folder: it has no config.yaml")
    elif file == "last.pt":
        said = make(kind, run / file)
        for call in (["eval"], ["plot"], ["report"], ["train", "--resume"]):
            result = command(*call, run)
            assert_refused(result, 1, *(["last.pt", said] if kind != "loop" else ["last.pt is missing"]))
            if kind == "loop":
                break
    else:
        raw = tmp_path / "data" / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name in mnist.HEADERS:
            (raw / name).touch()
        said = make(kind, raw / "train-images-idx3-ubyte")
        if kind == "loop":
            said = "could not be downloaded"  # it counts as absent
        result = command("train", "--dataset", "mnist", "--data-dir", tmp_path / "data", "--out", tmp_path / "new")
        assert result[0] == 1
        assert said in result[2]
        assert result[2].count("\n") == 1
        assert not (tmp_path / "new").exists()


def test_an_output_that_is_no_file_is_not_replaced(
    command: Command, run: Path, tmp_path: Path, no_figures: None
) -> None:
    """A file renamed over /dev/null would take its place."""
    for kind in ("pipe", "device"):
        path = tmp_path / kind
        said = make(kind, path)
        assert_refused(command("report", run, "--out", path), 1, f"can't write {path}: {said}")
        assert not path.is_file()
    pipe = run / ".last.pt.tmp"
    os.mkfifo(pipe)
    code, _, stderr = command("train", "--resume", run, "--epochs", 3)
    assert (code, stderr) == (0, "")
    assert not pipe.exists()


def test_what_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10))
    check_regular(tmp_path / "file", 10)
    (tmp_path / "link").symlink_to("file")
    check_regular(tmp_path / "link")
    with pytest.raises(FileNotFoundError):
        check_regular(tmp_path / "none")
    with pytest.raises(OSError, match="it has 10 bytes, more than 9"):
        check_regular(tmp_path / "file", 9)
    with pytest.raises(RunFolderError, match="does not exist"):
        checkpoint.load(tmp_path / "none")


NAMES = {
    "bytes that are no UTF-8": b"\xff\xfe\xe9",
    "a newline": b"a\nb",
    "a tab": b"a\tb",
    "an escape sequence": b"esc\x1b[31mred",
    "control characters": b"\x01\x7f\x02",
    "a C1 control": "a\x9bb".encode(),
    "quotes and markup": b'it\'s "q" <b>&amp; $x$ [red]{0}%s\\',
    "another script": "é漢🙂".encode(),
    "right to left": "\u202egnp.exe".encode(),
    "a dash first": b"-rf",
    "blanks": b"  two  ",
    "255 bytes": b"n" * 255,
}


@pytest.mark.parametrize("case", NAMES)
def test_a_run_folder_of_any_name(case: str, command: Command, run: Path, tmp_path: Path, no_figures: None) -> None:
    """Train makes it or refuses it in one line; eval, plot, report and resume work on it."""
    name = os.fsdecode(NAMES[case])
    made = tmp_path / "made" / name
    result = command("train", *FEW, "--out", made)
    if any(byte < 32 or byte == 127 for byte in NAMES[case]) or {"\x9b", "\udcff"} & {*name}:
        assert_refused(result, 2, f"out is '{printable(str(made))}'; allowed: UTF-8 without control characters")
        assert not made.exists()
    else:
        assert (result[0], result[2]) == (0, "")
        assert (made / "last.pt").exists()
        assert_shown(result[1])
    given = tmp_path / name
    run.rename(given)
    for call in (["eval"], ["eval", "--json"], ["plot", "--what", "curves", "--format", "svg"], ["report"]):
        code, stdout, stderr = command(call[0], given, *call[1:])
        assert (code, stderr) == (0, ""), call
        assert_shown(stdout)
    drawn = xml.dom.minidom.parse(os.fspath(shutil.copy(given / "plots" / "curves.svg", tmp_path / "c.svg")))
    assert drawn.documentElement.tagName == "svg"
    page = (given / "report.html").read_text(encoding="utf-8")
    assert "<title>" in page
    assert "<b>&amp;" not in page
    code, stdout, stderr = command("train", "--resume", given, "--epochs", 3)
    assert_shown(stdout)
    assert (code, stderr) == (0, "")


def assert_shown(text: str) -> None:
    """Nothing in it that a terminal obeys; every path on one line."""
    assert not {character for character in text if character != "\n" and printable(character) != character}
    text.encode("utf-8")


def test_names_as_text() -> None:
    assert printable("a\x1b\n\t\udcff\u202e é漢'\"") == "a\\x1b\\x0a\\x09\\xff\\u202e é漢'\""
    assert printable("a\nb", keep="\n") == "a\nb"
    assert shell("runs/x") == "runs/x"
    assert shell("my run") == "'my run'"
    words = " ".join(shell(os.fsdecode(name)) for name in NAMES.values())
    echoed = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, check=True).stdout
    assert echoed.split(b"\0")[:-1] == list(NAMES.values())


def test_a_terminal_that_writes_ascii(tmp_path: Path, server: Any) -> None:
    child = server.start(tmp_path, "train", *FEW, "--out", tmp_path / "é漢", encoding="ascii")
    assert child.wait() == 0, child.stderr()
    assert "\\xe9\\u6f22" in child.stdout()


def no_network(*_: Any, **__: Any) -> Any:
    raise OSError("Network is unreachable")


@pytest.mark.parametrize("existing", ["", "data", "data/MNIST/raw"])
@pytest.mark.parametrize("partial", [False, True])
def test_a_failed_download_leaves_nothing(
    existing: str, partial: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    (tmp_path / existing).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))

    def dataset(root: Path, download: bool) -> None:
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        if partial:
            (raw / "train-images-idx3-ubyte.gz").write_bytes(bytes(10))
            (raw / "train-labels-idx1-ubyte").write_bytes(bytes(10))
        no_network()

    monkeypatch.setattr(mnist, "torchvision_class", lambda name: dataset)
    with pytest.raises(DataUnavailable, match="Network is unreachable"):
        data.load("mnist", folder)
    assert data.load("auto", folder).name == "digits"
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_downloaded_whole_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset(root: Path, download: bool) -> None:
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name in ("t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
            (raw / name).write_bytes(bytes(10_008))
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist, "torchvision_class", lambda name: dataset)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist", tmp_path)
    left = sorted(path.name for path in (tmp_path / "MNIST" / "raw").iterdir())
    assert left == ["t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte.gz"]


def test_a_run_that_never_began_leaves_no_folders(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mnist, "torchvision_class", lambda name: no_network)
    for place in (["--name", "x"], ["--out", "a/b/c"], []):
        code, _, stderr = command("train", "--dataset", "mnist", "--data-dir", "none", *place)
        assert (code, stderr.count("\n")) == (1, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asked", [["--help"], ["train", "--help"], ["--version"], []])
def test_help_of_which_nobody_reads_more(asked: list[str], tmp_path: Path, server: Any) -> None:
    """`fastsnn --help | head`."""
    child = server.start(tmp_path, *asked, closed=True)
    assert (child.wait(), child.stderr()) == (0, "")


def test_options_that_python_callers_give() -> None:
    for name, value, shown in (("name", "a\nb", r"a\\x0ab"), ("out", Path("a\x1bb"), r"a\\x1bb")):
        with pytest.raises(ValueError, match=f"^{name} is '{shown}'; allowed: UTF-8 without control characters$"):
            fastsnn.train(Config(dataset="digits", **{name: value}))
    assert Config(name="\udcff").name == "\udcff"
    assert fastsnn.Config(seed=2**64 - 1).seed == 2**64 - 1
    assert sys.getfilesystemencoding() == "utf-8"
