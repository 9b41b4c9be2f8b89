"""Recordings (.wav) and series (.ts) become a data set, by examples/wav_to_npz.py, examples/ts_to_npz.py or by name."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from source_files import REAL, needs_real

from fastsnn.errors import DataUnavailable
from fastsnn.sources import open_source
from fastsnn.sources.waves import log_mel


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    import_module(name).main()


def tone(hertz: float, seconds: float, rate: int = 8000) -> np.ndarray:
    return (np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate) * 20_000).astype(np.int16)


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """Low and high tones of different lengths, named class_index.wav."""
    for label, hertz in (("high", 2000), ("low", 300)):
        for i in range(4):
            wavfile.write(tmp_path / f"{label}_{i}.wav", 8000, tone(hertz, 0.1 + 0.05 * i))
    return tmp_path


def test_wav_files_become_mel_bands(
    tones: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("wav_to_npz", monkeypatch, tones, tones / "tones.npz", "--bands", 20, "--test", "*_3.wav")
    assert "6 training and 2 test recordings, 23 steps of 20 bands, 2 classes" in capsys.readouterr().out
    source = open_source(tones / "tones.npz")
    batch = source.batch("train", torch.arange(6), 23)
    assert batch.y.tolist() == [0, 0, 0, 1, 1, 1], "classes in the order of the alphabet"
    assert batch.lengths is not None
    assert batch.lengths.tolist() == [8, 13, 18] * 2, "10 ms a step, the last window whole"
    assert isinstance(batch.x, torch.Tensor)
    assert torch.count_nonzero(batch.x[8:, 0]) == 0
    frames = torch.cat([batch.x[:length, i] for i, length in enumerate(batch.lengths)])
    assert frames.mean(0).abs().max() < 0.01
    assert (frames.std(0, correction=0) - 1).abs().max() < 0.01
    # The band of a tone is where the mel scale puts it: 20 bands up to 4 kHz, 2146 mel.
    for sample, hertz in ((2, 2000), (5, 300)):
        raw = log_mel(tone(hertz, 0.2) / 32767, 8000, 20)
        assert abs(int(raw[3].argmax()) - round(2595 * np.log10(1 + hertz / 700) / 2146 * 21 - 1)) <= 1
        assert batch.lengths[sample] == len(raw)


def test_wav_files_in_a_folder_for_each_class(tones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in sorted(tones.glob("*.wav")):
        target = tones / "by_class" / ("b" if "high" in path.name else "a")
        target.mkdir(parents=True, exist_ok=True)
        path.rename(target / path.name)
    run("wav_to_npz", monkeypatch, tones / "by_class", tones / "tones.npz")
    assert np.load(tones / "tones.npz")["y"].tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (lambda p: p.write_bytes(b""), (), "low_0.wav can't be read as a .wav file"),
        (lambda p: p.write_bytes(p.read_bytes()[:30]), (), "low_0.wav can't be read as a .wav file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), (), "low_0.wav can't be read as a .wav file .*Reached EOF"),
        (lambda p: wavfile.write(p, 16_000, tone(1, 1)), (), "holds files of 8000, 16000 Hz"),
        (lambda p: wavfile.write(p, 8000, tone(1, 0)), (), "low_0.wav holds no samples"),
        (lambda p: None, ("--test", "*_9.wav"), r"--test \*_9.wav matches no file"),
        (lambda p: None, ("--test", "*"), r"--test \* matches every file"),
    ],
)
def test_wav_files_that_do_not_do(
    tones: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, arguments: tuple[str, ...], message: str
) -> None:
    damage(tones / "low_0.wav")
    with pytest.raises(SystemExit, match=message):
        run("wav_to_npz", monkeypatch, tones, tones / "tones.npz", *arguments)


TS = "# a comment\n@problemName Small\n@timeStamps false\n@dimensions 2\n@classLabel true b a\n@data\n"


def test_ts_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "S_TRAIN.ts").write_text(TS + "1,2,3:4,5,6:a\n7:8:b\n")
    (tmp_path / "S_TEST.ts").write_text(TS + "1,1,1,1:2,2,2,2:b\n")
    run("ts_to_npz", monkeypatch, tmp_path / "S_TRAIN.ts", tmp_path / "S_TEST.ts", tmp_path / "s.npz")
    source = open_source(tmp_path / "s.npz")
    batch = source.batch("train", torch.arange(2), 4)
    assert batch.y.tolist() == [1, 0], "numbered as the header lists them"
    assert batch.lengths is not None
    assert batch.lengths.tolist() == [3, 1]
    raw = np.array([[1, 4], [2, 5], [3, 6], [7, 8]], float)
    expected = (raw - raw.mean(0)) / (raw.std(0) + 1e-6)
    assert isinstance(batch.x, torch.Tensor)
    np.testing.assert_allclose(batch.x[:3, 0].numpy(), expected[:3], rtol=1e-6)
    np.testing.assert_allclose(batch.x[0, 1].numpy(), expected[3], rtol=1e-6)
    assert torch.count_nonzero(batch.x[1:, 1]) == 0
    assert source.size("test") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no @classLabel true"),
        (TS, "has no series after @data"),
        (TS + "1,2:3,4:c\n", "line 7 ends with class 'c'; allowed: b, a"),
        (TS + "1,2:3,4\n", "line 7 ends with class '3,4'"),
        (TS + "1,?:3,4:a\n", "line 7: could not convert string to float"),
        (TS + "1,2:3:a\n", "line 7 has dimensions of 2, 1 values"),
        (TS + "1,nan:3,4:a\n", "line 7 has a value that is NaN"),
        (TS + "1,2:3,4:a\n1,2:a\n", "line 8 has 1 dimensions; allowed: 2"),
        (TS.replace("Stamps false", "Stamps true") + "1:2:a\n", "line 3 has time stamps"),
    ],
)
def test_ts_files_that_do_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    (tmp_path / "good.ts").write_text(TS + "1,2:3,4:a\n1,2:3,4:b\n")
    (tmp_path / "bad.ts").write_text(text)
    for pair in (("bad.ts", "good.ts"), ("good.ts", "bad.ts")):
        with pytest.raises(SystemExit, match=message):
            run("ts_to_npz", monkeypatch, *(tmp_path / name for name in pair), tmp_path / "s.npz")


@needs_real("JapaneseVowels")
def test_real_vowels() -> None:
    source = open_source("Japanese Vowels", REAL)
    assert (source.size("train"), source.size("test")) == (270, 370)
    assert (source.T, source.shape, source.classes) == (29, (12,), 9)
    lengths = source.batch("train", torch.arange(270), 29).lengths
    assert lengths is not None
    assert (lengths.min(), lengths.max()) == (7, 26)
    with pytest.raises(ValueError, match="T is 30, and japanese-vowels has 29 time steps; allowed: 29, or leave T out"):
        open_source("japanese-vowels", REAL, T=30)


@needs_real("fsdd")
def test_real_spoken_digits(tmp_path: Path) -> None:
    recordings = tmp_path / "fsdd" / "recordings"
    recordings.mkdir(parents=True)
    for path in (REAL / "fsdd" / "recordings").glob("*_theo_?.wav"):
        (recordings / path.name).symlink_to(path)
    source = open_source("fsdd", tmp_path, bands=20)
    assert (source.size("train"), source.size("test"), source.shape, source.classes) == (50, 50, (20,), 10)
    with pytest.raises(ValueError, match="bands is 0; allowed: 1 to 128"):
        open_source("fsdd", tmp_path, bands=0)


@needs_real("qtdb")
def test_real_ecg() -> None:
    source = open_source("qtdb", REAL)
    assert (source.size("train"), source.size("test"), source.classes) == (618, 141, 6)
    assert (source.T, source.shape, source.per_step) == (1301, (4,), True)


@needs_real("braille")
def test_real_braille_letters() -> None:
    source = open_source("braille", REAL)
    assert (source.size("train"), source.size("test"), source.classes) == (1080, 270, 27)
    assert (source.T, source.shape) == (76, (12,))
    assert torch.bincount(source.batch("test", torch.arange(270), 76).y).tolist() == [10] * 27


@pytest.mark.parametrize("T", [76, 152, 228])
def test_a_braille_value_lasts_several_steps(tmp_path: Path, T: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 76, 12), np.uint8)
    np.savez(tmp_path / "braille.npz", x=x, y=np.arange(20, dtype=np.uint8) % 4)
    source = open_source("braille", tmp_path, T=T, test_fraction=0.25, split_seed=1)
    batch = source.batch("train", torch.arange(16), T)
    assert isinstance(batch.x, torch.Tensor)
    assert batch.x.shape == (T, 16, 12)
    one = batch.x[:: T // 76]
    assert torch.equal(one.repeat_interleave(T // 76, 0), batch.x)
    assert one.mean((0, 1)).abs().max() < 1e-5
    assert (one.std((0, 1), correction=0) - 1).abs().max() < 1e-5


def test_a_braille_split_is_of_its_seed(tmp_path: Path) -> None:
    np.savez(tmp_path / "braille.npz", x=np.ones((20, 76, 12)) * np.arange(20)[:, None, None], y=np.arange(20) % 2)
    values = [
        open_source("braille", tmp_path, split_seed=seed).batch("test", torch.arange(4), 76).x[0, :, 0].tolist()
        for seed in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "braille.npz can't be read .*save the recordings of https"),
        ({"x": np.zeros((4, 76, 12))}, r"braille.npz holds x \[4, 76, 12\]: save"),
        ({"x": np.zeros((4, 76, 11)), "y": np.arange(4)}, r"holds x \[4, 76, 11\], y \[4\]: save"),
        ({"x": np.zeros((4, 76)), "y": np.arange(4)}, r"holds x \[4, 76\], y \[4\]: save"),
    ],
)
def test_braille_files_that_do_not_do(tmp_path: Path, arrays: Any, message: str) -> None:
    if arrays:
        np.savez(tmp_path / "braille.npz", **arrays)
    with pytest.raises(DataUnavailable, match=message):
        open_source("braille", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qtdb", "has no train.npz of the QT Database: save the arrays .* or name another folder with --data-dir"),
        ("braille", "braille.npz can't be read"),
        ("fsdd", "holds no recording of the Free Spoken Digit Dataset: get it from https://github.com"),
        ("japanese-vowels", "JapaneseVowels_TRAIN.ts can't be read .*timeseriesclassification.com"),
    ],
)
def test_a_missing_data_set_says_where_to_get_it(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataUnavailable, match=message):
        open_source(name, tmp_path)
    with pytest.raises(ValueError, match=f"encoder is 'poisson'; allowed for {name}: none"):
        open_source(name, REAL if REAL.is_dir() else tmp_path, encoder="poisson")


def test_braille_takes_whole_repetitions(tmp_path: Path) -> None:
    np.savez(tmp_path / "braille.npz", x=np.zeros((4, 76, 12)), y=np.arange(4) % 2)
    with pytest.raises(ValueError, match="T is 100, and braille has 76 time steps; allowed: a multiple of 76"):
        open_source("braille", tmp_path, T=100)
