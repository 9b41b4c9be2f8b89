"""Run a command of fastsnn on a pretended card:

    python -m tests.gpu_in_software --gpu sm_90 [--log FILE] verify --backend triton --device cuda

At the end the launches are listed, and with --log written as JSON.
"""

import argparse
import shlex
import sys
from pathlib import Path

from tests.gpu_in_software.card import start
from tests.gpu_in_software.log import LOG
from tests.gpu_in_software.targets import TARGETS, find_target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", required=True, metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--log", type=Path, metavar="FILE")
    parser.add_argument("--command", help="the command of fastsnn in one string")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="command", help="of fastsnn")
    options = parser.parse_args()
    try:
        target = find_target(options.gpu)
    except ValueError as error:
        parser.error(str(error))
    start(target)
    from fastsnn import cli

    sys.argv = ["fastsnn", *shlex.split(options.command or ""), *options.words]
    code: object = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    print(LOG.summary(), file=sys.stderr)
    if options.log:
        LOG.write(options.log, code=code)
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    sys.exit(main())
