"""The numbers behind figures and the report page, against what the run's own network and ``evaluate`` say."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import picture_runs
import pytest
import torch

import fastsnn
from fastsnn import checkpoint
from fastsnn.activity import membrane
from fastsnn.errors import FastSNNError, RunFolderError
from fastsnn.kernels import reference
from fastsnn.kernels.neurons import NEURONS
from fastsnn.recording import Recording
from fastsnn.sources import Arrays
from fastsnn.training.command import source_of
from fastsnn.training.readouts import READOUTS


@dataclass
class Trained:
    """A finished run and its recording."""

    path: Path
    recording: Recording


@pytest.fixture(scope="module", params=list(picture_runs.RUNS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = picture_runs.train(request.param, tmp_path_factory.mktemp("runs"))
    return Trained(path, Recording(path))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one layer that tests may not change."""
    config = replace(picture_runs.DIGITS, T=4, test_samples=40, epochs=3, lr=0.5, train_samples=100)
    return fastsnn.train(replace(config, out=tmp_path_factory.mktemp("runs") / "first")).run


def test_the_outcome_is_what_evaluate_says(trained: Trained) -> None:
    recording, outcome = trained.recording, trained.recording.outcome
    assert outcome.accuracy == pytest.approx(fastsnn.evaluate(trained.path)["test_accuracy"])
    assert 0.15 < outcome.accuracy < 1, "the run has learnt too little, or too well, to tell anything"
    network, source = fastsnn.load(trained.path), source_of(recording.config, fastsnn.Monitor())
    ids = torch.arange(source.size("test"))
    batch = source.batch("test", ids, recording.T, seed=recording.config.seed)
    with torch.no_grad():
        output = network(batch.x if recording.config.net is None else batch.x.unpack())
    scores = READOUTS[recording.readout](output, batch.lengths)
    torch.testing.assert_close(outcome.scores, scores, rtol=1e-4, atol=1.01 / recording.T)
    if not source.per_step:
        assert outcome.labels.equal(batch.y)
        assert outcome.shares.equal((outcome.predictions == batch.y).double())


def test_confusion_counts_pairs(trained: Trained) -> None:
    recording, outcome = trained.recording, trained.recording.outcome
    if recording.source.per_step:
        every = recording.step_answers(list(range(len(recording.part))))
        labels = torch.cat([labels for labels, _ in every]).tolist()
        answers = torch.cat([answers for _, answers in every]).tolist()
    else:
        labels, answers = outcome.labels.tolist(), outcome.predictions.tolist()
    pairs = [pair for pair in zip(labels, answers, strict=True) if pair[0] >= 0]
    for i in range(recording.source.classes):
        for j in range(recording.source.classes):
            assert outcome.confusion[i, j] == pairs.count((i, j))
        own = [answer == label for label, answer in pairs if label == i]
        assert outcome.class_accuracies[i] == pytest.approx(np.mean(own))


def test_mistakes_come_worst_first(trained: Trained) -> None:
    recording, outcome = trained.recording, trained.recording.outcome
    worst, potentials = recording.mistakes(12)
    wrong = (outcome.shares < 1).nonzero().squeeze(1)
    assert len(worst) == min(12, len(wrong)) > 0
    assert set(worst.tolist()) <= set(wrong.tolist())
    left_out = sorted(set(wrong.tolist()) - set(worst.tolist()))
    if recording.source.per_step:
        assert outcome.shares[worst].diff().min() >= 0
        assert not left_out or outcome.shares[left_out].min() >= outcome.shares[worst].max()
        return
    leads = outcome.leads[worst]
    assert leads.diff().max() <= 0
    assert not left_out or outcome.leads[left_out].max() <= leads.min()
    assert (potentials is None) == (recording.readout != "rate")
    if potentials is not None:
        ties = leads.diff() == 0
        assert (potentials.diff()[ties] <= 0).all(), "of equal leads the larger potential comes first"
        h = Recording(trained.path, int(worst[0])).sample.output.membrane.potential.mean(0)
        lead = h[outcome.predictions[worst[0]]] - h[outcome.labels[worst[0]]]
        torch.testing.assert_close(potentials[0], lead, rtol=1e-3, atol=1e-4)


