"""Every check of ``fastsnn verify`` fed with a broken backend: it must go red, naming the case and the tensor."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastsnn import LIF, PLIF, Neuron, backends, verify
from fastsnn.backends import TorchBackend
from fastsnn.config import FitConfig
from fastsnn.encoding import poisson_encode
from fastsnn.kernels import reference
from fastsnn.kernels.neurons import SURROGATES, Surrogate
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.sources.images import DataSet, Images
from fastsnn.training.autograd_step import AutogradStep
from fastsnn.training.readouts import Objective
from fastsnn.verify import CASES, Row, Target
from fastsnn.verify.training import Network

Outputs = tuple[Tensor, Tensor]


class Fire(torch.autograd.Function):
    """A spike whose comparison and slope may be wrong."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, fires: Any, slope: Any, neuron: Neuron) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.slope, ctx.neuron = slope, neuron
        return fires(distance, 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        neuron = ctx.neuron
        return grad * ctx.slope(ctx.saved_tensors[0], neuron.surrogate_row, neuron.alpha), None, None, None


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.to(weight.dtype), weight, bias)


def charged(neuron: LIF, x: Tensor, v: Tensor) -> Tensor:
    """The potential before firing."""
    return reference.on_tensors(neuron, x).charge(x, v)  # type: ignore[attr-defined, no-any-return]


def sound_slope(x: Tensor, surrogate: Surrogate, alpha: float) -> Tensor:
    return surrogate.derivative(x, alpha)  # type: ignore[arg-type, return-value]


@dataclass(frozen=True)
class Parts(TorchBackend):
    """A backend that claims to be numba, of the reference's own pieces, each of which can be replaced by a broken one.

    Its LIF neurons are written out; other neurons, and those that learn, are the torch backend's.
    """

    charge: Callable[..., Tensor] = charged
    fires: Callable[..., Tensor] = torch.ge
    slope: Callable[..., Tensor] = sound_slope
    options: Callable[[LIF], LIF] = lambda neuron: neuron
    product: Callable[..., Tensor] = product
    before: Callable[[Tensor], Tensor] = lambda current: current
    after: Callable[[Tensor, Tensor], Outputs] = lambda spikes, state: (spikes, state)
    arguments: Callable[..., tuple[Any, ...]] = lambda *tensors: tensors
    """What becomes of x, weight, bias and state."""
    learnt: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda parameters: parameters
    """What becomes of the parameters that learn."""
    module: Any = None
    """The fused step."""
    name: str = "numba"

    def scan(self, current: Tensor, neuron: Neuron, state: Tensor | None, parameters: Any) -> Outputs:
        current = self.before(current)
        if type(neuron) is not LIF or parameters or not neuron.spikes:
            return self.after(*super().scan(current, neuron, state, self.learnt(dict(parameters))))
        neuron = self.options(neuron)
        half = current.dtype in (torch.float16, torch.bfloat16)
        x_seq = current.float() if half else current
        v = torch.full_like(x_seq[0], neuron.rest()[0]) if state is None else state[0]
        spikes = []
        for x in x_seq:
            h = self.charge(neuron, x, v)
            s = Fire.apply(h - neuron.v_threshold, self.fires, self.slope, neuron)
            r = s.detach() if neuron.detach_reset else s
            v = h - r * neuron.v_threshold if neuron.v_reset is None else (1 - r) * h + r * neuron.v_reset
            spikes.append(s)
        return self.after(torch.stack(spikes).to(current.dtype), v[None])

    def linear(
        self, x: Any, weight: Tensor, bias: Tensor | None, neuron: Neuron, state: Tensor | None, parameters: Any,
        packed: bool = False, path: str = "auto",
    ) -> Outputs:  # fmt: skip
        x = x.unpack() if isinstance(x, PackedSpikes) else x
        x, weight, bias, state = self.arguments(x, weight, bias, state)
        return self.scan(self.product(x, weight, bias), neuron, state, parameters)

    def rate_classifier(self) -> Any:
        return self.module


def check(names: str | list[str], backend: TorchBackend | None = None) -> list[Row]:
    """The rows of some cases on a backend."""
    chosen = [CASES[name] for name in names.split()] if isinstance(names, str) else [CASES[name] for name in names]
    return list(verify.check(Target(backend or Parts(), torch.device("cpu"), "cpu"), chosen))


def assert_red(rows: list[Row], case: str, *messages: str) -> None:
    failures = {failure.case: failure for row in rows for failure in row.failures}
    assert case in failures, f"{case} is green; red: {list(failures)}"
    assert not all(row.ok for row in rows)
    for message in messages:
        assert message in failures[case].message
    assert failures[case].command == f"fastsnn verify --backend numba --device cpu --case {case}"


