"""Spikes packed along time, 32 steps to a word, so that what lies between two layers takes 1/32 of fp32.

Integers have no gradient, so a *carrier* goes with the words: a float tensor [T, ...] that holds one number, expanded,
and whose gradient is that of the spikes. Tests: ``tests/test_packed.py``.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsnn.kernels import eager, philox
from fastsnn.kernels.triton import launches_on
from fastsnn.kernels.triton import philox as triton_philox


class PackedSpikes(NamedTuple):
    """Spikes [T, ...], 32 time steps to a word: between two layers they take 1/32 of the memory of fp32.

    ``linear`` gives them with ``packed=True`` and takes them as its input; gradients flow through them. The words
    of ``poisson_encode(..., packed=True)`` become some by ``PackedSpikes(words, T)``.

    Args:
        words: int32 [ceil(T / 32), ...]; bit i of word w is the spike at t = 32 w + i, bits past T count for nothing.
        T: time steps.
        carrier: fp32 [T, ...], zeros in the memory of one number, whose gradient is that of the spikes, since integers
            have none; None where they need none.
    """

    words: Tensor
    T: int
    carrier: Tensor | None = None

    @classmethod
    def pack(cls, spikes: Tensor) -> "PackedSpikes":
        """Spikes [T, ...], where everything but 0 is a spike, packed."""
        carrier, words = pack_op(spikes)
        return cls(words, len(spikes), carrier)

    def unpack(self) -> Tensor:
        """The spikes as fp32 [T, ...]."""
        spikes = eager.run(unpack_op, self.words, self.T)
        return spikes if self.carrier is None else spikes + self.carrier


@torch.library.custom_op("fastsnn::pack", mutates_args=())
def pack_op(spikes: Tensor) -> tuple[Tensor, Tensor]:
    """(carrier, words) of spikes [T, ...]."""
    pack = triton_philox.pack if launches_on(spikes) else philox.pack
    return carrier_for(spikes), pack(spikes != 0)


@pack_op.register_fake
def _empty_words(spikes: Tensor) -> tuple[Tensor, Tensor]:
    return carrier_for(spikes), spikes.new_empty(-(-spikes.shape[0] // 32), *spikes.shape[1:], dtype=torch.int32)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: Any) -> None:
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, grad_carrier: Tensor, _: Any) -> Tensor:
    return grad_carrier.to(ctx.dtype)


pack_op.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("fastsnn::unpack", mutates_args=())
def unpack_op(words: Tensor, T: int) -> Tensor:
    """The spikes fp32 [T, ...] of words; on a GPU one launch."""
    return (triton_philox if launches_on(words) else philox).unpack(words, T)


@unpack_op.register_fake
def _empty_spikes(words: Tensor, T: int) -> Tensor:
    return words.new_empty(T, *words.shape[1:], dtype=torch.float32)


def carrier_for(like: Tensor, *shape: int) -> Tensor:
    """Zeros fp32 [T, ...] of ``shape``, or of ``like``'s, in the memory of one."""
    return like.new_zeros((), dtype=torch.float32).expand(shape or like.shape)


def unpack(words: Tensor, T: int) -> Tensor:
    """A byte for every spike, for the Triton kernels: words [ceil(T / 32), ...] -> uint8 [T, ...]."""
    return triton_philox.unpack(words, T, torch.uint8)
