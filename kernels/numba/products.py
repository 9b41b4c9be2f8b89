"""Matrix products in fp32 on the CPU, by oneDNN where torch carries it.

torch's own fp32 products are MKL's, which takes more than twice as long on an AMD EPYC as oneDNN, which torch keeps for
other dtypes and for its compiler. Where torch has no oneDNN, its own products serve.
Tests: ``tests/test_cpu_products.py``.
"""

import platform

import torch
from torch import Tensor

ONEDNN = (
    torch.backends.mkldnn.is_available()
    and platform.machine() in ("x86_64", "AMD64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether oneDNN's product is at hand and tested."""
STRETCH = 512
"""Products that oneDNN adds up in one go: over more of them it rounds more than twice as much as torch's own (C2)."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` of fp32 x [..., K], weight [N, K] and bias [N]; in fp32 under autocast too."""
    with torch.autocast("cpu", enabled=False):
        if not ONEDNN or not x.numel() or not weight.numel():
            return torch.nn.functional.linear(x, weight, bias)
        rows = x.reshape(-1, x.shape[-1])
        out = _product(rows[:, :STRETCH], weight[:, :STRETCH], bias)
        for first in range(STRETCH, x.shape[-1], STRETCH):
            part = slice(first, first + STRETCH)
            out += _product(rows[:, part], weight[:, part], None)
        return out.reshape(*x.shape[:-1], len(weight))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # A weight with gaps between its rows or columns falls to oneDNN's reference code, a thousand times slower.
    dense = weight if weight.T.is_contiguous() else weight.contiguous()
    # oneDNN reads a bias without regard to its stride.
    return torch.ops.mkldnn._linear_pointwise(x, dense, None if bias is None else bias.contiguous(), "none", [], "")
