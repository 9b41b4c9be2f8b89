"""snnTorch's neurons, written as neurons of fastsnn's own, since their steps differ from SpikingJelly's.

They fire above the threshold (not at it), and the reset of a spike comes one step later unless ``reset_delay=False``.
Tests: ``tests/test_snntorch.py``. Source: snnTorch 1.0.0.
"""

from dataclasses import dataclass
from typing import ClassVar

from fastsnn.kernels.neurons.language import Operand, Value, maximum, minimum, where
from fastsnn.kernels.neurons.neuron import Neuron

RESETS = ("subtract", "zero", "none")


@dataclass(frozen=True)
class SnnTorchNeuron(Neuron):
    """What snnTorch's neurons have in common.

    reset    r = 1 if v > v_threshold before the step, else 0          without a gradient
    charge   h = charge(x, v), less r v_threshold, or (1 - r) times it
    fire     s = 1 if h > v_threshold, else 0
    v        h; without reset_delay the spike of this very step is taken off it as well
    """

    mem_decay: float = 0.9
    """beta, what is left of the membrane potential after a step; clamped to 0 to 1."""
    v_threshold: float = 1.0
    """The neuron fires if its membrane potential is above this."""
    reset: str = "subtract"
    """subtract, zero or none."""
    reset_delay: bool = True
    """Whether the reset comes a step after its spike."""
    potential: bool = False
    """Whether the output is the membrane potential after the step, not the spike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("reset", self.reset, ", ".join(RESETS), self.reset in RESETS)
        self.__dict__.update(spikes=not self.potential)

    def fired(self, v: Value) -> Value:
        """Whether the step before fired, which resets in this one."""
        return where(v - self.v_threshold > 0.0, 1.0, 0.0)

    def less_reset(self, h: Value, fired: Value) -> Value:
        """The charged potential after the reset of the step before."""
        if self.reset == "none":
            return h
        return h - fired * (self.v_threshold if self.reset == "subtract" else h)

    def fire(self, h: Value, fired: Value) -> tuple[Value, Value]:
        """The output, and the potential after the step."""
        distance = h - self.v_threshold
        # A potential at the threshold doesn't fire; what is taken off there has no gradient.
        s = self.spike(distance) - where(distance > 0.0, 0.0, where(distance < 0.0, 0.0, 1.0))
        if not self.reset_delay:
            h = self.less_reset(h, s - fired)
        return (h if self.potential else s), h


def clamped(decay: Operand) -> Value:
    return minimum(maximum(decay, 0.0), 1.0)


@dataclass(frozen=True)
class SnnTorchLeaky(SnnTorchNeuron):
    """snnTorch's ``Leaky`` and ``RLeaky``: h = beta v + x."""

    back: bool = False
    """Whether it is RLeaky, which resets to zero after it has charged; Leaky does it before."""

    def step(self, x: Value, v: Value) -> tuple[Value, Value]:  # type: ignore[override]
        fired, decay = self.fired(v), clamped(self.mem_decay)
        if self.reset == "zero" and not self.back:
            return self.fire(decay * ((1.0 - fired) * v) + x, fired)
        return self.fire(self.less_reset(decay * v + x, fired), fired)


@dataclass(frozen=True)
class SnnTorchSynaptic(SnnTorchNeuron):
    """snnTorch's ``Synaptic`` and ``RSynaptic``: i = alpha i + x, h = beta v + i."""

    states: ClassVar[tuple[str, ...]] = ("i", "v")

    syn_decay: float = 0.8
    """alpha, what is left of the synaptic current after a step; clamped to 0 to 1."""

    def step(self, x: Value, i: Value, v: Value) -> tuple[Value, Value, Value]:  # type: ignore[override]
        i = clamped(self.syn_decay) * i + x
        fired = self.fired(v)
        output, v = self.fire(self.less_reset(clamped(self.mem_decay) * v + i, fired), fired)
        return output, i, v


@dataclass(frozen=True)
class SnnTorchLapicque(SnnTorchNeuron):
    """snnTorch's ``Lapicque``: h = x R (1 / RC) time_step + (1 - time_step / RC) v."""

    R: float = 1.0
    C: float = 10.0
    time_step: float = 1.0

    def step(self, x: Value, v: Value) -> tuple[Value, Value]:  # type: ignore[override]
        product = self.R * self.C
        h = x * self.R * (1 / product) * self.time_step + (1 - self.time_step / product) * v
        fired = self.fired(v)
        return self.fire(self.less_reset(h, fired), fired)
