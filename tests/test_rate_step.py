"""The whole training step in Triton against the equations in plain torch (kernels/reference.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from rate_step_cases import DEVICE, Case, check_step
from torch import Tensor

from fastsnn import LIF
from fastsnn.kernels.contract import require, same_bits
from fastsnn.kernels.neurons import PLIF, SURROGATES
from fastsnn.kernels.rate_classifier.numba import step as cpu_rate_step
from fastsnn.kernels.rate_classifier.triton import launch as rate_step_launch
from fastsnn.kernels.rate_classifier.triton import step as rate_step
from fastsnn.kernels.rate_classifier.triton.step import EVALUATION, TRAINING, refusal
from fastsnn.kernels.triton import INTERPRETED, bf16_split

NEURONS: list[dict[str, Any]] = [
    {"loss": "ce"},
    {"tau": 3.0, "v_reset": None, "surrogate": "sigmoid"},
    {"v_reset": 0.25, "decay_input": False, "surrogate": "erf", "bias": False},
    {"v_reset": -0.5, "surrogate": "piecewise_quadratic", "alpha": 0.75, "detach_reset": True},
    {"v_reset": None, "decay_input": False, "surrogate": "soft_sign", "loss": "ce"},
    {"v_threshold": 0.75, "detach_reset": True, "v_reset": None, "surrogate": "rectangle"},
    {"tau": 3.0, "v_reset": 0.25, "surrogate": "fast_sigmoid", "alpha": 5.0},
]


@pytest.mark.parametrize("options", NEURONS, ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()))
def test_step_of_every_neuron_and_surrogate(options: dict[str, Any]) -> None:
    check_step(Case(2, 41, 3, 20, optimizer="momentum", dyadic=True, **options))


def test_cases_cover_every_surrogate() -> None:
    assert {options.get("surrogate", "atan") for options in NEURONS} == set(SURROGATES)


@pytest.mark.parametrize("exact", [False, True])
def test_step_over_several_chunks_of_time(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """T over 128 carries the potential between chunks; the weights' bf16 parts (tensor cores) give the same numbers."""
    if exact and bf16_split.capability(DEVICE) < 80:
        pytest.skip("products in bf16 need a GPU of sm_80 or newer")
    monkeypatch.setattr(rate_step, "_has_bf16_products", lambda device: exact)
    check_step(Case(1, 9, 3, 130, optimizer="momentum", dyadic=True, v_reset=None))


def test_products_of_weights_that_bf16_cannot_hold() -> None:
    case = Case(1, 70, 3, 20, optimizer="momentum", dyadic=True)
    with torch.no_grad():
        # Sums of these weights are exact in fp32, yet one or two bf16 don't hold them.
        case.weight.mul_(1 + 2.0**-12)
    check_step(case)


def test_products_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As below sm_80, of more pixels than a tile has and of steps that fill no tile."""
    monkeypatch.setattr(rate_step, "_has_bf16_products", lambda device: False)
    check_step(Case(2, 70, 3, 20, optimizer="momentum", dyadic=True))


@pytest.mark.parametrize("classes", [1, 17, 32])
def test_step_of_any_number_of_classes(classes: int) -> None:
    check_step(Case(2, 5, classes, 1 if classes == 17 else 10, optimizer="momentum", dyadic=True))


def test_step_of_the_most_steps_and_classes() -> None:
    check_step(Case(1, 3, rate_step.MAX_CLASSES, rate_step.MAX_T, optimizer="momentum", dyadic=True))


def test_step_of_the_most_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last pixel of the largest image among those that are not 0."""
    if INTERPRETED:  # which runs programs one by one: a few large ones, that a compiler would take minutes for
        monkeypatch.setattr(rate_step_launch, "BLOCK_P", 8192)
        monkeypatch.setattr(rate_step_launch, "BLOCK_G", 2)
    case = Case(2, rate_step.MAX_PIXELS, 3, 6, optimizer="momentum", dyadic=True)
    case.images[:] = 0
    case.images[:, [0, 1, 40_000, -1]] = torch.tensor([[255, 9, 0, 200], [130, 0, 255, 255]], dtype=torch.uint8)
    with torch.no_grad():
        case.weight[:, [0, 40_000, -1]] += 0.5
    check_step(case)


