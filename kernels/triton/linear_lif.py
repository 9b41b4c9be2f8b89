"""LIF neurons driven by a linear layer, in Triton: the product, the scan over time and their gradients.

    x [T, ..., K] float, bool, uint8 or packed; weight [N, K] fp32, fp16 or bf16; bias [N], v_init [..., N] or None
    ->  spikes [T, ..., N] (weight's dtype, or packed), v [..., N] (fp32)

Two paths, of which :func:`choose_path` takes one: *fused*, where the scan is the epilogue of our own product and the
currents never leave the cache, and *library*, cuBLAS and the scan of ``lif.py`` in the currents' place. Both
keep x and h for backward; there the scan gives the gradient of the currents, and two products make those of weight and
x. Sums over time and batch have a fixed order.

Registered as ``fastsnn::triton_linear_lif``. Reference: ``kernels/reference.py``. Tests: ``tests/test_linear_lif.py``.
Benchmark: ``bench/bench_linear_lif.py``.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels.packed import PackedSpikes, carrier_for, unpack
from fastsnn.kernels.triton import check_device, check_dtype, needs_gradient, planes
from fastsnn.kernels.triton import lif as scan
from fastsnn.kernels.triton.linear_lif_forward import linear_lif_forward
from fastsnn.kernels.triton.surrogates import SCHEMA

PATHS = ("auto", "fused", "library")
FUSED_UP_TO = {"half-precision": 1024, "full-rate": math.inf, "half-rate": 512, "half-rate-float": 128, "ieee": 128}
"""Inputs K up to which the fused path is the faster, by the kind of product, see :func:`choose_path`.

Derived, not measured. Fusing spares a current its way to memory and back, 8 bytes (4 in half precision), and its
product takes longer by 2 K (1 / ours - 1 / library) at the peak rates; the K at which both are equal, for cards of each
kind, rounded to a power of two:

    half-precision      the library's tensor cores, ours at 0.7 of their rate (H200: 960)
    full-rate           3 or 6 tensor products for one in fp32, where (sm_80, 90, 100) that is faster at any K
    half-rate[-float]   the same on GPUs of half tensor rate (sm_86, 89, 120): 3 products for spikes (RTX 3090, 4090 and
                        5090: 300, 670, 470), 6 for other numbers (76, 165, 117)
    ieee                no tensor cores used (below sm_80): ours at half of cuBLAS's rate (GTX 1070: 100)
"""


def choose_path(path: str, x: Tensor, weight: Tensor) -> str:
    """``path``, or for ``auto`` that of fused and library which :data:`FUSED_UP_TO` takes for the faster."""
    if path != "auto":
        return path
    sm = planes.capability(x.device)
    if sm < 80:
        kind = "ieee"
    elif weight.dtype != torch.float32:
        kind = "half-precision"
    elif sm in (86, 89, 120):
        kind = "half-rate-float" if x.is_floating_point() else "half-rate"
    else:
        kind = "full-rate"
    return "fused" if weight.shape[1] <= FUSED_UP_TO[kind] else "library"


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """The library's products in their operands' own precision: no TF32, and no autocast around a backward pass."""
    # The second name is that of torch before 2.9; where both exist, writing the one after the other is an error.
    settings = torch.backends.cuda.matmul
    name, value = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    saved = getattr(settings, name)
    setattr(settings, name, value)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        setattr(settings, name, saved)


def library_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, v_init: Tensor | None,
    spikes: Tensor, v: Tensor, h: Tensor | None, neuron: dict[str, Any],
) -> None:  # fmt: skip
    """As :func:`linear_lif_forward`, with the library's product; fp32 currents lie where h or fp32 spikes will be."""
    T, B, K = x.shape
    out = h if h is not None else spikes
    if weight.dtype != torch.float32 or out.dtype != torch.float32:
        out = torch.empty(T, B, weight.shape[0], dtype=weight.dtype, device=x.device)
    rows = x.reshape(T * B, K).to(weight.dtype)
    with full_precision(x.device):
        if bias is None:
            torch.mm(rows, weight.t(), out=out.view(T * B, -1))
        else:
            torch.addmm(bias, rows, weight.t(), out=out.view(T * B, -1))
    scan.launch_forward(out, v_init, spikes, v, h, neuron)


