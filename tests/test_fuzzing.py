"""Damaged files: 200 checkpoints, 150 of their pickles, 50 config.yaml and 100 data files, each refused in one line.

The seeds are fixed: what is refused here is refused always.
"""

import io
import random
import zipfile
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from run_tools import Command, assert_same

import fastsnn
from fastsnn import checkpoint
from fastsnn.errors import RunFolderError
from fastsnn.sources import mnist


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Truncated, bit-flipped, overwritten in a stretch, or with a stretch taken out or put in."""
    data, at = bytearray(content), chance.randrange(len(content))
    kind = chance.choice(["truncate", "flip", "flip", "flips", "stretch", "cut", "insert"])
    if kind == "truncate":
        return content[:at]
    if kind == "cut":
        return content[:at] + content[at + chance.randint(1, 64) :]
    if kind == "insert":
        return content[:at] + chance.randbytes(chance.randint(1, 64)) + content[at:]
    if kind == "stretch":
        data[at : at + 16] = chance.randbytes(len(data[at : at + 16]))
    for _ in range({"flip": 1, "flips": 20}.get(kind, 0)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def assert_one_line(code: Any, stdout: str, stderr: str, name: str) -> None:
    assert (code, stdout) == (1, ""), stderr
    assert stderr.startswith("fastsnn: ")
    assert stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    assert name in stderr


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_checkpoints(seed: int, run: Path, command: Command) -> None:
    """50 cases each. Damage to bytes that mean nothing, such as padding, may go unnoticed if nothing else changed."""
    path = run / "last.pt"
    original, intact = path.read_bytes(), checkpoint.load(path)
    refused = 0
    for case in range(50):
        path.write_bytes(damaged(original, random.Random(1000 * seed + case)))
        try:
            found = checkpoint.load(path)
        except RunFolderError:
            refused += 1
            assert_one_line(*command(*random.Random(case).choice(COMMANDS), run), "last.pt")
        else:
            assert_same(found, intact)
    assert refused > 35


COMMANDS = (["eval"], ["eval", "--json"], ["train", "--resume"])


@pytest.mark.parametrize("seed", range(3))
def test_fuzzed_pickles_inside_the_archive(seed: int, run: Path, command: Command, tmp_path: Path) -> None:
    """50 cases each in which the container is sound and its pickle is damaged, so that the unpickler gets to see it."""
    path = run / "last.pt"
    intact = checkpoint.load(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in parts if name.endswith("data.pkl"))
    refused = 0
    for case in range(50):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, damaged(part, random.Random(1000 * seed + case)) if name == pickled else part)
        path.write_bytes(packed.getvalue())
        try:
            found = checkpoint.load(path)
        except RunFolderError:
            refused += 1
            assert_one_line(*command("eval", run), "last.pt")
        else:
            assert_same(found, intact)
    assert refused > 40


def test_fuzzed_config_files(run: Path, command: Command) -> None:
    """50 cases: refused in one line, or read as the same options, or as others that change no result."""
    path = run / "config.yaml"
    original, before = path.read_bytes(), fastsnn.evaluate(run)
    refused = 0
    for case in range(50):
        path.write_bytes(damaged(original, random.Random(case)))
        code, stdout, stderr = command("eval", "--json", run)
        if code:
            refused += 1
            assert_one_line(code, stdout, stderr, "config.yaml")
        else:
            after = fastsnn.evaluate(run)
            assert (after["test_loss"], after["epoch"]) == (before["test_loss"], before["epoch"])
    assert refused > 20


def test_fuzzed_data_files(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 cases of a label file whose hash is known, as MNIST's are: every one is noticed."""
    name = "t10k-labels-idx1-ubyte"
    original = (0x801).to_bytes(4, "big") + (10_000).to_bytes(4, "big") + random.Random(0).randbytes(10_000)
    original = original[:8] + bytes(byte % 10 for byte in original[8:])
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for other in mnist.HEADERS:
        (raw / other).touch()
    monkeypatch.setattr(mnist, "HEADERS", {name: mnist.HEADERS[name]})  # only this one is read
    monkeypatch.setattr(mnist, "_MNIST_MD5", {name: md5(original).hexdigest()})
    (raw / name).write_bytes(original)
    assert mnist.read(raw / name, "mnist").tobytes() == original[8:]
    for case in range(100):
        (raw / name).write_bytes(damaged(original, random.Random(case)))
        arguments = ["train", "--data-dir", tmp_path, "--dataset", ["mnist", "auto"][case % 2], "--backend", "torch"]
        assert_one_line(*command(*arguments, "--out", tmp_path / "run"), name)
        assert not (tmp_path / "run").exists()
