"""Every check of ``fastsnn verify`` fed with a broken backend: it must go red, naming the case and the tensor."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastsnn import backends, verify
from fastsnn.backends import Backend
from fastsnn.config import FitConfig
from fastsnn.encoding import poisson_encode
from fastsnn.kernels import reference
from fastsnn.sources.images import DataSet, Images
from fastsnn.training.autograd_step import AutogradStep
from fastsnn.training.readouts import Objective
from fastsnn.verify import CASES, Row, Target
from fastsnn.verify.training import Network

Outputs = tuple[Tensor, Tensor]


class Fire(torch.autograd.Function):
    """A spike whose comparison and slope may be wrong."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, fires: Any, slope: Any, surrogate: str, alpha: float) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.slope, ctx.surrogate, ctx.alpha = slope, surrogate, alpha
        return fires(distance, 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return grad * ctx.slope(ctx.saved_tensors[0], ctx.surrogate, ctx.alpha), None, None, None, None


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.to(weight.dtype), weight, bias)


@dataclass(frozen=True)
class Parts:
    """A backend of the reference's own pieces, each of which can be replaced by a broken one."""

    charge: Callable[..., Tensor] = reference.charge
    fires: Callable[..., Tensor] = torch.ge
    slope: Callable[..., Tensor] = reference.surrogate_derivative
    options: Callable[[dict[str, Any]], dict[str, Any]] = dict
    product: Callable[..., Tensor] = product
    before: Callable[[Tensor], Tensor] = lambda current: current
    after: Callable[[Tensor, Tensor], Outputs] = lambda spikes, v: (spikes, v)

    def lif(self, current: Tensor, v_init: Tensor | None = None, **neuron: Any) -> Outputs:
        neuron = self.options(neuron)
        half = current.dtype in (torch.float16, torch.bfloat16)
        x_seq = self.before(current.float() if half else current)
        reset_to, threshold = neuron["v_reset"], neuron["v_threshold"]
        v = torch.full_like(x_seq[0], reset_to or 0.0) if v_init is None else v_init
        spikes = []
        for x in x_seq:
            h = self.charge(x, v, neuron["tau"], reset_to, neuron["decay_input"])
            s = Fire.apply(h - threshold, self.fires, self.slope, neuron["surrogate"], neuron["alpha"])
            r = s.detach() if neuron["detach_reset"] else s
            v = h - r * threshold if reset_to is None else (1 - r) * h + r * reset_to
            spikes.append(s)
        return self.after(torch.stack(spikes).to(current.dtype), v)

    def linear_lif(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, v_init: Tensor | None = None, **neuron: Any
    ) -> Outputs:
        return self.lif(self.product(x, weight, bias), v_init, **neuron)


def check(names: str | list[str], lif: Any = None, linear_lif: Any = None, rate_step: Any = None) -> list[Row]:
    """The rows of some cases on a backend that claims to be numba."""
    sound = Parts()
    backend = Backend("numba", lif or sound.lif, linear_lif or sound.linear_lif, rate_step)
    chosen = [CASES[name] for name in names.split()] if isinstance(names, str) else [CASES[name] for name in names]
    return list(verify.check(Target(backend, torch.device("cpu"), "cpu"), chosen))


def assert_red(rows: list[Row], case: str, *messages: str) -> None:
    failures = {failure.case: failure for row in rows for failure in row.failures}
    assert case in failures, f"{case} is green; red: {list(failures)}"
    assert not all(row.ok for row in rows)
    for message in messages:
        assert message in failures[case].message
    assert failures[case].command == f"fastsnn verify --backend numba --device cpu --case {case}"


LIF = "lif-hard-decay-attached-tau3.7-atan"
SOFT = "lif-soft-whole-attached-tau3.7-erf"
DETACHED = "lif-hard-decay-detached-tau2-atan"
RESTING = "lif-rest-whole-attached-tau3.7-sigmoid"
DYADIC = "linear-hard-decay-attached-tau3.7"
RANDOM = "linear-random-primes"


