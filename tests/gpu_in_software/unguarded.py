"""Remove one synchronization at a time from the kernels of a verify case: is it noticed, and by what?

    python -m tests.gpu_in_software.unguarded --gpu sm_90 CASE ...

A barrier or a fence is left out, a wait lets one more group go on. Noticed is a fault of the machine, or a result
outside of the contract. What is not noticed is listed: it orders nothing that the case does, or is not needed.
"""

import argparse
import re
from collections import Counter
from typing import Any

from tests.gpu_in_software.card import start
from tests.gpu_in_software.log import LOG
from tests.gpu_in_software.report import GpuError
from tests.gpu_in_software.targets import TARGETS, find_target

SYNCHRONIZING = re.compile(r"^\s*(bar\.sync|cp\.async\.wait_group|fence\.proxy\.async|wgmma\.wait_group)", re.M)


def kernel_name(text: str) -> str:
    found = re.search(r"\.entry\s+(\w+)", text)
    return found[1] if found else ""


def spots(text: str) -> list[int]:
    """Lines of PTX that synchronize."""
    return [number for number, line in enumerate(text.splitlines()) if SYNCHRONIZING.match(line)]


def without(text: str, line: int) -> str:
    """PTX whose synchronization in ``line`` is left out, or waits for one group less."""
    lines = text.splitlines()
    weaker = re.sub(r"(\d+)\s*;", lambda found: f"{int(found[1]) + 1};", lines[line])
    lines[line] = weaker if "wait_group" in lines[line] else ""
    return "\n".join(lines)


def outcome(check: Any, case: Any, target: Any) -> str:
    """How a run of ``case`` ends: a fault, a wrong result, or not noticed."""
    try:
        found = check(case, target)
    except GpuError as error:
        return str(error).split(": ")[1]
    except Exception as error:
        return type(error).__name__
    return "not noticed" if all(each.ok for each in found) else "a wrong result"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", required=True, metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("cases", nargs="+", metavar="CASE", help="of fastsnn verify")
    options = parser.parse_args()
    start(find_target(options.gpu))
    import torch

    from fastsnn import backends
    from fastsnn.verify import CASES, CHECKS, Target

    target = Target(backends.load("triton"), torch.device("cuda", 0), "gpu")
    for name in options.cases:
        case = CASES[name]
        check = CHECKS[case.group]
        seen: dict[str, None] = {}

        def note(text: str, _: str | None, seen: dict[str, None] = seen) -> str:
            seen[text] = None
            return text

        LOG.rewrite = note
        assert outcome(check, case, target) == "not noticed", f"{name} fails as it is"
        for text in seen:
            found: Counter[str] = Counter()
            for line in spots(text):
                changed = without(text, line)
                LOG.rewrite = lambda given, _, text=text, changed=changed: changed if given == text else given
                found[result := outcome(check, case, target)] += 1
                if result == "not noticed":
                    print(f"  {name}, {kernel_name(text)}, line {line + 1}: {text.splitlines()[line].strip()}")
            if found:
                print(f"{options.gpu}, {name}, {kernel_name(text)}: {dict(found)}", flush=True)


if __name__ == "__main__":
    main()
