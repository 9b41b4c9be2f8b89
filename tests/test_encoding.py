"""fastsnn.poisson_encode: what it does to images; the random numbers themselves are tested in test_philox.py."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastsnn import poisson_encode
from fastsnn.kernels import philox


def images(B: int = 7, seed: int = 0) -> Tensor:
    """uint8 [B, 5, 6] with black and white pixels among them."""
    pixels = torch.randint(0, 256, (B, 5, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = 0, 255
    return pixels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("packed", [False, True])
def test_spikes_do_not_depend_on_batch_size_or_order(dtype: torch.dtype, packed: bool) -> None:
    pixels, ids = images(), torch.tensor([5, 0, 59_999, 3, 2**32 - 1, 7, 1])
    if dtype is torch.float32:
        pixels = pixels / 255
    options: dict[str, Any] = {"T": 45, "seed": 2**63 + 11, "epoch": 4, "stream": 1, "packed": packed}
    whole = poisson_encode(pixels, sample_ids=ids, **options)
    assert whole.shape == ((2, 7, 5, 6) if packed else (45, 7, 5, 6))
    assert whole.dtype == (torch.int32 if packed else torch.float32)
    order = torch.tensor([3, 6, 0, 5, 1, 4, 2])
    assert torch.equal(poisson_encode(pixels[order], sample_ids=ids[order], **options), whole[:, order])
    for size in (1, 2, 5):
        parts = zip(pixels.split(size), ids.split(size), strict=True)
        batches = [poisson_encode(part, sample_ids=part_ids, **options) for part, part_ids in parts]
        assert torch.equal(torch.cat(batches, 1), whole)


def test_packed_is_the_same_spikes() -> None:
    words = poisson_encode(images(), T=77, seed=3, packed=True)
    spikes = poisson_encode(images(), T=77, seed=3)
    assert words.shape == (3, 7, 5, 6)
    assert torch.equal(philox.unpack(words, 77), spikes)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}


def test_sample_ids_count_from_0_by_default() -> None:
    counted = poisson_encode(images(), T=9, sample_ids=torch.arange(7))
    assert torch.equal(poisson_encode(images(), T=9), counted)
    assert not torch.equal(poisson_encode(images(), T=9, sample_ids=torch.arange(1, 8)), counted)


def test_black_never_spikes_and_white_always_does() -> None:
    for pixels in (images(), images() / 255, (images() / 255).double(), (images() / 255).half()):
        spikes = poisson_encode(pixels, T=130)
        assert not spikes[:, :, 0, 0].any()
        assert spikes[:, :, 0, 1].all()


@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_a_byte_is_a_multiple_of_257_65536ths(level: int) -> None:
    """uint8 k and the float 257 k / 65536 draw the same spikes; 255 is certain."""
    byte = torch.full((3, 50), level, dtype=torch.uint8)
    intensity = torch.full((3, 50), 1.0 if level == 255 else 257 * level / 65536, dtype=torch.float64)
    assert torch.equal(poisson_encode(byte, T=200, seed=9), poisson_encode(intensity, T=200, seed=9))


def test_an_intensity_is_rounded_down_to_65536ths() -> None:
    exact, above = torch.full((1, 4000), 0.25), torch.full((1, 4000), 0.25 + 0.9 / 65536, dtype=torch.float64)
    assert torch.equal(poisson_encode(above, T=64), poisson_encode(exact, T=64))
    almost = torch.full((1, 4000), 1 - 2**-20, dtype=torch.float64)  # q = 65535: one step in 65536 is silent
    assert 0 < (poisson_encode(almost, T=128) == 0).sum() < 40


@pytest.mark.parametrize("shape", [(0, 28, 28), (0,), (3,), (3, 0), (2, 1, 4, 4), (1, 1)])
def test_any_shape_of_image(shape: tuple[int, ...]) -> None:
    assert poisson_encode(torch.ones(shape), T=33).shape == (33, *shape)
    assert poisson_encode(torch.ones(shape), T=33, packed=True).shape == (2, *shape)


def test_a_view_is_encoded_as_its_values() -> None:
    pixels = images()
    turned = pixels.transpose(1, 2)
    assert torch.equal(poisson_encode(turned, T=9), poisson_encode(turned.contiguous(), T=9))


ONE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"images": np.ones((2, 3))}, TypeError, "images is ndarray; allowed: a tensor"),
        ({"images": torch.tensor(1.0)}, ValueError, "images has shape"),
        ({"images": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "dtype torch.int64; allowed: torch.uint8"),
        ({"images": torch.ones(2, 3, dtype=torch.bool)}, TypeError, "dtype torch.bool"),
        ({"images": ONE * 1.001}, ValueError, "outside \\[0, 1\\]"),
        ({"images": ONE * -1e-9}, ValueError, "outside \\[0, 1\\]"),
        ({"images": ONE * float("nan")}, ValueError, "NaN"),
        ({"images": ONE * float("inf")}, ValueError, "outside \\[0, 1\\]"),
        ({"T": 0}, ValueError, "T is 0; allowed: 1 to"),
        ({"T": 1.0}, TypeError, "T is 1.0; allowed: an integer"),
        ({"T": True}, TypeError, "T is True"),
        ({"T": 2**28}, ValueError, "T is 268435456"),
        ({"seed": -1}, ValueError, "seed is -1; allowed: 0 to 18446744073709551615"),
        ({"seed": 2**64}, ValueError, "seed is 18446744073709551616"),
        ({"epoch": 2**32}, ValueError, "epoch is 4294967296"),
        ({"stream": 256}, ValueError, "stream is 256; allowed: 0 to 255"),
        ({"sample_ids": [0, 1]}, TypeError, "sample_ids is list"),
        (
            {"sample_ids": torch.arange(3)},
            ValueError,
            "sample_ids is torch.int64 \\[3\\]; allowed: torch.int64 \\[2\\]",
        ),
        ({"sample_ids": torch.arange(2.0)}, ValueError, "sample_ids is torch.float32"),
        ({"sample_ids": torch.tensor([0, -1])}, ValueError, "sample_ids holds -1 to 0"),
        ({"sample_ids": torch.tensor([2**32, 0])}, ValueError, "allowed: 0 to 4294967295"),
        ({"sample_ids": torch.arange(2, device="meta")}, ValueError, "sample_ids is on meta; allowed: cpu"),
    ],
)
def test_a_refusal_names_the_argument(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        poisson_encode(**{"images": ONE} | arguments)


def test_a_loop_gets_new_noise_by_epoch_and_sample_alone() -> None:
    """The same call gives the same spikes; the README's loop passes what makes them new."""
    x = images()
    assert torch.equal(poisson_encode(x, 20), poisson_encode(x, 20))
    assert not torch.equal(poisson_encode(x, 20, epoch=1), poisson_encode(x, 20, epoch=2))
    ids = torch.arange(len(x))
    assert not torch.equal(poisson_encode(x, 20, sample_ids=ids), poisson_encode(x, 20, sample_ids=ids + 7))
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    calls = re.findall(r"poisson_encode\((images\[ids\].*)\)", readme)
    assert calls == ["images[ids], T, epoch=epoch, sample_ids=ids"]
