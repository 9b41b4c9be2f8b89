"""fastsnn/environment.py: what it reads from made-up commands and files, and from this machine."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastsnn import environment, legacy
from fastsnn.doctor import diagnose
from fastsnn.environment import GPU, read_environment


def test_reading_this_machine() -> None:
    env = read_environment()
    assert env.python == sys.version.split()[0]
    assert env.packages["spikingjelly"] == "0.0.0.0.14"
    assert env.disk_free > 0
    assert env.backends["torch"][1] is None
    assert set(env.backends) == {"torch", "cupy", "triton", "numba"}
    assert all("\n" not in row.value + row.advice for row in diagnose(env))


NVIDIA_SMI = """#!/bin/sh
echo '580.95.05, NVIDIA GeForce GTX 1070, 8192, 6.1'
echo '580.95.05, NVIDIA Thing, [N/A], [N/A]'
"""


def test_reading_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    command = tmp_path / "nvidia-smi"
    command.write_text(NVIDIA_SMI)
    command.chmod(0o755)
    version, gpus = environment._driver()
    assert version == "580.95.05"
    assert gpus == (GPU("NVIDIA GeForce GTX 1070", (6, 1), 8 * 2**30), GPU("NVIDIA Thing", None, None))
    command.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert environment._driver() == (None, ())
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert environment._driver() == (None, ())


def test_reading_the_bus(tmp_path: Path) -> None:
    for name, vendor, kind in (("a", "0x10de", "0x030000"), ("b", "0x10de", "0x040300"), ("c", "0x8086", "0x030000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    (tmp_path / "d").mkdir()
    assert environment.nvidia_devices(tmp_path) == 1
    assert environment.nvidia_devices(tmp_path / "nowhere") == 0


def test_reading_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       2048 kB\nMemFree:  1 kB\nMemAvailable:  1024 kB\n")
    assert environment._memory(tmp_path / "meminfo") == (2**21, 2**20)
    assert environment._memory(tmp_path / "nowhere") == (None, None)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from spikingjelly.clock_driven import neuron", True),
        ("import spikingjelly.clock_driven.functional as f", True),
        ("from spikingjelly import clock_driven", True),
        ("    from spikingjelly import configure, clock_driven", True),
        ("from spikingjelly.activation_based import neuron", False),
        ("# from spikingjelly.clock_driven import neuron", False),
    ],
)
def test_reading_scripts_of_the_old_layout(line: str, found: bool, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(f"import torch\n{line}\n")
    (tmp_path / "notes.txt").write_text("from spikingjelly.clock_driven import neuron\n")
    cells = [{"cell_type": "markdown", "source": [line]}, {"cell_type": "code", "source": ["import torch\n", line]}]
    (tmp_path / "study.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "words.ipynb").write_text(json.dumps({"cells": cells[:1]}))
    expected = (Path("study.ipynb"), Path("train.py")) if found else ()
    assert legacy.clock_driven_files(tmp_path) == expected


def test_where_the_old_layout_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(place: str, text: str = OLD) -> None:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    for place in ("models/deep/net.py", "b.py", ".git/c.py", "venv/lib/site-packages/d.py", "env/e.py", "x.ipynb"):
        put(place)
    put("env/pyvenv.cfg")
    put("/".join("12345678") + "/f.py")
    put("/".join("123456789") + "/g.py")
    for name, text in (("1", "{"), ("2", "[]"), ("3", '{"cells": 3}'), ("4", '{"cells": [{}]}'), ("5", "[" * 99_999)):
        put(f"{name}.ipynb", text)
    put("latin.py", OLD)
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n" + OLD.encode())
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "nowhere.py").symlink_to("none")
    expected = ["b.py", "latin.py", "1/2/3/4/5/6/7/8/f.py", "models/deep/net.py"]
    assert list(map(str, legacy.clock_driven_files(tmp_path))) == expected
    monkeypatch.setattr(legacy, "MOST_FILES", 6)
    assert list(map(str, legacy.clock_driven_files(tmp_path))) == ["b.py"]
    monkeypatch.setattr(legacy, "MOST_BYTES", 10)
    assert legacy.clock_driven_files(tmp_path) == ()


OLD = "from spikingjelly.clock_driven import neuron\n"


@pytest.fixture
def broken_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A torchvision that fails on import as one that was built for another torch does."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist\\nand more')\n"
    )
    (tmp_path / "torchvision-0.22.1.dist-info").mkdir()
    (tmp_path / "torchvision-0.22.1.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.22.1\n")
    loaded: dict[str, Any] = {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith("torchvision")}
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.update(loaded)


@pytest.mark.usefixtures("broken_torchvision")
def test_reading_a_torchvision_of_another_torch() -> None:
    assert environment._torchvision_error() == "operator torchvision::nms does not exist"
