"""Figures of runs: the numbers behind them against the model's own, what is drawn, and the files."""

import csv
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from run_tools import Command

import fastsnn
from fastsnn import checkpoint, figures, plot
from fastsnn.activity import CLASS_NAMES, Recording
from fastsnn.cli import plot_runs
from fastsnn.errors import RunFolderError

DIGITS = fastsnn.Config(dataset="digits", backend="torch", T=12, epochs=2, lr=0.02, train_samples=600, test_samples=230)
RUNS = {
    "one layer": DIGITS,
    "hidden layers": replace(DIGITS, hidden=(30, 20), bias=True, epochs=3, v_reset=None),
    "one step, one epoch": replace(DIGITS, T=1, epochs=1, v_threshold=0.3, loss="ce", lr=0.05, test_samples=60),
}
SAMPLE = 207
"""In the second evaluation batch."""


@dataclass
class Trained:
    """A finished run and what its figures are made of."""

    path: Path
    recording: Recording


@pytest.fixture(scope="module", params=list(RUNS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = tmp_path_factory.mktemp("runs") / request.param.replace(" ", "-")
    fastsnn.train(replace(RUNS[request.param], out=path))
    return Trained(path, Recording(path, SAMPLE if RUNS[request.param].test_samples == 230 else 17))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tests may not change."""
    path = tmp_path_factory.mktemp("runs") / "first"
    fastsnn.train(replace(DIGITS, out=path, T=4, test_samples=40))
    return path


def drawn(name: str, recording: Recording) -> Figure:
    with plot.style():
        figure = plot.figure(name, [recording])
        figure.draw_without_rendering()
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def test_predictions_are_those_of_evaluate(trained: Trained) -> None:
    recording = trained.recording
    result = fastsnn.evaluate(trained.path)
    assert recording.accuracy == result["test_accuracy"] == recording.history[-1].test_accuracy
    assert 0.15 < recording.accuracy < 1, "the run has learnt too little, or too well, to tell anything"
    images, config = recording.dataset.test_images, recording.config
    x = fastsnn.poisson_encode(images, recording.T, config.seed, stream=1)
    for weight, bias in recording.layers:
        x, _ = fastsnn.linear(x, weight, bias, config.layer_neuron(), backend="torch")
    torch.testing.assert_close(recording.rates, x.mean(0), atol=1.01 / recording.T, rtol=0)
    assert (recording.predictions == x.mean(0).argmax(-1)).float().mean() > 0.98


def test_the_sample_is_the_one_that_was_evaluated(trained: Trained) -> None:
    recording, sample = trained.recording, trained.recording.sample
    config, data = recording.config, recording.dataset
    assert sample.label == data.test_labels[sample.index]
    assert sample.image.flatten().equal(data.test_images[sample.index])
    alone = data.test_images[sample.index : sample.index + 1]
    spikes = fastsnn.poisson_encode(alone, config.T, config.seed, stream=1, sample_ids=torch.tensor([sample.index]))
    assert sample.spikes.equal(spikes[:, 0])
    assert sample.rates.equal(recording.rates[sample.index])
    assert sample.prediction == recording.predictions[sample.index]
    sizes = [layer.spikes.shape[1] for layer in sample.layers]
    assert sizes == [*config.hidden, 10]
    for layer in sample.layers:
        assert layer.spikes.equal((layer.potential >= config.v_threshold).float())


def test_confusion_and_mistakes(trained: Trained) -> None:
    recording = trained.recording
    labels, predictions = recording.labels.tolist(), recording.predictions.tolist()
    for i in range(10):
        for j in range(10):
            pairs = zip(labels, predictions, strict=True)
            assert recording.confusion[i, j] == sum(pair == (i, j) for pair in pairs)
    mistakes = recording.mistakes().tolist()
    assert sorted(mistakes) == [
        i for i, pair in enumerate(zip(labels, predictions, strict=True)) if len(set(pair)) == 2
    ]
    leads = [float(recording.rates[i, predictions[i]] - recording.rates[i, labels[i]]) for i in mistakes]
    assert leads == sorted(leads, reverse=True)
    assert leads[0] > 0


def test_figures_show_the_recording(trained: Trained) -> None:
    recording, sample = trained.recording, trained.recording.sample
    output, T = sample.layers[-1], recording.config.T

    loss, accuracy = drawn("curves", recording).axes
    rows = list(csv.DictReader((trained.path / "metrics.csv").read_text().splitlines()))
    for ax, name in ((loss, "loss"), (accuracy, "accuracy")):
        for line, part in zip(ax.lines, ("train", "test"), strict=True):
            assert list(line.get_ydata()) == [float(row[f"{part}_{name}"]) for row in rows]
            assert list(line.get_xdata()) == list(range(1, len(rows) + 1))

    image, bars = drawn("rates", recording).axes
    assert (image.images[0].get_array() == sample.image.numpy()).all()
    assert [bar.get_height() for bar in bars.patches] == pytest.approx(sample.rates.tolist())
    assert bars.get_xticklabels()[sample.label].get_text().startswith(f"{sample.label}\nlabel")

    heat = drawn("membrane", recording).axes[0]
    assert (heat.images[0].get_array() == output.potential.T.numpy()).all()
    dots = {(int(t), int(neuron)) for t, neuron in heat.collections[0].get_offsets()}
    assert dots == {(int(t), int(neuron)) for t, neuron in output.spikes.nonzero()}

    for neuron, ax in enumerate(sorted(drawn("traces", recording).axes, key=lambda ax: ax.get_position().x0)):
        threshold, h = ax.lines
        assert set(threshold.get_ydata()) == {recording.config.v_threshold}
        assert list(h.get_ydata()) == pytest.approx(output.potential[:, neuron].tolist())
        ticks = [segment[0][0] for segment in ax.collections[0].get_segments()]
        assert ticks == output.spikes[:, neuron].nonzero().squeeze(1).tolist()
        assert ax.get_xlim() == (-0.5, T - 0.5)

    layers = [sample.spikes, *(layer.spikes for layer in sample.layers)]
    for ax, spikes in zip(drawn("raster", recording).axes, layers, strict=True):
        marks = [collection for collection in ax.collections if isinstance(collection, LineCollection)]
        assert len(marks[0].get_segments()) == spikes.sum()


def test_weights_are_images_where_they_see_one(trained: Trained) -> None:
    recording = trained.recording
    figure = drawn("weights", recording)
    weight = recording.layers[0][0]
    shown = [torch.tensor(image.get_array().data).flatten() for image in figure.axes[0].images]
    if recording.config.hidden:
        assert len(shown) == figures.RECEPTIVE_FIELDS < len(weight)
        assert any("not pixels" in text for text in texts(figure))
        numbers = [int(text.removeprefix("neuron ")) for text in texts(figure) if text.startswith("neuron ")]
        assert weight[numbers].norm(dim=1).min() >= weight.norm(dim=1).sort().values[-figures.RECEPTIVE_FIELDS]
    else:
        numbers = list(range(10))
    for number, image in zip(numbers, shown, strict=True):
        torch.testing.assert_close(image, weight[number], check_dtype=False)


def test_confusion_and_gallery_are_drawn(trained: Trained) -> None:
    recording = trained.recording
    figure = drawn("confusion", recording)
    written = [int(text.get_text()) for text in figure.axes[0].texts]
    assert sum(written) == len(recording.labels)
    right = f"{recording.accuracy:.2%} of {len(recording.labels)} test images are right"
    assert f"Confusion matrix: {right}" in texts(figure)
    mistakes = recording.mistakes().tolist()[: figures.GALLERY]
    captions = [text for text in texts(drawn("mistakes", recording)) if "sample" in text]
    assert [int(caption.split()[-1]) for caption in captions] == mistakes


@pytest.mark.parametrize("name", [name for name in plot.DRAWINGS if name != "summary"])
def test_titles_say_the_run_and_no_text_is_cut_off(
    name: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[Text, Bbox] = {}  # tick labels beyond an axis' ends are texts too, but never drawn
    draw = Text.draw

    def draw_and_note(text: Text, renderer: Any) -> None:
        draw(text, renderer)
        if text.get_text():
            written[text] = text.get_window_extent(renderer)

    monkeypatch.setattr(Text, "draw", draw_and_note)
    if trained.recording.config.hidden:
        monkeypatch.setitem(CLASS_NAMES, "digits", CLASS_NAMES["fashion-mnist"])  # the longest names there are
    figure = drawn(name, trained.recording)
    accuracy = trained.recording.history[-1].test_accuracy
    assert any(trained.path.name in text.get_text() and f"{accuracy:.2%}" in text.get_text() for text in written)
    for text, box in written.items():
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text


def test_summary_holds_all_the_others(trained: Trained) -> None:
    summary = texts(drawn("summary", trained.recording))
    for word in (
        "Loss",
        "Firing rates",
        "Spikes of",
        "Membrane potential",
        "threshold",
        "weights",
        "right",
        "confident",
    ):
        assert any(word in text for text in summary), word


def test_no_mistakes_and_no_finished_epoch(run: Path) -> None:
    recording = Recording(run)
    recording.__dict__["rates"] = torch.nn.functional.one_hot(recording.labels, 10).float()
    assert recording.mistakes().numel() == 0
    assert f"No mistakes among {len(recording.labels)} test images" in texts(drawn("mistakes", recording))
    recording.history = []
    assert f"{run.name}: no epoch finished yet" in texts(drawn("curves", recording))


@pytest.mark.parametrize(("format", "magic"), [("png", b"\x89PNG\r\n\x1a\n"), ("svg", b"<?xml"), ("pdf", b"%PDF-")])
def test_files(format: str, magic: bytes, run: Path, tmp_path: Path) -> None:
    files = plot.draw([run], ["curves", "raster"], out=tmp_path / "new" / "folder", format=format)
    assert files == [tmp_path / "new" / "folder" / f"{name}.{format}" for name in ("curves", "raster")]
    assert sorted(files[0].parent.iterdir()) == files
    for file in files:
        assert file.read_bytes().startswith(magic)


def test_all_figures_of_a_run_go_into_its_folder(tmp_path: Path, run: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    matplotlib.get_backend()  # chosen when first asked for
    before = matplotlib.rcParams.copy()
    files = plot.draw([copy])
    assert files == [copy / "plots" / f"{name}.png" for name in plot.DRAWINGS]
    assert all(file.stat().st_size > 10_000 for file in files)
    assert matplotlib.rcParams == before
    assert not matplotlib.pyplot.get_fignums()


def test_curves_of_several_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "_other"
    fastsnn.train(replace(DIGITS, out=other, T=2, epochs=1, test_samples=40, train_samples=64))
    monkeypatch.chdir(tmp_path)
    assert plot.draw([run, other]) == [Path("curves.png")]
    recordings = [Recording(run), Recording(other)]
    with plot.style():
        figure = plot.figure("curves", recordings)
        plot.render(figure, "png")
    for ax in figure.axes:
        assert [len(line.get_xdata()) for line in ax.lines] == [2, 2, 1, 1]
        assert len({line.get_color() for line in ax.lines}) == 2
    for recording in recordings:
        assert any(f"{recording.name}: test accuracy" in text for text in texts(figure))
    with pytest.raises(ValueError, match="what is 'rates'; allowed for several runs: curves"):
        plot.draw([run, other], ["rates"])


def test_runs_of_one_name_are_told_apart_by_their_paths(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / run.name)
    with plot.style():
        figure = plot.figure("curves", [Recording(run), Recording(tmp_path / run.name)])
    assert {f" {path}: {Recording(path).result}" for path in (run, tmp_path / run.name)} <= set(texts(figure))


BAD_INPUT = {
    "no run": (lambda run, tmp: [str(tmp)], "is not a run folder: it has no config.yaml"),
    "no run named": (lambda run, tmp: [], "runs is empty; allowed: one run folder or more"),
    "sample too large": (lambda run, tmp: [str(run), "--sample", "40"], "sample is 40; allowed: 0 to 39, the test set"),
    "sample negative": (lambda run, tmp: [str(run), "--sample=-1"], "sample is -1; allowed: 0 to 39"),
    "unknown figure": (lambda run, tmp: [str(run), "--what", "curves,pie"], f"allowed: {', '.join(plot.DRAWINGS)}"),
    "unknown format": (lambda run, tmp: [str(run), "--format", "gif"], '"png", "svg", "pdf"'),
    "no display": (lambda run, tmp: [str(run), "--show"], "no display"),
    "unwritable": (
        lambda run, tmp: [str(run), "--what", "curves", "--out", str(run / "config.yaml")],
        "name another place with --out",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, message = BAD_INPUT[case]
    before = sorted(run.rglob("*"))
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = command("plot", *arguments(run, tmp_path))
    assert code in (1, 2)
    assert stdout == ""
    assert message in stderr
    assert stderr.count("\n") == 1
    assert sorted(run.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_a_run_without_checkpoint_and_a_foreign_one(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    state = checkpoint.load(copy / "last.pt")
    state["model"] = {"layers.0": state["model"]["0.weight"]}
    (copy / "last.pt").write_bytes(checkpoint.pack(state))
    with pytest.raises(RunFolderError, match=r"of another network: it has no '0\.weight'"):
        Recording(copy)
    (copy / "last.pt").unlink()
    with pytest.raises(RunFolderError, match=r"has no checkpoint yet: it has no last\.pt"):
        Recording(copy)


def test_a_figure_that_fails_leaves_the_old_files(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "curves.png").write_bytes(b"old")
    monkeypatch.setitem(plot.DRAWINGS, "rates", lambda recording, figure: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plot.draw([run], ["curves", "rates"], out=tmp_path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_the_command_prints_the_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot_runs(run, what=["curves"], out=tmp_path)
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "curves.png")]


def test_training_draws_at_its_end_and_survives_a_figure_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastsnn import cli

    config = replace(DIGITS, out=tmp_path / "run", T=2, epochs=1, train_samples=64, test_samples=20)
    monkeypatch.setattr(plot, "DRAWINGS", {"curves": plot.DRAWINGS["curves"]})
    cli.train(config=config, plot=True)
    assert (tmp_path / "run" / "plots" / "curves.png").exists()
    monkeypatch.setitem(plot.DRAWINGS, "curves", lambda recording, figure: 1 / 0)
    cli.train(config=replace(config, out=tmp_path / "again"), plot=True)
    assert "the run is saved, but its figures could not be drawn: division by zero" in capsys.readouterr().err
    assert (tmp_path / "again" / "last.pt").exists()
