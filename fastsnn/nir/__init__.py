"""NIR, the Neuromorphic Intermediate Representation: networks to and from other tools and chips.

NIR gives a neuron as a differential equation. Here it means its forward Euler discretisation with a time step ``dt``:

    IF        v += dt r x
    LI, LIF   v += dt / tau (v_leak - v + r x)
    CubaLIF   i += dt / tau_syn (w_in x - i), then v += dt / tau_mem (v_leak - v + r i), with the new i
    fire      s = 1 if v > v_threshold; then v = v_reset

What comes back in a recurrent connection comes one step later. NIR gives no first state; here it is at rest, v_reset.
Source: J. Pedersen et al., "Neuromorphic intermediate representation", Nature Communications 2024; package nir 1.0.8.
Tests: ``tests/test_nir.py``.
"""

from pathlib import Path

from fastsnn.errors import FastSNNError
from fastsnn.nir.layers import Scale, Threshold
from fastsnn.nir.reading import from_nir
from fastsnn.nir.writing import to_nir

__all__ = ["Scale", "Threshold", "from_nir", "to_nir", "write_run"]


def write_run(run: Path, file: Path, *, dt: float = 1e-4, best: bool = False) -> None:
    """Write the trained network of a run as a NIR graph. Arguments and errors: :func:`to_nir`, ``fastsnn.load``."""
    import nir

    from fastsnn.training.command import TrainedRun
    from fastsnn.training.machine import settings_kept

    if file.suffix != ".nir":
        raise ValueError(f"file is {file}; allowed: a name that ends in .nir")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"file is {file}; allowed: a file in a folder that exists")
    with settings_kept():
        setup = TrainedRun.open(run, device="cpu", best=best).setup
        graph = to_nir(setup.network, setup.source.shape, dt=dt)
    try:
        nir.write(file, graph)
    except OSError as error:
        raise FastSNNError(f"{file} can't be written: {error}; name another file") from error
