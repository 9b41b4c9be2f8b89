"""Checks of training: the fused whole step, the losses of a short run (C5), and runs that repeat bit for bit (C6)."""

import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastsnn
from fastsnn import checkpoint
from fastsnn.backends import Backend
from fastsnn.config import FitConfig
from fastsnn.kernels import contract, philox, reference
from fastsnn.kernels.contract import Measurement
from fastsnn.kernels.neurons import Neuron
from fastsnn.recorded import recorded_config
from fastsnn.sources import images as data
from fastsnn.sources.images import DataSet, Images
from fastsnn.sources.store import STREAMS
from fastsnn.training.autograd_step import AutogradStep
from fastsnn.training.readouts import Objective
from fastsnn.verify.case import Case, dyadic, generator
from fastsnn.verify.layers import Target

SEED, EPOCH = 2**40 + 7, 3


class Refused(Exception):  # noqa: N818
    """The backend says, with a reason, that a case is not for its fused step."""


class Network(nn.Linear):
    """A linear layer and its neurons on a backend, or by the reference: spikes [T, B, K] -> spikes [T, B, N]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, backend: Backend | None, neuron: Neuron) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype)
        self.backend, self.neuron = backend, neuron
        with torch.no_grad():
            self.weight.copy_(weight)
            if bias is not None:
                self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).to(self.weight.dtype)
        if self.backend is None:
            return reference.linear(x, self.weight, self.bias, self.neuron)[0]
        spikes, _ = self.backend.linear(x, self.weight, self.bias, self.neuron, None, {}, False, "auto")
        assert isinstance(spikes, Tensor)
        return spikes


class Job(NamedTuple):
    """A training set and the weights to start from, on the CPU."""

    images: Tensor  # uint8 [D, K]
    labels: Tensor  # int64 [D]
    weight: Tensor  # [N, K]
    bias: Tensor | None


def rate_step(case: Case, target: Target) -> list[Measurement]:
    """The fused step on exact currents, whose spikes are known bit for bit: loss, gradients, optimizer, evaluation.

    The gradients are read out of the optimizer's own state. A second step, on a black image, has a gradient of exactly
    zero: what it does to the weights is the optimizer's memory and its counting of steps.
    """
    job = _exact_job(case)
    network = _network(case, job, target)
    optimizer = _optimizer(case, network)
    step = _fused(case, target, network, optimizer)
    images = torch.cat([job.images, torch.zeros_like(job.images[:1])])
    labels = torch.cat([job.labels, job.labels[:1]])
    train_data = step.prepare(images.to(target.device), labels.to(target.device))
    order = torch.randperm(case.B, generator=generator(case))[: case.batch_size]

    losses, correct = step.train(train_data, order.to(target.device), EPOCH, case.batch_size)
    step.sync()
    expected = _Expected(case, job, order)
    found = [
        contract.loss_error(losses, expected.loss[None]),
        contract.same_bits("correct", correct, expected.correct[None], "C5"),
        *expected.state(network, optimizer, bias=case.bias),
    ]
    step.train(train_data, torch.tensor([case.B], device=target.device), EPOCH, case.batch_size)
    step.sync()
    expected.black_step()
    found += expected.state(network, optimizer, bias=False)
    return found + _evaluation(case, target, job)


def training(case: Case, target: Target) -> list[Measurement]:
    """C5: the losses of the first steps on digits, against autograd in float64 on the CPU.

    Among the few spikes of a small run no membrane is so near the threshold that fp32 moves it across: there the
    weights agree as gradients do, and show what hardly moves a loss.
    """
    job = _digits_job(case)
    network = _network(case, job, target)
    optimizer = _optimizer(case, network)
    images, labels, order = (tensor.to(target.device) for tensor in (job.images, job.labels, _order(case)))
    if case.fused:
        step = _fused(case, target, network, optimizer)
        losses, _ = step.train(step.prepare(images, labels), order, EPOCH, case.batch_size)
        step.sync()
    else:
        losses = _train_layered(case, network, optimizer, images, labels, order)
    exact_losses, exact_weight = _exact_training(case)
    found = [contract.loss_error(losses, exact_losses)]
    if case.small:
        change = network.weight.detach().cpu().double() - job.weight
        found.append(_close_norm("change of weight", change, exact_weight - job.weight))
    return found


def run(case: Case, target: Target) -> list[Measurement]:
    """C6: two runs, one of them stopped and resumed, end with the same losses, weights and optimizer state.

    On numba a run on one thread must match as well; elsewhere the number of threads belongs to what is repeated.
    """
    config = fastsnn.Config(
        dataset="digits",
        train_samples=case.steps * case.batch_size - 1,
        test_samples=case.B,
        T=case.T,
        epochs=2,
        batch_size=case.batch_size,
        lr=0.05,
        backend=target.backend.name,  # type: ignore[arg-type]
        step="fused" if case.fused else "autograd",
        device=str(target.device),
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("whole", "resumed", "one-thread")]
        if target.backend.name == "numba":
            # Before the others: each run sets Numba's threads, and the last one leaves all of them.
            fastsnn.train(replace(config, out=paths[2], threads=1))
        fastsnn.train(replace(config, out=paths[0]))
        fastsnn.train(replace(config, out=paths[1], epochs=1))
        fastsnn.train(replace(recorded_config(paths[1]), epochs=2), resume=paths[1])
        saved = {path.name: checkpoint.load(path / "last.pt") for path in paths if path.exists()}
    whole = saved.pop("whole")
    return [found for name, state in saved.items() for found in _same_run(name, state, whole)]


def _same_run(name: str, state: dict[str, Any], whole: dict[str, Any]) -> list[Measurement]:
    """Every tensor of two checkpoints, and the losses of every epoch."""
    wanted, got = _tensors(whole), _tensors(state)
    assert wanted.keys() == got.keys()
    return [contract.same_bits(f"{key} ({name} run)", got[key], wanted[key], "C6") for key in wanted]


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    rows = [[row["train_loss"], row["test_loss"]] for row in state["history"]]
    found = {"losses": torch.tensor(rows, dtype=torch.float64)} | dict(state["model"])
    for number, entries in state["optimizer"]["state"].items():
        found |= {f"{name} of parameter {number}": torch.as_tensor(value) for name, value in entries.items()}
    return found


class _Expected:
    """What a fused step must do, in float64: the reference with the spikes of exact currents, and torch's optimizer."""

    def __init__(self, case: Case, job: Job, ids: Tensor) -> None:
        x, spikes = _exact_spikes(case, job, ids, EPOCH, STREAMS["train"])
        bias = None if job.bias is None else job.bias.double()
        self.before = job
        self.network = Network(job.weight.double(), bias, None, case.neuron)
        self.optimizer = _optimizer(case, self.network)
        current = F.linear(x.double(), self.network.weight, self.network.bias)
        fired, _ = contract.replay(current, case.neuron, None, spikes.double())
        self.loss, self.correct = reference.rate_loss(fired, job.labels[ids], case.loss)
        self.loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def black_step(self) -> None:
        """A step whose gradient of the weight is zero; what it does to a bias is not followed."""
        self.network.weight.grad = torch.zeros_like(self.network.weight)
        self.optimizer.step()

    def state(self, network: Network, optimizer: torch.optim.Optimizer, bias: bool) -> list[Measurement]:
        """C4 for the optimizer's state, which holds the gradients, and for the change of the parameters."""
        found = []
        for name in ("weight", "bias") if bias else ("weight",):
            actual, expected = getattr(network, name), getattr(self.network, name)
            start = getattr(self.before, name)
            got, wanted = optimizer.state[actual], self.optimizer.state[expected]
            for key in wanted.keys() - {"step"}:
                found.append(_close_norm(f"{key} of {name}", got.get(key), wanted[key]))
            if "step" in wanted:
                steps = got.get("step", torch.tensor(0.0))
                found.append(
                    contract.same_bits(
                        f"step of {name}", torch.as_tensor(steps).double(), wanted["step"].double(), "C5"
                    )
                )
            change = actual.detach().cpu().double() - start.double()
            found.append(_close_norm(f"change of {name}", change, expected.detach() - start.double()))
        return found


