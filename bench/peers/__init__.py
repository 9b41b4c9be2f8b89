"""The peers: what one would use instead, each set up to compute what fastsnn's neurons compute.

One module per library, imported only where its library is. A module defines ``PEERS``, classes of ``bench.tasks.Peer``
or with a ``task`` of their own.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from bench.peers.remote import Remote

MODULES = {
    "spikingjelly-loop": ("spikingjelly", "spikingjelly"),
    "spikingjelly-multi": ("spikingjelly", "spikingjelly"),
    "spikingjelly-cupy": ("spikingjelly", "cupy"),
    "spikingjelly2": ("remote", None),
    "snntorch": ("snntorch", "snntorch"),
    "norse": ("norse", "norse"),
    "torch-compile": ("compiled", None),
    "jax": ("jax_scan", "optax"),
    "jaxpike": ("jax_scan", "jaxpike"),
}
"""Peer -> its module here and the package that it needs, which may be absent."""


def refusal(name: str, device: torch.device, peer_env: Path | None) -> str | None:
    """Why peer ``name`` can't take part on this machine, with what to do; None where it can."""
    module, package = MODULES[name]
    if name == "spikingjelly2" and peer_env is None:
        return "it can't share an environment with 0.0.0.0.14; name one that has it with --peer-env PATH"
    if name == "spikingjelly-cupy" and device.type != "cuda":
        return "it needs a CUDA GPU"
    if package and importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if module == "spikingjelly":
        from importlib.metadata import version

        if not (found := version("spikingjelly")).startswith("0.0.0.0.1"):
            return f"spikingjelly is {found}, not 0.0.0.0.14"
    return None


def create(name: str, peer_env: Path | None) -> Any:
    """The peer; call only where :func:`refusal` is None."""
    if name == "spikingjelly2":
        assert peer_env is not None
        return Remote(name, peer_env)
    return importlib.import_module(f"bench.peers.{MODULES[name][0]}").PEERS[name]()
