"""The notation of papers for networks, as in 32c3-p2-64c3-bn-p2-800. Imports nothing that is slow."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Convolution:
    """``32c3``: 32 channels, kernel 3 x 3, padded to keep the size; ``32c3s2`` with stride 2."""

    channels: int
    kernel: int
    stride: int = 1

    def __str__(self) -> str:
        return f"{self.channels}c{self.kernel}" + (f"s{self.stride}" if self.stride > 1 else "")


@dataclass(frozen=True)
class Pooling:
    """``p2`` or ``mp2``: the maximum of 2 x 2, which keeps spikes 0 or 1; ``ap2``: the average."""

    size: int
    average: bool = False

    def __str__(self) -> str:
        return f"{'ap' if self.average else 'p'}{self.size}"


@dataclass(frozen=True)
class BatchNorm:
    """``bn``: batch norm of the convolution or linear layer before, over samples and time steps."""

    def __str__(self) -> str:
        return "bn"


@dataclass(frozen=True)
class Linear:
    """``800``: a linear layer of 800 neurons."""

    size: int

    def __str__(self) -> str:
        return str(self.size)


Part = Convolution | Pooling | BatchNorm | Linear

_FORMS = "32c3 (convolution), 32c3s2 (with a stride), p2 or mp2 (maximum), ap2 (average), bn, 800 (linear), joined by -"


def parse_network(text: str, option: str = "net") -> list[Part]:
    """The parts of a network in order; raises ValueError that names a part that is none or is in a wrong place."""
    parts: list[Part] = []
    for word in text.lower().split("-"):
        part = _part(word)
        if part is None:
            raise ValueError(f"{option} is {text!r}, whose {word!r} is no layer; allowed: {_FORMS}")
        before = parts[-1] if parts else None
        if isinstance(part, (Convolution, Pooling)) and any(isinstance(known, Linear) for known in parts):
            raise ValueError(f"{option} is {text!r}, with {word} behind a linear layer; allowed: before the first one")
        if isinstance(part, BatchNorm) and not isinstance(before, (Convolution, Linear)):
            raise ValueError(f"{option} is {text!r}, with bn in a wrong place; allowed: behind a convolution or a size")
        parts.append(part)
    return parts


def _part(word: str) -> Part | None:
    if word == "bn":
        return BatchNorm()
    if match := re.fullmatch(r"([1-9]\d*)c([1-9]\d*)(?:s([1-9]\d*))?", word):
        return Convolution(int(match[1]), int(match[2]), int(match[3] or 1))
    if match := re.fullmatch(r"([am]?)p([1-9]\d*)", word):
        return Pooling(int(match[2]), match[1] == "a")
    return Linear(int(word)) if re.fullmatch(r"[1-9]\d*", word) else None
