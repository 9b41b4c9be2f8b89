"""Arrays of one's own, from Python or from .npz files.

    x [D, T, ...]   spikes (0 and 1 alone) or currents, D samples of T time steps; [D, ...] with an encoder
    y [D]           a class per sample; [D, T] a class per time step, -1 for none; [D, T, C] one-hot, all 0 for none
    lengths [D]     time steps that count, 1 to T; optional

Parts of their own are x_validation, y_validation, lengths_validation and x_test, y_test, lengths_test.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn.errors import DataUnavailable
from fastsnn.kernels import philox
from fastsnn.sources.files import check_regular, read_arrays
from fastsnn.sources.labels import check_classes, step_labels
from fastsnn.sources.store import ENCODERS, Part, StoredSource

_KEPT = (np.uint8, np.int8, np.int16, np.float16, np.float32)
"""Types that x keeps in memory; others become the first of these that holds their values."""
_CHUNK = 256
"""Samples that are packed at a time, so that what is needed meanwhile stays small."""
_SUFFIXES = {"train": "", "validation": "_validation", "test": "_test"}
_REMEDY = "save it with np.savez(path, x=..., y=...): x [D, T, ...], y [D] or [D, T]"

ArrayLike = np.ndarray | Tensor | Sequence[Any]


class Arrays(StoredSource):
    """A ``Source`` of arrays of one's own.

    x of 0 and 1 alone is kept as packed spikes; other numbers are currents. Labels past a sample's length count as -1.

    Args:
        x: [D, T, ...], or [D, ...] with an encoder: uint8, or floating point in [0, 1] (any value if it is direct).
        y: integers: [D], 0 to classes - 1; [D, T], -1 for a step without a label; or [D, T, C] one-hot, all 0 for none.
        lengths: [D], the first steps that count, 1 to T; default all.
        x_validation, y_validation, lengths_validation, x_test, y_test, lengths_test: the same for the other parts.
        test_fraction: part of each class that becomes the test set, more than 0 and less than 1, if none is given.
        split_seed: seed of the choice of those samples.
        classes: number of classes; default the largest label + 1.
        encoder: poisson, latency or direct, for x without time steps.
        scale: currents are multiplied by this.
        name: what errors and reports call the data.

    Raises:
        ValueError, TypeError: naming the array, what it holds and what is allowed.
    """

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        lengths: ArrayLike | None = None,
        *,
        x_validation: ArrayLike | None = None,
        y_validation: ArrayLike | None = None,
        lengths_validation: ArrayLike | None = None,
        x_test: ArrayLike | None = None,
        y_test: ArrayLike | None = None,
        lengths_test: ArrayLike | None = None,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        classes: int | None = None,
        encoder: str | None = None,
        scale: float = 1.0,
        name: str = "arrays",
    ) -> None:
        if encoder is not None and encoder not in ENCODERS:
            raise ValueError(f"encoder is {encoder!r}; allowed: {', '.join(ENCODERS)}, or none for x with time steps")
        given = {
            "train": (x, y, lengths),
            "validation": (x_validation, y_validation, lengths_validation),
            "test": (x_test, y_test, lengths_test),
        }
        raw = {
            split: _Raw(_SUFFIXES[split], *arrays, timed=encoder is None)
            for split, arrays in given.items()
            if split == "train" or any(array is not None for array in arrays)
        }
        for part in raw.values():
            part.check_like(raw["train"])
        if test_fraction:
            if "test" in raw:
                raise ValueError("test_fraction is given and so is x_test; allowed: one of them")
            raw["train"], raw["test"] = raw["train"].divided(test_fraction, split_seed)
        count = check_classes({split: part.y for split, part in raw.items()}, classes)
        packed = encoder is None and all(_is_binary(part.x) for part in raw.values())
        super().__init__(
            name,
            {split: part.stored(packed, encoder) for split, part in raw.items()},
            raw["train"].shape,
            count,
            T=raw["train"].T,
            packed=packed,
            scale=scale,
            encoder=encoder,
        )


class _Raw:
    """The arrays of one part as they were given, checked on their own."""

    def __init__(
        self, suffix: str, x: ArrayLike | None, y: ArrayLike | None, lengths: ArrayLike | None, timed: bool
    ) -> None:
        self.suffix, self.timed = suffix, timed
        if x is None or y is None:
            raise ValueError(f"{'x' if x is None else 'y'}{suffix} is missing; allowed: both x{suffix} and y{suffix}")
        self.x = _numbers(x, f"x{suffix}")
        least = "[D, T, ...]" if timed else "[D, ...]"
        if self.x.ndim < 2:
            raise ValueError(f"x{suffix} has shape {list(self.x.shape)}; allowed: {least}")
        if not self.x.size:
            raise ValueError(
                f"x{suffix} has shape {list(self.x.shape)}, which holds nothing; allowed: 1 or more of each"
            )
        self.T = self.x.shape[1] if timed else None
        self.shape = self.x.shape[2 if timed else 1 :]
        if timed and not self.shape:
            self.x, self.shape = self.x[:, :, None], (1,)
        self.lengths = None if lengths is None else self._checked_lengths(_numbers(lengths, f"lengths{suffix}"))
        self.y = step_labels(_numbers(y, f"y{suffix}"), len(self.x), self.T, self.lengths, f"y{suffix}")

    def check_like(self, other: "_Raw") -> None:
        """Raise ValueError unless samples and labels have the shapes of ``other``'s."""
        mine, theirs = list(self.x.shape[1:]), list(other.x.shape[1:])
        if mine != theirs:
            raise ValueError(f"x{self.suffix} has samples of shape {mine}, and x of {theirs}; allowed: the same")
        if self.y.ndim != other.y.ndim:
            kinds = {1: "per sample", 2: "per step"}
            raise ValueError(
                f"y{self.suffix} is {kinds[self.y.ndim]}, and y {kinds[other.y.ndim]}; allowed: the same of both"
            )

    def divided(self, fraction: float, seed: int) -> "tuple[_Raw, _Raw]":
        """Two parts, the second with ``fraction`` of each class (of all samples if labels are per step)."""
        is_test = chosen_for_test(self.y, fraction, seed)
        parts = []
        for keep, suffix in ((~is_test, self.suffix), (is_test, "_test")):
            lengths = None if self.lengths is None else self.lengths[keep]
            parts.append(_Raw(suffix, self.x[keep], self.y[keep], lengths, self.timed))
        return parts[0], parts[1]

    def stored(self, packed: bool, encoder: str | None) -> Part:
        """As tensors, time first."""
        lengths = None if self.lengths is None else torch.from_numpy(self.lengths.astype(np.int64))
        if self.y.ndim == 1:
            y = torch.from_numpy(self.y.astype(np.int64))
        else:
            y = torch.from_numpy(np.ascontiguousarray(self.y.T.astype(np.int16)))
        if packed:
            return Part(_packed(self.x), y, lengths)
        if encoder is None:
            x = _compact(self.x)
            return Part(torch.from_numpy(np.ascontiguousarray(x.swapaxes(0, 1))), y, lengths)
        if self.x.dtype != np.uint8 and not np.issubdtype(self.x.dtype, np.floating):
            raise ValueError(f"x{self.suffix} is {self.x.dtype}; allowed with an encoder: uint8, or floats in [0, 1]")
        x = _compact(self.x)
        if encoder != "direct" and x.dtype != np.uint8 and not (x.min() >= 0 and x.max() <= 1):
            raise ValueError(
                f"x{self.suffix} holds {x.min():g} to {x.max():g}; allowed with encoder {encoder}: uint8, or 0 to 1"
            )
        return Part(torch.from_numpy(np.ascontiguousarray(x)), y, lengths)

    def _checked_lengths(self, lengths: np.ndarray) -> np.ndarray:
        name = f"lengths{self.suffix}"
        if self.T is None:
            raise ValueError(f"{name} is given and x has no time steps; allowed: lengths of x [D, T, ...] alone")
        if lengths.shape != (len(self.x),) or not np.issubdtype(lengths.dtype, np.integer):
            raise ValueError(f"{name} is {lengths.dtype} {list(lengths.shape)}; allowed: integers [{len(self.x)}]")
        if not (lengths.min() >= 1 and lengths.max() <= self.T):
            sample = int(np.argmax((lengths < 1) | (lengths > self.T)))
            raise ValueError(f"{name} is {lengths[sample]} at sample {sample}; allowed: 1 to {self.T}")
        return lengths


