"""Plain JAX: the reference's step in lax.scan with a custom derivative, everything under one jit."""

import os
import time
from collections.abc import Callable
from typing import Any, ClassVar

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave the GPU's memory to the others

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from bench import works
from bench.cases import LEARNING_RATE, Case
from bench.works import Outputs

jax.config.update("jax_default_matmul_precision", "highest")


def _step_function(x: Any) -> Any:
    return (x >= 0).astype(x.dtype)


_fire = jax.custom_vjp(_step_function)
_fire.defvjp(lambda x: (_fire(x), x), lambda x, grad: (grad / (1 + (jnp.pi * x) ** 2),))


def _lif(current: Any) -> Any:
    def step(v: Any, x: Any) -> tuple[Any, Any]:
        h = v + (x - v) / 2.0
        s = _fire(h - 1.0)
        return (1 - s) * h, s

    return jax.lax.scan(step, jnp.zeros_like(current[0]), current)[1]


def _network(weights: list[Any], x: Any) -> Any:
    for weight in weights:
        x = _lif(x @ weight.T)
    return x


def _loss(weights: list[Any], x: Any, target: Any) -> tuple[Any, Any]:
    spikes = _network(weights, x)
    return jnp.mean((spikes.mean(0) - target) ** 2), spikes


def _adam(weights: list[Any], gradients: list[Any], moments: Any, step: Any) -> tuple[list[Any], Any]:
    """torch.optim.Adam's formulas with its defaults."""
    first, second = moments
    first = [0.9 * m + 0.1 * g for m, g in zip(first, gradients, strict=True)]
    second = [0.999 * v + 0.001 * g * g for v, g in zip(second, gradients, strict=True)]
    size, root = LEARNING_RATE / (1 - 0.9**step), jnp.sqrt(1 - 0.999**step)
    new = [w - size * m / (jnp.sqrt(v) / root + 1e-8) for w, m, v in zip(weights, first, second, strict=True)]
    return new, (first, second)


def _encode(key: Any, pixels: Any, T: int) -> Any:
    return (jax.random.uniform(key, (T, *pixels.shape)) < pixels).astype(jnp.float32)


def _train(weights: list[Any], moments: Any, x: Any, target: Any, step: Any) -> tuple[Any, ...]:
    (_, spikes), gradients = jax.value_and_grad(_loss, has_aux=True)(weights, x, target)
    weights, moments = _adam(weights, gradients, moments, step)
    return weights, moments, gradients, spikes


def _with_gradient(function: Callable[[Any], Any], x: Any, grad: Any) -> tuple[Any, Any]:
    spikes, backward = jax.vjp(function, x)
    return spikes, backward(jnp.broadcast_to(jnp.asarray(grad, spikes.dtype), spikes.shape))[0]


# What is timed and what the gate sees are the same compiled functions.
_lif_forward = jax.jit(_lif)
_lif_both = jax.jit(lambda current, grad: _with_gradient(_lif, current, grad))
_linear_forward = jax.jit(lambda weight, x: _lif(x @ weight.T))
_linear_both = jax.jit(lambda weight, x: _with_gradient(lambda weight: _lif(x @ weight.T), weight, 1.0))
_encode_batch = jax.jit(_encode, static_argnums=2)


