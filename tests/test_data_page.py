"""docs/data.md: its code prints what the page says."""

import re
from pathlib import Path

import pytest
from source_files import REAL

PAGE = Path(__file__).parents[1] / "docs" / "data.md"
BLOCK = re.compile(r"<!-- (runs|needs: \w+) -->\n```python\n(.*?)```\n```text\n(.*?)```", re.DOTALL)


def test_every_block_is_run() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) == text.count("```python") >= 5


@pytest.mark.parametrize(("tag", "code", "printed"), BLOCK.findall(PAGE.read_text(encoding="utf-8")))
def test_a_block_prints_what_the_page_says(
    tag: str,
    code: str,
    printed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    needed = tag.removeprefix("needs: ")
    if tag != "runs":
        if not (REAL / needed).is_dir():
            pytest.skip(f"needs {needed}/ in $FASTSNN_EVENTS, the folder of real recordings")
        (tmp_path / "recordings").symlink_to(REAL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastsnn.sources.registry._OPENERS", dict(__import__("fastsnn").sources.registry._OPENERS))
    exec(compile(code, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == printed
