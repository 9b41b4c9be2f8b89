"""Firing rates of layers: what metrics.csv tells, what a silent layer gets, and bounds."""

from pathlib import Path

import pytest
import torch
from made_data import CHANNELS, CLASSES, arrays, options
from run_tools import metrics, small
from torch import nn

import fastsnn
from fastsnn.sources import Images
from fastsnn.sources.images import load
from fastsnn.training.firing_rates import diagnosis


def test_firing_rates_are_those_of_the_layers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = small(run, hidden=(12,), epochs=2)
    history = fastsnn.train(config)
    network, images = fastsnn.load(run), Images(load("digits").first(70, 20))
    x = images.batch("test", torch.arange(20), config.T or 0).x.unpack().flatten(2)  # type: ignore[union-attr]
    expected = []
    for layer in network.children():
        x = layer(x)
        expected.append(x.mean().item())
    assert all(expected)
    assert history.epochs[-1].firing_rates == pytest.approx(expected, rel=1e-5)
    last = metrics(run)[-1]
    assert [float(last[f"firing_rate_{i}"]) for i in (1, 2)] == pytest.approx(expected, rel=1e-5)


def test_a_silent_layer_is_diagnosed_once(tmp_path: Path) -> None:
    said: list[str] = []

    class Listener(fastsnn.Monitor):
        def message(self, text: str) -> None:
            said.append(text)

    torch.manual_seed(0)
    silent = nn.Sequential(
        fastsnn.LinearLIF(CHANNELS, 5, neuron=fastsnn.LIF(v_threshold=0.1)),
        fastsnn.LinearLIF(5, CLASSES, neuron=fastsnn.LIF(v_threshold=1e6)),
    )
    fastsnn.fit(silent, arrays(), options(tmp_path / "run"), callbacks=[Listener()])
    found = [text for text in said if "fires" in text]
    assert len(found) == 1
    assert found[0].startswith("no neuron of layer 1 (2 of 2) fires")
    assert "lower --v-threshold" in found[0]


def test_diagnosis() -> None:
    assert diagnosis(["0"], [], [0.5]) == []
    (line,) = diagnosis(["0", "3.neuron"], [], [0.5, 0.995])
    assert line.startswith("every neuron of layer 3.neuron (2 of 2) fires at nearly every step (99.5%)")
    assert diagnosis(["0"], [[0.0]], [0.0]) == diagnosis(["0"], [[0.999]], [1.0]) == []


def test_bounds_of_firing_rates_move_them(tmp_path: Path) -> None:
    rates = {}
    for name, more in {"free": {}, "low": {"rate_upper": 0.01}, "high": {"rate_lower": 0.5}}.items():
        bounds = more | {"rate_penalty": 100.0}
        config = small(tmp_path / name, hidden=(12,), lr=0.02, **bounds)
        rates[name] = fastsnn.train(config).epochs[-1].firing_rates[0]
    assert rates["low"] < 0.5 * rates["free"]
    assert rates["high"] > 1.5 * rates["free"]