class JaxWork:
    """A case's work as one jitted function."""

    def __init__(self, case: Case, x: dict[str, Tensor], device: torch.device) -> None:
        self.case, self.device = case, device
        self.threads = torch.get_num_threads()  # XLA's own pool, which can't be sized
        self.call = getattr(self, f"_{'mlp' if case.subject == 'rate_step' else case.subject}")(case, _arrays(x))

    def run(self) -> None:
        jax.block_until_ready(self.call())

    def timed(self) -> float:
        started = time.perf_counter()
        self.run()
        return time.perf_counter() - started

    def peak_memory(self) -> int | None:
        """Only of main memory: its allocator on a GPU keeps its own account."""
        return works.peak_memory(self, self.device) if self.device.type == "cpu" else None

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        return {name: torch.from_numpy(np.array(value)) for name, value in self._outputs(_arrays(x)).items()}

    def _scan(self, case: Case, x: dict[str, Any]) -> Callable[[], Any]:
        if not case.backward:
            return lambda: _lif_forward(x["current"])
        return lambda: _lif_both(x["current"], x["grad"])

    def _linear(self, case: Case, x: dict[str, Any]) -> Callable[[], Any]:
        if not case.backward:
            return lambda: _linear_forward(x["weight0"], x["x"])
        return lambda: _linear_both(x["weight0"], x["x"])

    def _mlp(self, case: Case, x: dict[str, Any]) -> Callable[[], Any]:
        pixels, target = x["images"] / np.float32(255), _one_hot(x["labels"], case.sizes[-1])
        state: dict[str, Any] = {"weights": _weights(x), "moments": _zeros(_weights(x)), "step": 0}

        def encode_and_train(weights: Any, moments: Any, pixels: Any, target: Any, step: Any) -> Any:
            spikes = _encode(jax.random.fold_in(jax.random.key(0), step), pixels, case.T)
            return _train(weights, moments, spikes, target, step)[:2]

        update = jax.jit(encode_and_train)

        def steps() -> Any:
            for first in range(0, len(pixels), case.B):
                batch = slice(first, first + case.B)
                state["step"] += 1
                state["weights"], state["moments"] = update(
                    state["weights"], state["moments"], pixels[batch], target[batch], state["step"]
                )
            return state["weights"]

        return steps

    def _encoding(self, case: Case, x: dict[str, Any]) -> Callable[[], Any]:
        pixels = x["images"] / np.float32(255)
        return lambda: _encode_batch(jax.random.key(0), pixels, case.T)

    def _outputs(self, x: dict[str, Any]) -> dict[str, Any]:
        case = self.case
        if case.subject in ("scan", "linear"):
            found = getattr(self, f"_{case.subject}")(case, x)()
            name = "current" if case.subject == "scan" else "weight0"
            return {"spikes": found[0], name: found[1]} if case.backward else {"spikes": found}
        if case.subject == "encoding":
            return {"encoded": _encode_batch(jax.random.key(0), x["images"] / np.float32(255), case.T)}
        weights, target = _weights(x), _one_hot(x["labels"], case.sizes[-1])
        trained, _, gradients, spikes = jax.jit(_train)(weights, _zeros(weights), x["spikes"], target, 1)
        named = {f"weight{i}": g for i, g in enumerate(gradients)} | {f"trained{i}": w for i, w in enumerate(trained)}
        return {"spikes": spikes} | named


class Jax:
    """JAX as a peer."""

    name: ClassVar[str] = "jax"
    forward_only: ClassVar[bool] = False
    subjects: ClassVar[tuple[str, ...]] = ("rate_step", "scan", "linear", "mlp", "encoding")

    def label(self) -> str:
        return f"JAX {jax.__version__} lax.scan"

    def work(self, case: Case, x: dict[str, Tensor], device: torch.device) -> JaxWork:
        if device.type == "cuda" and jax.default_backend() != "gpu":
            raise RuntimeError("this JAX has no CUDA: pip install jax[cuda13]")
        return JaxWork(case, x, device)


def _arrays(x: dict[str, Tensor]) -> dict[str, Any]:
    return {name: jnp.asarray(tensor.numpy()) for name, tensor in x.items()}


def _weights(x: dict[str, Any]) -> list[Any]:
    return [x[name] for name in sorted(name for name in x if name.startswith("weight"))]


def _zeros(weights: list[Any]) -> Any:
    return [jnp.zeros_like(w) for w in weights], [jnp.zeros_like(w) for w in weights]


def _one_hot(labels: Any, classes: int) -> Any:
    return jax.nn.one_hot(labels, classes)


PEERS = {Jax.name: Jax}
