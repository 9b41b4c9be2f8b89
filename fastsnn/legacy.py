"""Scripts and notebooks that import SpikingJelly's layout from before 0.0.0.0.14."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

MOST_FILES, MOST_BYTES, MOST_DEPTH = 5_000, 4 << 20, 8
"""How far a folder is searched; somebody may ask in their home folder."""

_IMPORTS = re.compile(r"^\s*(from|import)\s+spikingjelly(\.|\s+import\s.*\b)clock_driven\b", re.MULTILINE)
_ENVIRONMENTS = ("site-packages", "node_modules", "__pycache__")


def clock_driven_files(folder: Path) -> tuple[Path, ...]:
    """Python files and notebooks in ``folder`` and below that import ``spikingjelly.clock_driven``, relative to it.

    Hidden folders, virtual environments and what lies deeper than eight folders are left out, links to folders too.
    """
    return tuple(path.relative_to(folder) for path in _candidates(folder) if _IMPORTS.search(_code(path)))


def _candidates(folder: Path) -> Iterator[Path]:
    seen = 0
    for place, folders, files in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(
            name
            for name in folders
            if depth < MOST_DEPTH
            and not name.startswith(".")
            and name not in _ENVIRONMENTS
            and not os.path.exists(os.path.join(place, name, "pyvenv.cfg"))
        )
        for name in sorted(files):
            if name.endswith((".py", ".ipynb")):
                seen += 1
                if seen > MOST_FILES:
                    return
                yield Path(place, name)


def _code(path: Path) -> str:
    """The Python in a file, as far as it can be read."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return ""
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".py":
            return text
        cells = json.loads(text)["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
