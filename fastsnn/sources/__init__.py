"""Data sets as ``Source``s: images with an encoder, sequences, events, audio and arrays of one's own.

Data live on the training device, spikes packed along time; no worker process takes part.
"""

from fastsnn.sources.arrays import Arrays
from fastsnn.sources.base import SPLITS, Batch, Source
from fastsnn.sources.feed import batches
from fastsnn.sources.images import DataSet, Images, default_folder
from fastsnn.sources.registry import names, open_source, options, register
from fastsnn.sources.store import StoredSource

__all__ = [
    "SPLITS",
    "Arrays",
    "Batch",
    "DataSet",
    "Images",
    "Source",
    "StoredSource",
    "batches",
    "default_folder",
    "names",
    "open_source",
    "options",
    "register",
]
