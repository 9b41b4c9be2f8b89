"""JAX: the reference's step in lax.scan with a custom derivative, and jaxpike's layers; everything under one jit."""

import importlib.metadata
import os
import time
from collections.abc import Callable
from typing import Any, ClassVar

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave the GPU's memory to the others

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import Tensor

from bench import tasks
from bench.cases import KEPT, LEARNING_RATE, Case
from bench.tasks import Outputs

jax.config.update("jax_default_matmul_precision", "highest")
_ADAM = optax.adam(LEARNING_RATE)


def _step_function(x: Any) -> Any:
    return (x >= 0).astype(x.dtype)


_fire = jax.custom_vjp(_step_function)
_fire.defvjp(lambda x: (_fire(x), x), lambda x, grad: (grad / (1 + (jnp.pi * x) ** 2),))


def _lif(v: Any, x: Any) -> tuple[Any, Any]:
    h = v + (x - v) / 2.0
    s = _fire(h - 1.0)
    return (1 - s) * h, s


def _leaky(kept: Any, v: Any, x: Any) -> tuple[Any, Any]:
    h = kept * v + (1 - kept) * x
    s = _fire(h - 1.0)
    return h - s, s


def _li(kept: Any, v: Any, x: Any) -> tuple[Any, Any]:
    v = kept * v + (1 - kept) * x
    return v, v


def _over_time(step: Callable[..., Any], current: Any) -> Any:
    return jax.lax.scan(step, jnp.zeros_like(current[0]), current)[1]


class Jax:
    """Plain JAX. Its parameters are a list of weights and one of leaks."""

    name: ClassVar[str] = "jax"
    forward_only: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ("lif", "leaky", "li")
    tasks: ClassVar[tuple[str, ...]] = ("training", "scan", "layer", "recurrent", "inference", "encoding")

    def label(self) -> str:
        return f"JAX {jax.__version__} lax.scan"

    def task(self, case: Case, x: dict[str, Tensor], device: torch.device) -> "JaxTask":
        if device.type == "cuda" and jax.default_backend() != "gpu":
            raise RuntimeError("this JAX has no CUDA: pip install jax[cuda13]")
        return JaxTask(self, case, x, device)

    def leaks(self, case: Case) -> list[Any]:
        """What is learnt, for each leaky neuron."""
        return [jnp.full(layer.size, KEPT) for layer in case.layers() if layer.neuron in ("leaky", "li")]

    def kept(self, leak: Any) -> Any:
        """What is left of a potential after a step."""
        return leak

    def network(self, case: Case, weights: list[Any], leaks: list[Any], x: Any) -> Any:
        """[T, B, K] -> [T, B, N]."""
        if case.task == "recurrent":
            weight, back = weights

            def fed_back(state: Any, current: Any) -> tuple[Any, Any]:
                v, s = _lif(state[0], current + state[1] @ back.T)
                return (v, s), s

            current = x @ weight.T
            return jax.lax.scan(fed_back, (jnp.zeros_like(current[0]),) * 2, current)[1]
        learnt = iter(leaks)
        for i, kind in enumerate(case.neurons):
            current = x @ weights[i].T if weights else x
            if kind == "lif":
                x = _over_time(_lif, current)
            else:
                step, leak = {"leaky": _leaky, "li": _li}[kind], next(learnt)
                x = _over_time(lambda v, x, step=step, leak=leak: step(leak, v, x), current)
        return x


class Jaxpike(Jax):
    """jaxpike, whose neurons learn the logarithm of a time constant."""

    name = "jaxpike"
    tasks = ("training", "scan", "layer", "inference")

    def label(self) -> str:
        return f"jaxpike {importlib.metadata.version('jaxpike')}"

    def leaks(self, case: Case) -> list[Any]:
        return [jnp.log(-1 / jnp.log(kept)) for kept in super().leaks(case)]

    def kept(self, leak: Any) -> Any:
        return jnp.exp(-1 / jnp.exp(leak))

    def network(self, case: Case, weights: list[Any], leaks: list[Any], x: Any) -> Any:
        import equinox
        import jaxpike
        from jaxpike.surrogate import ATan

        layers: list[Any] = []
        learnt = iter(leaks)
        for i, (layer, kind) in enumerate(zip(case.layers(), case.neurons, strict=True)):
            tau = -1 / np.log(0.5 if kind == "lif" else KEPT)
            reset = "zero" if kind == "lif" else "subtract"
            with jax.ensure_compile_time_eval():  # it looks at the values
                dense = jaxpike.Dense(1, 1, key=jax.random.key(0), use_bias=False)
                cell: Any = jaxpike.LIF(tau, reset=reset, surrogate=ATan(2.0))
                cell = jaxpike.LeakyIntegrator(tau) if kind == "li" else cell
            if layer.modules:
                layers.append(equinox.tree_at(lambda part: part.weight, dense, weights[i]))
            leak = next(learnt) if kind != "lif" else cell.log_tau
            layers.append(equinox.tree_at(lambda part: part.log_tau, cell, leak))
        return jaxpike.unroll(jaxpike.Sequential(*layers), x)[0]