def test_the_parts_are_sound() -> None:
    """What the broken backends below are made of passes every case that they fail."""
    names = [name for name, case in CASES.items() if case.quick and case.group not in ("rate-step", "training", "run")]
    rows = check([*names, LIF, SOFT, DETACHED, RESTING, DYADIC])
    assert [str(failure) for row in rows for failure in row.failures] == []
    assert sum(row.cases for row in rows) > 50


def in_double(x: Tensor, v: Tensor, tau: float, v_reset: float | None, decay_input: bool) -> Tensor:
    """As with fma: one rounding where the contract has several."""
    return reference.charge(x.double(), v.double(), tau, v_reset, decay_input).to(x.dtype)


def by_reciprocal(x: Tensor, v: Tensor, tau: float, v_reset: float | None, decay_input: bool) -> Tensor:
    if decay_input and not v_reset:
        return v + (x - v) * torch.tensor(1 / tau, dtype=x.dtype)
    return reference.charge(x, v, tau, v_reset, decay_input)


def without_rest(x: Tensor, v: Tensor, tau: float, v_reset: float | None, decay_input: bool) -> Tensor:
    return reference.charge(x, v, tau, None, decay_input)


def scaled(factor: float) -> Callable[..., Tensor]:
    return lambda x, surrogate, alpha: factor * reference.surrogate_derivative(x, surrogate, alpha)


def zero_at_threshold(x: Tensor, surrogate: str, alpha: float) -> Tensor:
    return reference.surrogate_derivative(x, surrogate, alpha) * (x != 0)


def last_step_dropped(spikes: Tensor, v: Tensor) -> Outputs:
    return torch.cat([spikes[:-1], torch.zeros_like(spikes[-1:])]), v


def flipped_spike(spikes: Tensor, v: Tensor) -> Outputs:
    flipped = spikes.clone()
    flipped[2, 0, 1] = 1 - flipped[2, 0, 1].detach()
    return flipped, v


def tail_left_out(spikes: Tensor, v: Tensor) -> Outputs:
    """Neurons past a block of 128 are never written."""
    return spikes * (torch.arange(spikes.shape[-1]) < 128), v


def different_in_inference(spikes: Tensor, v: Tensor) -> Outputs:
    return (spikes, v) if torch.is_grad_enabled() else (spikes, v + 1e-6)


LIF_BUGS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "charge contracted to fma": ({"charge": in_double}, LIF, ("C1 v",)),
    "charge by a reciprocal": ({"charge": by_reciprocal}, LIF, ("C1 v",)),
    "tau off by 1e-3": ({"options": lambda o: o | {"tau": o["tau"] * 1.001}}, SOFT, ("C1", "C3", "C4")),
    "v_reset left out of the charge": ({"charge": without_rest}, RESTING, ("C1 spikes", "C3 spikes")),
    "hard reset for a soft one": ({"options": lambda o: o | {"v_reset": o["v_reset"] or 0.0}}, SOFT, ("C1", "C3")),
    "> instead of >=": ({"fires": torch.gt}, "threshold-sigmoid", ("C1 spikes: 1", "is 0.0 instead of 1.0")),
    "surrogate 2 % too large": ({"slope": scaled(1.02)}, LIF, ("C4 gradient of current",)),
    "surrogate zero at the threshold": (
        {"slope": zero_at_threshold},
        "threshold-rectangle",
        ("C4 gradient of current: 1",),
    ),
    "alpha left out": ({"options": lambda o: o | {"alpha": reference.SURROGATES[o["surrogate"]]}}, SOFT, ("C4",)),
    "another surrogate": ({"options": lambda o: o | {"surrogate": "atan"}}, "threshold-erf", ("C4",)),
    "reset not detached": ({"options": lambda o: o | {"detach_reset": False}}, DETACHED, ("C4 gradient of current",)),
    "reset always detached": ({"options": lambda o: o | {"detach_reset": True}}, LIF, ("C4 gradient of v_init",)),
    "last time step dropped": ({"after": last_step_dropped}, LIF, ("C1 spikes", "C3 spikes")),
    "spike flipped": ({"after": flipped_spike}, LIF, ("C3 spikes", "[2, 0, 1]")),
    "tail left out": ({"after": tail_left_out}, "lif-primes", ("C1 spikes",)),
    "v without gradient": ({"after": lambda s, v: (s, v.detach())}, LIF, ("RuntimeError", "does not require grad")),
    "v of the step before": ({"after": lambda s, v: (s, v * 0.5)}, LIF, ("C1 v", "C3 v")),
    "NaN": ({"after": lambda s, v: (s, v + torch.nan)}, LIF, ("C1 v", "C3 v: inf")),
    "spikes that are not 0 or 1": ({"after": lambda s, v: (s * 0.999, v)}, LIF, ("neither 0 nor 1",)),
    "one step too few": ({"after": lambda s, v: (s[1:], v)}, LIF, ("RuntimeError",)),
    "inference that differs": ({"after": different_in_inference}, LIF, ("C1 v of inference",)),
    "state in half precision": ({"before": lambda x: x.half().float()}, "lif-blocks", ("C1",)),
    "spikes of another dtype": (
        {"after": lambda s, v: (s.float(), v)},
        "lif-fp16",
        ("dtype float32 instead of float16",),
    ),
    "first step for every one of T": ({"before": lambda x: x[:1].expand_as(x)}, "lif-T131", ("C1",)),
}


