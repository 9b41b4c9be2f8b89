"""Adaptive neurons: what they did before makes them harder to excite."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import ClassVar

from fastsnn.kernels.neurons.language import Operand, Value, detach, exp
from fastsnn.kernels.neurons.neuron import Neuron


@dataclass(frozen=True)
class AdLIF(Neuron):
    """An adaptive LIF neuron, discretised forward (Euler): an adaptation w that potential and spikes drive.

        charge   h = alpha v + (1 - alpha) (x - w),  alpha = exp(-1 / tau)
        fire     s = 1 if h >= v_threshold, else 0;  v = h - s v_threshold
        adapt    w = beta w + a h + b s,  beta = exp(-1 / tau_w)

    w is already that of the next step. Training keeps a at 0 or more, below which the states may grow without end.
    Source: A. Bittar and P. Garner, "A surrogate gradient spiking baseline for speech command recognition", Frontiers
    in Neuroscience 2022; sparch's ``adLIFLayer`` with a threshold of 1.
    """

    states: ClassVar[tuple[str, ...]] = ("v", "w")
    learns: ClassVar[tuple[str, ...]] = ("tau", "tau_w", "a", "b")
    # With an a below beta - 1 the two states drive each other up without end.
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"tau": (0.1, inf), "tau_w": (0.1, inf), "a": (0.0, inf)}

    tau: float = 10.0
    """Membrane time constant in time steps, more than 0."""
    tau_w: float = 60.0
    """Time constant of the adaptation in time steps, more than 0."""
    a: float = 0.5
    """How strongly the potential drives the adaptation."""
    b: float = 1.0
    """How strongly a spike drives the adaptation."""
    v_threshold: float = 1.0
    """The neuron fires if its membrane potential is at or above this; it is subtracted then."""
    detach_reset: bool = False
    """Whether the gradient ignores the reset."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tau", "tau_w", "v_threshold"):
            self.require(name, getattr(self, name), "more than 0", getattr(self, name) > 0)

    def step(self, x: Value, v: Value, w: Value) -> tuple[Value, Value, Value]:  # type: ignore[override]
        alpha, beta = decay(self.tau), decay(self.tau_w)
        h = v * alpha + (x - w) * (1 - alpha)
        s = self.spike(h - self.v_threshold)
        reset = detach(s) if self.detach_reset else s
        return s, h - reset * self.v_threshold, w * beta + h * self.a + s * self.b


@dataclass(frozen=True)
class SEAdLIF(AdLIF):
    """The adaptive LIF neuron in its symplectic discretisation, which is stable where the forward one oscillates.

        charge   h = alpha v + (1 - alpha) (x - w),  alpha = exp(-1 / tau)
        fire     s = 1 if h >= v_threshold, else 0;  v = (1 - s) h
        adapt    w = beta w + (1 - beta) (a v + b s),  beta = exp(-1 / tau_w)

    Source: M. Baronig et al., "Advancing spatio-temporal processing through adaptation in spiking neural networks",
    2024 (SE-adLIF).
    """

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {**AdLIF.bounds, "a": (-1.0, inf)}

    def step(self, x: Value, v: Value, w: Value) -> tuple[Value, Value, Value]:  # type: ignore[override]
        alpha, beta = decay(self.tau), decay(self.tau_w)
        h = v * alpha + (x - w) * (1 - alpha)
        s = self.spike(h - self.v_threshold)
        v = h * (1 - (detach(s) if self.detach_reset else s))
        return s, v, w * beta + (v * self.a + s * self.b) * (1 - beta)


@dataclass(frozen=True)
class ALIF(Neuron):
    """A LIF neuron with an adaptive threshold, which each spike raises.

        charge   h = v + (1 - alpha) x,  alpha = exp(-1 / tau)
        fire     s = 1 if h >= threshold, else 0;  threshold = v_threshold + beta b
        adapt    b = rho b + (1 - rho) s,  rho = exp(-1 / tau_adp)
        reset    v = alpha h - s threshold, with the threshold of after the spike

    Source: B. Yin, F. Corradi and S. Bohte, "Accurate and efficient time-domain classification with adaptive spiking
    recurrent neural networks", Nature Machine Intelligence 2021 (``mem_update_adp``), with a v that has leaked already.
    """

    states: ClassVar[tuple[str, ...]] = ("v", "b")
    learns: ClassVar[tuple[str, ...]] = ("tau", "tau_adp")
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"tau": (0.1, inf), "tau_adp": (0.1, inf)}

    tau: float = 20.0
    """Membrane time constant in time steps, more than 0."""
    tau_adp: float = 150.0
    """Time constant of the threshold in time steps, more than 0."""
    v_threshold: float = 0.01
    """The threshold at rest, more than 0."""
    beta: float = 1.8
    """How much of the adaptation the threshold rises by, 0 or more."""
    detach_reset: bool = False
    """Whether the gradient ignores the reset."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tau", "tau_adp", "v_threshold"):
            self.require(name, getattr(self, name), "more than 0", getattr(self, name) > 0)
        self.require("beta", self.beta, "0 or more", self.beta >= 0)

    def step(self, x: Value, v: Value, b: Value) -> tuple[Value, Value, Value]:  # type: ignore[override]
        alpha, rho = decay(self.tau), decay(self.tau_adp)
        h = v + x * (1 - alpha)
        s = self.spike(h - (self.v_threshold + b * self.beta))
        b = b * rho + s * (1 - rho)
        reset = detach(s) if self.detach_reset else s
        return s, h * alpha - reset * (self.v_threshold + b * self.beta), b


def decay(tau: Operand) -> Operand:
    """What is left after a step of what falls with a time constant ``tau``: exp(-1 / tau)."""
    return exp(-1 / tau)
