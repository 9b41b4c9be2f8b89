"""``python -m fastsnn`` is the ``fastsnn`` command."""

from fastsnn.cli import main

if __name__ == "__main__":
    main()