def test_groups_of_samples_share_a_partial_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 samples in groups of 3 and 2."""
    monkeypatch.setattr(rate_step_launch, "MAX_GROUPS", 2)
    monkeypatch.setattr(rate_step_launch, "PARTIAL_BYTES", 0)
    check_step(Case(5, 6, 3, 10, optimizer="momentum", dyadic=True))


@pytest.mark.parametrize(
    ("pixels", "batch_size", "group"), [(784, 64, 1), (784, 667, 1), (784, 668, 3), (65_535, 256, 1), (65_535, 257, 2)]
)
def test_a_sample_has_its_own_partial_sum_if_all_fit(pixels: int, batch_size: int, group: int) -> None:
    """In 32 MB; else there are at most 256."""
    case = Case(1, pixels, 3, 4, optimizer="sgd")
    step = case.step()
    plan = rate_step_launch.Plan(
        step.problem, step.parameters, step.prepare(case.images, case.labels), batch_size, steps=1, training=True
    )
    assert plan.group == group


@pytest.mark.parametrize(("seed", "epoch", "stream"), [(2**35 + 3, 5, EVALUATION), (-1, 0, TRAINING)])
def test_spikes_are_those_of_philox(seed: int, epoch: int, stream: int) -> None:
    """Bit for bit, for every batch of a block and a smaller last one, T past 128, pixels of 0 and of 255."""
    case = Case(3, 150, 3, 135, seed=seed % 1000)
    case.seed = seed
    step = case.step()
    plan = rate_step_launch.Plan(
        step.problem, step.parameters, step.prepare(case.images, case.labels), batch_size=2, steps=2, training=True
    )
    order = torch.tensor([2, 0, 1], device=DEVICE)
    plan.order[:3] = order
    plan._set_job(3, epoch, stream)
    plan._encode()
    assert plan.batches == 2
    assert plan.sizes.tolist() == [[2, 0], [1, 1]]
    steps = torch.arange(16, device=DEVICE)
    for position, sample in enumerate(order.tolist()):
        batch, b = divmod(position, 2)
        count, label = plan.samples[batch, b].tolist()
        pixels = case.images[sample].nonzero().squeeze(1)
        assert label == case.labels[sample]
        assert plan.pixels[batch, b, :count].tolist() == pixels.tolist()
        # [chunks, 8 words, pairs] -> [chunks * 8 * 16 steps, pixels]
        halves = plan.words[batch, b][..., None] >> torch.tensor([0, 16], device=DEVICE)
        bits = (halves.flatten(2)[:, :, None] >> steps[:, None] & 1).flatten(0, 2)
        expected = case.spikes(order[position : position + 1], epoch, stream)[:, 0]
        assert torch.equal(bits[: case.T, :count].float(), expected[:, pixels])
        assert not bits[:, count:].any() or count % 2 == 0


@pytest.mark.parametrize(("optimizer", "samples"), [("adam", 5), ("sgd", 3), ("momentum", 3)])
def test_training_follows_torch(optimizer: str, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of steps, a smaller last batch, another rate: losses, answers, weights, optimizer. The Numba twin too."""
    monkeypatch.setattr(rate_step_launch, "BLOCK_STEPS", 2)
    launched = []
    for name in ("_encode", "_step", "_update"):
        launch = getattr(rate_step_launch.Plan, name)
        monkeypatch.setattr(
            rate_step_launch.Plan, name, lambda plan, *a, f=launch, n=name: (launched.append(n), f(plan, *a))
        )
    options: dict[str, Any] = {"optimizer": optimizer, "loss": "ce" if optimizer == "adam" else "mse"}
    case, expected, twin = (Case(5, 12, 3, 12, **options) for _ in range(3))
    steps = [case.step()] + ([twin.step(cpu_rate_step)] if DEVICE.type == "cpu" else [])
    data = [step.prepare(case.images.reshape(5, 3, 4), case.labels) for step in steps]
    for epoch, order in ((1, torch.tensor([4, 2, 0, 1, 3])[:samples]), (2, torch.tensor([1]))):
        for each in (case, expected, twin):
            each.optimizer.param_groups[0]["lr"] *= 0.5
        wanted = expected.reference_train(order.to(DEVICE), epoch, 2)
        for step, prepared in zip(steps, data, strict=True):
            losses, correct = step.train(prepared, order.to(DEVICE), epoch, 2)
            assert torch.allclose(losses, wanted[0], rtol=0, atol=1e-6)
            assert correct.tolist() == wanted[1].tolist()
    for step, each in zip(steps, (case, twin), strict=False):
        step.sync()
        state, wanted_state = each.state(), expected.state()
        assert state.keys() == wanted_state.keys()
        for name, value in state.items():
            assert torch.allclose(value, wanted_state[name], rtol=1e-4, atol=1e-6), name
    if not steps[0].use_graph:
        blocks, taken = (3, 4) if samples == 5 else (2, 3)
        assert [launched.count(name) for name in ("_encode", "_step", "_update")] == [blocks, taken, taken]


