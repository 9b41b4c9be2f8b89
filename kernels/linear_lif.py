"""LIF neurons driven by a linear layer, in Triton: the product, the scan over time and their gradients.

    x [T, ..., K] float, bool or uint8; weight [N, K] fp32, fp16 or bf16; bias [N] or None; v_init [..., N] or None
    ->  spikes [T, ..., N] (weight's dtype), v [..., N] (fp32)

Two paths, of which :func:`choose_path` takes one: *fused*, where the scan is the epilogue of our own product and the
currents never leave the cache, and *library*, cuBLAS and the scan of ``kernels/lif.py`` in the currents' place. Both
keep h alone for backward; there the scan gives the gradient of the currents, and two products make those of weight and
x. Sums over time and batch have a fixed order.

Registered as ``fastsnn::triton_linear_lif``. Reference: ``kernels/reference.py``. Tests: ``tests/test_linear_lif.py``.
Benchmark: ``bench/bench_linear_lif.py``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels import lif as scan
from fastsnn.kernels import planes
from fastsnn.kernels._triton import check_device, check_dtype, needs_gradient
from fastsnn.kernels.linear_lif_forward import linear_lif_forward
from fastsnn.kernels.packed import unpack
from fastsnn.kernels.surrogates import SCHEMA

PATHS = ("auto", "fused", "library")


def choose_path(path: str, x: Tensor, weight: Tensor) -> str:
    """``path``, or for ``auto`` the faster of fused and library.

    Derived, not measured: the library's product is faster by some factor, the fused path saves the currents' way to
    memory and back, so K decides. Below sm_80, and for fp32 values on GPUs of half tensor rate (sm_86, 89 and 120), no
    product beats cuBLAS; elsewhere our three to six products of bf16 beat its fp32 product at every K.
    """
    if path != "auto":
        return path
    sm, K = planes.capability(x.device), weight.shape[1]
    half_rate = sm in (86, 89, 120) and x.is_floating_point()
    if weight.dtype != torch.float32 and sm >= 80:
        return "library" if K > 1024 else "fused"
    return "library" if K > 128 and (sm < 80 or half_rate) else "fused"


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 in the library's fp32 products."""
    # The second name is that of torch before 2.9; where both exist, writing the one after the other is an error.
    settings = torch.backends.cuda.matmul
    name, value = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    saved = getattr(settings, name)
    setattr(settings, name, value)
    try:
        yield
    finally:
        setattr(settings, name, saved)


def library_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, v_init: Tensor | None,
    spikes: Tensor, v: Tensor, h: Tensor | None, neuron: dict[str, Any],
) -> None:  # fmt: skip
    """As :func:`linear_lif_forward`, with the library's product; fp32 currents lie where h or fp32 spikes will."""
    T, B, K = x.shape
    out = h if h is not None else spikes
    if weight.dtype != torch.float32 or out.dtype != torch.float32:
        out = torch.empty(T, B, weight.shape[0], dtype=weight.dtype, device=x.device)
    rows = x.reshape(T * B, K).to(weight.dtype)
    with full_precision():
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
    with full_precision():
        torch.mm(grad.view(-1, N).t(), rows.to(out.dtype), out=out)


def input_gradient(grad: Tensor, weight: Tensor, out: Tensor) -> None:
    """out [T, B, K] = dx, of the currents' gradient, [T, B, N] or planes [3, T, B, N], and weight [N, K]."""
    N, K = weight.shape
    if grad.dim() == 3:
        with full_precision():
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
        initial = None if v_init is None else v_init.contiguous()
        run(x, weight.contiguous(), bias, initial, spikes, v, h if save_h else None, neuron)
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
    return spikes, v, h, x.new_zeros((), dtype=torch.float32).expand(T, *shape) if pack else v.new_empty(0)


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
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    v_init: Tensor | None = None,
    *,
    path: str = "auto",
    **neuron: Any,
) -> tuple[Tensor, Tensor]:
    """Run LIF neurons driven by ``x @ weight.T + bias``; returns spikes [T, ..., N] and the final v [..., N] (fp32).

    ``neuron`` is ``LIFParameters.options()``; v_init [..., N] defaults to v_reset (0 for a soft reset); ``path`` forces
    "fused" or "library". Raises TypeError for a dtype that is not in the module's first lines, and ValueError for a
    tensor that is not on a GPU (see ``_triton.py``).
    """
    check_dtype("x", x, (*scan.DTYPES, torch.bool, torch.uint8))
    spikes, v, _ = _run(x, weight, bias, v_init, None, x.shape[0], False, path, neuron)
    return spikes, v


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, v_init: Tensor | None, carrier: Tensor | None,
    T: int, pack: bool, path: str, neuron: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(spikes, v, carrier), with the axes between time and neurons as x has them."""
    check_dtype("weight", weight, scan.DTYPES)
    if path not in PATHS:
        raise ValueError(f"path is {path!r}; allowed: {', '.join(PATHS)}")
    batch = x.shape[1:-1]
    rows = x.flatten(1, -2) if x.dim() > 2 else x[:, None]
    v_rows = None if v_init is None else v_init.reshape(-1, weight.shape[0])
    save_h = needs_gradient(x, weight, bias, v_init, carrier)
    flat = None if carrier is None else carrier.reshape(T, -1, x.shape[-1])
    spikes, v, _, out = linear_lif_op(rows, weight, bias, v_rows, flat, T, pack, save_h, path, **neuron)
    return spikes.unflatten(1, batch), v.unflatten(0, batch), out.unflatten(1, batch) if pack else out
