"""The polarity channels of event cameras: off is channel 0 and on is channel 1, if both are kept."""

import numpy as np

POLARITIES = ("both", "summed", "on", "off")


def channels_of(polarity: str) -> int:
    """Channels that are kept; raises ValueError for an unknown ``polarity``."""
    if polarity not in POLARITIES:
        raise ValueError(f"polarity is {polarity!r}; allowed: {', '.join(POLARITIES)}")
    return 2 if polarity == "both" else 1


def select_events(p: np.ndarray, polarity: str) -> tuple[np.ndarray | slice, np.ndarray | int]:
    """Which events of polarities ``p`` are kept, and the channel of each of those."""
    if polarity == "both":
        return slice(None), p.astype(np.int64)
    if polarity == "summed":
        return slice(None), 0
    return p.astype(bool) == (polarity == "on"), 0


def select_frames(frames: np.ndarray, polarity: str) -> np.ndarray:
    """Frames [T, 2, H, W] -> [T, channels, H, W]."""
    if polarity == "summed":
        return frames.sum(1, keepdims=True)
    return frames if polarity == "both" else frames[:, [int(polarity == "on")]]
