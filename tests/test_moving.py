"""docs/moving.md: its code runs, and what it asserts of other packages holds."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "moving.md"
BLOCK = re.compile(r"<!-- runs -->\n```python\n(.*?)```", re.DOTALL)
CODES = BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def test_every_block_is_run() -> None:
    assert len(CODES) == PAGE.read_text(encoding="utf-8").count("```python") >= 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("code", CODES, ids=re.findall(r"^## (\w+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
def test_a_block_holds(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {})
