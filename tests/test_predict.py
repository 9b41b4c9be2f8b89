"""predict and load: the classes that evaluate counted, of files of still samples and of sequences."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_tools import Command, assert_refused, small

import fastsnn
import fastsnn.checkpoint
from fastsnn.errors import DataUnavailable, RunFolderError
from fastsnn.pictures import read_pictures
from fastsnn.recorded import recorded_config
from fastsnn.sources.images import load


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images of the small runs."""
    path = tmp_path_factory.mktemp("files") / "images.npz"
    np.savez(path, x=load("digits").test_images[:20].numpy())
    return path


@pytest.mark.parametrize("options", [{}, {"backend": "numba"}, {"hidden": (12,), "readout": "max"}], ids=str)
def test_predictions_are_those_of_evaluate(options: dict[str, Any], file: Path, tmp_path: Path) -> None:
    run = fastsnn.train(small(tmp_path / "run", **options)).run
    labels = load("digits").test_labels[:20]
    for T in (None, 9):
        found = fastsnn.predict(run, file, T=T)
        accuracy = fastsnn.evaluate(run, T=T)["test_accuracy"]
        assert (found.classes == labels).double().mean() == accuracy
        assert torch.equal(found.scores.argmax(-1), found.classes)
    assert fastsnn.evaluate(run, T=9)["T"] == 9


def test_the_command(run: Path, file: Path, tmp_path: Path, command: Command) -> None:
    expected = fastsnn.predict(run, file)
    code, stdout, stderr = command("predict", run, "--input", file)
    assert (code, stderr) == (0, "")
    header, *rows = csv.reader(io.StringIO(stdout))
    assert header == ["sample", "class", *(f"rate_{i}" for i in range(10))]
    assert [int(row[1]) for row in rows] == expected.classes.tolist()
    assert [float(value) for value in rows[3][2:]] == pytest.approx(expected.scores[3].tolist(), abs=1e-5)
    out = tmp_path / "new" / "found.json"
    code, stdout, _ = command("predict", run, "--input", file, "--format", "json", "--out", out, "--checkpoint", "best")
    assert (code, stdout) == (0, "")
    found = json.loads(out.read_text())
    assert found["scores"] == "rate"
    assert len(found["rates"]) == len(found["classes"]) == 20


def test_sequences(run: Path, tmp_path: Path) -> None:
    """Spikes of one's own: those that the test set has give what it gave."""
    config = recorded_config(run)
    images = load("digits").test_images[:20]
    spikes = fastsnn.poisson_encode(images.reshape(-1, 1, 8, 8), config.T or 0, config.seed, stream=1)
    path = tmp_path / "x.npy"
    np.save(path, spikes.transpose(0, 1).numpy().astype(np.uint8))
    still = tmp_path / "images.npz"
    np.savez(still, images=images.numpy())
    assert torch.equal(fastsnn.predict(run, path).scores, fastsnn.predict(run, still).scores)
    np.savez(tmp_path / "y.npz", x=np.load(path), lengths=np.array([2, *[4] * 19]))
    scores = fastsnn.predict(run, tmp_path / "y.npz").scores
    network = fastsnn.load(run)
    torch.testing.assert_close(scores[0], network(spikes[:, :1])[:2, 0].mean(0))
    torch.testing.assert_close(scores[1:], network(spikes)[:, 1:].mean(0))


def test_load(run: Path) -> None:
    network = fastsnn.load(run, checkpoint="best")
    assert not network.training
    saved = fastsnn.checkpoint.load(run / "best.pt")["model"]
    assert list(network.state_dict()) == list(saved) == ["0.weight"]
    assert torch.equal(network.state_dict()["0.weight"], saved["0.weight"])
    images = torch.rand(3, 1, 8, 8)
    assert network(fastsnn.poisson_encode(images, T=5)).shape == (5, 3, 10)
    with pytest.raises(RunFolderError, match="is not a run folder"):
        fastsnn.load(run.parent)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((3, 7, 8), np.uint8)}, r"shape \[3, 7, 8\]; allowed: \[D, 1, 8, 8\] or \[D, T, 1, 8, 8\]"),
        ({"x": np.zeros((3, 0, 1, 8, 8), np.uint8)}, r"shape \[3, 0, 1, 8, 8\]; allowed"),
        ({"x": np.zeros((3, 64), np.int64)}, "x in .* is int64; allowed: uint8, int8, bool or floating point"),
        ({"x": np.full((3, 64), 1.5)}, r"a pixel outside \[0, 1\] or NaN"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, "holds the arrays a, b; allowed: x"),
        ({"x": np.zeros((3, 4, 8, 8)), "lengths": np.array([1, 2, 5])}, r"values 1 to 5; allowed: \[3\], 1 to 4"),
    ],
)
def test_arrays_that_do_not_fit(arrays: dict[str, Any], said: str, run: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=said) as refused:
        fastsnn.predict(run, tmp_path / "x.npz")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04"])
