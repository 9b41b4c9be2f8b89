"""Small trained runs of every kind that figures and the report page look at."""

from dataclasses import replace
from pathlib import Path

import numpy as np

import fastsnn

DIGITS = fastsnn.Config(dataset="digits", backend="torch", T=12, epochs=2, lr=0.02, train_samples=600, test_samples=230)
ARRAYS = replace(DIGITS, T=None, epochs=3, train_samples=None, test_samples=None)
RUNS = {
    "one layer": DIGITS,
    "hidden layers": replace(DIGITS, hidden=(30, 20), bias=True, epochs=3, v_reset=None),
    "one step, one epoch": replace(DIGITS, T=1, epochs=1, v_threshold=0.3, loss="ce", lr=0.05, test_samples=60),
    "convolution": replace(DIGITS, net="4c3-p2-16", test_samples=40, T=6, epochs=3),
    "recurrent": replace(DIGITS, hidden=(16,), recurrent=True, neuron="alif", train_samples=200, test_samples=40),
    "lengths": replace(ARRAYS, hidden=(12,), readout="max", validation=0.2),
    "events": replace(ARRAYS, net="4c3-p2", neuron="plif", T=6),
    "labels per step": replace(ARRAYS, hidden=(10,), neuron="adlif"),
}
"""Name -> options; those without a data set get :func:`arrays_for`."""


def train(name: str, folder: Path) -> Path:
    """Train one of ``RUNS``; returns its run folder."""
    config, path = RUNS[name], folder / name.replace(" ", "-").replace(",", "")
    if config.train_samples is None:
        file = folder / f"{path.name}-data.npz"
        np.savez(file, **arrays_for(name))
        config = replace(config, dataset=str(file))
    return fastsnn.train(replace(config, out=path)).run


def arrays_for(name: str) -> dict[str, np.ndarray]:
    """Arrays of three classes, each with a busy part, of which a network learns something."""
    rng = np.random.default_rng(0)
    D, T = 90, 6 if name == "events" else 20
    y = np.arange(D) % 3
    shape = (2, 7, 6) if name == "events" else (9,)
    part = np.arange(shape[-1]) % 3 == y[:, None]
    rates = np.where(part, 0.6, 0.1).reshape(D, 1, *(1,) * (len(shape) - 1), shape[-1])
    x = rng.random((D, T, *shape)) < rates
    arrays = {"x": x[:60], "y": y[:60], "x_test": x[60:], "y_test": y[60:]}
    if name == "lengths":
        lengths = rng.integers(8, T + 1, D)
        values = x * rng.random(x.shape) * (np.arange(T) < lengths[:, None])[..., None]
        arrays |= {"x": values[:60].astype(np.float32), "x_test": values[60:].astype(np.float32)}
        arrays |= {"lengths": lengths[:60], "lengths_test": lengths[60:]}
    if name == "labels per step":
        steps = np.where(np.arange(T) < 3, -1, y[:, None])
        arrays |= {"y": steps[:60], "y_test": steps[60:]}
    return arrays
