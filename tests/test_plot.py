"""Figures of runs: what is drawn of a recording, in every language and kind of run, and the files."""

import csv
import io
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import picture_runs
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from picture_runs import DIGITS
from PIL import Image
from run_tools import Command

import fastsnn
from fastsnn import figures, fonts, plot
from fastsnn.cli import plot_runs
from fastsnn.figures.answers import GALLERY
from fastsnn.figures.weights import SHOWN
from fastsnn.look import Look
from fastsnn.outcome import Outcome
from fastsnn.recording import CLASS_NAMES, Recording

LONG_NAMES = CLASS_NAMES["fashion-mnist"]


@dataclass
class Trained:
    """A finished run and what its figures are made of."""

    name: str
    path: Path
    recording: Recording


@pytest.fixture(scope="module", params=list(picture_runs.RUNS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = picture_runs.train(request.param, tmp_path_factory.mktemp("runs"))
    return Trained(request.param, path, Recording(path))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tests may not change."""
    path = tmp_path_factory.mktemp("runs") / "first"
    fastsnn.train(replace(DIGITS, out=path, T=4, test_samples=40))
    return path


WRITTEN: dict[Figure, dict[Text, Bbox]] = {}
"""Figure -> its texts and where they are; tick labels beyond an axis' ends are texts too, but never drawn."""


@cache
def drawn(name: str, recording: Recording) -> Figure:
    draw, written = Text.draw, {}

    def draw_and_note(text: Text, renderer: Any) -> None:
        draw(text, renderer)
        if text.get_text():
            written[text] = text.get_window_extent(renderer)

    with plot.style(), pytest.MonkeyPatch.context() as patch:
        figure = plot.figure(name, [recording])
        patch.setattr(Text, "draw", draw_and_note)
        figure.draw_without_rendering()
    WRITTEN[figure] = written
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


FIGURES = {
    "one layer": "summary curves confusion scores raster membrane traces weights mistakes",
    "convolution": "summary curves confusion scores raster membrane traces weights mistakes",
    "lengths": "summary curves confusion scores raster membrane traces weights mistakes",
    "events": "summary curves confusion scores frames raster membrane traces weights mistakes",
    "labels per step": "summary curves confusion steps raster membrane traces weights mistakes",
}


def test_a_run_has_the_figures_that_it_has_something_for(trained: Trained) -> None:
    assert figures.available(trained.recording) == FIGURES.get(trained.name, FIGURES["one layer"]).split()


def test_curves_are_the_metrics(trained: Trained) -> None:
    loss, accuracy = drawn("curves", trained.recording).axes
    rows = list(csv.DictReader((trained.path / "metrics.csv").read_text().splitlines()))
    judged = "validation" if trained.recording.config.validation else "test"
    for ax, name in ((loss, "loss"), (accuracy, "accuracy")):
        for line, part in zip(ax.lines, ("train", judged), strict=True):
            assert list(line.get_ydata()) == [float(row[f"{part}_{name}"]) for row in rows]
            assert list(line.get_xdata()) == list(range(1, len(rows) + 1))


def test_scores_are_the_samples(trained: Trained) -> None:
    if trained.name == "labels per step":
        assert "scores" not in figures.available(trained.recording)
        return
    sample = trained.recording.sample
    image, bars = drawn("scores", trained.recording).axes
    assert [bar.get_height() for bar in bars.patches] == pytest.approx(sample.scores.tolist())
    assert bars.get_xticklabels()[sample.label].get_text().startswith(f"{sample.label}\nlabel")
    shown = np.asarray(image.images[0].get_array())
    if sample.picture is not None:
        assert (shown == sample.picture[0].numpy()).all()
    else:
        assert shown.shape[:2] == ((7, 6) if trained.name == "events" else (9, len(sample.x)))


def test_labels_per_step_are_drawn_beside_the_answers(tmp_path: Path) -> None:
    recording = Recording(picture_runs.train("labels per step", tmp_path))
    _, middle, bottom = drawn("steps", recording).axes
    label, answer = np.ma.filled(bottom.images[0].get_array(), -1)
    assert label.tolist() == recording.sample.labels.tolist()
    assert answer.tolist() == recording.sample.step_predictions.tolist()
    for neuron, line in enumerate(middle.lines):
        assert list(line.get_ydata()) == recording.sample.output.output[:, neuron].tolist()
    worst, _ = recording.mistakes(6)
    strips = [ax for ax in drawn("mistakes", recording).axes if ax.images]
    for ax, (labels, answers) in zip(strips, recording.step_answers(worst.tolist()), strict=True):
        rows = np.ma.filled(ax.images[0].get_array(), -1)
        assert rows.tolist() == [labels.tolist(), answers.tolist()]


def test_the_heat_map_is_the_potential(trained: Trained) -> None:
    output = trained.recording.sample.output
    heat = drawn("membrane", trained.recording).axes[0]
    shown = torch.tensor(np.asarray(heat.images[0].get_array())).T
    h = output.membrane.potential
    expected = h - output.membrane.threshold if trained.name == "recurrent" else h
    torch.testing.assert_close(shown, expected, check_dtype=False)
    if output.spikes is not None:
        dots = {(int(t), int(neuron)) for t, neuron in heat.collections[0].get_offsets()}
        assert dots == {(int(t), int(neuron)) for t, neuron in output.spikes.nonzero()}


def test_traces_share_a_scale_and_show_the_reset(trained: Trained) -> None:
    output, T = trained.recording.sample.output, len(trained.recording.sample.x)
    axes = [ax for ax in drawn("traces", trained.recording).axes if ax.lines]
    assert len({ax.get_ylim() for ax in axes}) == 1
    for neuron, ax in enumerate(sorted(axes, key=lambda ax: ax.get_position().x0)):
        line = ax.lines[-1]
        assert ax.get_xlim() == (-0.5, T - 0.5)
        if output.spikes is None:
            assert list(line.get_ydata()) == output.output[:, neuron].tolist()
            continue
        assert list(ax.lines[0].get_ydata()) == output.membrane.threshold[:, neuron].tolist()
        spikes = output.spikes[:, neuron].bool().tolist()
        h, after = (part[:, neuron].tolist() for part in output.membrane[:2])
        points = [(t, value) for t in range(T) for value in ((h[t], after[t]) if spikes[t] else (h[t],))]
        assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == points
        ticks = [segment[0][0] for segment in ax.collections[-1].get_segments()]
        assert ticks == [t for t in range(T) if spikes[t]]


def test_the_raster_holds_every_spike(trained: Trained) -> None:
    sample = trained.recording.sample
    for ax, layer in zip(drawn("raster", trained.recording).axes[1:], sample.layers, strict=True):
        if layer.spikes is None:
            assert (layer.output.numpy() == np.asarray(ax.images[0].get_array()).T).all()
        elif ax.images:
            shown = np.asarray(ax.images[0].get_array())[..., 3]
            assert shown.shape[0] == min(240, layer.size)
            if layer.size <= 240:
                assert (shown.any(1) == layer.spikes.any(0).numpy()).all()
            assert f"{int(layer.spikes.sum()):,} spike" in ax.get_ylabel()
        else:
            marks = {(int(x), int(y)) for line in ax.lines for x, y in zip(*line.get_data(), strict=True)}
            assert marks == {(int(t), int(neuron)) for t, neuron in layer.spikes.nonzero()}


def test_events_are_frames(tmp_path: Path) -> None:
    recording = Recording(picture_runs.train("events", tmp_path))
    figure = drawn("frames", recording)
    frames = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    x = recording.sample.x  # [6, 2, 7, 6], one frame a step
    assert [text for text in texts(figure) if text.isdigit()] == list("012345")
    for frame, step in zip(frames, x, strict=True):
        lit = torch.tensor(frame).any(-1)
        assert lit.equal(step.any(0))
    off, on = (np.array(matplotlib.colors.to_rgb(colour)) * 255 for colour in ("#56B4E9", "#E69F00"))
    alone = (x[0, 0] == 1) & (x[0, 1] == 0)
    assert np.allclose(frames[0][alone.numpy()], off, atol=1)
    alone = (x[0, 0] == 0) & (x[0, 1] == 1)
    assert np.allclose(frames[0][alone.numpy()], on, atol=1)


def test_weights_are_images_if_they_see_one(trained: Trained) -> None:
    figure, weight = drawn("weights", trained.recording), trained.recording.input_weights
    images = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    if trained.name in ("lengths", "labels per step"):
        assert (images[0] == weight.numpy()).all()
        return
    numbers = [int(text.get_text()) for text in figure.axes[0].texts]
    assert len(images) == min(len(weight), 10 if len(weight) == 10 else SHOWN)
    assert weight[numbers].flatten(1).norm(dim=1).min() >= weight.flatten(1).norm(dim=1).sort().values[-len(images)]
    for number, image in zip(numbers, images, strict=True):
        channels = image if trained.name != "events" else np.concatenate([image[:, :3], image[:, 4:]], 1)
        assert (channels == torch.cat(list(weight[number]), 1).numpy()).all()


def test_confusion_and_gallery_are_drawn(trained: Trained) -> None:
    recording, outcome = trained.recording, trained.recording.outcome
    figure = drawn("confusion", recording)
    written = [int(text.get_text()) for text in figure.axes[0].texts]
    assert sum(written) == outcome.confusion.sum()
    assert any(f"{outcome.accuracy:.2%} of {int(outcome.confusion.sum()):,}" in text for text in texts(figure))
    accuracies = [text for text in texts(figure) if text.endswith(" %")]
    assert accuracies == [f"{100 * share:.1f} %" for share in outcome.class_accuracies.tolist()]
    mistakes, _ = recording.mistakes(6 if recording.source.per_step else GALLERY)
    captions = [text for text in texts(drawn("mistakes", recording)) if "sample " in text]
    assert [int(caption.split("sample ")[1].split("\n")[0]) for caption in captions] == mistakes.tolist()


def check_texts(figure: Figure, headline: str) -> None:
    """The headline is there, and no text is cut off."""
    assert headline in [text.get_text() for text in WRITTEN[figure]]
    for text, box in WRITTEN[figure].items():
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text


def test_titles_say_the_run_and_no_text_is_cut_off(trained: Trained) -> None:
    accuracy = trained.recording.history[-1].accuracy
    headline = f"{trained.path.name}: {trained.recording.result}"
    assert f"{accuracy:.2%}" in headline
    for name in figures.available(trained.recording)[1:]:
        check_texts(drawn(name, trained.recording), headline)


def test_long_names_of_classes_are_not_cut_off(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASS_NAMES, "digits", LONG_NAMES)
    recording = Recording(run)
    for name in figures.available(recording)[1:]:
        check_texts(drawn(name, recording), f"first: {recording.result}")


@pytest.mark.parametrize("name", ["events", "labels per step"])
def test_summary_holds_all_the_others(name: str, tmp_path: Path) -> None:
    """Of these two kinds, which have every figure."""
    recording = Recording(picture_runs.train(name, tmp_path))
    summary = texts(drawn("summary", recording))
    for name in figures.available(recording)[1:]:
        for text in texts(drawn(name, recording)):
            assert text in summary, f"{text} of {name}"


def test_the_summary_of_pixels_is_the_others_at_half_their_size(run: Path) -> None:
    opened = Recording(run)
    with plot.style():
        pictures = [plot.Picture.of(plot.figure(name, [opened])) for name in ("curves", "confusion", "raster")]
    page = plot._summary(pictures)
    assert page.title == f"first: {opened.result}"
    assert page.pixels.shape == (page.top + 1000, 1800, 3)
    for at, picture in enumerate(pictures):
        panel = picture.pixels[picture.top :].reshape(500, 2, 900, 2, 3).mean((1, 3))
        top, left = page.top + at // 2 * 500, at % 2 * 900
        assert np.abs(page.pixels[top : top + 500, left : left + 900] - panel).max() <= 0.5
    with Image.open(io.BytesIO(page.png())) as image:
        assert image.text["Title"] == page.title
        assert np.abs(np.asarray(image.convert("RGB"), int) - page.pixels).mean() < 3, "its palette is close"


def test_no_mistakes_and_no_finished_epoch(run: Path) -> None:
    opened = Recording(run)
    labels = opened.outcome.labels
    right = torch.nn.functional.one_hot(labels, 10).float()
    confusion = torch.diag(torch.bincount(labels, minlength=10))
    opened.__dict__["outcome"] = Outcome(right, labels, torch.ones(len(labels)).double(), confusion)
    assert opened.mistakes(12)[0].numel() == 0
    assert f"No mistakes among {len(labels)} test samples" in texts(drawn("mistakes", opened))
    opened._state = opened._state | {"history": []}
    assert f"{run.name}: no epoch finished yet" in texts(drawn("curves", opened))


def test_title_and_language(run: Path, tmp_path: Path) -> None:
    def written(**options: Any) -> tuple[str, int]:
        (file,) = plot.draw([run], ["curves"], out=tmp_path, look=Look(**options))
        with Image.open(file) as image:
            return image.text["Title"], image.height

    title, height = written()
    assert title == f"first: {Recording(run).result}"
    assert written(title="Mine") == ("Mine", height)
    assert written(no_title=True) == ("", 1000)
    assert height > 1000
    with pytest.raises(ValueError, match="title and no_title are both given"):
        Look(title="a", no_title=True)
    with pytest.raises(ValueError, match="lang is 'de'; allowed: en, zh"):
        Look(lang="de")  # type: ignore[arg-type]


def test_every_word_has_its_chinese(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word without a translation is a KeyError."""
    monkeypatch.setattr(plot, "require_chinese", lambda: None)  # the words are looked at, not their glyphs
    with plot.style(lang="zh"):
        for name in figures.available(trained.recording)[1:]:
            words = texts(plot.figure(name, [trained.recording]))
            assert any("\u4e00" <= sign <= "\u9fff" for text in words for sign in text)


def test_without_a_chinese_font_there_is_a_hint(run: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "chinese_fonts", lambda: ())
    code, _, stderr = command("plot", run, "--what", "curves", "--lang", "zh")
    assert (code, stderr.count("\n")) == (1, 1)
    assert "no Chinese font" in stderr
    assert "fonts-wqy-microhei" in stderr
    assert "--lang en" in stderr


def test_chinese_glyphs_are_drawn(run: Path) -> None:
    if not fonts.chinese_fonts():
        pytest.skip("needs a Chinese font (Debian: apt-get install fonts-wqy-microhei)")
    with plot.style(lang="zh", names="一"):
        families = matplotlib.rcParams["font.family"]
        assert families[0] == "DejaVu Sans"
        assert families[1] in fonts.CHINESE
        face = matplotlib.ft2font.FT2Font(matplotlib.font_manager.findfont(families[1]))
        assert all(face.get_char_index(ord(sign)) for sign in "膜电位脉冲阈值准确率")


@pytest.mark.parametrize(("format", "magic"), [("png", b"\x89PNG\r\n\x1a\n"), ("svg", b"<?xml"), ("pdf", b"%PDF-")])
def test_files(format: str, magic: bytes, run: Path, tmp_path: Path) -> None:
    files = plot.draw([run], ["curves", "raster"], out=tmp_path / "new" / "folder", look=Look(format=format))
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
    assert files == [copy / "plots" / f"{name}.png" for name in figures.available(Recording(copy))]
    assert all(file.stat().st_size > 10_000 for file in files)
    assert matplotlib.rcParams == before
    assert not matplotlib.pyplot.get_fignums()


def test_two_drawings_of_a_run_are_the_same_file(run: Path, tmp_path: Path) -> None:
    for format in ("png", "svg"):
        one, two = (
            plot.draw([run], ["raster"], out=tmp_path / name, look=Look(format=format))[0].read_bytes() for name in "ab"
        )
        assert one == two


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
    with pytest.raises(ValueError, match="what is 'scores'; allowed for several runs: curves"):
        plot.draw([run, other], ["scores"])


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
    "unknown figure": (lambda run, tmp: [str(run), "--what", "curves,pie"], f"allowed: {', '.join(figures.DRAWINGS)}"),
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


def test_a_run_of_fit_has_curves(tmp_path: Path) -> None:
    source = fastsnn.sources.Arrays(torch.rand(30, 5, 4) < 0.5, torch.arange(30) % 3, test_fraction=0.3)
    fastsnn.fit(fastsnn.LinearLIF(4, 3), source, fastsnn.FitConfig(epochs=1, out=tmp_path / "own"))
    assert [file.name for file in plot.draw([tmp_path / "own"])] == ["curves.png"]
    with pytest.raises(ValueError, match=r"what is 'raster', which .*own has nothing for; allowed: curves"):
        plot.draw([tmp_path / "own"], ["raster"])
    network = fastsnn.LinearLIF(4, 3)
    files = plot.draw([tmp_path / "own"], ["raster", "traces"], network=network, source=source)
    assert [file.name for file in files] == ["raster.png", "traces.png"]


def test_a_figure_that_fails_leaves_the_old_files(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "curves.png").write_bytes(b"old")
    monkeypatch.setitem(figures.DRAWINGS, "scores", lambda recording, figure: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plot.draw([run], ["curves", "scores"], out=tmp_path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_the_command_prints_the_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot_runs(run, what=["curves"], out=tmp_path)
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "curves.png")]


def test_training_draws_at_its_end_and_survives_a_figure_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastsnn import cli

    config = replace(DIGITS, out=tmp_path / "run", T=2, epochs=1, train_samples=64, test_samples=20)
    monkeypatch.setattr(figures, "available", lambda recording: ["curves"])
    cli.train(config=config, plot=True)
    assert (tmp_path / "run" / "plots" / "curves.png").exists()
    monkeypatch.setitem(figures.DRAWINGS, "curves", lambda recording, figure: 1 / 0)
    cli.train(config=replace(config, out=tmp_path / "again"), plot=True)
    assert "the run is saved, but its figures could not be drawn: division by zero" in capsys.readouterr().err
    assert (tmp_path / "again" / "last.pt").exists()
