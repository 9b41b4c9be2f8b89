"""examples/from_scratch.py: forty lines that learn."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "from_scratch.py"


def test_the_example_learns_digits(capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = runpy.run_path(str(EXAMPLE))["main"]("digits", "5")
    assert accuracy > 0.7  # 0.76 with its seed, 0.1 by chance
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"epoch {epoch}" for epoch in range(1, 6)]
    assert lines[-1].endswith(f" {accuracy:.2%}")


def test_it_is_as_short_as_the_readme_says() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40
