"""LIF neurons over given currents on the CPU, in Numba, and a linear layer in front of them.

    current [T, ...] fp32, fp16 or bf16; v_init [...] or None  ->  spikes [T, ...] (current's dtype), v [...] (fp32)

Each worker walks the T steps with a block of neurons whose state stays in the first-level cache. Memory is what costs,
so backward computes the membrane potential h [T, n] again from the currents, a block at a time in the cache; after a
linear layer, whose currents nobody else has, h takes their place and is kept instead. Potentials are fp32 and
bit-identical to ``kernels/reference.py``, the oracle. A linear layer's products are a library's (``products.py``), and
its currents become h in place. ``n`` is the number of neurons (all axes but time).

Registered as ``fastsnn::numba_lif`` and ``fastsnn::numba_linear_lif``. Kernels: ``cpu/lif_kernels.py``.
Twins: ``lif.py``, ``linear_lif.py`` (Triton). Tests: ``tests/test_cpu_lif.py``.
Benchmarks: ``bench/bench_lif.py``, ``bench/bench_linear_lif.py``.
"""

from typing import Any

import torch
from torch import Tensor

from fastsnn.kernels.numba.lif_kernels import backward, forward
from fastsnn.kernels.numba.neuron import neuron_arguments
from fastsnn.kernels.numba.products import linear
from fastsnn.kernels.numba.threads import spread, workers_for
from fastsnn.kernels.triton import needs_gradient

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INPUTS = (*DTYPES, torch.bool, torch.uint8)
SCHEMA = (
    "*, float tau, float v_threshold, float? v_reset, bool decay_input, bool detach_reset, str surrogate, float alpha"
)
"""The neuron's options in the schema of an operator."""


def run_forward(
    current: Tensor | None, v_init: Tensor | None, spikes: Tensor, v: Tensor, h: Tensor | None, neuron: dict[str, Any]
) -> None:
    """Fill ``spikes``, ``v`` and ``h`` (fp32, contiguous); without h it is not stored, without current h holds it."""
    _start(v, v_init, neuron["v_reset"] or 0.0)
    if not v.numel():
        return
    shape = (len(spikes), v.numel())
    empty = spikes.new_empty(0, v.numel())
    source, store = (empty if tensor is None else tensor.reshape(shape) for tensor in (current, h))
    spread(
        forward, workers_for(spikes.numel()), source.contiguous().numpy(), v.reshape(-1).numpy(),
        spikes.reshape(shape).numpy(), store.numpy(), neuron_arguments(**neuron),
    )  # fmt: skip


def run_backward(
    grad_spikes: Tensor | None, grad_v: Tensor | None, source: Tensor, v_init: Tensor | None, is_h: bool,
    grad_current: Tensor, grad_v_init: Tensor, neuron: dict[str, Any],
) -> None:  # fmt: skip
    """Fill ``grad_current`` and ``grad_v_init`` (fp32, contiguous); a gradient of None is zero.

    ``source`` [T, ...] fp32 is h, or the current that started from ``v_init``.
    """
    _start(grad_v_init, grad_v, 0.0)
    n = grad_v_init.numel()
    if not n:
        return
    if grad_spikes is None:
        grad_spikes = source.new_zeros(()).expand(source.shape)
    # A gradient that is the same at every time step, as of spikes.sum(0), is read from one row.
    rows = grad_spikes[:1] if grad_spikes.stride(0) == 0 else grad_spikes
    v = torch.empty(n)
    _start(v, None if v_init is None else v_init.reshape(n), neuron["v_reset"] or 0.0)
    empty, values = source.new_empty(0, n), source.reshape(-1, n).contiguous()
    spread(
        backward, workers_for(source.numel()), rows.reshape(len(rows), n).float().contiguous().numpy(),
        grad_v_init.reshape(-1).numpy(), (empty if is_h else values).numpy(), v.numpy(),
        (values if is_h else empty).numpy(), grad_current.reshape(-1, n).numpy(), neuron_arguments(**neuron),
    )  # fmt: skip


def _start(state: Tensor, values: Tensor | None, otherwise: float) -> None:
    """Fill ``state`` by NumPy: after an operator of torch its threads spin for a while on the cores that ours need."""
    state.numpy()[...] = otherwise if values is None else values.float().numpy()


@torch.library.custom_op(
    "fastsnn::numba_lif",
    mutates_args=(),
    schema=f"(Tensor current, Tensor? v_init, bool save_h, {SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def lif_op(current: Tensor, v_init: Tensor | None, save_h: bool, **neuron: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(spikes, v, h); h is empty without ``save_h``."""
    spikes, v, h = _empty_outputs(current, v_init, save_h)
    if current.dtype == torch.float32:
        run_forward(current, v_init, spikes, v, h if save_h else None, neuron)
    else:
        wide = torch.empty(current.shape)
        run_forward(current.float(), v_init, wide, v, h if save_h else None, neuron)
        spikes.copy_(wide)
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
    "fastsnn::numba_lif_backward",
    mutates_args=(),
    schema="(Tensor? grad_spikes, Tensor? grad_v, Tensor source, Tensor? v_init, bool is_h, "
    f"{SCHEMA}) -> (Tensor, Tensor)",
)
def lif_backward_op(
    grad_spikes: Tensor | None, grad_v: Tensor | None, source: Tensor, v_init: Tensor | None, is_h: bool, **neuron: Any
) -> tuple[Tensor, Tensor]:
    """Gradients of the current and of v_init (fp32); see :func:`run_backward`."""
    grad_current, grad_v_init = _empty_grads(grad_spikes, grad_v, source, v_init, is_h)
    run_backward(grad_spikes, grad_v, source.float(), v_init, is_h, grad_current, grad_v_init, neuron)
    return grad_current, grad_v_init