def _close_norm(what: str, actual: Tensor | None, expected: Tensor) -> Measurement:
    return replace(contract.gradient_error(what, actual, expected), what=what)


def _evaluation(case: Case, target: Target, job: Job) -> list[Measurement]:
    """Forward only, on the evaluation stream, by a step without an optimizer."""
    step = _fused(case, target, _network(case, job, target), None)
    evaluation = step.prepare(job.images.to(target.device), job.labels.to(target.device))
    losses, correct = step.evaluate(evaluation, case.batch_size)
    parts = torch.arange(case.B).split(case.batch_size)
    expected = [
        reference.rate_loss(_exact_spikes(case, job, ids, 0, STREAMS["test"])[1].double(), job.labels[ids], case.loss)
        for ids in parts
    ]
    wanted_losses, wanted_correct = (torch.stack(column) for column in zip(*expected, strict=True))
    return [
        replace(contract.loss_error(losses, wanted_losses), what="losses of evaluation"),
        contract.same_bits("correct of evaluation", correct, wanted_correct, "C5"),
    ]


def _exact_spikes(case: Case, job: Job, ids: Tensor, epoch: int, stream: int) -> tuple[Tensor, Tensor]:
    """Input spikes [T, B, K] and the neurons' [T, B, N], whose currents are exact in fp32."""
    # By the reference: poisson_encode draws with the kernels that are under test.
    words = philox.poisson_words(philox.thresholds(job.images[ids]), case.T, SEED, epoch, stream, ids)
    x = philox.unpack(words, case.T)
    return x, reference.linear(x, job.weight, job.bias, case.neuron)[0]


