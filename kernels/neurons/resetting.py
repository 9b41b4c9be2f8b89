"""What neurons have in common that fire at a threshold and reset their potential at once."""

import math
from typing import ClassVar

from fastsnn.kernels.neurons.language import Operand, Value, detach, select
from fastsnn.kernels.neurons.neuron import Neuron


class Resetting(Neuron):
    """A neuron with a potential v that is reset where it fires; its subclasses have these three fields.

        fire     s = 1 if h >= v_threshold, else 0
        reset    v = (1 - s) h + s v_reset                    hard (v_reset a number)
                 v = h - s v_threshold                        soft (v_reset None)

    With an infinite threshold it never fires and its output is the potential: a read-out.
    """

    v_threshold: float
    v_reset: float | None
    detach_reset: bool

    rests_at_zero: ClassVar[bool]
    """Whether v_reset is 0 or None, which decides between two expressions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        resting = self.v_reset or 0.0
        self.require("v_threshold", self.v_threshold, f"more than v_reset ({resting})", self.v_threshold > resting)
        self.__dict__.update(rests_at_zero=not self.v_reset, spikes=math.isfinite(self.v_threshold))

    def rest(self) -> tuple[float, ...]:
        return tuple((self.v_reset or 0.0) if name == "v" else 0.0 for name in self.states)

    def above_rest(self, v: Value) -> Value:
        """The potential less v_reset."""
        return v if self.v_reset is None or self.rests_at_zero else v - self.v_reset

    def fire_and_reset(self, h: Value, threshold: Operand) -> tuple[Value, Value]:
        """The output, and the potential after it."""
        if not self.spikes:
            return h, h
        s = self.spike(h - threshold)
        reset = detach(s) if self.detach_reset else s
        return s, h - reset * threshold if self.v_reset is None else select(reset, self.v_reset, h)
