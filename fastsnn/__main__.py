"""The ``fastsnn`` command, also as ``python -m fastsnn``."""

import signal


def main() -> None:
    """Run the command; a Ctrl-C while it is imported ends the process without a traceback, as the system does."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fastsnn import cli

    signal.signal(signal.SIGINT, interrupt)
    cli.main()


if __name__ == "__main__":
    main()
