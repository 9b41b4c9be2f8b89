"""Data sets by name: a new one is a file with a function that opens it, and one line here."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fastsnn.kernels.suggestion import did_you_mean
from fastsnn.sources.base import Source, check_steps

Opener = Callable[..., Source]
"""(name, folder, T, encoder, say, **options) -> Source; the keyword-only parameters are the data set's options."""

_OPENERS: dict[str, Opener | str] = {
    "auto": "images:open_images",
    "mnist": "images:open_images",
    "fashion-mnist": "images:open_images",
    "digits": "images:open_images",
    "cifar10": "images:open_images",
    "smnist": "sequences:open_sequence",
    "psmnist": "sequences:open_sequence",
    "nmnist": "nmnist:open_nmnist",
    "dvs-gesture": "frames:open_frames",
    "cifar10-dvs": "frames:open_frames",
    "shd": "audio:open_audio",
    "ssc": "audio:open_audio",
    "fsdd": "waves:open_fsdd",
    "japanese-vowels": "series:open_vowels",
    "qtdb": "archives:open_qtdb",
    "braille": "archives:open_braille",
}
"""Name -> the function that opens it, or its place in this package, which is imported when it is asked for."""


def register(name: str, opener: Opener) -> None:
    """Give a data set of one's own a name that :func:`open_source` and ``--dataset`` know.

    Args:
        name: upper and lower case, -, _ and blanks don't matter when it is asked for.
        opener: called as ``opener(name, folder, T, encoder, say, **options)`` with folder a Path, T an int or None,
            encoder text or None and say a function that takes a line to show; returns a ``Source``. Its keyword-only
            parameters are the options that may be given.
    """
    if _plain(name) in {_plain(known) for known in _OPENERS}:
        raise ValueError(f"a data set named {name} is there already; allowed: another name")
    _OPENERS[name] = opener


def names() -> tuple[str, ...]:
    """The data sets that have a name."""
    return tuple(_OPENERS)


def options(name_or_path: str | Path) -> dict[str, Any]:
    """The options of a data set and their defaults."""
    parameters = inspect.signature(_opener(str(name_or_path))[1]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def open_source(
    name_or_path: str | Path,
    folder: Path | str | None = None,
    T: int | None = None,
    encoder: str | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
    **given: Any,
) -> Source:
    """Open a data set, on the CPU; ``.to(device)`` moves it.

    Args:
        name_or_path: one of :func:`names`, or the path of a .npz file, or of a folder with train.npz.
        folder: where data sets are kept; default $FASTSNN_DATA, else ~/.cache/fastsnn.
        T: time steps that recordings are divided into; default the data set's own. Images take any T at each batch.
        encoder: of samples without time steps: poisson, latency or direct. Default (or "none"): poisson for images.
        say: is told of a download.
        given: options of the data set: see docs/data.md, or ``fastsnn.sources.options(name)``.

    Raises:
        ValueError, TypeError: a name, an option or a value that is not allowed.
        DataUnavailable: a file that is missing or is not what it should be.
    """
    name, opener = _opener(str(name_or_path))
    if T is not None:
        check_steps(name, T)
    allowed = options(name_or_path)
    for option in given:
        if option not in allowed:
            hint = did_you_mean(option, allowed)
            raise ValueError(f"{name} has no option {option}{hint}; allowed: {', '.join(allowed) or 'none'}")
    from fastsnn.sources.images import default_folder

    place = Path(folder).expanduser() if folder is not None else default_folder()
    return opener(name, place, T, None if encoder == "none" else encoder, say, **given)


def _opener(name: str) -> tuple[str, Opener]:
    """The name as it is registered (a path as it is) and the function that opens it."""
    by_plain = {_plain(known): known for known in _OPENERS}
    if known := by_plain.get(_plain(name)):
        opener = _OPENERS[known]
        if isinstance(opener, str):
            module, _, function = opener.partition(":")
            opener = getattr(import_module(f"fastsnn.sources.{module}"), function)
        return known, opener
    if "/" in name or "\\" in name or name.endswith((".npz", ".npy")) or Path(name).exists():
        from fastsnn.sources.arrays import open_arrays

        return name, open_arrays
    raise ValueError(
        f"dataset is {name!r}{did_you_mean(name, _OPENERS)}; allowed: {', '.join(_OPENERS)}, or the path of a .npz file"
    )


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c not in "-_ ")