HARD = "lif-hard-decay-attached-tau3.7-atan"
SOFT = "lif-soft-whole-attached-tau3.7-erf"
DETACHED = "lif-hard-decay-detached-tau2-atan"
RESTING = "lif-rest-whole-attached-tau3.7-sigmoid"
DYADIC = "linear-hard-decay-attached-tau3.7"
RANDOM = "linear-random-primes"


def test_the_parts_are_sound() -> None:
    """What the broken backends below are made of passes every case that they fail."""
    names = [name for name, case in CASES.items() if case.quick and case.group not in ("rate-step", "training", "run")]
    rows = check([*names, HARD, SOFT, DETACHED, RESTING, DYADIC])
    assert [str(failure) for row in rows for failure in row.failures] == []
    assert sum(row.cases for row in rows) > 50


def in_double(neuron: LIF, x: Tensor, v: Tensor) -> Tensor:
    """As with fma: one rounding where the contract has several."""
    return charged(neuron, x.double(), v.double()).to(x.dtype)


def by_reciprocal(neuron: LIF, x: Tensor, v: Tensor) -> Tensor:
    if neuron.decay_input and not neuron.v_reset:
        return v + (x - v) * torch.tensor(1 / neuron.tau, dtype=x.dtype)
    return charged(neuron, x, v)


def without_rest(neuron: LIF, x: Tensor, v: Tensor) -> Tensor:
    return charged(replace(neuron, v_reset=None), x, v)


def scaled(factor: float) -> Callable[..., Tensor]:
    return lambda *arguments: factor * sound_slope(*arguments)


def zero_at_threshold(x: Tensor, surrogate: Surrogate, alpha: float) -> Tensor:
    return sound_slope(x, surrogate, alpha) * (x != 0)


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
    "charge contracted to fma": ({"charge": in_double}, HARD, ("C1 state",)),
    "charge by a reciprocal": ({"charge": by_reciprocal}, HARD, ("C1 state",)),
    "tau off by 1e-3": ({"options": lambda n: replace(n, tau=n.tau * 1.001)}, SOFT, ("C1", "C3", "C4")),
    "v_reset left out of the charge": ({"charge": without_rest}, RESTING, ("C1 spikes", "C3 spikes")),
    "hard reset for a soft one": ({"options": lambda n: replace(n, v_reset=0.0)}, SOFT, ("C1", "C3")),
    "> instead of >=": ({"fires": torch.gt}, "threshold-sigmoid", ("C1 spikes: 1", "is 0.0 instead of 1.0")),
    "surrogate 2 % too large": ({"slope": scaled(1.02)}, HARD, ("C4 gradient of current",)),
    "surrogate zero at the threshold": (
        {"slope": zero_at_threshold},
        "threshold-rectangle",
        ("C4 gradient of current: 1",),
    ),
    "alpha left out": ({"options": lambda n: replace(n, alpha=SURROGATES[n.surrogate].alpha)}, SOFT, ("C4",)),
    "another surrogate": ({"options": lambda n: replace(n, surrogate="atan")}, "threshold-erf", ("C4",)),
    "reset not detached": (
        {"options": lambda n: replace(n, detach_reset=False)},
        DETACHED,
        ("C4 gradient of current",),
    ),
    "reset always detached": ({"options": lambda n: replace(n, detach_reset=True)}, HARD, ("C4 gradient of state",)),
    "last time step dropped": ({"after": last_step_dropped}, HARD, ("C1 spikes", "C3 spikes")),
    "spike flipped": ({"after": flipped_spike}, HARD, ("C3 spikes", "[2, 0, 1]")),
    "tail left out": ({"after": tail_left_out}, "lif-primes", ("C1 spikes",)),
    "state without gradient": (
        {"after": lambda s, v: (s, v.detach())},
        HARD,
        ("RuntimeError", "does not require grad"),
    ),
    "state of the step before": ({"after": lambda s, v: (s, v * 0.5)}, HARD, ("C1 state", "C3 state v")),
    "NaN": ({"after": lambda s, v: (s, v + torch.nan)}, HARD, ("C1 state", "C3 state v: inf")),
    "spikes that are not 0 or 1": ({"after": lambda s, v: (s * 0.999, v)}, HARD, ("neither 0 nor 1",)),
    "one step too few": ({"after": lambda s, v: (s[1:], v)}, HARD, ("RuntimeError",)),
    "inference that differs": ({"after": different_in_inference}, HARD, ("C1 state of inference",)),
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
    assert_red(check(case, Parts(**parts)), case, *messages)


def leaving_out(name: str) -> Parts:
    index = ("x", "weight", "bias", "state").index(name)
    return Parts(
        arguments=lambda *tensors: tuple(
            t.detach() if i == index and t is not None else t for i, t in enumerate(tensors)
        )
    )


