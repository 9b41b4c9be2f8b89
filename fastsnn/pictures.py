"""Pictures of one's own as samples of a data set: of a photo of a digit becomes what MNIST would have made of it.

Tests: ``tests/test_predict.py``.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fastsnn.errors import DataUnavailable

_NOISE = 0.1
"""Part of the darkest ink below which a pixel is paper."""
_BOX = {"mnist": 20 / 28}
"""Data set -> part of the picture that its objects fit in; others fill it."""


def read_pictures(files: Sequence[Path], dataset: str, shape: Sequence[int]) -> Tensor:
    """Pictures as samples of a data set of images [C, H, W], uint8 [D, C, H, W].

    A grey data set shows light things on black. So a picture on a light ground is inverted, its ground becomes 0 and
    its strongest ink 255; what is inked is cut out and scaled to the size that the data set gives its objects. MNIST's
    digits fit in 20 x 20 of 28 x 28 pixels, with their centre of mass in the middle (LeCun et al. 1998); other sets
    centre what is cut out. Pictures for a data set of colours are only scaled.

    Raises:
        DataUnavailable: a file can't be read or is no picture.
        ValueError: a picture is blank, or the data set has no pictures.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"the run was trained on samples of shape {list(shape)}, which are no pictures; allowed: --input file.npz"
        )
    height, width = shape[1:]
    samples = []
    for file in files:
        picture = _opened(file)
        if shape[0] == 3:
            fitted = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
            samples.append(np.asarray(fitted).transpose(2, 0, 1))
        else:
            box = _BOX.get(dataset, 1.0)
            samples.append(_centred(_ink(picture, file), height, width, box, by_mass=dataset == "mnist")[None])
    return torch.from_numpy(np.stack(samples))


def _opened(file: Path) -> Image.Image:
    """The picture as it is seen: turned as the camera was held, on white where it is transparent."""
    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataUnavailable(f"{file} can't be read: {reason}; allowed: a picture, as .png or .jpg") from error
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture).convert("RGB")


def _ink(picture: Image.Image, file: Path) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """[H, W]: how far each pixel is from the ground, 0 to 1, cut out where there is any."""
    grey = np.asarray(picture.convert("L"), np.float64)
    ground = float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))
    ink = np.clip(ground - grey if ground > 127 else grey - ground, 0, None)
    if ink.max() < 16:  # of 255
        raise ValueError(f"{file} is blank: nothing in it differs from its ground; allowed: a picture of something")
    ink /= ink.max()
    ink[ink < _NOISE] = 0
    rows, columns = np.nonzero(ink.any(1))[0], np.nonzero(ink.any(0))[0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _centred(
    ink: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", height: int, width: int, box: float, by_mass: bool
) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    """Scaled to fit ``box`` of height x width, and put in the middle of it."""
    scale = min(box * height / ink.shape[0], box * width / ink.shape[1])
    size = [max(1, round(scale * side)) for side in ink.shape]
    image = Image.fromarray((255 * ink).astype(np.uint8))
    small = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BOX), np.float64)
    small *= 255 / max(1.0, small.max())
    middle = [side / 2 for side in size]
    if by_mass:
        total = small.sum()
        middle = [float((small.sum(1 - axis) * np.arange(size[axis])).sum() / total) for axis in (0, 1)]
    sample = np.zeros((height, width), np.uint8)
    corner = [
        int(np.clip(round(whole / 2 - at), 0, whole - side))
        for whole, side, at in zip((height, width), size, middle, strict=True)
    ]
    sample[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = small.round().astype(np.uint8)
    return sample
