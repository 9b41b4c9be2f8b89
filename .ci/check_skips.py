"""Print the skipped tests of a JUnit file; fail on any whose reason is not in allowed_skips.txt."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

lines = (Path(__file__).parent / "allowed_skips.txt").read_text(encoding="utf-8").splitlines()
allowed = [re.compile(line) for line in lines if line and not line.startswith("#")]
reasons: Counter[str] = Counter()
for case in ElementTree.parse(sys.argv[1]).getroot().iter("testcase"):
    for skipped in case.iter("skipped"):
        reasons[skipped.get("message", "")] += 1
unexpected = [reason for reason in reasons if not any(pattern.search(reason) for pattern in allowed)]
for reason, count in reasons.items():
    print(f"{'NOT ALLOWED' if reason in unexpected else 'skipped'}: {count} x {reason}")
sys.exit(f"{len(unexpected)} reasons are not in .ci/allowed_skips.txt" if unexpected else 0)
