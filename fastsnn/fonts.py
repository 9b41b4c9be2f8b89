"""Fonts that can write Chinese: those that people have, in figures and for the names of runs."""

import re
from functools import cache

from matplotlib import font_manager

from fastsnn.errors import FastSNNError

CHINESE = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "Microsoft YaHei", "PingFang SC",
    "PingFang HK", "Hiragino Sans GB", "Heiti TC", "STHeiti", "SimHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Noto Sans CJK JP", "Noto Serif CJK SC", "Noto Serif CJK JP", "SimSun", "Songti SC", "STSong", "Arial Unicode MS",
)  # fmt: skip
"""Families, best first. Of a collection (.ttc) matplotlib knows the first face alone, which is JP in Noto's."""

_FILES = re.compile(
    r"(noto(sans|serif)(cjk|sc)|sourcehansans|wqy-|simsun|simhei|msyh|pingfang|hiragino sans gb|stheiti|songti)", re.I
)
"""Names of the files that hold them."""


@cache
def chinese_fonts() -> tuple[str, ...]:
    """Families of ``CHINESE`` that this machine has."""
    known = set(font_manager.get_font_names())
    if not known.intersection(CHINESE):
        # Matplotlib remembers which fonts there were when it first looked; one may have been installed since.
        for file in font_manager.findSystemFonts():
            if _FILES.search(file):
                font_manager.fontManager.addfont(file)
        known = set(font_manager.get_font_names())
    return tuple(family for family in CHINESE if family in known)


def require_chinese() -> None:
    """Raise FastSNNError that says which font to install if there is none."""
    if not chinese_fonts():
        raise FastSNNError(
            "lang is zh, but matplotlib finds no Chinese font here; install one (Debian and Ubuntu: apt-get install "
            "fonts-wqy-microhei or fonts-noto-cjk; Fedora: dnf install google-noto-sans-cjk-fonts), or take --lang en"
        )