def _numbers(values: ArrayLike, name: str) -> np.ndarray:
    """As an array of finite numbers."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if (
        array.dtype != bool
        and not np.issubdtype(array.dtype, np.integer)
        and not np.issubdtype(array.dtype, np.floating)
    ):
        raise TypeError(f"{name} holds {array.dtype}; allowed: numbers")
    if np.issubdtype(array.dtype, np.floating):
        for start in range(0, len(array) if array.ndim else 0, _CHUNK):
            finite = np.isfinite(array[start : start + _CHUNK])
            if not finite.all():
                sample = start + int(np.argmin(finite.reshape(len(finite), -1).all(1)))
                raise ValueError(
                    f"{name} holds NaN or infinity at sample {sample}; allowed: finite numbers, 0 as padding"
                )
    return array


def _is_binary(x: np.ndarray) -> bool:
    if x.dtype == bool:
        return True
    parts = (x[start : start + _CHUNK] for start in range(0, len(x), _CHUNK))
    return all(bool(((part == 0) | (part == 1)).all()) for part in parts)


def _packed(x: np.ndarray) -> Tensor:
    """Spikes [D, T, ...] -> int32 [ceil(T / 32), D, ...]."""
    words = torch.empty(-(-x.shape[1] // 32), len(x), *x.shape[2:], dtype=torch.int32)
    for start in range(0, len(x), _CHUNK):
        part = torch.from_numpy(np.ascontiguousarray(x[start : start + _CHUNK].swapaxes(0, 1)) != 0)
        words[:, start : start + _CHUNK] = philox.pack(part)
    return words


def _compact(x: np.ndarray) -> np.ndarray:
    """The same numbers in a type that memory is given to; float64 is rounded to float32."""
    if x.dtype in _KEPT:
        return x
    if x.dtype == bool:
        return x.astype(np.uint8)
    if np.issubdtype(x.dtype, np.integer):
        least, most = int(x.min()), int(x.max())
        for kind in (np.uint8, np.int8, np.int16):
            if np.iinfo(kind).min <= least and most <= np.iinfo(kind).max:
                return x.astype(kind)
    return x.astype(np.float32)


def chosen_for_test(y: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which samples become the test set, bool [D]: ``fraction`` of each class (of all if labels are per step)."""
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction is {fraction}; allowed: more than 0 and less than 1")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).numpy()
    groups = y[order] if y.ndim == 1 else np.zeros(len(order))
    chosen = [members[: round(fraction * len(members))] for c in np.unique(groups) for members in [order[groups == c]]]
    is_test = np.zeros(len(order), bool)
    is_test[np.concatenate(chosen)] = True
    if not is_test.any():
        raise ValueError(f"test_fraction is {fraction}, which is no sample of any class; allowed: more, or x_test")
    return is_test