def test_a_file_that_holds_no_arrays(content: bytes, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(DataUnavailable, match=r"x\.npz can't be read .*: allowed: a \.npz file with an array x"):
        fastsnn.predict(run, path)


# Pictures of one's own.


def drawn_again(digit: torch.Tensor, place: tuple[int, int], ground: int = 255) -> Image.Image:
    """A digit of a data set [H, W], light on black, as ink on paper: five times as large, anywhere on a sheet."""
    image = Image.fromarray(digit.numpy()).resize((5 * digit.shape[1], 5 * digit.shape[0]), Image.Resampling.NEAREST)
    ink = np.zeros((260, 330))
    ink[place[0] : place[0] + image.height, place[1] : place[1] + image.width] = np.asarray(image)
    return Image.fromarray(np.uint8(ground * (1 - ink / 255)) if ground > 127 else np.uint8(ink))


@pytest.mark.mnist
def test_a_picture_becomes_what_mnist_would_have_made_of_it(tmp_path: Path) -> None:
    data = load("mnist")
    for i, place in enumerate([(0, 0), (90, 150), (119, 189), (40, 60)]):
        digit = data.test_images[i].reshape(28, 28)
        for name, ground in (("light", 230), ("dark", 0)):
            drawn_again(digit, place, ground).save(tmp_path / f"{name}.png")
        seen = read_pictures([tmp_path / "light.png", tmp_path / "dark.png"], "mnist", (1, 28, 28))[:, 0]
        for picture in seen:
            assert np.corrcoef(picture.flatten(), digit.flatten())[0, 1] > 0.9
            inked = picture.nonzero()
            assert (inked.amax(0) - inked.amin(0)).amax() + 1 == 20, "it fits in 20 x 20"
            mass = (inked * picture[tuple(inked.T)][:, None]).sum(0) / picture.sum()
            assert ((mass - 14).abs() <= 0.51).all(), "its centre of mass is the middle"
            assert picture.max() == 255


def test_pictures_of_a_grey_set_fill_it_and_colours_are_scaled(tmp_path: Path) -> None:
    sheet = Image.new("RGBA", (300, 200), (0, 0, 0, 0))  # transparent: white
    sheet.paste((200, 0, 0, 255), (100, 50, 140, 130))
    sheet.save(tmp_path / "bar.png")
    (seen,) = read_pictures([tmp_path / "bar.png"], "digits", (1, 8, 8))
    expected = torch.zeros(8, 8, dtype=torch.uint8)
    expected[:, 2:6] = 255
    assert seen[0].equal(expected)
    (seen,) = read_pictures([tmp_path / "bar.png"], "cifar10", (3, 32, 32))
    assert seen.shape == (3, 32, 32)
    assert seen[0, 0, 0] == 255
    assert (seen[:, 14, 11] == torch.tensor([200, 0, 0])).all()


def test_the_command_takes_pictures(tmp_path: Path, command: Command) -> None:
    options = {"train_samples": 1437, "epochs": 4, "batch_size": 32, "T": 12}
    path = fastsnn.train(small(tmp_path / "run", **options)).run
    data = load("digits")
    right = 0
    for i in range(20):
        digit = data.test_images[i].reshape(8, 8)
        drawn_again(digit, (20, 30)).save(tmp_path / f"{i}.png")
    files = [tmp_path / f"{i}.png" for i in range(20)]
    code, stdout, stderr = command("predict", path, *files)
    assert (code, stderr) == (0, "")
    for i, line in enumerate(stdout.splitlines()):
        name, label, rates = re.fullmatch(r"(\d+\.png): (\d)   \(rates (.*)\)", line).groups()
        assert name == f"{i}.png"
        values = [float(rate.split(": ")[1]) for rate in rates.split("  ")]
        assert values[int(label)] == max(values)
        right += int(label) == data.test_labels[i]
    assert right >= 13
    code, stdout, _ = command("predict", path, files[0], "--format", "json", "--checkpoint", "best")
    assert json.loads(stdout)["scores"] == "rate"


def test_a_picture_that_is_none_is_one_line(tmp_path: Path, run: Path, command: Command) -> None:
    (tmp_path / "text.png").write_text("a")
    Image.new("L", (40, 40), 250).save(tmp_path / "blank.png")
    cases = {
        ("text.png",): (1, "text.png can't be read: it is no picture; allowed: a picture, as .png or .jpg"),
        ("none.png",): (1, "none.png can't be read"),
        ("blank.png",): (2, "blank.png is blank: nothing in it differs from its ground"),
        (): (2, "predict needs pictures or --input file.npz, one of the two"),
        ("blank.png", "--input", "x.npz"): (2, "one of the two"),
    }
    for arguments, (code, said) in cases.items():
        given = [tmp_path / part if part.endswith("png") else part for part in arguments]
        assert_refused(command("predict", run, *given), code, said)
    with pytest.raises(ValueError, match=r"samples of shape \[12\], which are no pictures; allowed: --input"):
        read_pictures([tmp_path / "blank.png"], "vowels", (12,))