def test_the_default_sample_is_a_close_call(trained: Trained) -> None:
    recording, outcome, sample = trained.recording, trained.recording.outcome, trained.recording.sample
    if recording.source.per_step:
        assert sample.why == "median accuracy"
        assert (outcome.shares <= outcome.shares[sample.index]).double().mean() >= 0.5
        assert (outcome.shares >= outcome.shares[sample.index]).double().mean() >= 0.5
    else:
        assert sample.why == "closest right answer"
        right = (outcome.predictions == outcome.labels) & (outcome.leads < 0)
        assert right[sample.index]
        assert outcome.leads[sample.index] == outcome.leads[right].max()


def test_the_sample_is_what_the_network_does(trained: Trained) -> None:
    index = 7
    recording = Recording(trained.path, index)
    sample, source = recording.sample, recording.source
    assert (sample.index, sample.why) == (index, "")
    batch = source.batch("test", torch.tensor([index]), recording.T, seed=recording.config.seed)
    steps = recording.T if batch.lengths is None else int(batch.lengths[0])
    x = batch.x if isinstance(batch.x, torch.Tensor) else batch.x.unpack()
    assert sample.x.equal(x[:steps, 0])
    assert sample.labels.equal(batch.y[0] if batch.y.dim() == 1 else batch.y[:steps, 0])
    assert sample.scores.equal(recording.outcome.scores[index])
    assert sample.output.output.shape == (steps, source.classes)
    for layer in sample.layers:
        if layer.spikes is not None:
            assert layer.spikes.shape == (steps, np.prod(layer.shape))
            assert ((layer.spikes == 0) | (layer.spikes == 1)).all()
    inside, output = sample.output.membrane, sample.output
    if output.spikes is None:
        assert inside.threshold is None
        torch.testing.assert_close(inside.potential, output.output, rtol=1e-4, atol=1e-5)
    else:
        margin = inside.potential - inside.threshold
        clear = margin.abs() > 1e-4
        assert (output.spikes.bool() == (margin >= 0))[clear].all(), "it fires at or above the threshold"
        torch.testing.assert_close(inside.after[output.spikes == 0], inside.potential[output.spikes == 0])
        assert (inside.after < inside.potential)[output.spikes == 1].all(), "a reset lowers it"