def open_arrays(
    name: str,
    folder: Path,
    T: int | None,
    encoder: str | None,
    say: Callable[[str], None],
    *,
    test_fraction: float = 0.0,
    split_seed: int = 0,
    classes: int | None = None,
    scale: float = 1.0,
) -> Arrays:
    """A .npz file, or a folder with train.npz and, if there are, validation.npz and test.npz."""
    path = Path(name).expanduser()
    arrays = _read_folder(path) if path.is_dir() else _read_file(path)
    try:
        source = Arrays(
            **arrays,  # type: ignore[arg-type]
            test_fraction=test_fraction,
            split_seed=split_seed,
            classes=classes,
            encoder=encoder,
            scale=scale,
            name=path.name if path.suffix else path.resolve().name,
        )
    except (ValueError, TypeError) as error:
        raise DataUnavailable(f"{path}: {error}") from error
    if T is not None and source.T is not None and T != source.T:
        raise ValueError(f"T is {T}, and {path} has {source.T} time steps; allowed: {source.T}, or leave T out")
    return source


def _read_file(path: Path) -> dict[str, np.ndarray]:
    allowed = [f"{key}{suffix}" for suffix in _SUFFIXES.values() for key in ("x", "y", "lengths")]
    arrays = read_arrays(path, _REMEDY)
    for key in arrays:
        if key not in allowed and key.partition("_")[0] in ("x", "y", "lengths"):
            raise DataUnavailable(f"{path} has the array {key}; allowed: {', '.join(allowed)}")
    for key in ("x", "y"):
        if key not in arrays:
            found = ", ".join(key or "one array without a name" for key in arrays) or "nothing"
            raise DataUnavailable(f"{path} has no array {key}, it holds {found}: {_REMEDY}")
    return {key: array for key, array in arrays.items() if key in allowed}


def _read_folder(folder: Path) -> dict[str, np.ndarray]:
    files = {split: folder / f"{split}.npz" for split in _SUFFIXES}
    check_regular(files["train"], f"put train.npz, and test.npz if there is one, in {folder}, or name a .npz file")
    arrays: dict[str, np.ndarray] = {}
    for split, path in files.items():
        if path.exists():
            arrays |= {f"{key}{_SUFFIXES[split]}": array for key, array in _read_file(path).items()}
    return arrays
