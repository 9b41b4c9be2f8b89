"""Print the command of README.md that stands in the code block after ``<!-- command: NAME -->``."""

import re
import sys
from pathlib import Path

name = sys.argv[1]
readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
match = re.search(rf"<!-- command: {re.escape(name)} -->\s*```bash\n(.+?)\n```", readme, re.DOTALL)
if match is None:
    sys.exit(f"README.md has no code block after <!-- command: {name} -->")
print(match[1])
