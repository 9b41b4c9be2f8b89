"""Steps that say what the small language can't: each is refused at its own line, with what is allowed."""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from fastsnn import Neuron
from fastsnn.kernels.neurons import StepError, where
from fastsnn.kernels.neurons.program import compile_neuron

BAD_STEPS: dict[str, tuple[Callable[..., Any], str]] = {}


def refused(said: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds a step that must be refused, at the line that ends in ``# here``."""

    def add(step: Callable[..., Any]) -> Callable[..., Any]:
        BAD_STEPS[step.__name__] = (step, said)
        return step

    return add


@refused("decides by a value that is known only when the neuron runs; write where(condition, a, b)")
def an_if(self, x, v):
    if v > self.tau:  # here
        v = v * 0.5
    return v, v


@refused("decides by a value that is known only when the neuron runs")
def an_and(self, x, v):
    return where(x > 0 and v > 0, x, v), v  # here


@refused("decides by a value that is known only when the neuron runs")
def a_chain(self, x, v):
    return where(0 < v < 1, x, v), v  # here


@refused("decides by a value that is known only when the neuron runs")
def an_if_of_a_parameter(self, x, v):
    return (x if self.tau > 2 else v), v  # here


@refused("decides by a value that is known only when the neuron runs")
def pythons_max(self, x, v):
    return max(x, 0.0), v  # here


@refused("uses ==; write two comparisons")
def an_equality(self, x, v):
    return where(v == 0.0, x, v), v  # here


@refused("uses !=; write two comparisons")
def an_inequality(self, x, v):
    return x if v != 0.0 else v, v  # here


@refused("calls torch's exp")
def a_torch_function(self, x, v):
    h = v + x
    return torch.exp(h), v  # here


@refused("calls torch's where")
def torchs_where(self, x, v):
    return torch.where(x > 0, x, v), v  # here


@refused("mixes a value of the neuron with Tensor")
def a_tensor(self, x, v):
    return x + torch.ones(3), v  # here


@refused("calls numpy's maximum")
def a_numpy_function(self, x, v):
    return np.maximum(x, 0.0), v  # here


@refused("calls numpy's multiply")
def a_numpy_number(self, x, v):
    return np.float32(0.5) * x, v  # here


@refused("makes a Python number of a value that is known only when the neuron runs")
def pythons_exp(self, x, v):
    return math.exp(x), v  # here


@refused("makes a Python number of a value")
def an_int(self, x, v):
    return x * int(v), v  # here


@refused("uses **; write a product")
def a_power(self, x, v):
    return x**2, v  # here


@refused("uses **; write a product")
def a_power_of_a_number(self, x, v):
    return 2.0**x, v  # here


@refused("uses %")
def a_remainder(self, x, v):
    return x % 2.0, v  # here


@refused("uses //")
def a_floor(self, x, v):
    return x // 2.0, v  # here


@refused("uses @")
def a_matrix(self, x, v):
    return x @ v, v  # here


@refused("computes with a condition; write where(condition, 1.0, 0.0)")
def arithmetic_of_a_condition(self, x, v):
    return x * (v > 1), v  # here


@refused("asks where() for something that is no comparison")
def a_where_of_a_number(self, x, v):
    return where(x, v, 0.0), v  # here


@refused("computes with a condition; write where(condition, 1.0, 0.0)")
def a_spike_of_a_condition(self, x, v):
    return self.spike(v > 1), v  # here


@refused("mixes a value of the neuron with str")
def a_text(self, x, v):
    return x + "1", v  # here


@refused("mixes a value of the neuron with bool")
def a_bool(self, x, v):
    return x * True, v  # here


@refused("loops over one neuron's value")
def a_loop_over_a_value(self, x, v):
    return sum(part for part in x), v  # here


@refused("makes more than 2000 operations, as a loop without an end does")
def an_endless_loop(self, x, v):
    while True:
        v = v * 0.5 + x  # here


@refused("makes more than 2000 operations, as a loop without an end does")
def an_endless_loop_of_the_same(self, x, v):
    while True:
        x = x * 1.0  # here


@refused("returns 1 value; allowed: 2 (output, v)")  # here
def too_few_results(self, x, v):
    return v


@refused("returns 3 values; allowed: 2 (output, v)")  # here
def too_many_results(self, x, v):
    return v, v, x


@refused("returns NoneType; allowed: values of the step, and numbers")  # here
def nothing(self, x, v):
    return v, None


@refused("returns a condition; allowed: where(condition, 1.0, 0.0)")  # here
def a_condition(self, x, v):
    return v > 1, v


@pytest.mark.parametrize("name", BAD_STEPS)
def test_a_step_that_cannot_be_compiled_names_file_line_and_what_is_allowed(name: str) -> None:
    step, said = BAD_STEPS[name]
    lines, first = inspect.getsourcelines(step)
    place = next(first + i for i, line in enumerate(lines) if line.endswith("# here\n"))
    kind = dataclass(frozen=True)(type("Bad", (Neuron,), {"tau": 2.0, "__annotations__": {"tau": float}, "step": step}))
    with pytest.raises(StepError) as caught:
        compile_neuron(kind())
    message = str(caught.value)
    assert message.startswith(f"{__file__}, line {place}"), message
    assert said in message
    assert "allowed: " in message
    assert "\n" not in message


def test_a_neuron_without_a_step_says_what_to_define() -> None:
    @dataclass(frozen=True)
    class Empty(Neuron):
        states: ClassVar[tuple[str, ...]] = ("v", "a")

    with pytest.raises(NotImplementedError, match=re.escape("Empty has no step; define step(self, x, v, a)")):
        compile_neuron(Empty())
