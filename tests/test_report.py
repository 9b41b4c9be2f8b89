"""``fastsnn report``: what the page says, and in a browser that its raster moves and asks nobody for anything."""

import json
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import picture_runs
import pytest
import torch
import yaml
from PIL import Image
from run_tools import Command, small

import fastsnn
from fastsnn import figures, fonts, page_data, report
from fastsnn.recording import Recording
from fastsnn.words import language

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
        if tag == "svg":
            self.alternatives.append(named.get("aria-label", ""))

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
    assert "digits: 400 train, 40 test" in page.text
    assert "torch, autograd, cpu, 1 thread" in page.text
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
    # A figure's links are to its own shapes.
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    names = [name for _, names in report.SECTIONS for name in names if name in figures.available(reported.recording)]
    assert len(page.alternatives) == len(names) == 7
    assert all(page.alternatives)
    for name in names:
        assert f'<figure class="{name}"><svg' in reported.html
    assert len(reported.html) < 1_000_000


def test_figures_follow_the_colours_of_the_page(reported: Reported) -> None:
    drawn = reported.html.partition("</style>")[2]
    for name in ("paper", "ink", "data", "label"):
        assert f": var(--{name})" in drawn
    for colour in page_data._COLOURS:
        assert colour not in drawn


def test_the_table_of_classes_is_the_confusion(reported: Reported) -> None:
    text = Page(reported.html).text
    confusion = reported.recording.outcome.confusion
    for label, row in enumerate(confusion.tolist()):
        assert f"{label} {sum(row)} {row[label]} {100 * row[label] / sum(row):.1f} %" in text


def test_the_raster_gets_the_sample(reported: Reported) -> None:
    activity = json.loads(Page(reported.html).scripts["activity"])
    sample = reported.recording.sample
    assert (activity["label"], activity["prediction"]) == (sample.label, sample.prediction)
    assert activity["threshold"] == 0.5
    lit = sample.picture.flatten() > 0
    expected = {"input": sample.x.flatten(1)[:, lit]} | {
        name: layer.spikes for name, layer in zip(("hidden layer 1", "output"), sample.layers, strict=True)
    }
    assert [layer["name"] for layer in activity["layers"]] == list(expected)
    for layer in activity["layers"]:
        assert unpacked(layer["data"], layer["size"]).equal(expected[layer["name"]].to(torch.uint8))
    frames = activity["frames"]
    assert (frames["height"], frames["width"]) == (8, 8)
    assert unpacked(frames["data"], 64).equal(sample.x.flatten(1).to(torch.uint8))
    assert list(b64decode(frames["still"])) == sample.picture.flatten().tolist()
    potential = sample.layers[1].membrane.potential
    torch.testing.assert_close(torch.tensor(activity["potential"]), potential, rtol=1e-3, atol=1e-6)


def unpacked(data: str, size: int) -> torch.Tensor:
    bits = np.unpackbits(np.frombuffer(b64decode(data), np.uint8))[: T * size]
    return torch.tensor(bits).reshape(T, size)


@pytest.mark.parametrize("name", ["convolution", "recurrent", "lengths", "events", "labels per step"])
def test_a_run_of_any_kind(name: str, tmp_path: Path) -> None:
    recording = Recording(picture_runs.train(name, tmp_path))
    html = report.page(recording)
    page = Page(html)
    drawn = [figure for _, figures_ in report.SECTIONS for figure in figures_ if f'<figure class="{figure}">' in html]
    available = set(figures.available(recording)) - {"summary", "raster"}
    assert set(drawn) == available
    activity, sample = json.loads(page.scripts["activity"]), recording.sample
    assert activity["T"] == len(sample.x) == len(activity["potential"])
    assert [layer["kind"] for layer in activity["layers"][1:]] == [
        "levels" if layer.spikes is None else "spikes" for layer in sample.layers
    ]
    assert (activity["frames"] is None) == (sample.x.dim() != 4)
    if name == "labels per step":
        assert activity["labels"] == sample.labels.tolist()
        assert activity["predictions"] == sample.step_predictions.tolist()
    levels = np.frombuffer(b64decode(activity["layers"][-1]["data"]), np.uint8)
    if sample.output.spikes is None:
        output = sample.output.output
        scaled = (output - output.min()) / (output.max() - output.min()) * 255
        assert (np.abs(levels.reshape(output.shape) - scaled.numpy()) <= 0.51).all()


def test_a_run_of_fit_has_curves_and_numbers(tmp_path: Path) -> None:
    source = fastsnn.sources.Arrays(torch.rand(30, 5, 4) < 0.5, torch.arange(30) % 3, test_fraction=0.3)
    network = fastsnn.LinearLIF(4, 3)
    fastsnn.fit(network, source, fastsnn.FitConfig(epochs=1, out=tmp_path / "own"))
    html = report.write_report(tmp_path / "own").read_text(encoding="utf-8")
    assert "the folder holds neither its network nor its data" in html
    assert html.count('<figure class="') == 1
    assert "activity" not in Page(html).scripts
    html = report.write_report(tmp_path / "own", network=network, source=source).read_text(encoding="utf-8")
    assert html.count('<figure class="') > 5


def test_a_large_layer_stays_small() -> None:
    spikes = (torch.rand(100, 100_000) < 0.01).float()
    band = page_data._band("hidden", "", spikes)
    assert band["size"] == page_data.ROWS
    assert len(band["data"]) < 5000
    rows = np.unpackbits(np.frombuffer(b64decode(band["data"]), np.uint8)).reshape(100, -1)[:, : band["size"]]
    assert (rows.any(1) == spikes.any(1).numpy()).all()