def test_training_goes_on_where_another_stopped() -> None:
    """Two halves, the second from the first's synced tensors, equal one run bit for bit."""
    order = torch.tensor([0, 2, 1], device=DEVICE)

    def run(*parts: Tensor) -> dict[str, Tensor]:
        case = Case(3, 6, 3, 8)
        for part in parts:
            step = case.step()
            step.train(step.prepare(case.images, case.labels), part, 1, 2)
            step.sync()
        return case.state()

    whole = run(order)
    for name, value in run(order[:2], order[2:]).items():
        require(same_bits(name, value, whole[name], "C6"))


def test_interrupted_run_keeps_the_steps_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    case, expected = Case(3, 6, 3, 8), Case(3, 6, 3, 8)
    step = case.step()
    step.use_graph = False
    launch = rate_step_launch.Plan._step

    def interrupted(plan: rate_step_launch.Plan, batch: int, batches: int) -> None:
        if batch == 2:
            raise KeyboardInterrupt
        launch(plan, batch, batches)

    monkeypatch.setattr(rate_step_launch.Plan, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step.train(step.prepare(case.images, case.labels), torch.arange(3, device=DEVICE), 1, 1)
    step.sync()
    monkeypatch.undo()
    other = expected.step()
    other.train(other.prepare(expected.images, expected.labels), torch.arange(2, device=DEVICE), 1, 1)
    other.sync()
    for name, value in case.state().items():
        require(same_bits(name, value, expected.state()[name], "C6"))


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_evaluation(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own random numbers, all samples in order, several blocks, a smaller last batch, and no training."""
    monkeypatch.setattr(rate_step_launch, "BLOCK_SAMPLES", 4)
    case = Case(5, 12, 4, 10, optimizer=None, loss=loss, dyadic=True)
    step, before = case.step(), case.state()
    data = step.prepare(case.images, case.labels)
    for _ in range(2):
        losses, correct = step.evaluate(data, 2)
        expected = [case.reference(ids, 0, EVALUATION) for ids in torch.arange(5, device=DEVICE).split(2)]
        assert losses.tolist() == pytest.approx([float(value.detach()) for value, _ in expected], abs=1e-6)
        assert correct.tolist() == [int(value) for _, value in expected]
        assert all(torch.equal(value, before[name]) for name, value in case.state().items())
        # Weights that change behind the step's back, as a checkpoint's do, are the ones that count.
        with torch.no_grad():
            case.weight.neg_()
        before = case.state()
    with pytest.raises(ValueError, match="optimizer is None"):
        step.train(data, torch.arange(5), 1, 2)


def test_ties_go_to_the_lowest_class() -> None:
    case = Case(2, 3, 4, 5, optimizer=None)
    with torch.no_grad():
        case.weight.zero_()
    case.labels[:] = torch.tensor([0, 3])
    step = case.step()
    assert step.evaluate(step.prepare(case.images, case.labels), 2)[1].tolist() == [1]


def test_nothing_to_do() -> None:
    case = Case(1, 3, 2, 5)
    case.images.zero_()
    step, before = case.step(), case.state()
    data = step.prepare(case.images, case.labels)
    empty = torch.empty(0, dtype=torch.int64, device=DEVICE)
    for result in (step.train(data, empty, 1, 4), step.evaluate(step.prepare(case.images[:0], case.labels[:0]), 4)):
        assert [len(part) for part in result] == [0, 0]
    step.sync()
    assert all(torch.equal(value, before[name]) for name, value in case.state().items())
    # A black image has only the bias.
    loss, _ = step.evaluate(data, 1)
    assert float(loss) == pytest.approx(float(case.reference(torch.tensor([0], device=DEVICE), 0, 1)[0].detach()))


def test_refusal_names_the_option() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    fits: dict[str, Any] = {"T": 4, "classes": 2, "pixels": 3, "loss": "mse", "optimizer": None, "neuron": LIF()}
    assert refusal(**fits) is None
    assert refusal(**fits | {"T": 1024, "classes": 32, "pixels": 65535}) is None
    assert refusal(**fits | {"optimizer": torch.optim.SGD([weight], lr=1.0, momentum=0.9)}) is None
    refused = {
        "T is 1025": {"T": 1025},
        "classes is 33": {"classes": 33},
        "pixels is 65536": {"pixels": 65536},
        "loss is 'l1'": {"loss": "l1"},
        "optimizer is AdamW": {"optimizer": torch.optim.AdamW([weight])},
        "weight_decay is 0.1": {"optimizer": torch.optim.Adam([weight], weight_decay=0.1)},
        "nesterov is True": {"optimizer": torch.optim.SGD([weight], lr=1.0, momentum=0.9, nesterov=True)},
        "neuron is LIF, which doesn't spike": {"neuron": LIF(v_threshold=float("inf"))},
        "neuron is PLIF, which learns w": {"neuron": PLIF()},
        "2 parameter groups": {"optimizer": torch.optim.SGD([{"params": [weight]}, {"params": []}], lr=1.0)},
    }
    for reason, change in refused.items():
        assert reason in (refusal(**fits | change) or ""), reason


def test_refusals_name_the_argument() -> None:
    case = Case(3, 4, 2, 5)
    step = case.step()
    with pytest.raises(TypeError, match="images has dtype float32"):
        step.prepare(case.images.float(), case.labels)
    with pytest.raises(ValueError, match="3 pixels and weight 4"):
        step.prepare(case.images[:, :3], case.labels)
    with pytest.raises(ValueError, match=r"labels has shape \[2\]"):
        step.prepare(case.images, case.labels[:2])
    with pytest.raises(ValueError, match="labels go from 2 to 2"):
        step.prepare(case.images, torch.full_like(case.labels, 2))
    data = step.prepare(case.images, case.labels)
    with pytest.raises(ValueError, match="order holds samples 1 to 3"):
        step.train(data, torch.tensor([1, 3]), 1, 2)
    with pytest.raises(ValueError, match="batch_size is 0"):
        step.evaluate(data, 0)
    case.T = 2000
    with pytest.raises(ValueError, match="T is 2000"):
        case.step()


def test_a_graph_is_captured_on_its_own_gpus_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps one stream for captures, of the GPU that was current at the first of them."""
    case, streams = Case(2, 5, 3, 4), []

    @contextmanager
    def capture(graph: Any, *, stream: Any, **_: Any) -> Iterator[None]:
        streams.append(stream)
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("a stream of", device))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(rate_step_launch.Plan, "_launch", lambda *_: None)
    step = case.step()
    data = step.prepare(case.images, case.labels)
    rate_step_launch.Plan(step.problem, step.parameters, data, batch_size=2, steps=1, training=True)._capture()
    assert streams == [("a stream of", case.weight.device)]


@pytest.mark.gpu
def test_graph_replay_equals_launches() -> None:
    """Bit for bit, on the training and the evaluation side, and from one run to the next."""
    results = []
    for use_graph in (True, False, True):
        case = Case(100, 50, 10, 100)
        step = case.step()
        step.use_graph = use_graph
        data = step.prepare(case.images, case.labels)
        outputs = [
            *step.train(data, torch.arange(99, device=DEVICE), 1, 8),
            *step.train(data, torch.arange(7, device=DEVICE), 2, 8),
            *step.evaluate(data, 16),
        ]
        step.sync()
        results.append(outputs + list(case.state().values()))
    for other in results[1:]:
        for value, expected in zip(other, results[0], strict=True):
            require(same_bits("result", value, expected, "C6"))