SHAPES = {
    "one layer": [(10,)],
    "hidden layers": [(30,), (20,), (10,)],
    "convolution": [(4, 8, 8), (16,), (10,)],
    "recurrent": [(16,), (10,)],
    "lengths": [(12,), (3,)],
    "events": [(4, 7, 6), (3,)],
    "labels per step": [(10,), (3,)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_layer_is_there(name: str, tmp_path: Path) -> None:
    recording = Recording(picture_runs.train(name, tmp_path))
    assert [layer.shape for layer in recording.sample.layers] == SHAPES[name]


@pytest.mark.parametrize("name", NEURONS)
def test_a_membrane_goes_by_the_neurons_equations(name: str) -> None:
    neuron = NEURONS[name]()
    torch.manual_seed(0)
    current = torch.rand(60, 40, dtype=torch.float64) * torch.logspace(-2, 1.3, 40)
    output, last = reference.scan(current, neuron)
    found = membrane(current, neuron, output)
    for state, expected in zip(found.states, last, strict=True):
        torch.testing.assert_close(state[-1], expected.float())
    if not neuron.spikes:
        torch.testing.assert_close(found.potential, output.float())
        return
    assert output.any(), "a neuron that is silent shows nothing"
    assert (output.bool() == (found.potential >= found.threshold)).double().mean() > 0.999
    v = found.states[neuron.states.index("v")]
    torch.testing.assert_close(found.after[output == 1], v[output == 1])
    if name == "alif":
        # The threshold of a step is made of the b before it; v holds the leak of the next step already.
        b = torch.cat([torch.zeros(1, 40), found.states[1][:-1]])
        torch.testing.assert_close(found.threshold, neuron.v_threshold + neuron.beta * b, rtol=1e-4, atol=1e-6)
        before = torch.cat([torch.zeros(1, 40), v[:-1]])
        h = before + (1 - np.exp(-1 / neuron.tau)) * current.float()
        torch.testing.assert_close(found.potential, h, rtol=1e-4, atol=1e-6)
    else:
        torch.testing.assert_close(found.threshold, torch.full_like(found.threshold, neuron.v_threshold))


def test_the_best_checkpoint(run: Path) -> None:
    last, best = Recording(run), Recording(run, checkpoint="best")
    epochs = len(checkpoint.load(run / "best.pt")["history"])
    assert epochs < 3, "the best epoch must not be the last one"
    assert best.result == f"test accuracy {best.outcome.accuracy:.2%} after epoch {epochs}"
    assert best.outcome.accuracy == pytest.approx(best.history[epochs - 1].test_accuracy)
    assert best.history == last.history
    assert not best.outcome.scores.equal(last.outcome.scores)
    with pytest.raises(ValueError, match="checkpoint is 'first'; allowed: last, best"):
        Recording(run, checkpoint="first")


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    """Of `fastsnn.fit` the folder holds neither network nor data: they can be given; without them it has curves."""
    arrays = picture_runs.arrays_for("lengths")
    source = Arrays(arrays["x"], arrays["y"], arrays["lengths"], test_fraction=0.3)
    neuron = fastsnn.LIF(v_threshold=0.1)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        fastsnn.LinearLIF(9, 12, neuron=neuron), torch.nn.Linear(12, 3), fastsnn.Spiking(neuron)
    )
    fastsnn.fit(network, source, fastsnn.FitConfig(epochs=2, out=tmp_path / "own"))
    recording = Recording(tmp_path / "own", network=network, source=source)
    assert recording.outcome.accuracy == recording.history[-1].test_accuracy
    assert [layer.name for layer in recording.sample.layers] == ["0", ""]
    alone = Recording(tmp_path / "own")
    assert alone.result == recording.result
    with pytest.raises(FastSNNError, match=r"trained by fastsnn\.fit, and holds neither network nor data"):
        _ = alone.outcome


def test_neurons_of_another_kind(tmp_path: Path) -> None:
    """A network without layers of fastsnn has its output alone."""

    class Steps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(9, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.linear(x) > 0).float() + 0 * self.linear(x)

    arrays = picture_runs.arrays_for("lengths")
    source = Arrays(arrays["x"], arrays["y"], test_fraction=0.3)
    network = Steps()
    fastsnn.fit(network, source, fastsnn.FitConfig(epochs=1, out=tmp_path / "own"))
    (output,) = Recording(tmp_path / "own", network=network, source=source).sample.layers
    assert output.spikes is not None
    assert output.membrane is None


def test_a_run_without_checkpoint_and_a_foreign_one(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    state = checkpoint.load(copy / "last.pt")
    state["model"] = {"layers.0": state["model"]["0.weight"]}
    (copy / "last.pt").write_bytes(checkpoint.pack(state))
    with pytest.raises(RunFolderError, match="of another network"):
        _ = Recording(copy).outcome
    (copy / "last.pt").unlink()
    with pytest.raises(RunFolderError, match=r"last\.pt is missing; best\.pt beside it is sound"):
        Recording(copy)
    (copy / "best.pt").unlink()
    with pytest.raises(RunFolderError, match=r"has no checkpoint yet: it has no last\.pt"):
        Recording(copy)