def weight_gradient(grad: Tensor, x: Tensor, out: Tensor) -> None:
    """out [N, K] = dW, of the currents' gradient, [T, B, N] or planes [3, T, B, N], and x [T, B, K]."""
    N, K = out.shape
    rows = x.reshape(-1, K)
    if grad.dim() == 4:
        planes.matmul(rows.t(), grad.view(3, -1, N), out.t())
        return
    with full_precision(grad.device):
        torch.mm(grad.view(-1, N).t(), rows.to(out.dtype), out=out)


def input_gradient(grad: Tensor, weight: Tensor, out: Tensor) -> None:
    """out [T, B, K] = dx, of the currents' gradient, [T, B, N] or planes [3, T, B, N], and weight [N, K]."""
    N, K = weight.shape
    if grad.dim() == 3:
        with full_precision(grad.device):
            out.copy_(grad @ weight)
        return
    panel = max(planes.PANEL_BYTES // (6 * N) // 128, 1) * 128
    for first in range(0, K, panel):
        columns = slice(first, first + panel)
        planes.matmul(grad.view(3, -1, N), planes.split(weight[:, columns]), out.view(-1, K)[:, columns])


@torch.library.custom_op(
    "fastsnn::triton_linear_lif",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? v_init, Tensor? carrier, int T, bool pack, bool save_h, "
    f"str path, {SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def linear_lif_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, v_init: Tensor | None, carrier: Tensor | None,
    T: int, pack: bool, save_h: bool, path: str, **neuron: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(spikes, v, h, carrier) of x [T, B, K] or words [ceil(T / 32), B, K]; ``pack`` makes spikes words.

    h is empty without ``save_h``, which backward needs; the carriers (see ``packed.py``) go with words.
    """
    check_device("x", x)
    outputs = _empty_outputs(x, weight, bias, v_init, carrier, T, pack, save_h, path, **neuron)
    spikes, v, h, _ = outputs
    if v.numel():
        x = _operand(x, T)
        run = linear_lif_forward if choose_path(path, x, weight) == "fused" else library_forward
        weight, bias, v_init = (None if tensor is None else tensor.contiguous() for tensor in (weight, bias, v_init))
        run(x, weight, bias, v_init, spikes, v, h if save_h else None, neuron)
    return outputs


@linear_lif_op.register_fake
def _empty_outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, v_init: Tensor | None, carrier: Tensor | None,
    T: int, pack: bool, save_h: bool, path: str, **neuron: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    shape = (x.shape[1], weight.shape[0])
    spikes = x.new_empty(-(-T // 32) if pack else T, *shape, dtype=torch.int32 if pack else weight.dtype)
    v = x.new_empty(shape, dtype=torch.float32)
    h = x.new_empty((T, *shape) if save_h else (0,), dtype=torch.float32)
    return spikes, v, h, carrier_for(v, T, *shape) if pack else v.new_empty(0)


def _operand(x: Tensor, T: int) -> Tensor:
    """x as the kernels take it: contiguous [T, B, K] of a float dtype or uint8."""
    if x.dtype == torch.int32:
        return unpack(x.contiguous(), T)
    return (x.view(torch.uint8) if x.dtype == torch.bool else x).contiguous()


@torch.library.custom_op(
    "fastsnn::triton_linear_lif_backward",
    mutates_args=(),
    schema="(Tensor? grad_spikes, Tensor? grad_v, Tensor h, Tensor x, Tensor weight, bool[] needs, ScalarType x_dtype, "
    f"str path, {SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def linear_lif_backward_op(
    grad_spikes: Tensor | None, grad_v: Tensor | None, h: Tensor, x: Tensor, weight: Tensor,
    needs: list[bool], x_dtype: torch.dtype, path: str, **neuron: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x (``x_dtype``), weight and bias, each empty where ``needs`` is False, and of v_init (fp32)."""
    outputs = _empty_grads(grad_spikes, grad_v, h, x, weight, needs, x_dtype, path, **neuron)
    if not h.numel():
        return tuple(output.zero_() for output in outputs)  # type: ignore[return-value]
    grad_x, grad_weight, grad_bias, grad_v_init = outputs
    x = _operand(x, h.shape[0])
    fused = choose_path(path, x, weight) == "fused"
    ours = fused and planes.arithmetic(x.device, weight.dtype)["PLANES"] == 3
    grad = h.new_empty((3, *h.shape), dtype=torch.bfloat16) if ours else torch.empty_like(h, dtype=weight.dtype)
    total = torch.empty_like(grad_v_init) if needs[2] else None
    scan.launch_backward(grad_spikes, grad_v, h, grad, grad_v_init, total, neuron)
    if needs[0]:
        input_gradient(grad, weight.contiguous(), grad_x)
    if needs[1]:
        weight_gradient(grad, x, grad_weight)
    if total is not None:
        grad_bias.copy_(total.sum(0))
    return outputs


@linear_lif_backward_op.register_fake
def _empty_grads(
    grad_spikes: Tensor | None, grad_v: Tensor | None, h: Tensor, x: Tensor, weight: Tensor,
    needs: list[bool], x_dtype: torch.dtype, path: str, **neuron: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    N, K = weight.shape
    shapes = ((*h.shape[:2], K), (N, K), (N,))
    shapes = [shape if needed else (0,) for shape, needed in zip(shapes, needs, strict=True)]
    dtypes = (x_dtype, weight.dtype, weight.dtype)
    grads = [h.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    return grads[0], grads[1], grads[2], h.new_empty(h.shape[1:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    x, weight, _, v_init, carrier, _, pack, save_h, path = inputs
    if not save_h:
        raise ValueError("save_h is False; allowed: True where a gradient is needed")
    ctx.save_for_backward(output[2], x, weight)
    ctx.set_materialize_grads(False)
    ctx.pack, ctx.path, ctx.neuron = pack, path, keyword_only_inputs
    ctx.x_dtype = x.dtype if carrier is None else carrier.dtype
    ctx.v_dtype = None if v_init is None else v_init.dtype


def _backward(
    ctx: Any, grad_spikes: Tensor | None, grad_v: Tensor | None, _: Any, grad_carrier: Tensor | None
) -> tuple[Tensor | None, ...]:
    h, x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias, of_v_init, of_carrier, *_ = ctx.needs_input_grad
    grad_x, grad_weight, grad_bias, grad_v_init = linear_lif_backward_op(
        grad_carrier if ctx.pack else grad_spikes, grad_v, h, x, weight,
        [of_x or of_carrier, of_weight, of_bias], ctx.x_dtype, ctx.path, **ctx.neuron,
    )  # fmt: skip
    return (
        grad_x if of_x else None,
        grad_weight if of_weight else None,
        grad_bias if of_bias else None,
        grad_v_init.to(ctx.v_dtype) if of_v_init else None,
        grad_x if of_carrier else None,
        *[None] * 4,
    )


linear_lif_op.register_autograd(_backward, setup_context=_setup_context)


def linear_lif(
    x: Tensor | PackedSpikes,
    weight: Tensor,
    bias: Tensor | None = None,
    v_init: Tensor | None = None,
    *,
    packed: bool = False,
    path: str = "auto",
    **neuron: Any,
) -> tuple[Tensor | PackedSpikes, Tensor]:
    """Run LIF neurons driven by ``x @ weight.T + bias``; returns spikes [T, ..., N] and the final v [..., N] (fp32).

    ``neuron`` is ``LIFParameters.options()``; v_init [..., N] defaults to v_reset (0 for a soft reset). ``packed``
    packs spikes, ``path`` forces "fused" or "library". Raises TypeError for a dtype that is not in the module's first
    lines, and ValueError for a tensor that is not on a GPU (see ``_triton.py``).
    """
    check_dtype("weight", weight, scan.DTYPES)
    if path not in PATHS:
        raise ValueError(f"path is {path!r}; allowed: {', '.join(PATHS)}")
    carrier = None
    if isinstance(x, PackedSpikes):
        x, T, carrier = x
        check_dtype("the words of x", x, (torch.int32,))
    else:
        T = x.shape[0]
        check_dtype("x", x, (*scan.DTYPES, torch.bool, torch.uint8))
    batch, N = x.shape[1:-1], weight.shape[0]
    save_h = needs_gradient(x, weight, bias, v_init, carrier)
    spikes, v, _, out = linear_lif_op(
        _three_axes(x), weight, bias, None if v_init is None else v_init.reshape(-1, N),
        None if carrier is None else _three_axes(carrier), T, packed, save_h, path, **neuron,
    )  # fmt: skip
    spikes, v = spikes.reshape(len(spikes), *batch, N), v.reshape(*batch, N)
    return PackedSpikes(spikes, T, out.reshape(T, *batch, N)) if packed else spikes, v


def _three_axes(x: Tensor) -> Tensor:
    """[T, ..., K] as [T, B, K]."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