def _exact_job(case: Case) -> Job:
    """Images that are half black, with some pixels that always spike, and weights that are multiples of 1/8."""
    random = generator(case)
    images = torch.randint(0, 400, (case.B, case.K), generator=random).clamp(max=255).to(torch.uint8)
    images[torch.rand(case.B, case.K, generator=random) < 0.5] = 0
    labels = torch.randint(0, case.N, (case.B,), generator=random)
    # About the spread of 16 summed inputs, whatever K is.
    keep = torch.rand(case.N, case.K, generator=random) < 48 / case.K
    bias = dyadic(random, case.N) if case.bias else None
    return Job(images, labels, dyadic(random, case.N, case.K) * keep, bias)


@lru_cache(maxsize=1)
def _digits() -> data.DataSet:
    return data.load("digits")


def _digits_job(case: Case) -> Job:
    """Digits under weights large enough that most neurons fire from the first step on."""
    digits, random = _digits(), generator(case)
    weight = (torch.rand(case.N, case.K, generator=random) - 0.4) * 0.5
    bias = torch.rand(case.N, generator=random) - 0.5 if case.bias else None
    return Job(digits.train_images, digits.train_labels, weight, bias)


def _order(case: Case) -> Tensor:
    """The samples of the run; the last step is a smaller one."""
    count = case.steps * case.batch_size - 1
    return torch.randperm(len(_digits().train_images), generator=generator(case))[:count]


@lru_cache(maxsize=16)
def _exact_training(case: Case) -> tuple[Tensor, Tensor]:
    """The losses of :func:`training` under autograd in float64, and the weight that it ends with."""
    job = _digits_job(case)
    bias = None if job.bias is None else job.bias.double()
    network = Network(job.weight.double(), bias, None, case.neuron)
    losses = _train_layered(case, network, _optimizer(case, network), job.images, job.labels, _order(case))
    return losses, network.weight.detach()


def _network(case: Case, job: Job, target: Target) -> Network:
    weight, bias = (None if tensor is None else tensor.to(target.device) for tensor in (job.weight, job.bias))
    assert weight is not None
    return Network(weight, bias, target.backend, case.neuron)


def _optimizer(case: Case, network: Network) -> torch.optim.Optimizer:
    """Steps large enough to stand clear of the rounding of a weight; Adam's eps is so large that it counts."""
    if case.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=0.02, eps=1e-3)
    return torch.optim.SGD(network.parameters(), lr=2.0, momentum=0.9)


def _train_layered(
    case: Case, network: Network, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, order: Tensor
) -> Tensor:
    """The losses of training layer by layer, as ``fastsnn.train`` does it without a fused step."""
    source = Images(DataSet("job", images, labels, images, labels, tuple(images.shape[1:]), case.N))
    step = AutogradStep(network, source, optimizer, FitConfig(T=case.T, seed=SEED), Objective(loss=case.loss))
    rates = [optimizer.param_groups[0]["lr"]] * -(-len(order) // case.batch_size)
    return step.train(order, EPOCH, case.batch_size, rates).losses


def _fused(case: Case, target: Target, network: Network, optimizer: torch.optim.Optimizer | None) -> Any:
    module = target.backend.rate_classifier()
    assert module is not None
    options = {"T": case.T, "loss": case.loss, "neuron": case.neuron}
    if reason := module.refusal(classes=case.N, pixels=case.K, optimizer=optimizer, **options):
        raise Refused(reason)
    return module.RateStep(network.weight, network.bias, optimizer, seed=SEED, **options)
