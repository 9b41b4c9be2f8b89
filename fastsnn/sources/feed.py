"""Batches one after the other; those of data in the host's memory are copied while the one before is computed with."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from fastsnn.kernels.packed import PackedSpikes
from fastsnn.sources.base import Batch, Source


def batches(
    source: Source, split: str, ids: Iterable[Tensor], T: int, *, seed: int = 0, epoch: int = 0
) -> Iterator[Batch]:
    """``source.batch`` of each of ``ids`` in turn, int64 [B].

    If the split lies in the host's memory and the device is a GPU, a thread gathers the next batch and copies it on a
    stream of its own meanwhile. The values are the same.
    """
    on_host = getattr(source, "on_host", None)
    if on_host is None or not on_host(split):
        for part in ids:
            yield source.batch(split, part, T, seed=seed, epoch=epoch)
        return
    with ThreadPoolExecutor(1, "fastsnn-feed") as thread:
        copier = _Copier(source, split, T, seed, epoch)
        ahead = None
        for part in ids:
            following = thread.submit(copier.fetch, part)
            if ahead is not None:
                yield copier.handed_over(*ahead.result())
            ahead = following
        if ahead is not None:
            yield copier.handed_over(*ahead.result())


class _Copier:
    """Makes batches on a stream of its own and hands them over to the current one."""

    def __init__(self, source: Source, split: str, T: int, seed: int, epoch: int) -> None:
        self.source, self.split, self.T, self.seed, self.epoch = source, split, T, seed, epoch
        device: torch.device | None = getattr(source, "device", None)
        self.stream = torch.cuda.Stream(device) if device is not None and device.type == "cuda" else None

    def fetch(self, ids: Tensor) -> tuple[Batch, torch.cuda.Event | None]:
        if self.stream is None:
            return self._batch(ids), None
        with torch.cuda.stream(self.stream):
            batch = self._batch(ids)
            return batch, self.stream.record_event()

    def handed_over(self, batch: Batch, copied: torch.cuda.Event | None) -> Batch:
        if copied is not None:
            current = torch.cuda.current_stream(batch.y.device)
            current.wait_event(copied)
            x = batch.x.words if isinstance(batch.x, PackedSpikes) else batch.x
            for tensor in (x, batch.y, batch.lengths):
                if tensor is not None:
                    # Else its memory could be given away while the current stream still reads it.
                    tensor.record_stream(current)
        return batch

    def _batch(self, ids: Tensor) -> Batch:
        return self.source.batch(self.split, ids, self.T, seed=self.seed, epoch=self.epoch)
