"""One neuron under a current that is given, for teaching: what ``fastsnn demo neuron`` draws.

Tests: ``tests/test_neuron_demo.py``.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsnn.activity import Membrane, membrane
from fastsnn.kernels import reference
from fastsnn.kernels.neurons import Neuron

LEVELS = ((0.0, 10), (0.8, 25), (1.2, 25), (0.0, 10), (2.5, 20), (0.0, 10))
"""The default current, in units of the weakest that makes the neuron fire ``FIRES`` times, and its steps of 100."""
FIRES = 5
_CURRENTS = torch.logspace(-3, 3, 601)
"""Where that weakest current is looked for: in steps of 2.3 %."""


@dataclass(frozen=True)
class NeuronDemo:
    """A neuron over T steps."""

    neuron: Neuron
    current: Tensor
    """fp32 [T]."""
    spikes: Tensor | None
    """fp32 [T], 0 or 1; None for a neuron that does not fire."""
    membrane: Membrane
    """Each [T]."""

    @property
    def name(self) -> str:
        """The neuron with what differs from its defaults, as in LIF(tau=10)."""
        kind, changed = type(self.neuron), []
        for field in dataclasses.fields(self.neuron):
            value = getattr(self.neuron, field.name)
            if field.default is not dataclasses.MISSING and value != field.default and field.default is not None:
                changed.append(f"{field.name}={value:g}" if isinstance(value, float) else f"{field.name}={value}")
        return f"{kind.__name__}({', '.join(changed)})" if changed else kind.__name__


def demonstrate(neuron: Neuron, levels: Sequence[float] = (), T: int = 100) -> NeuronDemo:
    """Run a neuron for T steps under a current.

    Args:
        neuron: any neuron.
        levels: the current, in equal parts of the time; default ``LEVELS``, which stays below, above and far above what
            makes the neuron fire often.
        T: time steps.

    Raises ValueError for a T or a level that is not allowed.
    """
    if T < 1:
        raise ValueError(f"T is {T}; allowed: 1 or more time steps")
    if bad := [level for level in levels if not abs(level) < 1e6]:
        raise ValueError(f"current is {bad[0]}; allowed: numbers between -1e6 and 1e6")
    current = _steps(list(levels), T) if levels else _default(neuron, T)
    output, _ = reference.scan(current[:, None], neuron)
    inside = membrane(current[:, None], neuron, output)
    flat = Membrane(
        inside.potential[:, 0],
        inside.after[:, 0],
        None if inside.threshold is None else inside.threshold[:, 0],
        tuple(state[:, 0] for state in inside.states),
    )
    return NeuronDemo(neuron, current, output[:, 0] if neuron.spikes else None, flat)


def weakest_current(neuron: Neuron, T: int = 100) -> float:
    """The smallest of ``_CURRENTS`` under which the neuron fires ``FIRES`` times in T steps, to two digits; else 1."""
    output, _ = reference.scan(_CURRENTS.expand(T, -1), neuron)
    fires = (output.sum(0) >= FIRES) & neuron.spikes
    return float(f"{float(_CURRENTS[fires.nonzero()[0, 0]]):.2g}") if fires.any() else 1.0


def _default(neuron: Neuron, T: int) -> Tensor:
    unit = weakest_current(neuron)
    hundred = torch.cat([torch.full((steps,), level * unit) for level, steps in LEVELS])
    return hundred[torch.arange(T) * 100 // T]


def _steps(levels: list[float], T: int) -> Tensor:
    return torch.tensor(levels)[torch.arange(T) * len(levels) // T]
