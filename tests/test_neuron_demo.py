"""``fastsnn demo neuron``: what is computed, drawn and said, for every neuron."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from run_tools import Command, assert_refused

import fastsnn
from fastsnn import plot
from fastsnn.figures.neuron_demo import headline, neuron_demo
from fastsnn.kernels.neurons import NEURONS
from fastsnn.look import Look
from fastsnn.neuron_demo import FIRES, NeuronDemo, demonstrate, weakest_current


def drawn(demo: NeuronDemo) -> Figure:
    with plot.style():
        return plot.canvas_of(lambda panel: neuron_demo(demo, panel), headline(demo), Look())


@pytest.mark.parametrize("name", NEURONS)
def test_every_neuron_is_shown_firing_and_silent(name: str) -> None:
    neuron = NEURONS[name]()
    demo = demonstrate(neuron)
    assert demo.current.shape == demo.membrane.potential.shape == (100,)
    current, output, *rest = drawn(demo).axes
    assert list(current.lines[0].get_ydata()) == demo.current.tolist()
    assert len(rest) == len(neuron.states) - 1 + neuron.spikes
    if not neuron.spikes:
        assert demo.spikes is None
        assert "does not fire" in headline(demo)
        return
    expected, _ = fastsnn.scan(demo.current[:, None], neuron, backend="torch")
    assert demo.spikes.equal(expected[:, 0])
    assert 2 <= demo.spikes.sum() < 60
    assert f"{int(demo.spikes.sum())} spikes in 100 time steps" in headline(demo)
    (t,) = demo.spikes.nonzero(as_tuple=True)
    segments = rest[-1].collections[0].get_segments()
    assert [int(segment[0][0]) for segment in segments] == t.tolist()
    threshold, line = output.lines
    assert list(threshold.get_ydata()) == demo.membrane.threshold.tolist()
    # Where it fires the line falls from h to what the reset leaves.
    points = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
    for step in t.tolist():
        first = points.index((step, demo.membrane.potential[step]))
        assert points[first + 1] == (step, demo.membrane.after[step])
    assert len(points) == 100 + len(t)


def test_the_weakest_current_is_the_weakest() -> None:
    for name in ("lif", "alif", "adlif", "cuba"):
        neuron, current = NEURONS[name](), weakest_current(NEURONS[name]())
        spikes = [
            fastsnn.scan(torch.full((100, 1), level), neuron)[0].sum() for level in (0.9 * current, 1.05 * current)
        ]
        assert spikes[0] < FIRES <= spikes[1]
    assert weakest_current(fastsnn.LI()) == 1.0


def test_levels_take_equal_parts() -> None:
    demo = demonstrate(fastsnn.LIF(tau=5.0), [0, 2, -1], 30)
    assert demo.current.tolist() == [0.0] * 10 + [2.0] * 10 + [-1.0] * 10
    assert demo.spikes[:10].sum() == demo.spikes[20:].sum() == 0 < demo.spikes.sum()
    assert demo.name == "LIF(tau=5)"
    assert demonstrate(fastsnn.LIF(), [10], 1).spikes.tolist() == [1]


def test_the_command(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("demo", "neuron") == (0, "neuron.png\n", "")
    with Image.open("neuron.png") as image:
        assert image.text["Title"].startswith("LIF(tau=10): ")
    assert command("demo", "neuron", "--neuron", "alif(tau=5)", "--current", "0,1", "--out", "a.svg")[0] == 0
    assert Path("a.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert command("demo", "neuron", "--format", "pdf", "--title", "Mine")[:2] == (0, "neuron.pdf\n")
    assert Path("neuron.pdf").read_bytes().startswith(b"%PDF")


def test_a_step_is_written_as_text_in_the_figure() -> None:
    words = [text.get_text() for text in drawn(demonstrate(fastsnn.LIF(tau=10.0))).findobj(Text)]
    assert {"input\ncurrent", "membrane\npotential", "spikes", "time step", "threshold"} <= set(words)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--neuron", "none"], "neuron is 'none'; allowed: if, lif"),
        (["--current", "1,x"], "current is 1,x; allowed: numbers"),
        (["--current", "nan"], "current is nan; allowed: numbers between"),
        (["-T", "0"], "T is 0; allowed: 1 or more time steps"),
        (["--title", "a", "--no-title"], "title and no_title are both given"),
        (["--lang", "de"], '"en", "zh"'),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, command: Command, tmp_path: Path) -> None:
    assert_refused(command("demo", "neuron", "--out", tmp_path / "a.png", *arguments), 2, said)
    assert not list(tmp_path.iterdir())
