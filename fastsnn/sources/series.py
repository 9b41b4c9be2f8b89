"""Series of several dimensions, also of different lengths, from the UCR/UEA archive's .ts files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastsnn.errors import DataUnavailable
from fastsnn.sources.arrays import Arrays
from fastsnn.sources.files import check_regular, find_folder

_VOWELS = ("JapaneseVowels_TRAIN.ts", "JapaneseVowels_TEST.ts")
_WHERE = (
    "get JapaneseVowels.zip from https://www.timeseriesclassification.com/description.php?Dataset=JapaneseVowels and "
    "unpack it there, or name another folder with --data-dir"
)


def open_vowels(name: str, folder: Path, T: int | None, encoder: str | None, say: Callable[[str], None]) -> Arrays:
    """Nine speakers who say two Japanese vowels: 12 cepstral coefficients, 7 to 29 steps, 270 and 370 series.

    Source: Kudo, Toyama and Shimbo 1999; the split is theirs.
    """
    if encoder is not None:
        raise ValueError(f"encoder is {encoder!r}; allowed for {name}: none, its values are the currents of its steps")
    place = find_folder(folder, ("JapaneseVowels", name)) or folder
    paths = [place / file for file in _VOWELS]
    for path in paths:
        check_regular(path, _WHERE)
    arrays = series_arrays(*paths)
    del arrays["names"]
    source = Arrays(**arrays, name=name)  # type: ignore[arg-type]
    if T is not None and T != source.T:
        raise ValueError(f"T is {T}, and {name} has {source.T} time steps; allowed: {source.T}, or leave T out")
    return source


def series_arrays(train: Path, test: Path) -> dict[str, np.ndarray]:
    """x float32 [D, T, K], y and lengths of both files, and ``names`` of the classes, numbered as the header has them.

    Dimensions are shifted and scaled to mean 0 and variance 1 over the training set; shorter series end with 0.
    """
    parts = {"": read_series(train), "_test": read_series(test)}
    names = parts[""][2]
    everything = np.concatenate(parts[""][0])
    mean, deviation = everything.mean(0), everything.std(0) + 1e-6
    longest = max(len(values) for part in parts.values() for values in part[0])
    arrays = {"names": np.array(names)}
    for suffix, (series, labels, classes) in parts.items():
        if classes != names or series[0].shape[1] != len(mean):
            raise DataUnavailable(
                f"{test} has other classes or dimensions than {train}; allowed: two parts of one data set"
            )
        x = np.zeros((len(series), longest, len(mean)), np.float32)
        for row, values in zip(x, series, strict=True):
            row[: len(values)] = (values - mean) / deviation
        arrays |= {
            f"x{suffix}": x,
            f"y{suffix}": np.array([names.index(label) for label in labels]),
            f"lengths{suffix}": np.array([len(values) for values in series]),
        }
    return arrays


def read_series(path: Path) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Each series [T, K], its class, and the classes in the order of the header."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataUnavailable(f"{path} can't be read ({error}); allowed: a .ts file") from error
    classes, in_data, series, labels = [], False, list[np.ndarray](), list[str]()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if not in_data:
            option = words[0].lower()
            if option == "@timestamps" and words[1:] == ["true"]:
                raise DataUnavailable(f"{path} line {number} has time stamps; allowed: @timeStamps false")
            if option == "@classlabel" and words[1:2] == ["true"]:
                classes = words[2:]
            in_data = option == "@data"
            continue
        values, label = _parsed(line, f"{path} line {number}", classes)
        if series and values.shape[1] != series[0].shape[1]:
            raise DataUnavailable(
                f"{path} line {number} has {values.shape[1]} dimensions; allowed: {series[0].shape[1]}"
            )
        series.append(values)
        labels.append(label)
    if not classes or not series:
        missing = "@classLabel true with classes" if not classes else "series after @data"
        raise DataUnavailable(f"{path} has no {missing}; allowed: a .ts file for classification")
    return series, labels, classes


def _parsed(line: str, place: str, classes: list[str]) -> tuple[np.ndarray, str]:
    """A line a,b,c:d,e,f:class as [T, K] and its class."""
    *dimensions, label = line.strip().split(":")
    if label not in classes:
        raise DataUnavailable(f"{place} ends with class {label[:40]!r}; allowed: {', '.join(classes)}")
    try:
        rows = [[float(value) for value in dimension.split(",")] for dimension in dimensions]
    except ValueError as error:
        raise DataUnavailable(f"{place}: {error}; allowed: numbers (? for a missing one isn't)") from error
    if not rows or len({len(row) for row in rows}) > 1:
        raise DataUnavailable(
            f"{place} has dimensions of {', '.join(str(len(r)) for r in rows) or 'no'} values; allowed: equal"
        )
    values = np.array(rows).T
    if not np.isfinite(values).all():
        raise DataUnavailable(f"{place} has a value that is NaN or infinite; allowed: finite numbers")
    return values, label
