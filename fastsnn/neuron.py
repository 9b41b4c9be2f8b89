"""One validated description of a LIF neuron, shared by every backend."""

import math
from dataclasses import dataclass
from typing import Any

SURROGATE_ALIASES = {"triangle": "piecewise_quadratic", "fast_sigmoid": "soft_sign"}


@dataclass(frozen=True)
class LIFParameters:
    """A leaky integrate-and-fire neuron; names and defaults are those of SpikingJelly's ``neuron.LIFNode``.

    Raises TypeError or ValueError, naming the argument, its value and what is allowed.
    """

    tau: float = 2.0
    """Membrane time constant in time steps, more than 1."""
    v_threshold: float = 1.0
    """The neuron fires where its membrane potential is at or above this; more than v_reset."""
    v_reset: float | None = 0.0
    """Potential after a spike; None subtracts v_threshold instead (soft reset)."""
    decay_input: bool = True
    """Whether the input current is divided by tau as well."""
    detach_reset: bool = False
    """Whether the gradient ignores the reset."""
    surrogate: str = "atan"
    """Derivative used for the spike: atan, sigmoid, erf, piecewise_quadratic, soft_sign or rectangle; triangle and
    fast_sigmoid are other names for the fourth and fifth."""
    alpha: float | None = None
    """Sharpness of the surrogate; None takes the surrogate's own default (2 for atan)."""

    def __post_init__(self) -> None:
        from fastsnn.kernels.reference import SURROGATES  # imports torch, which takes seconds

        surrogate = str(SURROGATE_ALIASES.get(str(self.surrogate), self.surrogate))
        if surrogate not in SURROGATES:
            allowed = ", ".join([*SURROGATES, *SURROGATE_ALIASES])
            raise ValueError(f"surrogate is {self.surrogate!r}; allowed: {allowed}")
        object.__setattr__(self, "surrogate", surrogate)
        if self.alpha is None:
            object.__setattr__(self, "alpha", SURROGATES[surrogate])
        for name in ("tau", "v_threshold", "alpha") + (("v_reset",) if self.v_reset is not None else ()):
            object.__setattr__(self, name, _finite(name, getattr(self, name)))
        for name in ("decay_input", "detach_reset"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}; allowed: True or False")
        if self.tau <= 1:
            raise ValueError(f"tau is {self.tau}; allowed: more than 1 (time steps)")
        if self.alpha <= 0:  # type: ignore[operator]
            raise ValueError(f"alpha is {self.alpha}; allowed: more than 0")
        resting = self.v_reset or 0.0
        if self.v_threshold <= resting:
            raise ValueError(f"v_threshold is {self.v_threshold}; allowed: more than v_reset ({resting})")

    def options(self) -> dict[str, Any]:
        """The keyword arguments that every kernel takes."""
        # Spelled out: torch.compile of torch 2.7 can trace neither asdict() nor vars().
        return {
            "tau": self.tau,
            "v_threshold": self.v_threshold,
            "v_reset": self.v_reset,
            "decay_input": self.decay_input,
            "detach_reset": self.detach_reset,
            "surrogate": self.surrogate,
            "alpha": self.alpha,
        }


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}; allowed: a number")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}; allowed: a finite number")
    return float(value)
