"""Leaky integrate-and-fire neurons, with a leak that is given or learnt."""

import math
from dataclasses import dataclass
from typing import ClassVar

from fastsnn.kernels.neurons.language import Element, Operand, detach, select, sigmoid
from fastsnn.kernels.neurons.neuron import Neuron


@dataclass(frozen=True)
class LIF(Neuron):
    """A leaky integrate-and-fire neuron; names and defaults are those of SpikingJelly's ``neuron.LIFNode``.

        charge   h = v + (x - (v - v_reset)) / tau            decay_input=True
                 h = v - (v - v_reset) / tau + x              decay_input=False
        fire     s = 1 if h >= v_threshold, else 0
        reset    v = (1 - s) h + s v_reset                    hard (v_reset a number)
                 v = h - s v_threshold                        soft (v_reset None)

    Its default surrogate is atan with alpha 2 (LIFNode's is Sigmoid with alpha 4). With an infinite threshold it never
    fires and its output is the potential: a read-out.
    """

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
        resting = self.v_reset or 0.0
        self.require("v_threshold", self.v_threshold, f"more than v_reset ({resting})", self.v_threshold > resting)
        # Facts about the numbers that decide which expression is the contract's (docs/design.md).
        self.__dict__.update(rests_at_zero=not self.v_reset, spikes=math.isfinite(self.v_threshold))

    rests_at_zero: ClassVar[bool]

    def rest(self) -> tuple[float, ...]:
        return (self.v_reset or 0.0,)

    def learnable(self) -> tuple[str, ...]:
        names = super().learnable()
        # Neurons that rest at 0 charge by an expression without v_reset.
        return tuple(name for name in names if name != "v_reset") if self.rests_at_zero else names

    def share(self) -> Operand:
        """Part of the distance from rest that leaks away in a step."""
        return 1 / self.tau

    def charge(self, x: Element, v: Element) -> Element:
        """Membrane potential before firing."""
        distance = v if self.rests_at_zero else v - self.v_reset
        if self.decay_input:
            return v + (x - distance) / self.tau
        return v * (1 - self.share()) + x if self.rests_at_zero else v - distance / self.tau + x

    def step(self, x: Element, v: Element) -> tuple[Element, Element]:  # type: ignore[override]
        h = self.charge(x, v)
        if not self.spikes:
            return h, h
        s = self.spike(h - self.v_threshold)
        reset = detach(s) if self.detach_reset else s
        return s, h - reset * self.v_threshold if self.v_reset is None else select(reset, self.v_reset, h)

    def gradient(self, x: Element, v: Element, grad_output: Element, grad_v: Element) -> tuple[Element, Element]:  # type: ignore[override]
        h = self.charge(x, v)
        if self.spikes:
            s = self.spike(h - self.v_threshold)
            slope = self.surrogate_row.derivative(h - self.v_threshold, self.alpha)
            kept = select(s, 0.0, grad_v) if self.v_reset is not None else grad_v
            if not self.detach_reset:
                jump = -self.v_threshold if self.v_reset is None else self.v_reset - h
                grad_output = grad_output + jump * grad_v
            grad_h = grad_output * slope + kept
        else:
            grad_h = grad_output + grad_v
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
        return sigmoid(self.w)  # type: ignore[type-var]

    def charge(self, x: Element, v: Element) -> Element:
        distance = v if self.rests_at_zero else v - self.v_reset
        if self.decay_input:
            return v + (x - distance) * self.share()
        return v * (1 - self.share()) + x if self.rests_at_zero else v - distance * self.share() + x