def test_the_page_speaks_chinese(reported: Reported) -> None:
    if not fonts.chinese_fonts():
        pytest.skip("needs a Chinese font (Debian: apt-get install fonts-wqy-microhei)")
    with language("zh"):
        page = Page(report.page(reported.recording, title="标题"))
    assert page.text.count("标题") == 2
    for english in ("Training", "Settings", "spikes so far", "Accuracy of each class", "label", "predicted"):
        assert english not in page.text, english


@pytest.mark.usefixtures("no_figures")
def test_a_run_without_a_finished_epoch(reported: Reported) -> None:
    recording = Recording(reported.recording.path)
    recording.history = []
    assert Page(report.page(recording)).text.count("no epoch finished yet") == 3  # title, result and table


@pytest.mark.usefixtures("no_figures")
def test_the_interpreter_is_named(reported: Reported) -> None:
    recording = Recording(reported.recording.path)
    recording.config = replace(recording.config, backend="triton")
    assert "triton (in Triton's interpreter), autograd, cpu, 1 thread" in Page(report.page(recording)).text


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
    for name, said in (
        ("last.pt", "best.pt beside it is sound"),
        ("best.pt", "has no checkpoint yet: it has no last.pt"),
    ):
        (run / name).unlink()
        code, _, stderr = command("report", run)
        assert (code, stderr.count("\n")) == (1, 1)
        assert said in stderr
    assert not (run / "report.html").exists()


def test_a_page_that_fails_leaves_the_old_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "report.html").write_text("old")
    monkeypatch.setattr(report, "figure_of", lambda *_, **__: 1 / 0)
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
                scale * (LEFT + (t + 0.5) * step), scale * (top + (row + 0.4) * height / rows.length), 1, 1).data[3]));
        """)
    )


def test_the_slider_moves_the_raster(page: Any, reported: Reported) -> None:
    from selenium.webdriver.common.keys import Keys

    sample = reported.recording.sample
    spikes, potential = sample.layers[-1].spikes.bool(), sample.layers[-1].membrane.potential
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
        assert [level == 255 for level in image] == sample.x[t].flatten().bool().tolist()
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
        const [fill, paper] = [".figures svg", "section"].map((name) => getComputedStyle(document.querySelector(name)));
        return [fill.fill, paper.backgroundColor, raster.toDataURL(), colour("data")];
    """
    light = page.execute_script(script)
    use_scheme(page, "dark")
    WebDriverWait(page, 10).until(
        lambda _: all(a != b for a, b in zip(light, page.execute_script(script), strict=True)),
        "figures, paper, raster and data colour should all change",
    )


WIDER = """
    const limit = document.documentElement.clientWidth;
    return [...document.querySelectorAll("body *")].filter((element) => {
        const scrolls = element.closest(".scroll"), box = element.getBoundingClientRect();
        return !scrolls && !element.closest("svg") && box.width && box.right > limit + 1;
    }).map((element) => element.outerHTML.slice(0, 80));
"""
"""Elements that stand out at the right; tables may be moved in their own frames."""


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_the_page_fits_every_width(width: int, page: Any) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page.execute_script("return document.documentElement.clientWidth") in range(width - 20, width + 1)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        assert page.execute_script(WIDER) == []
        sizes = page.execute_script(
            "return [...document.querySelectorAll('.figures svg')].map((svg) => svg.getBoundingClientRect().width)"
        )
        assert min(sizes) > 0.8 * min(width - 60, 430), "a figure takes the width that there is"
        left, whole = page.execute_script("return [LEFT, raster.clientWidth]")
        assert left < 0.35 * whole, "the raster has room beside the names"
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_printed_page(page: Any, tmp_path: Path) -> None:
    """No heading is the last of a sheet, no table is cut at the right, the bars are there, and it is light."""
    if shutil.which("pdftotext") is None:
        pytest.skip("needs pdftotext (Debian: apt-get install poppler-utils)")
    use_scheme(page, "dark")
    options = {"preferCSSPageSize": True, "printBackground": False}
    printed = page.execute_cdp_cmd("Page.printToPDF", options)
    (tmp_path / "page.pdf").write_bytes(b64decode(printed["data"]))
    text = subprocess.run(
        ["pdftotext", "-layout", tmp_path / "page.pdf", "-"], capture_output=True, text=True, check=True
    ).stdout
    headings = ["One sample through time", "Training", "What it learnt", "The sample in figures", "Settings"]
    sheets = [[line.strip() for line in sheet.splitlines() if line.strip()] for sheet in text.split("\f")]
    for sheet in (lines for lines in sheets if lines):
        assert not {*headings, "Options", "Environment"}.intersection(sheet[-1:]), f"{sheet[-1]} ends a sheet"
    assert all(heading in text for heading in headings)
    (header,) = (line for line in text.splitlines() if line.strip().startswith("epoch ") and "train" in line)
    assert "firing rate" in " ".join(text[text.index(header) :].split()[:60]), "the last column is on the sheet"
    assert "Play" not in text
    # Bars are backgrounds, which browsers leave out unless they are told; the paper is white all the same.
    subprocess.run(["pdftoppm", "-r", "40", "-png", tmp_path / "page.pdf", tmp_path / "sheet"], check=True)
    blue = 0
    for file in sorted(tmp_path.glob("sheet*.png")):
        with Image.open(file) as sheet:
            pixels = np.asarray(sheet.convert("RGB"), int)
        assert (pixels[0, 0] == 255).all()
        blue = max(blue, int((np.abs(pixels - [0, 0x72, 0xB2]).max(-1) < 40).sum()))
    assert blue > 100
