"""Neurons named in one line: registered ones, those of a module or a file, their fields, and what is refused."""

import math
from pathlib import Path

import pytest
import torch

import fastsnn
from fastsnn.kernels.neurons import NEURONS
from fastsnn.kernels.neurons.neuron import neuron_of
from fastsnn.neuron_spec import parse_neuron

FILE = """
from dataclasses import dataclass

import fastsnn


@dataclass(frozen=True)
class Mine(fastsnn.Neuron):
    beta: float = 0.5
    hard: bool = False

    def step(self, x, v):
        h = v * self.beta + x
        s = self.spike(h - 1.0)
        return s, h * (1 - s) if self.hard else h - s
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a neuron in mine.py."""
    (tmp_path / "mine_of_the_test.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NEURONS)
def test_registered_neurons_go_by_their_name(name: str) -> None:
    assert parse_neuron(name) == parse_neuron(f" {name.upper()}( ) ") == NEURONS[name]()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lif(tau=3)", fastsnn.LIF(tau=3.0)),
        ("lif(tau = 3, v_reset=None, decay_input=false)", fastsnn.LIF(tau=3.0, v_reset=None, decay_input=False)),
        ("lif(v_reset=-0.3, surrogate='erf', alpha=1e0)", fastsnn.LIF(v_reset=-0.3, surrogate="erf", alpha=1.0)),
        ("lif(surrogate=sigmoid, v_reset=none)", fastsnn.LIF(surrogate="sigmoid", v_reset=None)),
        ("plif(tau=3,)", fastsnn.PLIF(tau=3.0)),
        ("lif(v_threshold=inf)", fastsnn.LIF(v_threshold=math.inf)),
        ("fastsnn:LIF(tau=4)", fastsnn.LIF(tau=4.0)),
    ],
)
def test_fields(text: str, expected: fastsnn.Neuron) -> None:
    assert parse_neuron(text) == expected


@pytest.mark.parametrize("place", ["mine_of_the_test", "mine_of_the_test.py", "{folder}/mine_of_the_test.py"])
def test_a_neuron_of_ones_own(place: str, folder: Path) -> None:
    neuron = parse_neuron(f"{place.format(folder=folder)}:Mine(beta=0.25, hard=true)")
    assert (type(neuron).__name__, neuron.parameters()["beta"]) == ("Mine", 0.25)
    assert neuron_of(neuron.key) is neuron
    spikes, state = fastsnn.scan(torch.full((3, 1), 0.9), neuron, backend="numba")
    assert spikes.flatten().tolist() == [0.0, 1.0, 0.0]
    assert state["v"].item() == pytest.approx(0.9)


def test_a_file_that_changed_is_read_again(folder: Path) -> None:
    path = folder / "mine_of_the_test.py"
    assert parse_neuron(f"{path}:Mine").parameters()["beta"] == 0.5
    path.write_text(FILE.replace("= 0.5", "= 0.75 "))
    assert parse_neuron(f"{path}:Mine").parameters()["beta"] == 0.75


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lfi", r"neuron is 'lfi' \(did you mean lif\?\); allowed: if, lif, plif, .*, module:Class and file\.py:Class"),
        ("", "allowed: if, lif, "),
        ("lif(3)", r"allowed: fields by name in brackets, as in plif\(tau=3, v_reset=none\)"),
        ("lif(tau=3", "allowed: fields by name"),
        ("lif(tau=3)(tau=4)", "allowed: fields by name"),
        ("lif(**x)", "allowed: fields by name"),
        ("lif(tau=1+x)", "where '1 \\+ x' is no value; allowed: numbers, inf"),
        ("lif(tua=3)", r"has no 'tua' \(did you mean tau\?\); LIF allows: surrogate, alpha, tau, "),
        ("lif(tau=0.5)", r"tau is 0\.5; allowed: more than 1"),
        ("lif(tau=fast)", "tau is 'fast'; allowed: a number"),
        ("lif(decay_input=1)", "decay_input is 1; allowed: True or False"),
        ("no_such_module:Mine", "no module no_such_module in .*; allowed: if, lif"),
        (":Mine", "allowed: if, lif"),
        ("mine_of_the_test:Yours", "mine_of_the_test has no neuron 'Yours'; it has: Mine"),
        ("mine_of_the_test:fastsnn", "has no neuron 'fastsnn'; it has: Mine"),
        ("fastsnn.errors:FastSNNError", "it has: none; derive a frozen dataclass from fastsnn.Neuron"),
        ("nowhere.py:Mine", r"there is no file nowhere\.py; allowed: if, lif"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(text: str, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_neuron(text)
    assert "\n" not in str(caught.value)


def test_a_module_that_is_missing_inside_the_module_is_that_modules_error(folder: Path) -> None:
    (folder / "needs_another.py").write_text("import no_such_thing\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        parse_neuron("needs_another:Mine")