@pytest.mark.parametrize("bug", LIF_BUGS)
def test_a_broken_lif_is_found(bug: str) -> None:
    parts, case, messages = LIF_BUGS[bug]
    assert_red(check(case, lif=Parts(**parts).lif), case, *messages)


def wrapped(change: Callable[..., tuple[Any, ...]]) -> Callable[..., Outputs]:
    """The sound linear_lif after ``change`` to its tensors."""
    return lambda *tensors, **neuron: Parts().linear_lif(*change(*tensors), **neuron)


def leaving_out(name: str) -> Callable[..., Outputs]:
    index = ("x", "weight", "bias", "v_init").index(name)
    return wrapped(
        lambda *tensors: tuple(t.detach() if i == index and t is not None else t for i, t in enumerate(tensors))
    )


def in_bf16(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return product(x, weight + (weight.bfloat16().to(weight.dtype) - weight).detach(), bias)


def with_tf32_inputs(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    cut = (weight.view(torch.int32) & ~0x1FFF).view(torch.float32)  # 10 bits of the fraction are left
    return product(x, weight + (cut - weight).detach(), bias)


def with_one_gradient_of_two(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weight's gradient lacks the last sample."""
    return torch.cat([product(x[:, :-1], weight, bias), product(x[:, -1:], weight.detach(), bias)], 1)


LINEAR_BUGS: dict[str, tuple[Callable[..., Outputs], str, tuple[str, ...]]] = {
    "dbias missing": (leaving_out("bias"), DYADIC, ("C4 gradient of bias: 1",)),
    "dx missing": (leaving_out("x"), RANDOM, ("C4 gradient of x: 1",)),
    "dweight missing": (leaving_out("weight"), DYADIC, ("C4 gradient of weight: 1",)),
    "dv_init missing": (leaving_out("v_init"), RANDOM, ("C4 gradient of v_init: 1",)),
    "dweight without the last sample": (
        Parts(product=with_one_gradient_of_two).linear_lif,
        RANDOM,
        ("C4 gradient of weight",),
    ),
    "bias left out": (wrapped(lambda x, w, b=None, v=None: (x, w, None, v)), DYADIC, ("C1", "C3")),
    "v_init left out": (wrapped(lambda x, w, b=None, v=None: (x, w, b, None)), RANDOM, ("C3",)),
    "last input left out": (wrapped(lambda x, w, b=None, v=None: (x[..., :-1], w[:, :-1], b, v)), RANDOM, ("C3",)),
    "product in bf16": (Parts(product=in_bf16).linear_lif, RANDOM, ("C3 v",)),
    "product in bf16, in the currents": (Parts(product=in_bf16).linear_lif, "currents-K61", ("C2 currents",)),
    "product in tf32, in the currents": (Parts(product=with_tf32_inputs).linear_lif, "currents-K784", ("C2 currents",)),
    "spike flipped": (Parts(after=flipped_spike).linear_lif, RANDOM, ("C3 spikes", "[2, 0, 1] is")),
    "uint8 read as fractions": (
        wrapped(lambda x, *rest: (x / 255 if x.dtype == torch.uint8 else x, *rest)),
        "linear-random-uint8",
        ("C3",),
    ),
    "strides ignored": (
        wrapped(lambda x, *rest: (x.as_strided(x.shape, (x[0].numel(), x.shape[2], 1)), *rest)),
        "linear-random-strided",
        ("C3",),
    ),
    "chunks of 128 steps that do not hand v on": (
        lambda *tensors, **neuron: in_chunks(*tensors, **neuron),
        "linear-random-T131",
        ("C3",),
    ),
    "empty batch refused": (
        wrapped(lambda x, *rest: (x.reshape(x.shape[0], -1, x.shape[2]) if x.shape[1] else 1 / 0, *rest)),
        "linear-random-empty",
        ("ZeroDivisionError",),
    ),
}


def in_chunks(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, v_init: Tensor | None = None, **neuron: Any
) -> Outputs:
    spikes, v = zip(*(Parts().linear_lif(part, weight, bias, v_init, **neuron) for part in x.split(128)), strict=True)
    return torch.cat(spikes), v[-1]


@pytest.mark.parametrize("bug", LINEAR_BUGS)
def test_a_broken_linear_lif_is_found(bug: str) -> None:
    linear_lif, case, messages = LINEAR_BUGS[bug]
    assert_red(check(case, linear_lif=linear_lif), case, *messages)


def test_gradients_that_vary_from_call_to_call_are_found() -> None:
    calls = iter(range(1000))

    def slope(x: Tensor, surrogate: str, alpha: float) -> Tensor:
        return reference.surrogate_derivative(x, surrogate, alpha) * (1 + 1e-7 * (next(calls) // 6))

    rows = check("repeat-layer", linear_lif=Parts(slope=slope).linear_lif)
    assert_red(rows, "repeat-layer", "C6 gradient of weight", "C6 gradient of bias")


def test_an_explained_spike_is_counted_and_green() -> None:
    """Half precision: a spike or two differ from float64's, and all of them with the membrane at the threshold."""
    (row,) = check("linear-random-bf16")
    assert row.ok
    assert row.explained > 0


@dataclass
class TorchRateStep:
    """The interface of the fused steps over autograd, with a place for each thing that a fused step can get wrong."""

    weight: Tensor
    bias: Tensor | None
    optimizer: Any
    T: int
    seed: int
    loss: str
    neuron: dict[str, Any]
    parts: Parts
    bugs: frozenset[str]

    def __post_init__(self) -> None:
        network = Network(self.weight, self.bias, self.parts.linear_lif, self.neuron)
        network.weight, network.bias = self.weight, None if "bias ignored" in self.bugs else self.bias  # type: ignore[assignment]
        self.network = network

    def prepare(self, images: Tensor, labels: Tensor) -> Any:
        return images, labels

    def sync(self) -> None:
        pass

    def _step(self, data: Any) -> AutogradStep:
        images, labels = data
        source = Images(DataSet("job", images, labels, images, labels, tuple(images.shape[1:]), len(self.weight)))
        config = FitConfig(T=self.T, seed=self.seed)
        return AutogradStep(self.network, source, self.optimizer, config, Objective(loss=self.loss))

    def train(self, data: Any, order: Tensor, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
        if "sample ids are places in the batch" in self.bugs:
            data, order = (data[0][order], data[1][order]), torch.arange(len(order))
        rates = [self.optimizer.param_groups[0]["lr"]] * -(-len(order) // batch_size)
        epoch = 0 if "epoch ignored" in self.bugs else epoch
        losses, correct, _ = self._step(data).train(order, epoch, batch_size, rates)
        state = self.optimizer.state[self.weight]
        if "steps not counted" in self.bugs:
            state["step"] = torch.tensor(1.0)
        if "memory lost" in self.bugs:
            state["momentum_buffer"] = torch.zeros_like(self.weight)
        if "weights not written back" in self.bugs:
            self.weight.data.copy_(self.weight.data + 1e-3)
        return losses * (1.01 if "loss averaged over another size" in self.bugs else 1), correct

    def evaluate(self, data: Any, batch_size: int) -> tuple[Tensor, Tensor]:
        if "evaluation on the training stream" not in self.bugs:
            return self._step(data).evaluate("test", torch.arange(len(data[0])), batch_size)[:2]
        x = poisson_encode(data[0], self.T, self.seed)
        spikes = self.parts.linear_lif(x, self.weight, self.bias, **self.neuron)[0]
        pairs = zip(spikes.split(batch_size, 1), data[1].split(batch_size), strict=True)
        losses, correct = zip(*(reference.rate_loss(s, labels, self.loss) for s, labels in pairs), strict=True)
        return torch.stack(losses).detach(), torch.stack(correct)


def torch_rate_step(*bugs: str, **parts: Any) -> Any:
    """A module of fused steps with these bugs."""

    def build(
        weight: Tensor, bias: Tensor | None, optimizer: Any, *, T: int, seed: int, loss: str, **neuron: Any
    ) -> Any:
        return TorchRateStep(weight, bias, optimizer, T, seed, loss, neuron, Parts(**parts), frozenset(bugs))

    return SimpleNamespace(unsupported=lambda **options: None, RateStep=build)


STEP, ADAM = "rate-step-soft-decay-attached-tau3.7", "rate-step-T33"
RATE_BUGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bias ignored": (STEP, ("C4 momentum_buffer of bias: 1",)),
    "sample ids are places in the batch": (STEP, ("C4 momentum_buffer of weight",)),
    "epoch ignored": (ADAM, ("C4 exp_avg of weight",)),
    "steps not counted": (ADAM, ("C5 step of weight",)),
    "memory lost": (STEP, ("C4 momentum_buffer of weight: 1",)),
    "weights not written back": (STEP, ("C4 change of weight",)),
    "loss averaged over another size": (STEP, ("C5 losses",)),
    "evaluation on the training stream": (ADAM, ("C5 losses of evaluation",)),
}


def test_the_torch_rate_step_is_sound() -> None:
    rows = check([STEP, ADAM, "training-fused-short-sgd"], rate_step=torch_rate_step())
    assert [str(failure) for row in rows for failure in row.failures] == []
    assert [row.cases for row in rows] == [2, 1]


@pytest.mark.parametrize("bug", RATE_BUGS)
def test_a_broken_rate_step_is_found(bug: str) -> None:
    case, messages = RATE_BUGS[bug]
    assert_red(check(case, rate_step=torch_rate_step(bug)), case, *messages)


def test_a_surrogate_2_percent_off_is_found_in_training() -> None:
    parts = Parts(slope=scaled(1.02))
    for case in (STEP, ADAM):
        assert_red(check(case, rate_step=torch_rate_step(slope=parts.slope)), case, "of weight")
    rows = check("training-layers-short-sgd training-fused-short-sgd", linear_lif=parts.linear_lif,
                 rate_step=torch_rate_step(slope=parts.slope))  # fmt: skip
    assert_red(rows, "training-layers-short-sgd", "C4 change of weight")
    assert_red(rows, "training-fused-short-sgd", "C4 change of weight")


def test_a_fused_step_that_refuses_is_left_out_with_its_reason() -> None:
    module = SimpleNamespace(unsupported=lambda **options: "T is 33; it goes up to 32", RateStep=None)
    (row,) = check(ADAM, rate_step=module)
    assert (row.ok, row.cases, dict(row.left_out)) == (True, 0, {"T is 33; it goes up to 32": 1})


def test_runs_that_do_not_repeat_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that depend on how often a backend was called before."""
    calls = iter(range(10**6))

    def slope(x: Tensor, surrogate: str, alpha: float) -> Tensor:
        return reference.surrogate_derivative(x, surrogate, alpha) * (1 + 1e-4 * next(calls))

    parts = Parts(slope=slope)
    broken = Backend("torch", parts.lif, parts.linear_lif)
    monkeypatch.setattr(backends, "load", lambda name: broken)
    (row,) = verify.check(Target(broken, torch.device("cpu"), "cpu"), [CASES["run-layers"]])
    assert "C6 0.weight (resumed run)" in row.failures[0].message


def test_a_resume_that_forgets_the_optimizer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", lambda self, state: None)
    (row,) = verify.check(Target(backends.load("torch"), torch.device("cpu"), "cpu"), [CASES["run-layers"]])
    assert "C6 0.weight (resumed run)" in row.failures[0].message