class JaxTask:
    """A case's task as one jitted function."""

    def __init__(self, peer: Jax, case: Case, x: dict[str, Tensor], device: torch.device) -> None:
        self.peer, self.case, self.device = peer, case, device
        self.threads = torch.get_num_threads()  # XLA's own pool, which can't be sized
        self.x = _arrays(x)
        self.parameters = self._parameters(self.x)
        self.moments, self.count = _ADAM.init(self.parameters), 0
        self.pixels: Any = self.x["images"] / np.float32(255) if "images" in self.x else None
        # What is timed and what is checked are the same compiled functions.
        self.forward = jax.jit(self._forward)
        self.both = jax.jit(self._both)
        self.train = jax.jit(self._train)
        self.encode = jax.jit(self._encode)
        self.encode_and_train = jax.jit(self._encode_and_train)
        self.infer = jax.jit(self._infer)

    def run(self) -> None:
        jax.block_until_ready(self._call())

    def timed(self) -> float:
        started = time.perf_counter()
        self.run()
        return time.perf_counter() - started

    def peak_memory(self) -> int | None:
        """Only of main memory: its allocator on a GPU keeps its own account."""
        return tasks.memory_of(self) if self.device.type == "cpu" else None

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        given, case = _arrays(x), self.case
        parameters = self._parameters(given)
        if case.task == "encoding":
            return _tensors({"encoded": self.encode(0, given["images"] / np.float32(255))})
        if not case.backward:
            return _tensors({"output": self.forward(parameters, given["x"])})
        trained, found = parameters, {}
        if case.trains:
            trained, _, gradients, output = self.train(parameters, _ADAM.init(parameters), given["x"], given["labels"])
            found = {f"trained{i}": weight for i, weight in enumerate(trained[0])}
        else:
            output, (gradients, current) = self.both(parameters, given["x"], given.get("grad", jnp.float32(1)))
            found = {"gradient of current": current} if case.task == "scan" else {}
        found |= {f"gradient of weight{i}": gradient for i, gradient in enumerate(gradients[0])}
        for i, (leak, gradient) in enumerate(zip(parameters[1], gradients[1], strict=True)):
            found[f"gradient of leak{i}"] = gradient / jax.grad(lambda leak: self.peer.kept(leak).sum())(leak)
        return _tensors(found | {"output": output})

    def _parameters(self, x: dict[str, Any]) -> tuple[list[Any], list[Any]]:
        return [x[name] for name in sorted(name for name in x if name.startswith("weight"))], self.peer.leaks(self.case)

    def _call(self) -> Any:
        case, x = self.case, self.x
        if case.task == "encoding":
            return self.encode(self._counted(), self.pixels)
        if case.task == "inference":
            return self.infer(self.parameters, self._counted(), self.pixels)
        if not case.trains:
            grad = x.get("grad", jnp.float32(1))
            return self.both(self.parameters, x["x"], grad) if case.backward else self.forward(self.parameters, x["x"])
        if not case.encodes:
            self.parameters, self.moments, _, output = self.train(self.parameters, self.moments, x["x"], x["labels"])
            return self.parameters, output
        for first in range(0, case.B * case.steps, case.B):
            batch = slice(first, first + case.B)
            self.parameters, self.moments = self.encode_and_train(
                self.parameters, self.moments, self._counted(), self.pixels[batch], x["labels"][batch]
            )
        return self.parameters

    def _counted(self) -> int:
        self.count += 1
        return self.count

    def _forward(self, parameters: Any, x: Any) -> Any:
        weights, leaks = parameters
        return self.peer.network(self.case, weights, leaks, x)

    def _both(self, parameters: Any, x: Any, grad: Any) -> tuple[Any, Any]:
        output, backward = jax.vjp(self._forward, parameters, x)
        gradients, current = backward(jnp.broadcast_to(grad, output.shape))
        return output, (gradients, current if self.case.task == "scan" else None)

    def _train(self, parameters: Any, moments: Any, x: Any, labels: Any) -> tuple[Any, ...]:
        def loss(parameters: Any) -> tuple[Any, Any]:
            output = self._forward(parameters, x)
            answer, target = output.mean(0), jax.nn.one_hot(labels, output.shape[-1])
            if self.case.readout:
                return optax.softmax_cross_entropy(answer, target).mean(), output
            return jnp.mean((answer - target) ** 2), output

        (_, output), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, moments = _ADAM.update(gradients, moments)
        return optax.apply_updates(parameters, updates), moments, gradients, output

    def _encode(self, seed: Any, pixels: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(0), seed)
        return (jax.random.uniform(key, (self.case.T, *pixels.shape)) < pixels).astype(jnp.float32)

    def _encode_and_train(self, parameters: Any, moments: Any, seed: Any, pixels: Any, labels: Any) -> Any:
        return self._train(parameters, moments, self._encode(seed, pixels), labels)[:2]

    def _infer(self, parameters: Any, seed: Any, pixels: Any) -> Any:
        return self._forward(parameters, self._encode(seed, pixels)).mean(0).argmax(1)


def _arrays(x: dict[str, Tensor]) -> dict[str, Any]:
    return {name: jnp.asarray(tensor.numpy()) for name, tensor in x.items()}


def _tensors(arrays: dict[str, Any]) -> Outputs:
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


PEERS = {peer.name: peer for peer in (Jax, Jaxpike)}
