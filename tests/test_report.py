"""``fastsnn report``: what the page says, and in a browser that its raster moves and asks nobody for anything."""

import json
import shutil
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from run_tools import Command, small

import fastsnn
from fastsnn import report
from fastsnn.activity import Recording

NAME = """<b>run & "one" 一"""
"""HTML would take this run's name apart."""
T, SAMPLE = 24, 7


@dataclass
class Reported:
    """A run with a hidden layer, its report and what the report is made of."""

    file: Path
    html: str
    recording: Recording


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    run = tmp_path_factory.mktemp("runs") / NAME
    fastsnn.train(small(run, T=T, hidden=(12,), train_samples=400, test_samples=40, v_threshold=0.5))
    file = report.write_report(run, sample=SAMPLE)
    recording = Recording(run, SAMPLE)
    assert all(layer.spikes.any() for layer in recording.sample.layers), "a layer that is silent shows nothing"
    return Reported(file, file.read_text(encoding="utf-8"), recording)


class Page(HTMLParser):
    """The words of a page, what its elements ask for, and the data in its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.sources: list[str] = []
        self.alternatives: list[str] = []
        self.scripts: dict[str, str] = {}
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attributes}
        self._inside = named.get("id", tag) if tag == "script" else tag
        self.sources += [named[name] for name in ("src", "srcset", "href") if name in named]
        if tag == "img":
            self.alternatives.append(named["alt"])

    def handle_data(self, text: str) -> None:
        if self._inside == "activity":
            self.scripts["activity"] = text
        elif self._inside not in ("script", "style"):
            self.words += text.split()

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_the_page_says_what_the_run_is(reported: Reported) -> None:
    page, recording = Page(reported.html), reported.recording
    assert reported.file == recording.path / "report.html"
    assert page.text.count(NAME) == 2  # title and heading
    assert recording.result in page.text
    assert f"64 → 12 → 10 LIF neurons, T = {T}" in page.text
    assert "digits: 400 training, 40 test images" in page.text
    assert "torch, autograd step, on cpu, 1 thread" in page.text
    recorded = yaml.safe_load((recording.path / "config.yaml").read_text())
    for name, value in recorded.pop("environment").items():
        assert f"{name} {value}" in page.text
    for name in recorded:
        assert f" {name} " in page.text
    for words in ("seed 0", "hidden 12", "alpha none", "decay_input yes", "bias no", "lr 0.05"):
        assert words in page.text


def test_the_table_is_the_metrics(reported: Reported) -> None:
    text = Page(reported.html).text
    for row in reported.recording.history:
        losses = f"{row.train_loss:.5f} {row.train_accuracy:.2%} {row.test_loss:.5f} {row.test_accuracy:.2%}"
        assert f"{row.epoch} {losses.replace('%', ' %')} {row.train_seconds:.2f}" in text
        assert " ".join(f"{rate:.4f}" for rate in row.firing_rates) in text
    assert len(reported.recording.history) == 3
    assert "firing rate 1 firing rate 2" in text


def test_everything_is_in_the_file(reported: Reported) -> None:
    page = Page(reported.html)
    assert all(source.startswith("data:") for source in page.sources)
    images = [source.removeprefix("data:image/png;base64,") for source in page.sources if "image/png" in source]
    assert len(set(images)) == 2 * len(report.FIGURES), "each figure is there for a light and for a dark page"
    assert all(b64decode(image).startswith(b"\x89PNG") for image in images)
    assert len(page.alternatives) == len(report.FIGURES)
    assert all(page.alternatives)


def test_the_raster_gets_the_sample(reported: Reported) -> None:
    activity = json.loads(Page(reported.html).scripts["activity"])
    sample = reported.recording.sample
    assert activity["image"] == sample.image.tolist()
    assert (activity["label"], activity["prediction"]) == (sample.label, sample.prediction)
    assert activity["threshold"] == 0.5
    expected = {"input": sample.spikes, "hidden 1": sample.layers[0].spikes, "output": sample.layers[1].spikes}
    assert [layer["name"] for layer in activity["layers"]] == list(expected)
    for layer in activity["layers"]:
        bits = np.unpackbits(np.frombuffer(b64decode(layer["spikes"]), np.uint8))[: T * layer["size"]]
        assert torch.equal(torch.tensor(bits).reshape(T, layer["size"]), expected[layer["name"]].to(torch.uint8))
    torch.testing.assert_close(torch.tensor(activity["potential"]), sample.layers[1].potential, rtol=1e-3, atol=0)


@pytest.mark.usefixtures("no_figures")
def test_a_run_without_a_finished_epoch(reported: Reported) -> None:
    recording = Recording(reported.recording.path)
    recording.history = []
    assert Page(report.page(recording)).text.count("no epoch finished yet") == 3  # title, result and table


@pytest.mark.usefixtures("no_figures")
def test_the_interpreter_is_named(reported: Reported) -> None:
    recording = Recording(reported.recording.path)
    recording.config = replace(recording.config, backend="triton")
    assert "triton, autograd step, on cpu in Triton's interpreter, 1 thread" in Page(report.page(recording)).text


BAD_INPUT = {
    "no run": (lambda run, tmp: [tmp], "is not a run folder: it has no config.yaml"),
    "no run named": (lambda run, tmp: [], "RUN"),
    "sample too large": (lambda run, tmp: [run, "--sample", "20"], "sample is 20; allowed: 0 to 19, the test set of"),
    "sample negative": (lambda run, tmp: [run, "--sample=-1"], "sample is -1; allowed: 0 to 19"),
    "sample no number": (lambda run, tmp: [run, "--sample", "first"], "--sample"),
    "a folder as output": (
        lambda run, tmp: [run, "--out", tmp],
        "it is a folder, not a file; name another place with --out",
    ),
    "unwritable": (lambda run, tmp: [run, "--out", run / "config.yaml" / "page.html"], "name another place with --out"),
}


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(case: str, run: Path, tmp_path: Path, command: Command) -> None:
    arguments, message = BAD_INPUT[case]
    empty = tmp_path / "empty"
    empty.mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, stdout, stderr = command("report", *arguments(run, empty))
    assert code in (1, 2)
    assert stdout == ""
    assert message in stderr
    assert stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_without_checkpoint(run: Path, command: Command) -> None:
    (run / "last.pt").unlink()
    code, _, stderr = command("report", run)
    assert (code, stderr.count("\n")) == (1, 1)
    assert "has no checkpoint yet: it has no last.pt" in stderr
    assert not (run / "report.html").exists()


def test_a_page_that_fails_leaves_the_old_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "report.html").write_text("old")
    monkeypatch.setattr(report.plot, "render", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write_report(run)
    assert (run / "report.html").read_text() == "old"


@pytest.mark.usefixtures("no_figures")
def test_the_command_names_the_file(run: Path, tmp_path: Path, command: Command) -> None:
    assert command("report", run, "--out", tmp_path / "new" / "page.html") == (
        0,
        f"{tmp_path / 'new' / 'page.html'}\n",
        "",
    )
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "page.html"]


# In a browser.

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def page(browser: Any, reported: Reported) -> Iterator[Any]:
    """The page, opened from disk; what it did is judged when the test is done."""
    use_scheme(browser, "light")
    browser.get_log("performance")  # what came before
    browser.get(reported.file.as_uri())
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert reported.file.as_uri() in asked
    assert [url for url in asked if url != reported.file.as_uri() and not url.startswith("data:")] == []


def use_scheme(browser: Any, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def press(page: Any, key: str, times: int = 1) -> None:
    page.find_element("id", "time").send_keys(key * times)


def drawn_output(page: Any) -> torch.Tensor:
    """Opacity of the raster where each output neuron (column) has its mark at each time step (row), 0 to 255."""
    return torch.tensor(
        page.execute_script("""
            const { rows, top, height } = bands[output], scale = devicePixelRatio, step = stepWidth();
            return [...Array(T).keys()].map((t) => rows.map((_, row) => raster.getContext("2d").getImageData(
                scale * (LEFT + (t + 0.35) * step), scale * (top + (row + 0.4) * height / rows.length), 1, 1).data[3]));
        """)
    )


def test_the_slider_moves_the_raster(page: Any, reported: Reported) -> None:
    from selenium.webdriver.common.keys import Keys

    sample = reported.recording.sample
    spikes, potential = sample.layers[-1].spikes.bool(), sample.layers[-1].potential
    pictures = set()
    for key, times, t in ((Keys.HOME, 1, 0), (Keys.ARROW_RIGHT, 5, 5), (Keys.ARROW_LEFT, 2, 3), (Keys.END, 1, T - 1)):
        press(page, key, times)
        assert page.find_element("id", "now").text == f"step {t} of {T - 1}"
        pictures.add(page.execute_script("return raster.toDataURL()"))
        # What has been is drawn in full, what is to come is faint, and no spike is missing or made up.
        opacity = drawn_output(page)
        assert torch.equal(opacity > 0, spikes)
        assert torch.equal(opacity > 128, spikes & (torch.arange(T) <= t)[:, None])
        cells = [row.find_elements("tag name", "td") for row in page.find_elements("css selector", "#output tbody tr")]
        assert [int(count.text) for _, _, count in cells] == spikes[: t + 1].sum(0).tolist()
        assert [h.text.endswith("fires") for _, h, _ in cells] == spikes[t].tolist()
        assert [float(h.text.split()[0]) for _, h, _ in cells] == pytest.approx(potential[t].tolist(), abs=0.006)
        image = page.execute_script(
            "const { data } = document.getElementById('spikes').getContext('2d').getImageData(0, 0, 8, 8);"
            "return [...data].filter((_, i) => i % 4 === 0)"
        )
        assert [level == 255 for level in image] == sample.spikes[t].bool().tolist()
    assert len(pictures) == 4
    assert [cell.text for cell, _, _ in cells][sample.label].startswith(f"{sample.label} label")


def test_dragging_and_playing_move_it_too(page: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.wait import WebDriverWait

    raster, button = page.find_element("id", "raster"), page.find_element("id", "play")
    ActionChains(page).move_to_element(raster).click_and_hold().move_by_offset(60, 0).release().perform()
    middle = int(page.find_element("id", "now").text.split()[1])
    width, left = raster.size["width"], page.execute_script("return LEFT")
    assert middle == int((width / 2 + 60 - left) / ((width - left) / T))
    button.click()
    assert button.text == "Pause"
    WebDriverWait(page, 10).until(lambda _: int(page.find_element("id", "now").text.split()[1]) > middle)
    button.click()
    assert button.text == "Play"


def test_light_and_dark(page: Any) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    script = """
        const image = document.querySelector("img"), style = getComputedStyle(document.querySelector("section"));
        return [image.currentSrc, style.backgroundColor, raster.toDataURL(), colour("data")];
    """
    light = page.execute_script(script)
    use_scheme(page, "dark")
    WebDriverWait(page, 10).until(
        lambda _: all(a != b for a, b in zip(light, page.execute_script(script), strict=True)),
        "figures, paper, raster and data colour should all change",
    )
    assert page.execute_script("return [...document.images].every((image) => image.complete && image.naturalWidth)")


def test_the_page_fits_a_phone(page: Any) -> None:
    page.set_window_size(520, 900)
    wide = page.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    page.set_window_size(1200, 1000)
    assert wide == 0
