"""Classes and scores of the samples in a file, or of pictures, by a trained run."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn.encoding import poisson_encode
from fastsnn.pictures import read_pictures
from fastsnn.sources import Batch
from fastsnn.sources.files import read_arrays
from fastsnn.sources.store import STREAMS
from fastsnn.text import printable
from fastsnn.training.command import TrainedRun
from fastsnn.training.loop import EVALUATION_BATCH
from fastsnn.training.machine import memory_explained, settings_kept


@dataclass(frozen=True)
class Predictions:
    """Of D samples."""

    classes: Tensor
    """The class with the highest score, int64 [D]."""
    scores: Tensor
    """fp32 [D, classes]: firing rates in spikes per step, or what the run's readout makes of membrane potentials."""
    what: str
    """rate or potential."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"classes": self.classes.tolist(), "scores": self.what, self.what + "s": self.scores.tolist()}

    def as_text(self, names: Sequence[str] = ()) -> str:
        """A line per sample to read: its name (default its number), its class, and the score of every class."""
        lines = []
        for i, (label, scores) in enumerate(zip(self.classes.tolist(), self.scores.tolist(), strict=True)):
            listed = "  ".join(f"{k}: {score:.2f}" for k, score in enumerate(scores))
            lines.append(f"{printable(names[i]) if names else i}: {label}   ({self.what}s {listed})\n")
        return "".join(lines)

    def as_csv(self) -> str:
        """A line per sample: its number, its class, and the score of every class."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["sample", "class", *(f"{self.what}_{label}" for label in range(self.scores.shape[1]))])
        for i, (label, scores) in enumerate(zip(self.classes.tolist(), self.scores.tolist(), strict=True)):
            writer.writerow([i, label, *(f"{score:.6g}" for score in scores)])
        return buffer.getvalue()


def predict(
    run: Path,
    input_file: Path | Sequence[Path],
    *,
    T: int | None = None,
    backend: str | None = None,
    device: str | None = None,
    checkpoint: str = "last",
) -> Predictions:
    """Classes and scores of the samples in ``input_file`` by a run of `fastsnn train`.

    Args:
        run: run folder.
        input_file: .npz with an array x (or a single one), or .npy: still samples [D, ...], uint8 or floating point in
            [0, 1], which are Poisson coded as the test set is; or [D, T, ...], which is taken as it is. ``lengths``
            [D], if there, are the time steps that count. Or pictures, a list of files, for a run on images: they are
            made like those of its data set (``fastsnn.pictures``).
        T: time steps of still samples; default the run's.
        backend: default the run's.
        device: default the run's.
        checkpoint: last or best.

    Raises:
        DataUnavailable: a file can't be read.
        ValueError: its arrays don't have the shape that the run was trained on, or a picture is blank.
    """
    name = str(input_file) if isinstance(input_file, (str, Path)) else "pictures"
    arrays = _read(Path(name)) if isinstance(input_file, (str, Path)) else {}
    with settings_kept():
        opened = TrainedRun.open(run, T=T, backend=backend, device=device, checkpoint=checkpoint)
        trained = opened.setup.source
        if not isinstance(input_file, (str, Path)):
            arrays = {"x": read_pictures(input_file, trained.name, trained.shape).numpy()}
        source = _ArraySource(arrays, trained.shape, trained.classes, name)
        step = opened.setup.layered
        step.source = source.to(opened.device)
        step.T = source.T or step.T
        with memory_explained(opened.device, "free some, or use another --device"):
            ids = torch.arange(source.size("test"), device=opened.device)
            scores, _ = step.outputs("test", ids, EVALUATION_BATCH)
    what = "rate" if opened.setup.objective.readout == "rate" else "potential"
    return Predictions(scores.argmax(-1).cpu(), scores.cpu(), what)


def _read(path: Path) -> dict[str, np.ndarray]:
    """x, and lengths if there are some."""
    arrays = read_arrays(path, "allowed: a .npz file with an array x, or a .npy file")
    if "x" not in arrays and len(arrays) == 1:
        (arrays["x"],) = arrays.values()
    if "x" not in arrays:
        raise ValueError(f"{path} holds the arrays {', '.join(arrays) or 'none'}; allowed: x, and lengths if needed")
    return arrays


class _ArraySource:
    """Arrays as the test set of a run; without labels all are 0."""

    per_step = False

    def __init__(self, arrays: dict[str, np.ndarray], shape: tuple[int, ...], classes: int, name: str) -> None:
        self.name, self.shape, self.classes = name, shape, classes
        x, plain = torch.from_numpy(arrays["x"]), tuple(size for size in shape if size != 1)
        found = tuple(x.shape)
        if x.dtype not in (torch.uint8, torch.bool, torch.int8) and not x.is_floating_point():
            raise ValueError(f"x in {name} is {arrays['x'].dtype}; allowed: uint8, int8, bool or floating point")
        still = found[1:] in (shape, plain) or tuple(size for size in found[1:] if size != 1) == plain
        still = still or (len(found) == 2 and found[1] == int(np.prod(shape)))
        self.T = None if still else found[1] if found[2:] in (shape, plain) else -1
        if not len(found) or self.T == -1 or self.T == 0:
            allowed = f"[D, {', '.join(map(str, shape))}] or [D, T, {', '.join(map(str, shape))}]"
            raise ValueError(f"x in {name} has shape {list(found)}; allowed: {allowed}, as the run was trained on")
        self._x = x.reshape(len(x), *shape) if still else x.reshape(len(x), found[1], *shape)
        self._lengths = torch.from_numpy(arrays["lengths"]).long() if "lengths" in arrays and not still else None
        if self._lengths is not None:
            limits = int(self._lengths.min()), int(self._lengths.max())
            if self._lengths.shape != (len(x),) or limits[0] < 1 or limits[1] > found[1]:
                raise ValueError(
                    f"lengths in {name} has shape {list(self._lengths.shape)} and values {limits[0]} to {limits[1]}; "
                    f"allowed: [{len(x)}], 1 to {found[1]}"
                )

    def size(self, split: str) -> int:
        return len(self._x) if split == "test" else 0

    def batch(self, split: str, ids: Tensor, T: int, *, seed: int = 0, epoch: int = 0) -> Batch:
        x, labels = self._x[ids], torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        if self.T is None:
            return Batch(poisson_encode(x, T, seed, epoch, STREAMS["test"], ids), labels)
        lengths = None if self._lengths is None else self._lengths[ids]
        return Batch(x.float().movedim(1, 0), labels, lengths)

    def to(self, device: torch.device) -> "_ArraySource":
        self._x = self._x.to(device)
        self._lengths = None if self._lengths is None else self._lengths.to(device)
        return self