def in_bf16(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return product(x, weight + (weight.bfloat16().to(weight.dtype) - weight).detach(), bias)


def with_tf32_inputs(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    cut = (weight.view(torch.int32) & ~0x1FFF).view(torch.float32)  # 10 bits of the fraction are left
    return product(x, weight + (cut - weight).detach(), bias)


def with_one_gradient_of_two(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weight's gradient lacks the last sample."""
    return torch.cat([product(x[:, :-1], weight, bias), product(x[:, -1:], weight.detach(), bias)], 1)


@dataclass(frozen=True)
class InChunks(Parts):
    def linear(self, x: Any, *arguments: Any) -> Outputs:  # type: ignore[override]
        spikes, state = zip(*(super(InChunks, self).linear(part, *arguments) for part in x.split(128)), strict=True)
        return torch.cat(spikes), state[-1]


LINEAR_BUGS: dict[str, tuple[Parts, str, tuple[str, ...]]] = {
    "dbias missing": (leaving_out("bias"), DYADIC, ("C4 gradient of bias: 1",)),
    "dx missing": (leaving_out("x"), RANDOM, ("C4 gradient of x: 1",)),
    "dweight missing": (leaving_out("weight"), DYADIC, ("C4 gradient of weight: 1",)),
    "dstate missing": (leaving_out("state"), RANDOM, ("C4 gradient of state: 1",)),
    "dweight without the last sample": (
        Parts(product=with_one_gradient_of_two),
        RANDOM,
        ("C4 gradient of weight",),
    ),
    "bias left out": (Parts(arguments=lambda x, w, b, v: (x, w, None, v)), DYADIC, ("C1", "C3")),
    "state left out": (Parts(arguments=lambda x, w, b, v: (x, w, b, None)), RANDOM, ("C3",)),
    "last input left out": (Parts(arguments=lambda x, w, b, v: (x[..., :-1], w[:, :-1], b, v)), RANDOM, ("C3",)),
    "product in bf16": (Parts(product=in_bf16), RANDOM, ("C3 state v",)),
    "product in bf16, in the currents": (Parts(product=in_bf16), "currents-K61", ("C2 currents",)),
    "product in tf32, in the currents": (Parts(product=with_tf32_inputs), "currents-K784", ("C2 currents",)),
    "spike flipped": (Parts(after=flipped_spike), RANDOM, ("C3 spikes", "[2, 0, 1] is")),
    "uint8 read as fractions": (
        Parts(arguments=lambda x, *rest: (x / 255 if x.dtype == torch.uint8 else x, *rest)),
        "linear-random-uint8",
        ("C3",),
    ),
    "strides ignored": (
        Parts(arguments=lambda x, *rest: (x.as_strided(x.shape, (x[0].numel(), x.shape[2], 1)), *rest)),
        "linear-random-strided",
        ("C3",),
    ),
    "chunks of 128 steps that do not hand v on": (InChunks(), "linear-random-T131", ("C3",)),
    "empty batch refused": (
        Parts(arguments=lambda x, *rest: (x.reshape(x.shape[0], -1, x.shape[2]) if x.shape[1] else 1 / 0, *rest)),
        "linear-random-empty",
        ("ZeroDivisionError",),
    ),
}


@pytest.mark.parametrize("bug", LINEAR_BUGS)
def test_a_broken_linear_is_found(bug: str) -> None:
    backend, case, messages = LINEAR_BUGS[bug]
    assert_red(check(case, backend), case, *messages)


def first_neuron_for_all(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a kernel that reads one number where there is one for each neuron."""
    return {name: value + (value[:1] - value).detach() for name, value in parameters.items()}


def gradient_scaled(name: str, factor: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The gradient of one learnt parameter off by a factor."""
    return lambda parameters: {
        key: value + (factor - 1) * (value - value.detach()) if key == name else value
        for key, value in parameters.items()
    }


CUBA = "neuron-cuba-learnt"
NEURON_BUGS: dict[str, tuple[Parts, str, tuple[str, ...]]] = {
    "parameters of the first neuron": (Parts(learnt=first_neuron_for_all), CUBA, ("C1 spikes", "C3")),
    "gradient of a parameter missing": (
        Parts(learnt=gradient_scaled("mem_decay", 0.0)), CUBA, ("C4 gradient of mem_decay: 1",),
    ),
    "gradient of a parameter 0.1 % too large": (
        Parts(learnt=gradient_scaled("w", 1.001)), "neuron-plif-learnt-linear", ("C4 gradient of w: 0.001",),
    ),
    "states in another order": (
        Parts(arguments=lambda x, w, b, s: (x, w, b, s.flip(0))), "neuron-cuba-linear", ("C1 state", "C3"),
    ),
    "last states in another order": (Parts(after=lambda s, v: (s, v.flip(0))), "neuron-se-adlif-scan", ("C3 state w",)),
    "output of a read-out rounded to a spike": (
        Parts(after=lambda s, v: ((s >= 1).float() + s * 0, v)), "neuron-li-scan", ("C1 spikes",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", NEURON_BUGS)
def test_a_broken_neuron_is_found(bug: str) -> None:
    backend, case, messages = NEURON_BUGS[bug]
    assert_red(check(case, backend), case, *messages)


def test_a_wrong_gradient_by_hand_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = PLIF.gradient

    def leaking(self: Any, *values: Any) -> Any:
        grad_x, grad_v = sound(self, *values)
        return grad_x, grad_v * 1.001

    monkeypatch.setattr(PLIF, "gradient", leaking)
    (row,) = check("neuron-plif-gradient", backends.load("torch"))  # type: ignore[arg-type]
    (failure,) = row.failures
    assert "C4 gradient by hand of v: " in failure.message
    assert "first at x = " in failure.message


def test_gradients_that_vary_from_call_to_call_are_found() -> None:
    calls = iter(range(1000))

    def slope(*arguments: Any) -> Tensor:
        return sound_slope(*arguments) * (1 + 1e-7 * (next(calls) // 6))

    rows = check("repeat-layer", Parts(slope=slope))
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
    neuron: Neuron
    parts: Parts
    bugs: frozenset[str]

    def __post_init__(self) -> None:
        network = Network(self.weight, self.bias, self.parts, self.neuron)
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
        spikes = self.parts.linear(x, self.weight, self.bias, self.neuron, None, {})[0]
        pairs = zip(spikes.split(batch_size, 1), data[1].split(batch_size), strict=True)
        losses, correct = zip(*(reference.rate_loss(s, labels, self.loss) for s, labels in pairs), strict=True)
        return torch.stack(losses).detach(), torch.stack(correct)


def torch_rate_step(*bugs: str, **parts: Any) -> Any:
    """A module of fused steps with these bugs."""

    def build(
        weight: Tensor, bias: Tensor | None, optimizer: Any, *, T: int, seed: int, loss: str, neuron: Neuron
    ) -> Any:
        return TorchRateStep(weight, bias, optimizer, T, seed, loss, neuron, Parts(**parts), frozenset(bugs))

    return SimpleNamespace(refusal=lambda **options: None, RateStep=build)


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
    rows = check([STEP, ADAM, "training-fused-short-sgd"], Parts(module=torch_rate_step()))
    assert [str(failure) for row in rows for failure in row.failures] == []
    assert [row.cases for row in rows] == [2, 1]


@pytest.mark.parametrize("bug", RATE_BUGS)
def test_a_broken_rate_step_is_found(bug: str) -> None:
    case, messages = RATE_BUGS[bug]
    assert_red(check(case, Parts(module=torch_rate_step(bug))), case, *messages)


def test_a_surrogate_2_percent_off_is_found_in_training() -> None:
    slope = scaled(1.02)
    broken = Parts(slope=slope, module=torch_rate_step(slope=slope))
    for case in (STEP, ADAM):
        assert_red(check(case, broken), case, "of weight")
    rows = check("training-layers-short-sgd training-fused-short-sgd", broken)
    assert_red(rows, "training-layers-short-sgd", "C4 change of weight")
    assert_red(rows, "training-fused-short-sgd", "C4 change of weight")


def test_a_fused_step_that_refuses_is_left_out_with_its_reason() -> None:
    module = SimpleNamespace(refusal=lambda **options: "T is 33; it goes up to 32", RateStep=None)
    (row,) = check(ADAM, Parts(module=module))
    assert (row.ok, row.cases, dict(row.refused)) == (True, 0, {"T is 33; it goes up to 32": 1})


def test_runs_that_do_not_repeat_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that depend on how often a backend was called before."""
    calls = iter(range(10**6))

    def slope(*arguments: Any) -> Tensor:
        return sound_slope(*arguments) * (1 + 1e-4 * next(calls))

    broken = Parts(slope=slope, name="torch")
    monkeypatch.setattr(backends, "load", lambda name: broken)
    (row,) = verify.check(Target(broken, torch.device("cpu"), "cpu"), [CASES["run-layers"]])
    assert "C6 0.weight (resumed run)" in row.failures[0].message


def test_a_resume_that_forgets_the_optimizer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", lambda self, state: None)
    (row,) = verify.check(Target(backends.load("torch"), torch.device("cpu"), "cpu"), [CASES["run-layers"]])
    assert "C6 0.weight (resumed run)" in row.failures[0].message
