"""Names of files as text that can be shown: they may hold any bytes but a slash and a zero."""

import re
import shlex

_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, those that change the direction of writing, and bytes that are no UTF-8 (as Python has them)."""


def printable(text: str, keep: str = "") -> str:
    r"""``text`` with what can't be shown as an escape, such as \x1b or \xff for a byte; ``keep`` is left as it is."""
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{byte:02x}" if byte < 128 or byte != code else f"\\u{code:04x}"


def shell(text: str) -> str:
    """``text`` as a word of a shell's command line, with nothing in it that can't be shown."""
    if printable(text) == text:
        return shlex.quote(text)
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(quoted)}'"
