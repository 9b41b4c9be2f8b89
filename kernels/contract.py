"""What "correct" means: the promises C1 to C6 of docs/design.md as measurements with bounds.

``fastsnn verify``, the tests and the benchmarks all measure with these functions, so that there is one set of
tolerances. A measurement holds an error and the largest one allowed; :func:`require` turns it into an assertion.

    C1  the same currents give the same bits: spikes, v and h                     same_bits
    C2  currents are as close to float64 as torch's own fp32 product              current_error
    C3  a spike differs from float64's only where the potential is at the threshold  spikes_at_threshold
    C4  gradients, with the recorded spikes given to the float64 reference        gradient_error
    C5  the same seed gives the same losses                                       loss_error
    C6  the same run gives the same bits                                          same_bits

C3 and C4 rest on neurons in float64 that fire when the recorded spikes say so, whatever their potential
(:func:`trajectory`, :func:`replay`). Two precisions then compare step by step, without a flipped spike between them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fastsnn.kernels import reference
from fastsnn.kernels.error_analysis import EPS, HALF, interpreted, learnt_rows
from fastsnn.kernels.neurons.firing import firing
from fastsnn.kernels.neurons.language import Operand
from fastsnn.kernels.neurons.neuron import Neuron
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.neurons.surrogates import Surrogate

C2_FLOOR = 4 * EPS
"""Norm-wise error that a product may always have."""
C3_CURRENT = 4.0
"""Error that one current may have, in eps of the sum of the magnitudes that it is made of."""
C4_FLOOR = 1e-5
"""Norm-wise error that a gradient may always have in fp32."""
C5_LOSS = 3e-5
"""Difference of a step's mean squared error."""


@dataclass(frozen=True)
class Measurement:
    """An error, the largest one that a promise allows, and where it was found."""

    promise: str
    what: str
    """The tensor, as "spikes" or "gradient of weight"."""
    error: float
    bound: float
    where: str = ""
    """The worst place: its index and both values."""
    explained: int = 0
    """Spikes that differ from float64's with the membrane at the threshold."""

    @property
    def ok(self) -> bool:
        return self.error <= self.bound  # False for NaN

    @property
    def share(self) -> float:
        """The error as a fraction of its bound; infinite where nothing is allowed, and for NaN."""
        if not self.ok and not (self.bound and math.isfinite(self.error)):
            return math.inf
        return self.error / self.bound if self.bound else 0.0

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        return f"{self.promise} {self.what}: {self.error:.3g}, allowed {self.bound:.3g}{where}"


def require(*measurements: Measurement) -> None:
    """Raise AssertionError that lists every measurement over its bound."""
    failed = [str(measurement) for measurement in measurements if not measurement.ok]
    assert not failed, "\n".join(failed)


def same_bits(what: str, actual: Tensor, expected: Tensor, promise: str = "C1") -> Measurement:
    """Equal values, shape and dtype (0 and -0 are equal); the error is the largest difference."""
    for name in ("dtype", "shape"):
        if (found := getattr(actual, name)) != (wanted := getattr(expected, name)):
            return Measurement(promise, what, math.inf, 0.0, f"{name} {_plain(found)} instead of {_plain(wanted)}")
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    different = ~(actual == expected)  # so that NaN counts as different
    if not different.any():
        return Measurement(promise, what, 0.0, 0.0)
    error = _without_nan((actual.double() - expected.double()).abs())
    where = f"{int(different.sum())} of {actual.numel()} values differ; {_place(error, actual, expected)}"
    return Measurement(promise, what, float(error.max()), 0.0, where)