@lif_backward_op.register_fake
def _empty_grads(
    grad_spikes: Tensor | None, grad_v: Tensor | None, source: Tensor, v_init: Tensor | None, is_h: bool, **neuron: Any
) -> tuple[Tensor, Tensor]:
    shapes = (source.shape, source.shape[1:])
    grad_current, grad_v_init = (torch.empty(shape, dtype=torch.float32, device=source.device) for shape in shapes)
    return grad_current, grad_v_init


def _setup_lif(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    current, v_init, _ = inputs
    ctx.save_for_backward(current, v_init)
    ctx.set_materialize_grads(False)
    ctx.neuron = keyword_only_inputs


def _lif_backward(ctx: Any, grad_spikes: Tensor | None, grad_v: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    current, v_init = ctx.saved_tensors
    grad_current, grad_v_init = lif_backward_op(grad_spikes, grad_v, current, v_init, False, **ctx.neuron)
    return grad_current.to(current.dtype), None if v_init is None else grad_v_init.to(v_init.dtype), None


lif_op.register_autograd(_lif_backward, setup_context=_setup_lif)


def lif(current: Tensor, v_init: Tensor | None = None, **neuron: Any) -> tuple[Tensor, Tensor]:
    """Run LIF neurons over ``current`` [T, ...]; returns spikes [T, ...] and the final v [...] (fp32).

    ``neuron`` is ``LIFParameters.options()``; v_init [...] defaults to v_reset (0 for a soft reset). Raises TypeError
    for another dtype than fp32, fp16 and bf16, and ValueError for a tensor that is not on the CPU.
    """
    _check(DTYPES, current=current, v_init=v_init)
    spikes, v, _ = lif_op(current, v_init, False, **neuron)
    return spikes, v


@torch.library.custom_op(
    "fastsnn::numba_linear_lif",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? v_init, bool save_h, "
    f"{SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def linear_lif_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, v_init: Tensor | None, save_h: bool, **neuron: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(spikes, v, h); h is empty without ``save_h``, which backward needs."""
    current = linear(x.float(), weight.float(), None if bias is None else bias.float())
    v = torch.empty(current.shape[1:])
    if save_h:
        spikes, h = torch.empty_like(current), current
        run_forward(None, v_init, spikes, v, h, neuron)
    else:
        spikes, h = current, torch.empty(0)
        run_forward(current, v_init, spikes, v, None, neuron)
    return spikes.to(weight.dtype), v, h


@linear_lif_op.register_fake
def _empty_linear_outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, v_init: Tensor | None, save_h: bool, **neuron: Any
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*x.shape[:-1], len(weight))
    spikes = torch.empty(shape, dtype=weight.dtype, device=x.device)
    sizes = (shape[1:], shape if save_h else (0,))
    v, h = (torch.empty(size, dtype=torch.float32, device=x.device) for size in sizes)
    return spikes, v, h


def _setup_linear_lif(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    x, weight, bias, v_init, save_h = inputs
    if not save_h:
        raise ValueError("save_h is False; allowed: True where a gradient is needed")
    ctx.save_for_backward(x, weight, output[2])
    ctx.set_materialize_grads(False)
    ctx.bias_dtype, ctx.v_dtype = (None if tensor is None else tensor.dtype for tensor in (bias, v_init))
    ctx.neuron = keyword_only_inputs


def _linear_lif_backward(
    ctx: Any, grad_spikes: Tensor | None, grad_v: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    x, weight, h = ctx.saved_tensors
    grad_current, grad_v_init = lif_backward_op(grad_spikes, grad_v, h, None, True, **ctx.neuron)
    rows = grad_current.reshape(-1, grad_current.shape[-1])
    needs_x, needs_weight, needs_bias, needs_v, _ = ctx.needs_input_grad
    return (
        linear(grad_current, weight.float().T).to(x.dtype) if needs_x else None,
        linear(rows.T, x.reshape(-1, x.shape[-1]).float().T).to(weight.dtype) if needs_weight else None,
        rows.sum(0).to(ctx.bias_dtype) if needs_bias else None,
        grad_v_init.to(ctx.v_dtype) if needs_v else None,
        None,
    )


linear_lif_op.register_autograd(_linear_lif_backward, setup_context=_setup_linear_lif)


def linear_lif(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, v_init: Tensor | None = None, **neuron: Any
) -> tuple[Tensor, Tensor]:
    """LIF neurons driven by ``x @ weight.T + bias``: x [T, ..., K] float, bool or uint8, weight [N, K], bias [N].

    Returns spikes [T, ..., N] (weight's dtype) and the final v [..., N] (fp32); see :func:`lif`.
    """
    _check(INPUTS, x=x)
    _check(DTYPES, weight=weight, bias=bias, v_init=v_init)
    spikes, v, _ = linear_lif_op(x, weight, bias, v_init, needs_gradient(x, weight, bias, v_init), **neuron)
    return spikes, v


def _check(dtypes: tuple[torch.dtype, ...], **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} is on {tensor.device}; allowed: the CPU, where backend numba computes")
        if tensor.dtype not in dtypes:
            found, *allowed = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, *dtypes))
            raise TypeError(f"{name} has dtype {found}; backend numba allows: {', '.join(allowed)}")
