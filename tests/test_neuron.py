"""LIFParameters: what it accepts, and that each refusal names the argument, its value and what is allowed."""

import dataclasses
import math
from typing import Any

import pytest

from fastsnn import LIFParameters
from fastsnn.kernels.reference import SURROGATES


def test_defaults_are_spikingjellys() -> None:
    assert LIFParameters().options() == {
        "tau": 2.0,
        "v_threshold": 1.0,
        "v_reset": 0.0,
        "decay_input": True,
        "detach_reset": False,
        "surrogate": "atan",
        "alpha": 2.0,
    }


@pytest.mark.parametrize(("surrogate", "alpha"), SURROGATES.items())
def test_alpha_defaults_to_the_surrogates_own(surrogate: str, alpha: float) -> None:
    assert LIFParameters(surrogate=surrogate).alpha == alpha
    assert LIFParameters(surrogate=surrogate, alpha=7).alpha == 7.0


@pytest.mark.parametrize(("alias", "name"), [("triangle", "piecewise_quadratic"), ("fast_sigmoid", "soft_sign")])
def test_aliases(alias: str, name: str) -> None:
    assert LIFParameters(surrogate=alias) == LIFParameters(surrogate=name)


def test_integers_become_floats() -> None:
    neuron = LIFParameters(tau=3, v_threshold=2, v_reset=-1, alpha=1)
    assert all(type(value) is float for value in (neuron.tau, neuron.v_threshold, neuron.v_reset, neuron.alpha))


def test_it_is_frozen_hashable_and_a_round_trip() -> None:
    neuron = LIFParameters(tau=4.0, v_reset=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        neuron.tau = 3.0  # type: ignore[misc]
    assert {neuron: 1}[LIFParameters(**neuron.options())] == 1
    assert dataclasses.replace(neuron, tau=2.0) == LIFParameters(v_reset=None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tau": 1}, ValueError, "tau is 1.0; allowed: more than 1 (time steps)"),
        ({"tau": -3.0}, ValueError, "tau is -3.0; allowed: more than 1 (time steps)"),
        ({"tau": math.inf}, ValueError, "tau is inf; allowed: a finite number"),
        ({"tau": math.nan}, ValueError, "tau is nan; allowed: a finite number"),
        ({"tau": "2"}, TypeError, "tau is '2'; allowed: a number"),
        ({"tau": None}, TypeError, "tau is None; allowed: a number"),
        ({"tau": True}, TypeError, "tau is True; allowed: a number"),
        ({"v_threshold": 0.0}, ValueError, "v_threshold is 0.0; allowed: more than v_reset (0.0)"),
        ({"v_threshold": 0.5, "v_reset": 0.5}, ValueError, "v_threshold is 0.5; allowed: more than v_reset (0.5)"),
        ({"v_threshold": -1.0, "v_reset": None}, ValueError, "v_threshold is -1.0; allowed: more than v_reset (0.0)"),
        ({"v_threshold": math.inf}, ValueError, "v_threshold is inf; allowed: a finite number"),
        ({"v_reset": "soft"}, TypeError, "v_reset is 'soft'; allowed: a number"),
        ({"v_reset": -math.inf}, ValueError, "v_reset is -inf; allowed: a finite number"),
        ({"decay_input": 1}, TypeError, "decay_input is 1; allowed: True or False"),
        ({"detach_reset": "no"}, TypeError, "detach_reset is 'no'; allowed: True or False"),
        ({"alpha": 0}, ValueError, "alpha is 0.0; allowed: more than 0"),
        ({"alpha": [2.0]}, TypeError, "alpha is [2.0]; allowed: a number"),
        (
            {"surrogate": "relu"},
            ValueError,
            "surrogate is 'relu'; allowed: atan, sigmoid, erf, piecewise_quadratic, soft_sign, rectangle, "
            "triangle, fast_sigmoid",
        ),
        ({"surrogate": None}, ValueError, "surrogate is None; allowed: atan"),
        ({"surrogate": ["atan"]}, ValueError, "surrogate is ['atan']; allowed: atan"),
    ],
)
def test_refusals_name_argument_value_and_allowed(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        LIFParameters(**arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tau": 1.0000001},
        {"v_threshold": 1e-9},
        {"v_reset": 0.999},
        {"v_reset": None, "v_threshold": 1e-3},
        {"alpha": 1e-3},
    ],
)
def test_values_next_to_the_limits_are_accepted(arguments: dict[str, Any]) -> None:
    LIFParameters(**arguments)
