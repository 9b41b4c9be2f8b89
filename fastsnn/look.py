"""How figures are written, as options. Imports nothing that is slow."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

FORMATS = ("png", "svg", "pdf")
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Look:
    """How figures are written. Raises ValueError that names the option, its value and what is allowed."""

    format: Literal["png", "svg", "pdf"] = "png"
    """Format of the files."""
    title: str | None = None
    """Headline over each figure; default what it is of."""
    no_title: Annotated[bool, Parameter(negative=())] = False
    """No headline, as for a paper, whose caption says it."""
    lang: Literal["en", "zh"] = "en"
    """Language of the words in it: English or Chinese, which needs a Chinese font."""
    show: Annotated[bool, Parameter(negative=())] = False
    """Open a window for each figure as well."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; allowed: {', '.join(FORMATS)}")
        check_language(self.lang)
        if self.title is not None and self.no_title:
            raise ValueError("title and no_title are both given; allowed: one of them")

    def headline(self, default: str) -> str:
        """What stands above a figure; empty for nothing."""
        return "" if self.no_title else default if self.title is None else self.title


def check_language(lang: str) -> None:
    """Raise ValueError for a language that there are no words for."""
    if lang not in LANGUAGES:
        raise ValueError(f"lang is {lang!r}; allowed: {', '.join(LANGUAGES)}")
