"""Poisson (rate) coding of images into spikes that depend on nothing but their coordinates."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels import philox


def poisson_encode(
    images: Tensor,
    T: int = 100,
    seed: int = 0,
    epoch: int = 0,
    stream: int = 0,
    sample_ids: Tensor | None = None,
    packed: bool = False,
) -> Tensor:
    """Draw T time steps of spikes whose rate is each pixel's intensity.

    A spike depends on (seed, stream, epoch, sample id, pixel, t) alone: not on the batch size, the order of the
    samples, the device or the backend.

    Args:
        images: uint8 (255 spikes always) or floating point in [0, 1], [B, ...].
        T: time steps, at least 1.
        seed: 0 to 2**64 - 1.
        epoch: 0 to 2**32 - 1.
        stream: 0 for training, 1 for evaluation; up to 255.
        sample_ids: int64 [B], each image's number in its data set, 0 to 2**32 - 1; default 0 to B - 1.
        packed: return the spikes packed along time instead; ``PackedSpikes(words, T)`` of them drives a layer.

    Returns:
        0 or 1, float32 [T, B, ...] on images' device; packed int32 [ceil(T / 32), B, ...], where bit i of word w
        is time step 32 w + i.

    Raises:
        TypeError, ValueError: an argument is out of range, or a pixel is outside [0, 1] or NaN.
    """
    for name, value, most in (
        ("T", T, 2**24 // philox.PLANES * 128),
        ("seed", seed, 2**64 - 1),
        ("epoch", epoch, 2**32 - 1),
        ("stream", stream, 255),
    ):
        least = 1 if name == "T" else 0
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; allowed: an integer")
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}; allowed: {least} to {most}")
    if not isinstance(images, Tensor):
        raise TypeError(f"images is {type(images).__name__}; allowed: a tensor")
    if not images.dim():
        raise ValueError("images has shape []; allowed: [B, ...]")
    sample_ids = _checked_ids(sample_ids, images)
    kernels: Any = philox if images.device.type != "cpu" else import_module("fastsnn.kernels.numba.philox")
    pixels = images.flatten(1) if images.dim() > 1 else images[:, None]
    words = kernels.poisson_words(_thresholds(pixels), T, seed, epoch, stream, sample_ids)
    spikes = words if packed else kernels.unpack(words, T)
    return spikes.reshape(len(spikes), *images.shape)


def _checked_ids(sample_ids: Tensor | None, images: Tensor) -> Tensor:
    if sample_ids is None:
        return torch.arange(len(images), device=images.device)
    if not isinstance(sample_ids, Tensor):
        raise TypeError(f"sample_ids is {type(sample_ids).__name__}; allowed: a tensor or None")
    if sample_ids.shape != images.shape[:1] or sample_ids.dtype != torch.int64:
        found = f"{sample_ids.dtype} {list(sample_ids.shape)}"
        raise ValueError(f"sample_ids is {found}; allowed: torch.int64 [{len(images)}]")
    if sample_ids.device != images.device:
        raise ValueError(f"sample_ids is on {sample_ids.device}; allowed: {images.device}, where the images are")
    # On a GPU a look at the values would wait for it at every batch.
    if sample_ids.device.type == "cpu" and len(sample_ids) and not 0 <= sample_ids.min() <= sample_ids.max() < 2**32:
        raise ValueError(f"sample_ids holds {sample_ids.min()} to {sample_ids.max()}; allowed: 0 to {2**32 - 1}")
    return sample_ids


def _thresholds(images: Tensor) -> Tensor:
    """Pixels [B, P] -> q int64 [B, P], the spike probability in units of 1 / 65536."""
    if images.dtype == torch.uint8:
        return philox.thresholds(images)
    if not images.is_floating_point():
        raise TypeError(f"images has dtype {images.dtype}; allowed: torch.uint8, or floating point in [0, 1]")
    if not ((images >= 0) & (images <= 1)).all():
        raise ValueError("images has a pixel outside [0, 1] or NaN; allowed: intensities from 0 to 1")
    return (images.double() * philox.ALWAYS).floor().to(torch.int64)


def latency_encode(images: Tensor, T: int = 100, packed: bool = False) -> Tensor:
    """Time-to-first-spike coding: one spike for each pixel, the brighter the earlier; a pixel of 0 never spikes.

    A pixel of intensity v spikes at t = round((1 - v) (T - 1)), halves to the even step: at t = 0 if v is 1. Source:
    SpikingJelly's ``LatencyEncoder(T, 'linear')``, but for its spike at T - 1 for pixels of 0.

    Args:
        images: uint8 (255 is an intensity of 1) or floating point in [0, 1], [B, ...].
        T: time steps, at least 1.
        packed: return the spikes packed along time instead; ``PackedSpikes(words, T)`` of them drives a layer.

    Returns:
        0 or 1, float32 [T, B, ...] on images' device; packed int32 [ceil(T / 32), B, ...].

    Raises:
        TypeError, ValueError: an argument is out of range, or a pixel is outside [0, 1] or NaN.
    """
    values = _intensities(images, T)
    if images.dtype != torch.uint8 and not ((values >= 0) & (values <= 1)).all():
        raise ValueError("images has a pixel outside [0, 1] or NaN; allowed: intensities from 0 to 1")
    first = ((1 - values) * (T - 1)).round().to(torch.int64)
    steps = torch.arange(-(-T // 32), device=images.device).reshape(-1, *[1] * images.dim())
    words = torch.where((first >> 5 == steps) & (values > 0), torch.ones_like(first) << (first & 31), 0).to(torch.int32)
    return words if packed else philox.unpack(words, T)


def direct_encode(images: Tensor, T: int = 100) -> Tensor:
    """Direct coding: the value of a pixel is its current at every time step.

    Args:
        images: uint8, which becomes 0 to 1, or floating point of any value, [B, ...].
        T: time steps, at least 1.

    Returns:
        float32 [T, B, ...] on images' device, in the memory of one time step.

    Raises:
        TypeError, ValueError: an argument is out of range.
    """
    values = _intensities(images, T)
    return values.expand(T, *values.shape)


def _intensities(images: Tensor, T: int) -> Tensor:
    """The images as fp32, uint8 as 0 to 1; checks them and T."""
    if not isinstance(T, int) or isinstance(T, bool):
        raise TypeError(f"T is {T!r}; allowed: an integer")
    if T < 1:
        raise ValueError(f"T is {T}; allowed: 1 or more")
    if not isinstance(images, Tensor):
        raise TypeError(f"images is {type(images).__name__}; allowed: a tensor")
    if not images.dim():
        raise ValueError("images has shape []; allowed: [B, ...]")
    if images.dtype == torch.uint8:
        return images.float() / torch.full((), 255.0, device=images.device)
    if not images.is_floating_point():
        raise TypeError(f"images has dtype {images.dtype}; allowed: torch.uint8, or floating point")
    return images.float()
