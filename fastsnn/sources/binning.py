"""Events (time, channel) into T time steps: which step an event falls in, and all steps of many recordings."""

import numpy as np
import torch
from torch import Tensor

BINNINGS = ("time", "count")
VALUES = ("spikes", "counts")
_BITS = (np.uint32(1) << np.arange(32, dtype=np.uint32)).view(np.int32)


def check_options(T: int, binning: str, values: str, duration: float | None) -> None:
    """Raise ValueError for an option that is not allowed."""
    for name, value, allowed in (("binning", binning, BINNINGS), ("values", values, VALUES)):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    if duration is not None and not 0 < duration < float("inf"):
        raise ValueError(f"duration is {duration}; allowed: seconds, more than 0")
    if duration is not None and binning == "count":
        raise ValueError("duration is given and binning is count; allowed: a duration with binning time")


def time_steps(times: np.ndarray, T: int, binning: str, duration: float | None) -> np.ndarray:
    """The time step of each event, int64, by its time: integers in ascending order, and ``duration`` in their unit.

    - time, no duration: the recording is cut in T steps of (last - first) // T units; what is left belongs to the last.
    - time, with a duration: T equal steps from 0 to ``duration``; a later event gets T or more.
    - count: the same number of events, N // T, for each step; what is left belongs to the last.

    Source: SpikingJelly's ``integrate_events_by_fixed_frames_number`` for those without a duration.
    """
    if binning == "count":
        return np.minimum(np.arange(len(times)) // max(1, len(times) // T), T - 1)
    if duration is not None:
        return np.floor(times * (T / duration)).astype(np.int64)
    if not len(times):
        return np.zeros(0, np.int64)
    since = times.astype(np.int64) - int(times[0])
    return np.minimum(since // max(1, int(since[-1]) // T), T - 1)


class Bins:
    """The time steps of D recordings of C channels: spikes packed along time, or counts uint8, at most 255."""

    def __init__(self, samples: int, T: int, channels: int, values: str) -> None:
        self.samples, self.T, self.channels, self.counted = samples, T, channels, values == "counts"
        rows = T if self.counted else -(-T // 32)
        self._kept = np.zeros(rows * samples * channels, np.uint8 if self.counted else np.int32)

    def add(self, samples: np.ndarray | int, steps: np.ndarray, channels: np.ndarray) -> None:
        """Add events: recording, time step and channel of each. No later call may add to the same recordings."""
        C = self.channels
        if self.counted:
            places, counts = np.unique((steps * self.samples + samples) * C + channels, return_counts=True)
            self._kept[places] = np.minimum(counts, 255)
        else:
            places = ((steps >> 5) * self.samples + samples) * C + channels
            np.bitwise_or.at(self._kept, places, _BITS[steps & 31])

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """int32 [ceil(T / 32), D, *shape] of packed spikes, or uint8 [T, D, *shape] of counts."""
        return torch.from_numpy(self._kept).reshape(-1, self.samples, *shape)
