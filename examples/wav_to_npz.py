"""Make a data set of a folder of .wav files: the log energies of mel bands every 10 ms, as currents.

    python examples/wav_to_npz.py recordings digits.npz --test '*_[0-4].wav'
    fastsnn train --dataset digits.npz

A recording's class is the folder that it lies in, or what its name has before the first _. Files whose names match
``--test`` become the test set. Bands are shifted and scaled to mean 0 and variance 1 over the training set; shorter
recordings are padded with 0 and their lengths kept.
"""

import argparse
from pathlib import Path

import numpy as np

from fastsnn.errors import DataUnavailable
from fastsnn.sources.waves import BANDS, wave_arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, help="the .npz file to write")
    parser.add_argument("--bands", type=int, default=BANDS, help=f"mel bands (default {BANDS})")
    parser.add_argument("--test", help="pattern of the names of test files, such as '*_[0-4].wav'")
    options = parser.parse_args()
    try:
        arrays = wave_arrays(options.folder, options.bands, options.test)
    except (DataUnavailable, ValueError) as error:
        raise SystemExit(str(error)) from error
    np.savez_compressed(options.out, **arrays)  # type: ignore[arg-type]
    D, T, K = arrays["x"].shape
    held_out = len(arrays.get("x_test", ()))
    C = len(arrays["names"])
    print(f"{options.out}: {D} training and {held_out} test recordings, {T} steps of {K} bands, {C} classes")


if __name__ == "__main__":
    main()
