"""predict and load: the classes that evaluate counted, of files of still samples and of sequences."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_tools import Command, small

import fastsnn
import fastsnn.checkpoint
import fastsnn.config
from fastsnn.errors import DataUnavailable, RunFolderError
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
    config = fastsnn.config.recorded_config(run)
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
    network = fastsnn.load(run, best=True)
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
