"""Neurons as values: what LIF and PLIF accept, what each refusal names, and the text that names a neuron."""

import copy
import dataclasses
import math
import pickle
from typing import Any

import pytest
import torch

from fastsnn import LIF, PLIF
from fastsnn.kernels.neurons import SURROGATES
from fastsnn.kernels.neurons import neuron as neuron_module
from fastsnn.kernels.neurons.neuron import neuron_of
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.neurons.surrogates import ALIASES


def test_defaults_are_spikingjellys() -> None:
    assert dataclasses.asdict(LIF()) == {
        "tau": 2.0,
        "v_threshold": 1.0,
        "v_reset": 0.0,
        "decay_input": True,
        "detach_reset": False,
        "surrogate": "atan",
        "alpha": 2.0,
    }


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_alpha_defaults_to_the_surrogates_own(surrogate: str) -> None:
    assert LIF(surrogate=surrogate).alpha == SURROGATES[surrogate].alpha
    assert LIF(surrogate=surrogate, alpha=7).alpha == 7.0


def test_aliases() -> None:
    assert ALIASES["triangle"] == "piecewise_quadratic"
    for alias, name in ALIASES.items():
        assert LIF(surrogate=alias) == LIF(surrogate=name)


def test_fast_sigmoid_is_snntorchs() -> None:
    """A height of 1 whatever the slope is; soft_sign, of the same shape, is alpha / 2 high."""
    assert "fast_sigmoid" not in ALIASES
    assert LIF(surrogate="fast_sigmoid").alpha == 25.0
    for slope in (25.0, 5.0):
        assert float(SURROGATES["fast_sigmoid"].derivative(torch.zeros(()), slope)) == 1
        assert float(SURROGATES["soft_sign"].derivative(torch.zeros(()), slope)) == slope / 2


def test_integers_become_floats() -> None:
    neuron = LIF(tau=3, v_threshold=2, v_reset=-1, alpha=1)
    assert all(type(value) is float for value in (neuron.tau, neuron.v_threshold, neuron.v_reset, neuron.alpha))


def test_it_is_frozen_hashable_and_a_round_trip() -> None:
    neuron = LIF(tau=4.0, v_reset=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        neuron.tau = 3.0  # type: ignore[misc]
    assert {neuron: 1}[LIF(**dataclasses.asdict(neuron))] == 1
    assert dataclasses.replace(neuron, tau=2.0) == LIF(v_reset=None)


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
        ({"v_threshold": -math.inf}, ValueError, "v_threshold is -inf; allowed: a finite number"),
        ({"v_threshold": math.nan}, ValueError, "v_threshold is nan; allowed: a finite number"),
        ({"v_reset": "soft"}, TypeError, "v_reset is 'soft'; allowed: a number"),
        ({"v_reset": -math.inf}, ValueError, "v_reset is -inf; allowed: a finite number"),
        ({"decay_input": 1}, TypeError, "decay_input is 1; allowed: True or False"),
        ({"detach_reset": "no"}, TypeError, "detach_reset is 'no'; allowed: True or False"),
        ({"alpha": 0}, ValueError, "alpha is 0.0; allowed: more than 0"),
        ({"alpha": [2.0]}, TypeError, "alpha is [2.0]; allowed: a number"),
        (
            {"surrogate": "relu"},
            ValueError,
            f"surrogate is 'relu'; allowed: {', '.join([*SURROGATES, *ALIASES])}",
        ),
        ({"surrogate": None}, TypeError, "surrogate is None; allowed: text"),
        ({"surrogate": ["atan"]}, TypeError, "surrogate is ['atan']; allowed: text"),
    ],
)
def test_refusals_name_argument_value_and_allowed(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        LIF(**arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tau": 1.0000001},
        {"v_threshold": 1e-9},
        {"v_reset": 0.999},
        {"v_reset": None, "v_threshold": 1e-3},
        {"v_threshold": math.inf},
        {"alpha": 1e-3},
    ],
)
def test_values_next_to_the_limits_are_accepted(arguments: dict[str, Any]) -> None:
    LIF(**arguments)


def test_an_infinite_threshold_makes_a_read_out() -> None:
    readout = LIF(v_threshold=math.inf)
    assert (readout.spikes, LIF().spikes) == (False, True)
    assert neuron_of(readout.key) == readout
    assert compile_neuron(readout).kept == 0


def test_plif_learns_what_makes_tau() -> None:
    """1 / tau = sigmoid(w), by the paper."""
    assert PLIF(tau=3.0).w == pytest.approx(-math.log(2), rel=1e-15)
    assert PLIF(tau=3.0).learns == ("w",)
    assert PLIF(w=0.25).w == 0.25
    with pytest.raises(ValueError, match=r"tau is 1\.0; allowed: more than 1"):
        PLIF(tau=1.0)


NEURONS = [LIF(), LIF(tau=3, v_reset=None, surrogate="erf", alpha=0.3), PLIF(v_reset=-0.5), LIF(v_threshold=math.inf)]


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_copies_have_the_same_key(neuron: LIF) -> None:
    for twin in (copy.copy(neuron), copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert twin == neuron
        assert twin.key == neuron.key
    assert neuron_of(neuron.key) == neuron


def test_a_key_or_a_pickle_is_enough_for_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.dumps(NEURONS)
    monkeypatch.setattr(neuron_module, "_neurons", {})
    for neuron in NEURONS:
        assert neuron_of(neuron.key) == neuron
    monkeypatch.setattr(neuron_module, "_neurons", {})
    for neuron, twin in zip(NEURONS, pickle.loads(pickled), strict=True):
        assert neuron_module._neurons[neuron.key] is twin


@pytest.mark.parametrize("key", ["nothing:LIF()", "fastsnn.kernels.neurons.lif:Missing()", "os:system('true')", "LIF"])
def test_a_key_that_names_no_neuron(key: str) -> None:
    with pytest.raises(ValueError, match=r"neuron is .*; allowed: module:Class"):
        neuron_of(key)
