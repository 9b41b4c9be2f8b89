"""Neurons of one state, the membrane potential: integrate-and-fire, leaky, with a learnt leak, and the read-out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastsnn.kernels.neurons.language import Operand, Value, select, sigmoid
from fastsnn.kernels.neurons.neuron import Neuron
from fastsnn.kernels.neurons.resetting import Resetting


@dataclass(frozen=True)
class IF(Resetting):
    """An integrate-and-fire neuron, without a leak: h = v + x. Source: SpikingJelly's ``neuron.IFNode``."""

    v_threshold: float = 1.0
    """The neuron fires if its membrane potential is at or above this; more than v_reset, or inf for a read-out."""
    v_reset: float | None = 0.0
    """Potential after a spike; None subtracts v_threshold instead (soft reset)."""
    detach_reset: bool = False
    """Whether the gradient ignores the reset."""

    def step(self, x: Value, v: Value) -> tuple[Value, Value]:  # type: ignore[override]
        return self.fire_and_reset(v + x, self.v_threshold)


@dataclass(frozen=True)
class LIF(Resetting):
    """A leaky integrate-and-fire neuron; names and defaults are those of SpikingJelly's ``neuron.LIFNode``.

        charge   h = v + (x - (v - v_reset)) / tau            decay_input=True
                 h = v - (v - v_reset) / tau + x              decay_input=False

    and fires and resets as :class:`~fastsnn.kernels.neurons.resetting.Resetting` says. Its default surrogate is atan
    with alpha 2 (LIFNode's is Sigmoid with alpha 4; the other defaults are LIFNode's).
    """

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"tau": (1.001, math.inf)}

    tau: float = 2.0
    """Membrane time constant in time steps, more than 1."""
    v_threshold: float = 1.0
    """The neuron fires if its membrane potential is at or above this; more than v_reset, or inf for a read-out."""
    v_reset: float | None = 0.0
    """Potential after a spike; None subtracts v_threshold instead (soft reset)."""
    decay_input: bool = True
    """Whether the input current is divided by tau as well."""
    detach_reset: bool = False
    """Whether the gradient ignores the reset."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("tau", self.tau, "more than 1 (time steps)", self.tau > 1)

    def learnable(self) -> tuple[str, ...]:
        names = super().learnable()
        # Neurons that rest at 0 charge by an expression without v_reset.
        return tuple(name for name in names if name != "v_reset") if self.rests_at_zero else names

    def share(self) -> Operand:
        """Part of the distance from rest that leaks away in a step."""
        return 1 / self.tau

    def charge(self, x: Value, v: Value) -> Value:
        """Membrane potential before firing."""
        distance = self.above_rest(v)
        if self.decay_input:
            return v + (x - distance) / self.tau
        # Without a rest potential the leak is one factor.
        return v * (1 - self.share()) + x if self.rests_at_zero else v - distance / self.tau + x

    def step(self, x: Value, v: Value) -> tuple[Value, Value]:  # type: ignore[override]
        return self.fire_and_reset(self.charge(x, v), self.v_threshold)

    def gradient(  # type: ignore[override]
        self, x: Value, v: Value, grad_output: Value, grad_v: Value
    ) -> tuple[Value, Value]:
        h = self.charge(x, v)
        grad_h = grad_output + grad_v
        if self.spikes:
            slope = self.slope(h - self.v_threshold)
            kept = grad_v if self.v_reset is None else select(self.spike(h - self.v_threshold), 0.0, grad_v)
            jump = -self.v_threshold if self.v_reset is None else self.v_reset - h
            grad_spike = grad_output if self.detach_reset else grad_output + jump * grad_v
            grad_h = grad_spike * slope + kept
        return grad_h * self.share() if self.decay_input else grad_h, grad_h * (1 - self.share())


@dataclass(frozen=True)
class PLIF(LIF):
    """A LIF neuron that learns its time constant: 1 / tau = sigmoid(w). ``tau`` is its first value.

    Source: W. Fang et al., "Incorporating learnable membrane time constant to enhance learning of spiking neural
    networks", ICCV 2021; SpikingJelly's ``neuron.ParametricLIFNode``.
    """

    learns: ClassVar[tuple[str, ...]] = ("w",)

    w: float | None = None
    """What is learnt; default -log(tau - 1)."""

    def __post_init__(self) -> None:
        if self.w is None and isinstance(self.tau, (int, float)) and self.tau > 1:
            object.__setattr__(self, "w", -math.log(self.tau - 1))
        super().__post_init__()

    def learnable(self) -> tuple[str, ...]:
        return tuple(name for name in super().learnable() if name != "tau")

    def share(self) -> Operand:
        assert self.w is not None
        return sigmoid(self.w)

    def charge(self, x: Value, v: Value) -> Value:
        distance = self.above_rest(v)
        if self.decay_input:
            return v + (x - distance) * self.share()
        return v * (1 - self.share()) + x if self.rests_at_zero else v - distance * self.share() + x


@dataclass(frozen=True)
class LI(Neuron):
    """A leaky integrator that doesn't fire: a read-out whose output is v = v + (x - v) / tau.

    Source: the read-out of F. Zenke's SpyTorch and of Norse's ``LICell``, in the form of LIF.
    """

    spikes: ClassVar[bool] = False
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = LIF.bounds

    tau: float = 2.0
    """Membrane time constant in time steps, more than 1."""
    decay_input: bool = True
    """Whether the input current is divided by tau as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("tau", self.tau, "more than 1 (time steps)", self.tau > 1)

    def step(self, x: Value, v: Value) -> tuple[Value, Value]:  # type: ignore[override]
        v = v + (x - v) / self.tau if self.decay_input else v * (1 - 1 / self.tau) + x
        return v, v
