"""Data sets as ``Source``s: images with an encoder, sequences, events, audio and arrays of one's own.

Data live on the training device, spikes packed along time; no worker process takes part.
"""

from fastsnn.sources.base import SPLITS, Batch, Source

__all__ = ["SPLITS", "Batch", "Source"]