def close(what: str, actual: Tensor, expected: Tensor, bound: Tensor | float, promise: str) -> Measurement:
    """Every element within its own ``bound``; the error is the largest one in units of its bound."""
    if actual.shape != expected.shape:
        return Measurement(promise, what, math.inf, 1.0, f"shape {list(actual.shape)}, not {list(expected.shape)}")
    if not actual.numel():
        return Measurement(promise, what, 0.0, 1.0)
    actual = actual.detach().cpu().double()
    error = _in_units((actual - expected).abs(), bound)
    return Measurement(promise, what, float(error.max()), 1.0, _place(error, actual, expected))


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Norm-wise error of ``value``; the norm of the error itself where ``exact`` is 0."""
    error, scale = (value.detach().cpu().double() - exact).norm(), exact.norm()
    return float(error / scale) if scale else float(error)


def current_error(actual: Tensor, exact: Tensor, eager: Tensor, library: Tensor | None = None) -> Measurement:
    """C2: the norm-wise error of currents is at most twice that of torch's own fp32 product.

    That is ``eager``, on the CPU, or ``library``, on the GPU that the currents come from, whichever is the less exact:
    a GPU's library adds up in one chain, with 8 eps of dense inputs at K = 4096, where a CPU's adds blocks, with 1.6.
    """
    bound = max(2 * relative_error(eager, exact), C2_FLOOR)
    if library is not None:
        bound = max(bound, 2 * relative_error(library, exact))
    return Measurement("C2", "currents", relative_error(actual, exact), bound)


def gradient_error(what: str, actual: Tensor | None, exact: Tensor, eager: Tensor | None = None) -> Measurement:
    """C4: the norm-wise error of a gradient is at most max(1e-5, twice that of ``eager``, plain fp32 torch).

    Without ``eager`` the bound is the floor alone, as it must be for torch itself. A gradient of None counts as zeros.
    One in fp16 or bf16 may have two eps of its own dtype.
    """
    actual = torch.zeros_like(exact) if actual is None else actual
    what = f"gradient of {what}"
    if actual.shape != exact.shape:
        return Measurement("C4", what, math.inf, C4_FLOOR, f"shape {list(actual.shape)}, not {list(exact.shape)}")
    bound = max(C4_FLOOR, 2 * torch.finfo(actual.dtype).eps)
    if eager is not None:
        bound = max(bound, 2 * relative_error(eager, exact))
    error = _without_nan((actual.detach().cpu().double() - exact).abs())
    where = _place(error, actual, exact) if actual.numel() else ""
    return Measurement("C4", what, relative_error(actual, exact), bound, where)


def loss_error(actual: Tensor, expected: Tensor) -> Measurement:
    """C5: the mean squared error of each of the first 100 steps, [steps], agrees within 3e-5."""
    if actual.shape != expected.shape:
        return Measurement("C5", "losses", math.inf, C5_LOSS, f"{len(actual)} steps instead of {len(expected)}")
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    error = _without_nan((actual - expected).abs())
    return Measurement("C5", "losses", float(error.max()), C5_LOSS, _place(error, actual, expected))


def replay(
    current: Tensor,
    neuron: Neuron,
    state: Sequence[Tensor] | None,
    spikes: Tensor,
    parameters: Mapping[str, Tensor] | None = None,
    recurrent_weight: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """:func:`~fastsnn.kernels.reference.scan` whose neurons fire when ``spikes`` [T, ...] says so.

    ``current`` [T, ...] and ``state`` set the precision: float64 for the exact answer, fp32 for that of eager torch.
    Returns the output and the last states, through which gradients flow as through the reference. With a
    ``recurrent_weight``, that of ``reference.recurrent``, outputs come back; ``initial`` is the one before the first.
    """
    bound = reference.on_tensors(neuron, current, parameters)
    state = reference.rest(neuron, current[0]) if state is None else tuple(state)
    output = torch.zeros_like(current[0]) if initial is None else initial
    outputs = []
    for x, recorded in zip(current, spikes.detach(), strict=True):
        total = x if recurrent_weight is None else x + reference.fed_back(output, recurrent_weight)
        with reference.in_precision_of(current), firing(partial(_as_recorded, recorded)):
            output, state = reference.step(bound, total, state)
        outputs.append(output)
    return torch.stack(outputs), tuple(state)


def _as_recorded(recorded: Tensor, distance: Tensor, surrogate: Surrogate, alpha: Operand) -> Tensor:
    """The recorded spikes forward, the surrogate's derivative at the distance backward."""
    slope = cast(Tensor, surrogate.derivative(distance.detach(), alpha)).to(distance.dtype)
    straight = slope * distance
    # The value of the one, the gradient of the other: exactly, also where the distance is large.
    return recorded.to(distance.dtype) + (straight - straight.detach()).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def product_magnitude(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """abs(x) @ abs(weight).T + abs(bias) in float64: what the rounding of a current is measured by."""
    magnitude = x.double().abs() @ weight.double().abs().T
    return magnitude if bias is None else magnitude + bias.double().abs()


class Trajectory(NamedTuple):
    """A neuron in float64 that fires as recorded, and how far fp32 may be from it; see :func:`trajectory`."""

    distance: Tensor
    """[T, ...]: the potential less the threshold."""
    bound: Tensor
    """[T, ...]: the bound of C3 for it."""
    states: tuple[Tensor, ...]
    """The last states."""
    state_bounds: tuple[Tensor, ...]


@torch.enable_grad()  # type: ignore[untyped-decorator]
def trajectory(
    current: Tensor,
    neuron: Neuron,
    state: Sequence[Tensor] | None,
    spikes: Tensor,
    parameters: Mapping[str, Tensor] | None = None,
    magnitude: Tensor | None = None,
    eps: float = EPS,
) -> Trajectory:
    """What a neuron does in float64 under ``current`` [T, ...] if it fires as ``spikes`` says, with error bounds.

    Each step adds the error of its current (none without ``magnitude`` [T, ...], see :func:`product_magnitude`; ``eps``
    is that of the current's precision) and the rounding of its own operations, by running error analysis; what was
    there before is carried on by the derivatives of the step.
    """
    values = {name: value.detach().double() for name, value in (parameters or {}).items()}
    prepared = compile_neuron(neuron, tuple(values))
    scalars, _ = prepared.constants(values)
    rows = learnt_rows(prepared, values)
    like = current[0].detach().double()
    states = (
        [torch.full_like(like, v) for v in neuron.rest()] if state is None else [s.detach().double() for s in state]
    )
    errors = [HALF * value.abs() if state is None else torch.zeros_like(value) for value in states]
    distances, bounds = [], []
    for t, x in enumerate(current.detach().double()):
        leaves = [x.clone().requires_grad_(), *(value.clone().requires_grad_() for value in states)]
        found, local, fired = interpreted(prepared.forward, leaves, scalars, rows, spikes[t].detach().double())
        given = [0.0 if magnitude is None else C3_CURRENT * eps * magnitude[t], *errors]

        def carried(place: int) -> tuple[Tensor, Tensor]:
            value, error = found[place], local[place]  # noqa: B023 - called at once
            slopes = torch.autograd.grad(value.sum(), leaves, retain_graph=True, allow_unused=True)  # noqa: B023
            for slope, before in zip(slopes, given, strict=True):  # noqa: B023
                error = error if slope is None else error + slope.abs() * before
            return value.detach(), error.detach()

        distance, bound = carried(fired) if fired is not None else (like, like)
        distances.append(distance.expand(like.shape))
        bounds.append(bound.expand(like.shape))
        after = [carried(place) for place in prepared.forward.outputs[1 : 1 + prepared.states]]
        states, errors = [pair[0] for pair in after], [pair[1] for pair in after]
    return Trajectory(torch.stack(distances), torch.stack(bounds), tuple(states), tuple(errors))


def spikes_at_threshold(spikes: Tensor, distance: Tensor, bound: Tensor) -> Measurement:
    """C3: spikes that float64 would not have made lie within ``bound`` of the threshold.

    ``distance`` [T, ...] is that of a :func:`trajectory` driven by these very spikes, so each one is judged alone, and
    so is the first difference of each neuron between any two spike trains. The error is the largest distance in units
    of its bound.
    """
    spikes, distance = spikes.detach().cpu(), distance.detach()
    if spikes.shape != distance.shape:
        return Measurement("C3", "spikes", math.inf, 1.0, f"shape {list(spikes.shape)}, not {list(distance.shape)}")
    if not ((spikes == 0) | (spikes == 1)).all():
        return Measurement("C3", "spikes", math.inf, 1.0, "a spike is neither 0 nor 1")
    differs = spikes.bool() != (distance >= 0)
    if not differs.any():
        return Measurement("C3", "spikes", 0.0, 1.0)
    error = _in_units(torch.where(differs, distance.abs(), 0.0), bound)
    index = _worst(error)
    where = (
        f"{int(differs.sum())} of {spikes.numel()} differ from float64; [{_joined(index)}] is {spikes[index].item():g} "
        f"at a distance of {distance[index].item()!r} from the threshold, bound {bound[index].item():.3g}"
    )
    return Measurement("C3", "spikes", float(error.max()), 1.0, where, int((differs & (error <= 1)).sum()))


def _in_units(error: Tensor, bound: Tensor | float) -> Tensor:
    """``error`` in units of ``bound``; no error is within a bound of 0."""
    return _without_nan(torch.where(error == 0, 0.0, error / bound))


def _without_nan(error: Tensor) -> Tensor:
    """NaN as the largest error of all."""
    return error.nan_to_num(nan=math.inf, posinf=math.inf)


def _place(error: Tensor, actual: Tensor, expected: Tensor) -> str:
    """The index of the worst element and both its values."""
    index = _worst(error)
    return f"[{_joined(index)}] is {actual[index].item()!r} instead of {expected[index].item()!r}"


def _worst(error: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))


def _joined(index: Sequence[int]) -> str:
    return ", ".join(map(str, index))


def _plain(value: object) -> str:
    return str(list(value) if isinstance(value, torch.Size) else value).removeprefix("torch.")
