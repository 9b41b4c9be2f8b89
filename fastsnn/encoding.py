"""Poisson (rate) coding of images into spikes that depend on nothing but their coordinates."""

import torch
from torch import Tensor

from fastsnn.kernels import philox

MAX_SEED = 2**64 - 1


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
        sample_ids: int64 [B], each image's number in its data set; default 0 to B - 1.
        packed: return the spikes packed along time instead.

    Returns:
        0 or 1, float32 [T, B, ...] on images' device; packed int32 [ceil(T / 32), B, ...], where bit i of word w
        is time step 32 w + i.

    Raises:
        TypeError, ValueError: an argument is out of range, or a pixel is outside [0, 1] or NaN.
    """
    for name, value, most in (
        ("T", T, 2**24 // philox.PLANES * 128),
        ("seed", seed, MAX_SEED),
        ("epoch", epoch, 2**32 - 1),
        ("stream", stream, 255),
    ):
        least = 1 if name == "T" else 0
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; allowed: an integer")
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}; allowed: {least} to {most}")
    B = images.shape[0]
    if sample_ids is None:
        sample_ids = torch.arange(B, device=images.device)
    elif sample_ids.shape != (B,) or sample_ids.dtype != torch.int64:
        raise ValueError(f"sample_ids is {sample_ids.dtype} {list(sample_ids.shape)}; allowed: torch.int64 [{B}]")
    words = philox.poisson_words(_thresholds(images.reshape(B, -1)), T, seed, epoch, stream, sample_ids)
    spikes = words if packed else philox.unpack(words, T)
    return spikes.reshape(-1, *images.shape)


def _thresholds(images: Tensor) -> Tensor:
    """Pixels [B, P] -> q int64 [B, P], the spike probability in units of 1 / 65536."""
    if images.dtype == torch.uint8:
        levels = images.to(torch.int64)
        return torch.where(levels == 255, philox.ALWAYS, 257 * levels)
    if not images.is_floating_point():
        raise TypeError(f"images has dtype {images.dtype}; allowed: torch.uint8, or floating point in [0, 1]")
    if not ((images >= 0) & (images <= 1)).all():
        raise ValueError("images has a pixel outside [0, 1] or NaN; allowed: intensities from 0 to 1")
    return (images.double() * philox.ALWAYS).floor().to(torch.int64)
