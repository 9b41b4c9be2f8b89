"""Current-based neurons: the input charges a synaptic current, and that the membrane."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fastsnn.kernels.neurons.language import Value
from fastsnn.kernels.neurons.resetting import Resetting


@dataclass(frozen=True)
class CuBaLIF(Resetting):
    """A current-based leaky integrate-and-fire neuron (second order).

        current  i = syn_decay i + x
        charge   h = mem_decay v + i

    and fires and resets as :class:`~fastsnn.kernels.neurons.resetting.Resetting` says. Source: F. Zenke and
    S. Ganguli, "SuperSpike", Neural Computation 2018; snnTorch's ``Synaptic(alpha=syn_decay, beta=mem_decay,
    reset_delay=False)``, which fires only above the threshold. A decay is exp(-1 / tau) of a time constant tau.
    """

    states: ClassVar[tuple[str, ...]] = ("i", "v")
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"syn_decay": (0.0, 1.0), "mem_decay": (0.0, 1.0)}

    syn_decay: float = 0.8
    """What is left of the synaptic current after a step, 0 to 1."""
    mem_decay: float = 0.9
    """What is left of the membrane potential after a step, 0 to 1."""
    v_threshold: float = 1.0
    """The neuron fires if its membrane potential is at or above this; more than v_reset, or inf for a read-out."""
    v_reset: float | None = None
    """Potential after a spike; None subtracts v_threshold instead (soft reset)."""
    detach_reset: bool = False
    """Whether the gradient ignores the reset."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("syn_decay", "mem_decay"):
            self.require(name, getattr(self, name), "0 to 1", 0 <= getattr(self, name) <= 1)

    def step(self, x: Value, i: Value, v: Value) -> tuple[Value, Value, Value]:  # type: ignore[override]
        i = i * self.syn_decay + x
        s, v = self.fire_and_reset(v * self.mem_decay + i, self.v_threshold)
        return s, i, v
