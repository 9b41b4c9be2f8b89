"""Folders of .wav files as the log energies of mel bands every 10 ms, which are the currents of the time steps."""

import struct
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from fastsnn.errors import DataUnavailable
from fastsnn.sources.arrays import Arrays
from fastsnn.sources.files import find_folder

BANDS = 40
_FSDD_TEST = "*_[0-4].wav"
"""The official test set: the first five recordings of each digit by each speaker."""
_WHERE = (
    "get it from https://github.com/Jakobovski/free-spoken-digit-dataset (its folder recordings), or name another "
    "folder with --data-dir"
)


def open_fsdd(
    name: str, folder: Path, T: int | None, encoder: str | None, say: Callable[[str], None], *, bands: int = BANDS
) -> Arrays:
    """The Free Spoken Digit Dataset: 2,700 and 300 recordings of ten digits by six speakers, up to 226 steps, [bands].

    Source: Z. Jackson et al., https://github.com/Jakobovski/free-spoken-digit-dataset.
    """
    if encoder is not None:
        raise ValueError(f"encoder is {encoder!r}; allowed for {name}: none, its values are the currents of its steps")
    if not isinstance(bands, int) or not 1 <= bands <= 128:
        raise ValueError(f"bands is {bands}; allowed: 1 to 128")
    place = find_folder(folder, ("fsdd", "free-spoken-digit-dataset")) or folder
    recordings = find_folder(place, ("recordings",)) or place
    if not next(recordings.glob("[0-9]_*_[0-9]*.wav"), None):
        raise DataUnavailable(f"{recordings} holds no recording of the Free Spoken Digit Dataset: {_WHERE}")
    arrays = wave_arrays(recordings, bands, _FSDD_TEST)
    del arrays["names"]
    source = Arrays(**arrays, name=name)  # type: ignore[arg-type]
    if T is not None and T != source.T:
        raise ValueError(f"T is {T}, and {name} has {source.T} time steps; allowed: {source.T}, or leave T out")
    return source


def wave_arrays(folder: Path, bands: int, test: str | None) -> dict[str, np.ndarray]:
    """x float16 [D, T, bands], y, lengths, the same of the test set if ``test`` is given, and the classes' names.

    A recording's class is the folder that it lies in, or what its name has before the first _. Files whose names match
    the pattern ``test`` become the test set. Bands are shifted and scaled to mean 0 and variance 1 over the training
    set; shorter recordings end with 0.
    """
    files = sorted(folder.rglob("*.wav"))
    if not files:
        raise DataUnavailable(f"{folder} holds no .wav file; name a folder that does")
    called = [path.name.partition("_")[0] if path.parent == folder else path.parent.name for path in files]
    names = sorted(set(called))
    recordings = [read_wave(path) for path in files]
    rates = {rate for _, rate in recordings}
    if len(rates) > 1:
        raise DataUnavailable(f"{folder} holds files of {', '.join(map(str, sorted(rates)))} Hz; convert them to one")
    energies = [log_mel(samples, rate, bands) for samples, rate in recordings]
    is_test = np.array([bool(test) and fnmatch(path.name, test or "") for path in files])
    if is_test.all():
        raise ValueError(f"--test {test} matches every file; allowed: a pattern that leaves some to train on")
    if test and not is_test.any():
        raise ValueError(f"--test {test} matches no file of {folder}, such as {files[0].name}")
    training = np.concatenate([e for e, held_out in zip(energies, is_test, strict=True) if not held_out])
    mean, deviation = training.mean(0), training.std(0) + 1e-6
    x = np.zeros((len(files), max(map(len, energies)), bands), np.float16)
    for row, energy in zip(x, energies, strict=True):
        row[: len(energy)] = (energy - mean) / deviation
    y, lengths = np.array([names.index(name) for name in called]), np.array([len(energy) for energy in energies])
    arrays = {"x": x[~is_test], "y": y[~is_test], "lengths": lengths[~is_test], "names": np.array(names)}
    if test:
        arrays |= {"x_test": x[is_test], "y_test": y[is_test], "lengths_test": lengths[is_test]}
    return arrays


def log_mel(samples: np.ndarray, rate: int, bands: int, step: float = 0.01, window: float = 0.025) -> np.ndarray:
    """Log energies [T, bands] of windows of ``window`` seconds that begin every ``step`` seconds."""
    length, hop = round(window * rate), round(step * rate)
    samples = np.pad(samples, (0, max(0, length - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, length)[::hop] * np.hanning(length)
    points = 1 << (length - 1).bit_length()
    power = np.abs(np.fft.rfft(frames, points)) ** 2
    energies: np.ndarray = np.log(power @ mel_filters(bands, points, rate).T + 1e-6)
    return energies


def mel_filters(bands: int, points: int, rate: int) -> np.ndarray:
    """Triangles of equal width on the mel scale from 0 to half of ``rate``, [bands, points // 2 + 1]."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)  # Hz
    frequencies = np.fft.rfftfreq(points, 1 / rate)
    left, middle, right = (edges[i : i + bands, None] for i in range(3))
    rising, falling = (frequencies - left) / (middle - left), (right - frequencies) / (right - middle)
    return np.clip(np.minimum(rising, falling), 0, None)


def read_wave(path: Path) -> tuple[np.ndarray, int]:
    """Samples from -1 to 1, of the first channel, and their rate in Hz. SciPy, which scikit-learn needs, reads them."""
    from scipy.io import wavfile

    remedy = "replace or delete it"
    try:
        with warnings.catch_warnings():
            # Of a truncated file SciPy returns what there is; chunks that it doesn't know are harmless.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
            rate, samples = wavfile.read(path)
    except (ValueError, OSError, EOFError, struct.error, wavfile.WavFileWarning) as error:
        raise DataUnavailable(f"{path} can't be read as a .wav file ({error}): {remedy}") from error
    samples = samples[:, 0] if samples.ndim > 1 else samples
    if not len(samples):
        raise DataUnavailable(f"{path} holds no samples: {remedy}")
    if samples.dtype == np.uint8:
        return (samples.astype(np.float64) - 128) / 128, rate
    scale = np.iinfo(samples.dtype).max if np.issubdtype(samples.dtype, np.integer) else 1
    return samples.astype(np.float64) / scale, rate
