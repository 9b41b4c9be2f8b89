"""Make a data set of the UCR/UEA archive's .ts files: series of several dimensions, also of different lengths.

    python examples/ts_to_npz.py HandMovementDirection_TRAIN.ts HandMovementDirection_TEST.ts hands.npz
    fastsnn train --dataset hands.npz

Classes are numbered as the header lists them. Dimensions are shifted and scaled to mean 0 and variance 1 over the
training set; shorter series are padded with 0 and their lengths kept.
"""

import argparse
from pathlib import Path

import numpy as np

from fastsnn.errors import DataUnavailable
from fastsnn.sources.series import series_arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("train", type=Path, help="NAME_TRAIN.ts")
    parser.add_argument("test", type=Path, help="NAME_TEST.ts")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    options = parser.parse_args()
    try:
        arrays = series_arrays(options.train, options.test)
    except DataUnavailable as error:
        raise SystemExit(str(error)) from error
    np.savez_compressed(options.out, **arrays)  # type: ignore[arg-type]
    D, T, K = arrays["x"].shape
    print(f"{options.out}: {D} training and {len(arrays['x_test'])} test series, up to {T} steps of {K} values")


if __name__ == "__main__":
    main()
