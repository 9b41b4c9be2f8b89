"""Random spikes on the CPU against ``kernels/philox.py``, bit for bit."""

import numba
import pytest
import torch

from fastsnn.kernels import philox
from fastsnn.kernels.numba import philox as cpu_philox

IDS = torch.tensor([3, 2**32 - 1, 0, 59999])


def thresholds() -> torch.Tensor:
    """q of random 8-bit pixels, of every special value, of none at all, and of probabilities below 1/256."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(256, (4, 67), generator=generator) * 257
    q[1, :7] = torch.tensor([0, 1, 257, 32768, 65535, philox.ALWAYS, 0])
    q[2] = 0
    q[3] = torch.randint(1, 256, (67,), generator=generator)
    q[3, 5:] = philox.ALWAYS
    return q


@pytest.mark.parametrize("T", [1, 31, 32, 33, 64, 65, 100, 128, 129, 300])
def test_words_are_those_of_torch(T: int) -> None:
    arguments = (thresholds(), T, 2**63 + 12345, 2**32 - 1, 1, IDS)
    words = cpu_philox.poisson_words(*arguments)
    expected = philox.poisson_words(*arguments)
    assert words.dtype == torch.int32
    assert torch.equal(words, expected)
    assert torch.equal(cpu_philox.unpack(words, T), philox.unpack(expected, T))


@pytest.mark.parametrize(("seed", "epoch", "stream"), [(0, 0, 0), (2**32 + 5, 7, 0), (2**64 - 1, 0, 255)])
def test_every_coordinate_counts(seed: int, epoch: int, stream: int) -> None:
    arguments = (thresholds(), 40, seed, epoch, stream, IDS)
    assert torch.equal(cpu_philox.poisson_words(*arguments), philox.poisson_words(*arguments))


def test_the_batch_and_the_threads_do_not_count() -> None:
    q = thresholds()
    words = cpu_philox.poisson_words(q, 100, 1, 2, 0, IDS)
    alone = [cpu_philox.poisson_words(q[b : b + 1], 100, 1, 2, 0, IDS[b : b + 1]) for b in (3, 1)]
    assert torch.equal(words[:, [3, 1]], torch.cat(alone, 1))
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        assert torch.equal(cpu_philox.poisson_words(q, 100, 1, 2, 0, IDS), words)
    finally:
        numba.set_num_threads(threads)


def test_tensors_may_be_views() -> None:
    q, ids = thresholds().T.contiguous().T, torch.arange(8)[::2]
    assert not q.is_contiguous()
    expected = philox.poisson_words(q, 5, 1, 2, 0, ids)
    assert torch.equal(cpu_philox.poisson_words(q, 5, 1, 2, 0, ids), expected)
    assert torch.equal(cpu_philox.unpack(expected[..., ::2], 5), philox.unpack(expected[..., ::2], 5))


@pytest.mark.parametrize("shape", [(0, 67), (4, 0)])
def test_nothing_to_draw(shape: tuple[int, int]) -> None:
    words = cpu_philox.poisson_words(torch.zeros(shape, dtype=torch.int64), 40, 0, 0, 0, IDS[: shape[0]])
    assert words.shape == (2, *shape)
    assert cpu_philox.unpack(words, 40).shape == (40, *shape)


def test_words_of_several_axes_unpack() -> None:
    words = philox.poisson_words(thresholds(), 33, 0, 0, 0, IDS).reshape(2, 2, 2, 67)
    assert torch.equal(cpu_philox.unpack(words, 33), philox.unpack(words, 33))
