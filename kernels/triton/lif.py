"""LIF neurons over given currents in Triton: forward and backward through time, one launch each.

    current [T, ...] fp32, fp16 or bf16; v_init [...] or None  ->  spikes [T, ...] (current's dtype), v [...] (fp32)

Every neuron is a lane of one program that walks the T steps with its potential in a register; spikes of the backward
pass are recomputed from the saved membrane potential h [T, n] (fp32), which inference does not store. Potentials are
fp32 and bit-identical to ``kernels/reference.py``, the oracle. ``n`` is the number of neurons (all axes but time).

Registered as ``fastsnn::triton_lif``. Tests: ``tests/test_lif.py``. Benchmark: ``bench/bench_lif.py``.
"""

from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels.triton import check_device, check_dtype, device_guard, needs_gradient, tl, triton
from fastsnn.kernels.triton.planes import split3
from fastsnn.kernels.triton.surrogates import SCHEMA, backward_arguments, charge, forward_arguments, reset, slopes

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def lif_forward_kernel(
    current_ptr, v_init_ptr, spikes_ptr, v_ptr, h_ptr,
    T, n, stride_current_t, stride_current_n,
    tau, inv_tau, leak, v_threshold, v_reset,
    DECAY_INPUT: tl.constexpr, RESTING: tl.constexpr, POWER_OF_TWO: tl.constexpr, HARD_RESET: tl.constexpr,
    HAS_V_INIT: tl.constexpr, SAVE_H: tl.constexpr, PACK: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK neurons over all of T; with PACK the spikes are stored as int32 words of 32 steps."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    if HAS_V_INIT:
        v = tl.load(v_init_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    else:
        v = tl.zeros((BLOCK,), tl.float32) + v_reset
    current_ptrs = current_ptr + offs * stride_current_n
    word = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, T, UNROLL):
        # UNROLL loads in flight before the first store: the compiler can't move a load over a store.
        currents = ()
        for i in tl.static_range(UNROLL):
            t = tl.cast(start + i, tl.int64)
            mask_t = offs < tl.where(t < T, n, 0)
            currents += (tl.load(current_ptrs + t * stride_current_t, mask=mask_t, other=0.0),)
        for i in tl.static_range(UNROLL):
            t = tl.cast(start + i, tl.int64)
            mask_t = offs < tl.where(t < T, n, 0)
            x = currents[i].to(tl.float32)
            h = charge(x, v, tau, inv_tau, leak, v_reset, DECAY_INPUT, RESTING, POWER_OF_TWO)
            fired = h >= v_threshold
            if PACK:
                word = tl.where((start + i) % 32 == 0, 0, word) | (fired & mask_t).to(tl.int32) << (start + i) % 32
            else:
                tl.store(spikes_ptr + t * n + offs, tl.where(fired, 1.0, 0.0), mask=mask_t)
            if SAVE_H:
                tl.store(h_ptr + t * n + offs, h, mask=mask_t)
            v = tl.where(mask_t, reset(h, fired, v_threshold, v_reset, HARD_RESET), v)
        if PACK:
            # UNROLL divides 32; a word is stored again with each of its groups of steps, last when it is complete.
            tl.store(spikes_ptr + tl.cast(start // 32, tl.int64) * n + offs, word, mask=mask)
    tl.store(v_ptr + offs, v, mask=mask)


@triton.jit
def lif_backward_kernel(
    grad_spikes_ptr, grad_v_ptr, h_ptr, grad_current_ptr, grad_v_init_ptr, total_ptr,
    T, n, stride_grad_t, stride_grad_n,
    inv_tau, leak, v_threshold, v_reset, alpha,
    DECAY_INPUT: tl.constexpr, HARD_RESET: tl.constexpr, DETACH_RESET: tl.constexpr, SURROGATE: tl.constexpr,
    HAS_GRAD_V: tl.constexpr, SUM: tl.constexpr, PLANES: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK neurons from the last step to the first; gv is the gradient of v after the step.

    With PLANES 3 the gradient of the current is stored as its planes; with SUM its sum over time is stored too.
    """
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    if HAS_GRAD_V:
        gv = tl.load(grad_v_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    else:
        gv = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    grad_ptrs = grad_spikes_ptr + offs * stride_grad_n
    for start in range(0, T, UNROLL):
        grads = ()
        potentials = ()
        for i in tl.static_range(UNROLL):
            t = tl.cast(T - 1 - start - i, tl.int64)
            mask_t = offs < tl.where(t >= 0, n, 0)
            grads += (tl.load(grad_ptrs + t * stride_grad_t, mask=mask_t, other=0.0),)
            potentials += (tl.load(h_ptr + t * n + offs, mask=mask_t, other=0.0),)
        for i in tl.static_range(UNROLL):
            t = tl.cast(T - 1 - start - i, tl.int64)
            mask_t = offs < tl.where(t >= 0, n, 0)
            spike_slope, reset_slope = slopes(
                potentials[i], v_threshold, v_reset, alpha, HARD_RESET, DETACH_RESET, SURROGATE
            )
            gh = grads[i].to(tl.float32) * spike_slope + gv * reset_slope
            gx = gh * inv_tau if DECAY_INPUT else gh
            out = grad_current_ptr + t * n + offs
            if PLANES == 1:
                tl.store(out, gx, mask=mask_t)
            else:
                plane = tl.cast(T, tl.int64) * n
                high, middle, low = split3(gx)
                tl.store(out, high, mask=mask_t)
                tl.store(out + plane, middle, mask=mask_t)
                tl.store(out + 2 * plane, low, mask=mask_t)
            gv = tl.where(mask_t, gh * leak, gv)
            total += tl.where(mask_t, gx, 0.0)
    tl.store(grad_v_init_ptr + offs, gv, mask=mask)
    if SUM:
        tl.store(total_ptr + offs, total, mask=mask)


def launch_forward(
    current: Tensor, v_init: Tensor | None, spikes: Tensor, v: Tensor, h: Tensor | None, neuron: dict[str, Any]
) -> None:
    """Fill ``spikes``, ``v`` and ``h`` (contiguous); int32 spikes are packed, see ``packed.py``.

    h, or fp32 spikes, may be the very memory of an fp32 current: no thread reads what another one has written over.
    """
    T, n = current.shape[0], v.numel()
    if not n:
        return
    rows, options = current.reshape(T, n), launch_options(n)
    with device_guard(current):
        lif_forward_kernel[(triton.cdiv(n, options["BLOCK"]),)](
            rows, v if v_init is None else v_init.contiguous(), spikes, v, v if h is None else h,
            T, n, rows.stride(0), rows.stride(1), **forward_arguments(**neuron),
            HAS_V_INIT=v_init is not None, SAVE_H=h is not None, PACK=spikes.dtype == torch.int32, **options,
        )  # fmt: skip


def launch_backward(
    grad_spikes: Tensor | None, grad_v: Tensor | None, h: Tensor,
    grad_current: Tensor, grad_v_init: Tensor, total: Tensor | None, neuron: dict[str, Any],
) -> None:  # fmt: skip
    """Fill ``grad_current``, its sum over time ``total`` and ``grad_v_init`` (contiguous); a gradient of None is zero.

    A ``grad_current`` with an axis more than h is filled with the planes of the gradient (``planes.py``).
    """
    T, n = h.shape[0], grad_v_init.numel()
    if not n:
        return
    # An expanded gradient, as of spikes.sum(), keeps its strides of 0: it is read from the cache.
    grad = torch.zeros((), device=h.device).expand(T, n) if grad_spikes is None else grad_spikes.reshape(T, n)
    options = launch_options(n)
    with device_guard(h):
        lif_backward_kernel[(triton.cdiv(n, options["BLOCK"]),)](
            grad, h if grad_v is None else grad_v.contiguous(), h, grad_current, grad_v_init,
            grad_v_init if total is None else total,
            T, n, grad.stride(0), grad.stride(1), **backward_arguments(**neuron),
            HAS_GRAD_V=grad_v is not None, SUM=total is not None,
            PLANES=1 if grad_current.dim() == h.dim() else 3, **options,
        )  # fmt: skip


def launch_options(n: int) -> dict[str, Any]:
    """How to launch either kernel over ``n`` neurons: 4 a thread, in 16-byte accesses, or 1 where threads are scarce.

    What counts is bytes in flight: 64 (forward) and 128 (backward) a thread there, with at most 100 registers.
    """
    block, unroll = (512, 4) if n >= 1 << 19 else (128, 8)
    return {"BLOCK": block, "UNROLL": unroll, "num_warps": 4, "enable_fp_fusion": False}


@torch.library.custom_op(
    "fastsnn::triton_lif",
    mutates_args=(),
    schema=f"(Tensor current, Tensor? v_init, bool save_h, {SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def lif_op(current: Tensor, v_init: Tensor | None, save_h: bool, **neuron: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(spikes, v, h); h is empty without ``save_h``, which backward needs."""
    check_device("current", current)
    spikes, v, h = _empty_outputs(current, v_init, save_h)
    launch_forward(current, v_init, spikes, v, h if save_h else None, neuron)
    return spikes, v, h


@lif_op.register_fake
def _empty_outputs(
    current: Tensor, v_init: Tensor | None, save_h: bool, **neuron: Any
) -> tuple[Tensor, Tensor, Tensor]:
    spikes = torch.empty(current.shape, dtype=current.dtype, device=current.device)
    v = torch.empty(current.shape[1:], dtype=torch.float32, device=current.device)
    h = torch.empty(current.shape if save_h else (0,), dtype=torch.float32, device=current.device)
    return spikes, v, h


@torch.library.custom_op(
    "fastsnn::triton_lif_backward",
    mutates_args=(),
    schema=f"(Tensor? grad_spikes, Tensor? grad_v, Tensor h, ScalarType dtype, {SCHEMA}) -> (Tensor, Tensor)",
)
def lif_backward_op(
    grad_spikes: Tensor | None, grad_v: Tensor | None, h: Tensor, dtype: torch.dtype, **neuron: Any
) -> tuple[Tensor, Tensor]:
    """Gradients of the current (``dtype``) and of v_init (fp32)."""
    grad_current, grad_v_init = _empty_grads(grad_spikes, grad_v, h, dtype)
    launch_backward(grad_spikes, grad_v, h, grad_current, grad_v_init, None, neuron)
    return grad_current, grad_v_init


@lif_backward_op.register_fake
def _empty_grads(
    grad_spikes: Tensor | None, grad_v: Tensor | None, h: Tensor, dtype: torch.dtype, **neuron: Any
) -> tuple[Tensor, Tensor]:
    grad_v_init = torch.empty(h.shape[1:], dtype=torch.float32, device=h.device)
    return torch.empty(h.shape, dtype=dtype, device=h.device), grad_v_init


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    current, v_init, save_h = inputs
    if not save_h:
        raise ValueError("save_h is False; allowed: True where a gradient is needed")
    ctx.save_for_backward(output[2])
    ctx.set_materialize_grads(False)
    ctx.dtype, ctx.neuron = current.dtype, keyword_only_inputs
    ctx.v_dtype = None if v_init is None else v_init.dtype


def _backward(ctx: Any, grad_spikes: Tensor | None, grad_v: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    (h,) = ctx.saved_tensors
    grad_current, grad_v_init = lif_backward_op(grad_spikes, grad_v, h, ctx.dtype, **ctx.neuron)
    return grad_current, None if ctx.v_dtype is None else grad_v_init.to(ctx.v_dtype), None


lif_op.register_autograd(_backward, setup_context=_setup_context)


def lif(current: Tensor, v_init: Tensor | None = None, **neuron: Any) -> tuple[Tensor, Tensor]:
    """Run LIF neurons over ``current`` [T, ...]; returns spikes [T, ...] and the final v [...] (fp32).

    ``neuron`` is ``LIFParameters.options()``; v_init [...] defaults to v_reset (0 for a soft reset). Raises TypeError
    for another dtype than fp32, fp16 and bf16, and ValueError for a tensor that is not on a GPU (see ``_triton.py``).
    """
    check_dtype("current", current, DTYPES)
    spikes, v, _ = lif_op(current, v_init, needs_gradient(current, v_init), **neuron)
    return spikes, v
