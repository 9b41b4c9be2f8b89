"""Which samples are trained on, which choose best.pt, and which are tested on; and the order of an epoch."""

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsnn.sources import Source, StoredSource
from fastsnn.sources.store import Part as StoredPart


@dataclass(frozen=True)
class Part:
    """Some samples of a split of a source."""

    split: str
    ids: Tensor
    """int64 [S]."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Part":
        """The same with ids on ``device``."""
        return Part(self.split, self.ids.to(device))


@dataclass(frozen=True)
class Parts:
    """How the samples of a source are used."""

    train: Part
    validation: Part | None
    test: Part | None

    @property
    def held_out(self) -> Part:
        """What an epoch is judged on: the validation part, without one the test set."""
        found = self.validation or self.test
        assert found is not None
        return found


def first_samples(source: Source, train_samples: int | None, test_samples: int | None) -> Source:
    """The source with the first samples of its training and its test set alone; None keeps all."""
    if train_samples is None and test_samples is None:
        return source
    if not isinstance(source, StoredSource):
        raise ValueError(f"train_samples or test_samples is given; allowed: neither, for {source.name} can't be cut")
    cut = copy(source)
    limits = {"train": train_samples, "test": test_samples}
    cut.parts = {split: _first(part, limits.get(split), source.encoder) for split, part in source.parts.items()}
    return cut


def _first(part: StoredPart, samples: int | None, encoder: str | None) -> StoredPart:
    """The first samples of a stored part, whose axis of samples comes after that of time if there is no encoder."""
    x = part.x[:samples] if encoder is not None else part.x[:, :samples]
    return StoredPart(x, part.y[..., :samples], None if part.lengths is None else part.lengths[:samples])


def split_source(source: Source, validation: float, seed: int) -> Parts:
    """Hold out the part ``validation`` of the training set, drawn from the seed; 0 takes the source's own split.

    Raises ValueError if there is nothing to train on, to judge by, or to hold out.
    """
    sizes = {split: source.size(split) for split in ("train", "validation", "test")}
    if not sizes["train"]:
        raise ValueError(f"{source.name} has no training samples; allowed: 1 or more")
    train = Part("train", torch.arange(sizes["train"]))
    test = Part("test", torch.arange(sizes["test"])) if sizes["test"] else None
    if sizes["validation"]:
        if validation:
            raise ValueError(
                f"validation is {validation:g}; allowed: 0, for {source.name} has a validation set of its own"
            )
        return Parts(train, Part("validation", torch.arange(sizes["validation"])), test)
    if not validation:
        if test is None:
            raise ValueError(f"{source.name} has no test set; allowed: a validation of 0.1, say, to hold out samples")
        return Parts(train, None, test)
    held_out = max(1, round(validation * len(train)))
    if held_out == len(train):
        raise ValueError(f"validation is {validation:g} of {len(train)} samples; allowed: what leaves some to train on")
    order = permutation(seed, 0, len(train))
    return Parts(Part("train", order[held_out:].sort().values), Part("train", order[:held_out].sort().values), test)


def permutation(seed: int, epoch: int, samples: int) -> Tensor:
    """The order of an epoch's samples, int64 [samples]; the same on every machine. Epochs are counted from 1."""
    generator = torch.Generator().manual_seed((seed + epoch * 0x9E3779B97F4A7C15) % 2**63)
    return torch.randperm(samples, generator=generator)
