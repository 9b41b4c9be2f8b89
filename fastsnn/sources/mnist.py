"""The four files of MNIST and of Fashion-MNIST: where they are looked for, downloaded and checked."""

import gzip
import hashlib
import io
import math
import socket
import zlib
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastsnn.errors import DataUnavailable
from fastsnn.files import missing, remove_empty
from fastsnn.sources.files import check_regular

CLASS_NAMES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
"""Name of a data set -> its class in torchvision, which also names its folder."""

# The header of each uncompressed file of the MNIST family: type of its values, number of dimensions, sizes.
HEADERS = {
    "train-images-idx3-ubyte": (0x803, 60_000, 28, 28),
    "train-labels-idx1-ubyte": (0x801, 60_000),
    "t10k-images-idx3-ubyte": (0x803, 10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (0x801, 10_000),
}
# MD5 of MNIST's uncompressed files (Y. LeCun, C. Cortes, C. Burges), and of Fashion-MNIST's as distributed, gzipped.
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_ARCHIVE_MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
_DOWNLOAD_TIMEOUT = 20.0  # seconds without a byte


class Undownloadable(DataUnavailable):
    """Absent and not downloadable. A damaged file is not: nothing else is loaded in its place."""


def find(name: str, folder: Path) -> dict[str, Path] | None:
    """The four files, whatever is in them; None unless one place has all of them.

    Places: FOLDER/MNIST/raw (torchvision's), FOLDER/MNIST, FOLDER/raw and FOLDER. Names: train-images-idx3-ubyte and
    train-images.idx3-ubyte, both also with .gz.
    """
    class_name = CLASS_NAMES[name]
    for place in (folder / class_name / "raw", folder / class_name, folder / "raw", folder):
        files = {file: _spelled(file, place) for file in HEADERS}
        if all(files.values()):
            return {file: path for file, path in files.items() if path}
    return None


def _spelled(file: str, place: Path) -> Path | None:
    """The file of this name in ``place``, a regular one first."""
    other = file.replace("-idx", ".idx")
    candidates = [place / name for name in (file, other, f"{file}.gz", f"{other}.gz")]
    with suppress(OSError):
        for found in (Path.is_file, Path.exists):
            for path in candidates:
                if found(path):
                    return path
    return None


def _canonical(path: Path) -> str:
    return path.name.removesuffix(".gz").replace(".idx", "-idx")


def read_all(name: str, folder: Path, say: Callable[[str], None]) -> dict[str, np.ndarray]:
    """The values of the four files, uint8, flat, by name; downloads them into ``folder`` if they are absent."""
    files = find(name, folder)
    if files is None:
        raw = folder / CLASS_NAMES[name] / "raw"
        remedy = f"put {', '.join(HEADERS)} (or their .gz) in {raw}"
        download(CLASS_NAMES[name], folder, raw, remedy, say)
        files = {file: raw / file for file in HEADERS}
    return {file: read(path, name) for file, path in files.items()}


def torchvision_class(class_name: str) -> Any:
    """A data set's class; raises Undownloadable if torchvision can't be imported."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        # A torchvision built for another torch fails on import with "operator torchvision::nms does not exist".
        reason = str(error).splitlines()[0]
        raise Undownloadable(
            f"torchvision does not work with torch {torch.__version__} ({reason}): install the pair together "
            "with `pip install --upgrade torch torchvision`, or train with --dataset digits"
        ) from error
    return getattr(datasets, class_name)


def download(class_name: str, folder: Path, target: Path, remedy: str, say: Callable[[str], None]) -> None:
    """Download a set of torchvision's into ``folder``, its files into ``target``; a failure leaves no empty folder."""
    dataset = torchvision_class(class_name)
    say(f"downloading {class_name} to {folder}")
    new_folders, known, complete = missing(target), set(target.glob("*")), False
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # a progress bar per file
            dataset(folder, download=True)
        complete = True
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Undownloadable(
            f"{class_name} is not in {folder} and could not be downloaded: {reason}; {remedy}, "
            "or name another folder with --data-dir, or use --dataset digits"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
        if not complete:
            _clear(path for path in set(target.glob("*")) - known)
            remove_empty(new_folders)


def _clear(files: Iterable[Path]) -> None:
    """Remove what a download that failed left half done; whole raw files and their archives are kept."""
    for path in files:
        header, raw = HEADERS.get(path.stem, (0,)), path.with_suffix("")
        whole = raw.is_file() and raw.stat().st_size == 4 * len(header) + math.prod(header[1:])
        if path.is_file() and not whole:
            with suppress(OSError):
                path.unlink()


def read(path: Path, name: str) -> np.ndarray:
    """The values of a file, uint8, flat; raises DataUnavailable if it is not what was published.

    torchvision's reader would take a damaged file, and the ``processed`` folder of its early releases before this one.
    """
    file, folder = _canonical(path), CLASS_NAMES[name]
    own_place = path.parent.name == "raw" and path.parent.parent.name == folder
    remedy = (
        f"{'delete it to download it again' if own_place else 'replace it'}, or name another folder with --data-dir"
    )
    header = b"".join(number.to_bytes(4, "big") for number in HEADERS[file])
    sizes = HEADERS[file][1:]
    expected = len(header) + math.prod(sizes)
    content = _content(path, expected, remedy)
    if len(content) != expected:
        raise DataUnavailable(f"{path} has {len(content)} bytes where {expected} are expected: {remedy}")
    values = content[len(header) :]
    sound = content[: len(header)].tobytes() == header and (len(sizes) > 1 or values.max() <= 9)
    if not (sound and _is_original(path, content.data, name)):
        what = "is damaged" if own_place else f"is damaged, or not {folder}'s"
        raise DataUnavailable(f"{path} {what} (its checksum is wrong): {remedy}")
    return values


def _content(path: Path, expected: int, remedy: str) -> np.ndarray:
    """The file's bytes uint8, unpacked; of a .gz not many more than ``expected``, whatever it would unpack to."""
    check_regular(path, remedy)
    try:
        if path.suffix != ".gz":
            return np.fromfile(path, np.uint8)
        with gzip.open(path) as archive:
            return np.frombuffer(bytearray(archive.read(expected + 1)), np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataUnavailable(f"{path} can't be read ({reason}): {remedy}") from error


def _is_original(path: Path, content: memoryview, name: str) -> bool:
    """Whether the content has its published hash; Fashion-MNIST's is known by its archive, if that was kept."""
    file = _canonical(path)
    if name == "mnist" or path.parent.parent.name != CLASS_NAMES[name]:
        is_mnist = hashlib.md5(content, usedforsecurity=False).hexdigest() == _MNIST_MD5[file]
        if is_mnist or name == "mnist":
            return is_mnist and name == "mnist"
    archive = path.with_name(path.name + ".gz")
    if not archive.exists():
        return True
    packed = archive.read_bytes()
    if hashlib.md5(packed, usedforsecurity=False).hexdigest() != FASHION_ARCHIVE_MD5[file]:
        return True
    # A gzip file ends with the CRC-32 and the size of what it holds.
    return zlib.crc32(content) == int.from_bytes(packed[-8:-4], "little")
