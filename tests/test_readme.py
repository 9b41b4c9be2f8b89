"""The README's and the tutorial's code runs, their translations are in step, and the API page is the docstrings'."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from PIL import Image
from run_tools import Command
from source_files import REAL, needs_real

from fastsnn.records import read_record

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?:<!-- ([^>]+?) -->\s*)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NOT_RUN = ("command: ", "needs: ", "numbers: ")


def blocks(name: str) -> list[tuple[str, str, str]]:
    """(tag, language, code) of every code block."""
    return BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))


def test_every_block_runs_or_says_what_it_needs() -> None:
    tags = [tag for tag, _, _ in blocks("README.md")]
    assert tags.count("command: train") == tags.count("command: test") == 1
    for tag, language, code in blocks("README.md"):
        assert tag == "runs" or tag == "output" or tag.startswith(NOT_RUN), f"untagged block ({language}): {code}"


def python_blocks(name: str = "README.md") -> list[tuple[str, str | None]]:
    """Code, and what the block after it says that it prints."""
    found = blocks(name)
    following = [code if tag == "output" else None for tag, _, code in found[1:]] + [None]
    return [
        (code, output)
        for (tag, language, code), output in zip(found, following, strict=True)
        if (tag, language) == ("runs", "python")
    ]


@pytest.mark.parametrize(("code", "output"), [*python_blocks(), *python_blocks("docs/tutorial.md")])
def test_python_blocks_run(
    code: str,
    output: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "block.py"
    script.write_text(code, encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert output is None or printed == output


def test_a_block_says_what_it_prints() -> None:
    assert any(output for _, output in python_blocks())


def test_commands_run(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [code for tag, language, code in blocks("README.md") if (tag, language) == ("runs", "bash")]
    lines = [line for code in codes for line in code.splitlines() if line]
    assert len(lines) >= 5
    monkeypatch.chdir(tmp_path)
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "fastsnn", line
        code, stdout, stderr = command(*arguments)
        assert code == 0, f"{line}\n{stdout}{stderr}"


@pytest.mark.parametrize("needs", ["runs", pytest.param("needs: qtdb", marks=needs_real("qtdb"))])
def test_the_tutorials_commands_run(
    needs: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "recordings").symlink_to(REAL)
    monkeypatch.chdir(tmp_path)
    codes = [code for tag, language, code in blocks("docs/tutorial.md") if (tag, language) == (needs, "bash")]
    assert codes
    for line in "".join(codes).splitlines():
        short = ["--epochs", "1", "--train-samples", "64"] if "--config" in line else []
        code, stdout, stderr = command(*shlex.split(line)[1:], *short)
        assert code == 0, f"{line}\n{stdout}{stderr}"


@pytest.mark.parametrize(
    ("original", "translation"), [("README.md", "README_cn.md"), ("docs/tutorial.md", "docs/tutorial_cn.md")]
)
def test_the_translation_is_in_step(original: str, translation: str) -> None:
    def structure(name: str) -> tuple[list[str], list[str]]:
        text = (ROOT / name).read_text(encoding="utf-8")
        prose = BLOCK.sub("", text)
        return re.findall(r"^#+(?= )", prose, re.MULTILINE), [code for _, _, code in blocks(name)]

    assert structure(original) == structure(translation)


def test_the_api_page_is_current() -> None:
    module = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    assert module["PAGE"].read_text(encoding="utf-8") == module["page"](), "run `python docs/make_api.py`"


PAGES = [page.relative_to(ROOT).as_posix() for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", prose):
        linked = page.parent / target if target else page
        assert linked.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{name} links to {target}#{anchor}"


def anchors(page: Path) -> list[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_picture_is_of_a_run_with_the_accuracy_that_is_told() -> None:
    told = re.findall(r"(\d\d\.\d\d) %", (ROOT / "README.md").read_text(encoding="utf-8"))
    picture = Image.open(ROOT / "docs" / "images" / "summary.png")
    assert picture.text["Title"] == f"mnist: test accuracy {told[0]}% after epoch 20"
    assert (ROOT / "docs" / "images" / "summary.png").stat().st_size < 400_000


def test_the_numbers_are_those_of_the_kept_runs(tmp_path: Path, command: Command) -> None:
    results = ROOT / "bench" / "results"
    mnist, digits = (read_record(results / name).epochs for name in ("mnist-20-epochs", "digits-60-epochs"))
    late = [100 * (epoch["test_accuracy"] or 0) for epoch in mnist[15:20]]
    last = digits[-1]
    said = [
        f"{sum(late) / 5:.2f} %",
        f"`epoch 60: test loss {last['test_loss']:.5f}, test accuracy {100 * (last['test_accuracy'] or 0):.2f}%`",
    ]
    code, table, error = command("compare", str(results / "digits-sweep"), "--out", str(tmp_path / "accuracy.png"))
    assert code == 0, error
    (sweep,) = (code for tag, _, code in blocks("README.md") if tag == "numbers: sweep")
    assert [line.split() for line in table.splitlines()[:4]] == [line.split() for line in sweep.splitlines()[:4]]
    for page in ("README.md", "README_cn.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert [number for number in said if number not in text] == [], page
