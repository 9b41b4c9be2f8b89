"""Products of a linear layer on spikes, on the CPU: multiplying by 0 and 1 is selecting, and most spikes are 0.

    currents         out [T, B, N] = x @ weight.T + bias
    weight_gradient  out [N, K] = sum over t and b of grad[t, b, n] * x[t, b, k]

x holds spikes [T, B, K], packed (``kernels/packed.py``) or in any dtype of ``packing.INTEGERS``, which are packed on
the way. There are three ways to compute, of which ``choice.py`` names the fastest:

    tables  inputs that spike at all, four at a time: the sums of their weights are tabulated once a sample
    lists   the weights of what spikes, one by one: if spikes are rare
    dense   a library's product (``products.py``): for what is not spikes, and for a few rows

Results are float32 within the contract (C2, C4), and the same bits for any number of threads. A weight whose input
never spikes is not read: unlike in a dense product, an infinity or NaN there changes nothing.
Kernels, also for a call from other kernels: ``kernels.py``. Tests: ``tests/test_spike_products.py``.
Benchmark: ``bench/spike_products.py``.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn.kernels.numba.bits import LANES, WIDE
from fastsnn.kernels.numba.openmp import rest
from fastsnn.kernels.numba.philox import unpack
from fastsnn.kernels.numba.products import linear
from fastsnn.kernels.numba.spike_products import kernels
from fastsnn.kernels.numba.spike_products.choice import WAYS, Way, list_share
from fastsnn.kernels.numba.spike_products.layout import Shape, shape_of
from fastsnn.kernels.numba.spike_products.packing import INTEGERS, pack
from fastsnn.kernels.numba.threads import spread, workers_for
from fastsnn.kernels.packed import PackedSpikes

__all__ = ["WAYS", "Way", "currents", "pack", "weight_gradient"]

PRODUCTS = 1 << 10
"""Products of an input and a weight that are as much work as one element is to ``workers_for``."""


@torch.no_grad()
def currents(
    x: Tensor | PackedSpikes, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None, way: Way = "auto"
) -> Tensor:
    """``x @ weight.T + bias`` as float32 [T, ..., N], for spikes x [T, ..., K], weight [N, K] and bias [N] on the CPU.

    A tensor x may hold anything: if it isn't spikes alone, the product is dense. The result is written to ``out``
    (float32, contiguous) if given. Raises ValueError for shapes that don't fit and a ``way`` that x doesn't allow.
    """
    T, inner, K = _shape(x)
    N = len(weight)
    _require("weight", weight, (N, K))
    if bias is not None:
        _require("bias", bias, (N,))
    out = _output("out", out, (T, *inner, N))
    if not out.numel():
        return out
    shape = shape_of(T, inner.numel(), K, N)
    share = list_share(way, shape, isinstance(x, PackedSpikes)) if K else None
    words = None if share is None else _words(x, way)
    if words is None or share is None:
        out.copy_(linear(_dense(x), weight.float(), None if bias is None else bias.float()))
        return out
    workers = _workers(shape)
    product = kernels.product(
        shape, share, workers, _rows(words), _array(weight), None if bias is None else _array(bias)
    )
    kernel = kernels.currents if N > LANES else kernels.currents_narrow
    spread(kernel, workers, product, out.view(-1).numpy(), arrived=product.arrived)
    return out


@torch.no_grad()
def weight_gradient(
    x: Tensor | PackedSpikes,
    grad: Tensor,
    out: Tensor | None = None,
    bias_out: Tensor | None = None,
    way: Way = "auto",
) -> Tensor:
    """Gradient float32 [N, K] of the weight from that of the currents, ``grad`` [T, ..., N]; otherwise as `currents`.

    The gradient of a bias, the sum of ``grad`` over all axes but the last, goes to ``bias_out`` float32 [N] if given.
    """
    T, inner, K = _shape(x)
    N = grad.shape[-1]
    _require("grad", grad, (T, *inner, N))
    out = _output("out", out, (N, K))
    bias = None if bias_out is None else _output("bias_out", bias_out, (N,))
    shape = shape_of(T, inner.numel(), K, N) if grad.numel() and K else None
    share = None if shape is None else list_share(way, shape, isinstance(x, PackedSpikes))
    words = None if share is None else _words(x, way)
    rows = grad.reshape(-1, N)
    if shape is None or share is None or words is None:
        rows = rows.float()
        out.copy_(linear(rows.T, _dense(x).reshape(-1, K).T) if shape is not None else torch.zeros(()))
        if bias is not None:
            bias.copy_(rows.sum(0))
        return out
    workers = _workers(shape)
    product = kernels.product(shape, share, workers, _rows(words))
    kernel = kernels.gradient if N > LANES else kernels.gradient_narrow
    bias_array = np.empty(0, np.float32) if bias is None else bias.numpy()
    spread(
        kernel, workers, product, _array(rows).reshape(-1), out.view(-1).numpy(), bias_array, arrived=product.arrived
    )
    return out


def _shape(x: Tensor | PackedSpikes) -> tuple[int, torch.Size, int]:
    """T, the axes between, K."""
    values, T = (x.words, x.T) if isinstance(x, PackedSpikes) else (x, len(x))
    if values.dim() < 2 or len(values) != (-(-T // 32) if isinstance(x, PackedSpikes) else T):
        raise ValueError(
            f"x has shape {list(values.shape)} for T = {T}; allowed: [T, ..., K], packed [ceil(T/32), ..., K]"
        )
    return T, values.shape[1:-1], values.shape[-1]


def _require(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; allowed beside the other operands: {list(shape)}")


def _output(name: str, out: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if out is None:
        return torch.empty(shape)
    _require(name, out, shape)
    if out.dtype != torch.float32 or not out.is_contiguous():
        layout = "contiguous" if out.is_contiguous() else "strided"
        raise ValueError(
            f"{name} is {layout} of dtype {str(out.dtype).removeprefix('torch.')}; allowed: contiguous float32"
        )
    return out


def _words(x: Tensor | PackedSpikes, way: Way) -> Tensor | None:
    """x as packed words; None if it isn't spikes."""
    if isinstance(x, PackedSpikes):
        return x.words.contiguous()
    words = pack(x) if x.dtype in INTEGERS else None
    if words is None and way != "auto":
        raise ValueError(f"x holds more than 0 and 1, and way is {way!r}, which is for spikes; allowed: auto, dense")
    return words


def _rows(words: Tensor) -> np.ndarray[Any, np.dtype[np.int32]]:
    return words[:, None].flatten(1, -2).numpy()


def _dense(x: Tensor | PackedSpikes) -> Tensor:
    return unpack(x.words, x.T) if isinstance(x, PackedSpikes) else x.float()


def _array(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return tensor.float().contiguous().numpy()


def _workers(shape: Shape) -> int:
    """Threads that are worth their while; also torch's own are kept from disturbing them."""
    rest()
    return workers_for(shape.T * shape.B * shape.K * max(shape.N, WIDE) // PRODUCTS)
