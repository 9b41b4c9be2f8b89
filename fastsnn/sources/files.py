"""Files of data sets: what they are is checked before a byte is read."""

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fastsnn import files
from fastsnn.errors import DataUnavailable

# What NumPy and zipfile raise for damaged files: RuntimeError for an encrypted or unknown archive, MemoryError for a
# header that names an array larger than memory.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    OverflowError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def check_regular(path: Path, remedy: str) -> None:
    """Raise DataUnavailable unless ``path`` is a regular file: a FIFO or a device would be read for ever."""
    try:
        files.check_regular(path)
    except OSError as error:
        raise DataUnavailable(f"{path} can't be read ({error.strerror}): {remedy}") from error


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name, or of a .npy file under the name ``""``; objects are never unpickled."""
    check_regular(path, remedy)
    try:
        # np.load alone would leave a damaged file open.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except _UNREADABLE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "pickle" in reason:
            reason = "it is no file of plain arrays"
        raise DataUnavailable(f"{path} can't be read ({reason}): {remedy}") from error


def find_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The subfolder of ``folder`` with one of these names, in upper or lower case; names earlier in the list first."""
    try:
        present = {path.name.lower(): path for path in sorted(folder.iterdir(), reverse=True) if path.is_dir()}
    except OSError:
        return None
    return next((present[name.lower()] for name in names if name.lower() in present), None)
