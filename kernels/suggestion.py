"""What was probably meant by a name that isn't known."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`` (did you mean NAME?)``, to stand behind ``given`` in an error; empty if nothing known is like it."""
    plain = {_plain(name): name for name in known}
    swapped = [name for name in plain if sorted(name) == sorted(_plain(given))]
    close = swapped or get_close_matches(_plain(given), plain, 1, 0.5)
    return f" (did you mean {plain[close[0]]}?)" if close else ""


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character not in "-_ ")
