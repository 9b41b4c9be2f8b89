"""Make a data set of the UCR/UEA archive's .ts files: series of several dimensions, also of different lengths.

    python examples/ts_to_npz.py JapaneseVowels_TRAIN.ts JapaneseVowels_TEST.ts vowels.npz
    fastsnn train --dataset vowels.npz

Classes are numbered as the header lists them. Dimensions are shifted and scaled to mean 0 and variance 1 over the
training set; shorter series are padded with 0 and their lengths kept.
"""

import argparse
from pathlib import Path

import numpy as np


def read(path: Path) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Each series [T, K], its class, and the classes in the order of the header."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path} can't be read ({error}); allowed: a .ts file") from error
    classes, in_data, series, labels = [], False, list[np.ndarray](), list[str]()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if not in_data:
            option = words[0].lower()
            if option == "@timestamps" and words[1:] == ["true"]:
                raise SystemExit(f"{path} line {number} has time stamps; allowed: @timeStamps false")
            if option == "@classlabel" and words[1:2] == ["true"]:
                classes = words[2:]
            in_data = option == "@data"
            continue
        values, label = parse(line, f"{path} line {number}", classes)
        if series and values.shape[1] != series[0].shape[1]:
            raise SystemExit(f"{path} line {number} has {values.shape[1]} dimensions; allowed: {series[0].shape[1]}")
        series.append(values)
        labels.append(label)
    if not classes or not series:
        missing = "@classLabel true with classes" if not classes else "series after @data"
        raise SystemExit(f"{path} has no {missing}; allowed: a .ts file for classification")
    return series, labels, classes


def parse(line: str, place: str, classes: list[str]) -> tuple[np.ndarray, str]:
    """A line a,b,c:d,e,f:class as [T, K] and its class."""
    *dimensions, label = line.strip().split(":")
    if label not in classes:
        raise SystemExit(f"{place} ends with class {label[:40]!r}; allowed: {', '.join(classes)}")
    try:
        rows = [[float(value) for value in dimension.split(",")] for dimension in dimensions]
    except ValueError as error:
        raise SystemExit(f"{place}: {error}; allowed: numbers (? for a missing one isn't)") from error
    if not rows or len({len(row) for row in rows}) > 1:
        raise SystemExit(
            f"{place} has dimensions of {', '.join(str(len(r)) for r in rows) or 'no'} values; allowed: equal"
        )
    values = np.array(rows).T
    if not np.isfinite(values).all():
        raise SystemExit(f"{place} has a value that is NaN or infinite; allowed: finite numbers")
    return values, label


def convert(train: Path, test: Path) -> dict[str, np.ndarray]:
    """x float32 [D, T, K], y and lengths of both files, and ``names`` of the classes."""
    parts = {"": read(train), "_test": read(test)}
    names = parts[""][2]
    everything = np.concatenate(parts[""][0])
    mean, deviation = everything.mean(0), everything.std(0) + 1e-6
    longest = max(len(values) for part in parts.values() for values in part[0])
    arrays = {"names": np.array(names)}
    for suffix, (series, labels, classes) in parts.items():
        if classes != names or series[0].shape[1] != len(mean):
            raise SystemExit(f"{test} has other classes or dimensions than {train}; allowed: two parts of one data set")
        x = np.zeros((len(series), longest, len(mean)), np.float32)
        for row, values in zip(x, series, strict=True):
            row[: len(values)] = (values - mean) / deviation
        arrays |= {
            f"x{suffix}": x,
            f"y{suffix}": np.array([names.index(label) for label in labels]),
            f"lengths{suffix}": np.array([len(values) for values in series]),
        }
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("train", type=Path, help="NAME_TRAIN.ts")
    parser.add_argument("test", type=Path, help="NAME_TEST.ts")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    options = parser.parse_args()
    arrays = convert(options.train, options.test)
    np.savez_compressed(options.out, **arrays)  # type: ignore[arg-type]
    D, T, K = arrays["x"].shape
    print(f"{options.out}: {D} training and {len(arrays['x_test'])} test series, up to {T} steps of {K} values")


if __name__ == "__main__":
    main()
