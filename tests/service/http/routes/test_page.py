"""The page at `/` in a real browser: files dropped, sounds recorded, labels in words, errors in words.

Skipped where there is no Chromium (`apt-get install chromium`; or VIOLA_CHROMIUM names another).
SCREENSHOTS names a folder that screenshots are written to; the pictures of README and docs are its
`shipped_birds.png` and `shipped_birds_narrow.png`.
"""

import contextlib
import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import soxr
from safetensors import safe_open

from benchmarks.harness.servers import Server, running, viola
from service.inference.card import load_card, write_card
from tests.service.conftest import write_toy
from tests.service.text_towers import write_text_toy

playwright_api = pytest.importorskip("playwright.sync_api")
Browser, Page, Locator = playwright_api.Browser, playwright_api.Page, playwright_api.Locator
Route, WebSocketRoute = playwright_api.Route, playwright_api.WebSocketRoute
FloatRect, expect = playwright_api.FloatRect, playwright_api.expect

ROOT = Path(__file__).parents[4]
FIXTURES = ROOT / "tests" / "fixtures"
DOG = FIXTURES / "dog_bark_44k1_mono.ogg"
KEY = "open-sesame"
CHROMIUM = os.environ.get("VIOLA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("SCREENSHOTS")
PATIENCE_MS = 60_000  # a shared machine
CARD = "article:not([hidden])"  # of the sound that is chosen; one at a time is seen

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model byola with esc50 as its first head, the default: one label for a sound, and `known`."""
    folder = tmp_path_factory.mktemp("models") / "byola"
    shutil.copytree(ROOT / "models" / "byola", folder)
    card, first = load_card(folder), "heads/esc50.safetensors"
    write_card(folder, card.model_copy(update={"files": {first: card.files[first]} | card.files}))
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with running(viola(folder, "int8")) as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.fixture(scope="module")
def shipped_url() -> Iterator[str]:
    """Of a server of the model as it is, whose default head tells several labels at once."""
    with running(viola(ROOT / "models" / "byola", "int8")) as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dog that barks again and again, for Chromium's fake microphone: 16-bit WAV, 48 kHz."""
    samples, rate = soundfile.read(DOG)
    bark = soxr.resample(samples[2 * rate : 3 * rate], rate, 48_000)
    path = tmp_path_factory.mktemp("microphone") / "dog.wav"
    soundfile.write(path, np.tile(bark, 10), 48_000, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def browser(microphone: Path) -> Iterator[Browser]:
    arguments = [
        "--no-sandbox",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
    ]
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, loaded."""
    with watched(browser, url) as page:
        load(page, url)
        yield page


def load(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#model")).to_have_value("byola", timeout=PATIENCE_MS)


@contextlib.contextmanager
def watched(browser: Browser, url: str) -> Iterator[Page]:
    """An empty page. At its end: no other host was asked for anything, and the console is empty."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    assert {each for each in asked if not each.startswith((url, "blob:", "data:"))} == set()
    assert [each for each in said if not re.search("401|422|501", each)] == []  # the browser's own lines
    context.close()


def first_tag(page: Page) -> str:
    label = page.locator(f"{CARD} .tags li .label").first
    expect(label).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("article[aria-busy]")).to_have_count(0, timeout=PATIENCE_MS)
    return str(label.text_content())


def compared(page: Page, count: int) -> Locator:
    """The similarities of so many sounds, each to each other one, once all are there."""
    cells = page.locator("td.similarity:not(:empty)")
    expect(cells).to_have_count(count * (count - 1), timeout=PATIENCE_MS)
    return cells


def drop(page: Page, *paths: Path) -> None:
    page.locator("#files").set_input_files([str(path) for path in paths])


def look(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.wait_for_timeout(300)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)


def box(page: Page, selector: str) -> FloatRect:
    found = page.locator(selector).first.bounding_box()
    assert found
    return found


def painted(page: Page, canvas: str) -> int:
    """How many colours a canvas shows."""
    script = """canvas => {
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    }"""
    return int(page.locator(canvas).first.evaluate(script))


def test_a_file_becomes_tags_and_pictures(page: Page) -> None:
    drop(page, DOG)
    assert first_tag(page) == "Dog"
    assert painted(page, ".waveform canvas") >= 2
    assert painted(page, ".logmel canvas") > 50
    expect(page.locator("article .facts")).to_have_text("5.00 s")
    outer, filled = box(page, ".leading .bar"), box(page, ".leading .bar i")
    assert filled["y"] == outer["y"]
    assert 0.8 < filled["width"] / outer["width"] <= 1
    look(page, "page")


def test_a_file_is_sent_once_and_asked_everything(page: Page, url: str) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    before = received_bytes(url)
    drop(page, DOG)
    first_tag(page)
    expect(page.locator(".timeline .lane").first).to_be_visible()
    (target,) = sent
    assert "/classify?" in target
    assert received_bytes(url) - before == DOG.stat().st_size
    drop(page, FIXTURES / "rain_44k1_mono.mp3")
    compared(page, 2)
    page.get_by_role("button", name=DOG.name).first.click()
    page.get_by_role("button", name="Download all as CSV").click()
    assert len(sent) == 2


def test_until_there_is_an_answer_there_is_nothing_to_download(page: Page) -> None:
    held: list[Route] = []
    page.route(re.compile("/classify"), lambda route: held.append(route))
    drop(page, DOG)
    expect(page.locator(f"{CARD} .verdict")).to_have_text("Listening…")
    expect(page.locator(f"{CARD} .waveform canvas")).to_be_visible()  # which needs no server
    json_button = page.locator(CARD).get_by_role("button", name="JSON")
    expect(json_button).to_be_disabled()
    while not held:
        page.wait_for_timeout(50)
    held[0].continue_()
    assert first_tag(page) == "Dog"
    expect(json_button).to_be_enabled()


def received_bytes(url: str) -> float:
    """Of all bodies, as the server counts them."""
    (line,) = re.findall(r"^viola_received_bytes_total (\S+)$", httpx.get(f"{url}metrics").text, re.MULTILINE)
    return float(line)


def test_a_model_without_heads_gives_pictures_and_similarities(browser: Browser, url: str) -> None:
    answer = httpx.get(f"{url}models").json()
    for model in answer["models"]:
        model["heads"] = []
    with watched(browser, url) as page:
        page.route(f"{url}models", lambda route: route.fulfill(json=answer))
        load(page, url)
        drop(page, DOG, DOG)
        assert compared(page, 2).all_text_contents() == ["1.00", "1.00"]
        expect(page.locator(".verdict").first).to_have_text(re.compile("no labels"))
        assert painted(page, ".logmel canvas") > 50


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (390, 844)])
@pytest.mark.parametrize("sound", ["dog_bark_44k1_mono.ogg", "birds_30s_16k_mono.opus"])
def test_the_answer_is_the_first_thing_to_see(page: Page, width: int, height: int, sound: str) -> None:
    """Without scrolling, above the evidence, the leading tag at least half as large again as other text."""
    page.set_viewport_size({"width": width, "height": height})
    drop(page, FIXTURES / sound)
    first_tag(page)
    tags, evidence = box(page, ".tags"), box(page, ".evidence")
    assert tags["y"] > 0
    assert tags["y"] + tags["height"] <= evidence["y"]
    assert box(page, ".waveform")["y"] + box(page, ".waveform")["height"] <= height
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    size = "element => parseFloat(getComputedStyle(element).fontSize)"
    leading, other = (page.locator(f"{each} .label").first.evaluate(size) for each in (".leading", ".others"))
    assert leading >= 1.5 * other
    look(page, f"{sound.split('_')[0]}_{width}")


def test_labels_are_words(page: Page) -> None:
    drop(page, FIXTURES / "birds_30s_16k_mono.opus")
    assert first_tag(page) == "Chirping birds"
    labels = page.locator(".tags .label, .timeline .gutter").all_text_contents()
    assert len(labels) > 5
    assert not any("_" in label for label in labels)


def test_the_tags_over_time_lie_where_they_are_heard(page: Page) -> None:
    drop(page, DOG)
    first_tag(page)
    lanes = page.locator(".timeline .lane")
    labels = lanes.locator(".gutter").all_text_contents()
    assert labels[0] == "Dog"
    assert "Crickets" not in labels  # what the head makes of silence
    (mark,) = lanes.first.locator("i").all()  # it barks once, between 2.2 and 2.6 s
    plot, heard = box(page, ".timeline .plot"), mark.bounding_box()
    assert heard
    assert (heard["x"] - plot["x"]) / plot["width"] == pytest.approx(2 / 5, abs=0.01)
    assert heard["width"] / plot["width"] == pytest.approx(1 / 5, abs=0.01)
    expect(lanes.first.locator(".plot")).to_have_attribute("aria-label", re.compile(r"2\.0 to 3\.0 s: Dog"))


@pytest.mark.parametrize(
    ("known", "says"), [(0.004, "none of the 50 sounds"), (0.03, "unusual among the 50"), (0.4, "")]
)
def test_what_the_head_does_not_know_is_said_in_words(
    browser: Browser, url: str, known: float, says: str
) -> None:
    """The server's answer, with `known` as a head gives it that can tell."""
    with watched(browser, url) as page:

        def with_known(route: Route) -> None:
            answer = route.fetch(timeout=PATIENCE_MS)
            route.fulfill(response=answer, json=answer.json() | {"known": known})

        page.route(re.compile("/classify"), with_known)
        load(page, url)
        drop(page, DOG)
        first_tag(page)
        place = page.locator(f"{CARD} .known")
        if says:
            expect(place).to_contain_text(says)
        else:
            expect(place).to_be_hidden()


def test_a_head_of_several_labels_hears_what_has_a_segment(browser: Browser, url: str) -> None:
    """Its scores stand alone: 0.4 is much, where the label's own threshold is 0.3."""
    models = httpx.get(f"{url}models").json()
    models["models"][0]["heads"][0]["task"] = "multilabel"
    tags = [{"label": "Bark", "score": 0.43}, {"label": "Domestic animals, pets", "score": 0.36}]
    with watched(browser, url) as page:

        def of_several(route: Route) -> None:
            answer = route.fetch(timeout=PATIENCE_MS)
            heard = answer.json() | {"tags": tags}
            heard["timeline"][2]["tags"] = tags
            heard["segments"] = [{**tag, "start_s": 2.0, "end_s": 3.0} for tag in tags]
            route.fulfill(response=answer, json=heard)

        page.route(re.compile("/classify"), of_several)
        page.route(f"{url}models", lambda route: route.fulfill(json=models))
        load(page, url)
        drop(page, DOG)
        assert first_tag(page) == "Bark"
        expect(page.locator(".verdict").first).to_have_text("It hears")
        expect(page.locator(".leading li")).to_have_count(2)
        expect(page.locator(".segment")).to_have_count(1)  # both are heard at one time
        expect(page.locator(".segment .label")).to_have_text("Bark, Domestic animals, pets")


@pytest.mark.parametrize(
    ("sound", "labels", "verdict"),
    [
        (DOG.name, {"Animal", "Dog", "Domestic animals, pets"}, "It hears"),
        (
            "birds_30s_16k_mono.opus",
            {"Bird", "Bird vocalization, bird call, bird song", "Chirp, tweet"},
            "It hears",
        ),
        ("rain_44k1_mono.mp3", {"Rain", "Rain on surface"}, "It is not sure; it may be"),
    ],
)
def test_the_model_as_it_is_tells_its_tags(
    browser: Browser, shipped_url: str, sound: str, labels: set[str], verdict: str
) -> None:
    """By its default head, of 527 labels; nothing is heard in the silence around the dog."""
    with watched(browser, shipped_url) as page:
        load(page, shipped_url)
        expect(page.locator("#head")).to_have_value("audioset")
        drop(page, FIXTURES / sound)
        assert first_tag(page) in labels
        assert labels <= set(page.locator(f"{CARD} .tags .label").all_text_contents())
        expect(page.locator(".verdict").first).to_have_text(verdict)
        expect(page.locator(f"{CARD} .known")).to_be_hidden()
        assert "Silence" not in page.locator(f"{CARD} .tags .label").all_text_contents()
        sizes = page.locator(f"{CARD} .leading li").evaluate_all(
            "items => items.map((item) => parseFloat(getComputedStyle(item).fontSize))"
        )
        assert sizes[0] == max(sizes)  # the first is the largest, and a long name no larger than a short one
        assert sorted(sizes[1:], reverse=True) == sizes[1:]
        look(page, f"shipped_{sound.split('_')[0]}")
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 360, "height": 800})
        look(page, f"shipped_{sound.split('_')[0]}_narrow")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 1000, "height": 900})
        if sound == DOG.name:
            (segment,) = page.locator(".segment").all()
            expect(segment).to_have_text(re.compile(r"2\.0 – 3\.0 s.*Dog"))


def test_what_is_long_shows_the_surest_times_first_and_all_if_asked(
    browser: Browser, shipped_url: str
) -> None:
    with watched(browser, shipped_url) as page:
        load(page, shipped_url)
        drop(page, FIXTURES / "birds_30s_16k_mono.opus")
        first_tag(page)
        spans = page.locator(f"{CARD} .segment")
        expect(spans).to_have_count(3)
        surest = [share_of(each) for each in spans.locator(".number").all_text_contents()]
        page.get_by_role("button", name=re.compile(r"Show all \d+")).click()
        expect(spans.first).to_be_focused()
        every = [share_of(each) for each in spans.locator(".number").all_text_contents()]
        assert len(every) > 3
        assert sorted(surest) == sorted(every)[-3:]
        starts = [float(each.split(" ")[0]) for each in spans.locator(".span").all_text_contents()]
        assert starts == sorted(starts)


def share_of(words: str) -> int:
    """95 of "95 %"."""
    return int(words.removesuffix(" %"))


def test_what_it_can_tell_is_listed(page: Page, url: str) -> None:
    known = page.locator("#known")
    known.locator("summary").click()
    expect(known.locator("summary")).to_have_text("The 50 sounds it can tell")
    heads = httpx.get(f"{url}models/byola").json()["heads"]
    labels = next(head["labels"] for head in heads if head["name"] == "esc50")
    shown = known.locator("li").all_text_contents()
    assert sorted(each.lower() for each in shown) == sorted(each.replace("_", " ") for each in labels)


def test_a_quiet_sound_is_drawn_as_high_as_a_loud_one(page: Page, tmp_path: Path) -> None:
    samples, rate = soundfile.read(DOG)
    soundfile.write(tmp_path / "quiet.wav", samples / np.abs(samples).max() / 10, rate, subtype="FLOAT")
    drop(page, tmp_path / "quiet.wav")
    first_tag(page)
    height = page.locator(f"{CARD} .waveform canvas").evaluate(
        """canvas => {
            const {width, height} = canvas;
            const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
            const rows = Array.from({length: height}, (_, y) =>
                data.subarray(4 * y * width, 4 * (y + 1) * width).some((value) => value > 0));
            return rows.filter(Boolean).length / height;
        }"""
    )
    assert height > 0.75  # one half of it reaches the edge, the other nearly


def test_silence_is_not_given_a_label(page: Page) -> None:
    drop(page, FIXTURES / "silence_1s_16k_mono.wav")
    expect(page.locator("article .verdict")).to_have_text(re.compile("^Silence"), timeout=PATIENCE_MS)
    expect(page.locator(f"{CARD} .tags")).to_be_hidden()


def test_a_sound_that_only_the_server_can_decode_has_no_player(page: Page) -> None:
    drop(page, FIXTURES / "sitar_44k1_mono_pcm16.aiff")
    first_tag(page)
    assert painted(page, ".logmel canvas") > 50
    expect(page.locator(".play")).to_be_hidden()
    expect(page.locator(".waveform")).to_be_hidden()
    expect(page.locator(".unplayable")).to_be_visible()


# ── One player for waveform, log-mel and timeline ──


def test_the_axes_tell_seconds_and_khz(page: Page) -> None:
    drop(page, DOG)
    first_tag(page)
    seconds = page.locator(".time .mark")
    texts = seconds.all_text_contents()
    assert texts[0] == "0.0"
    assert texts[-1] == "5.0"
    plot = box(page, ".time .plot")
    marks = {text: centre(mark) for text, mark in zip(texts, seconds.all(), strict=True)}
    assert (marks["2.0"] - plot["x"]) / plot["width"] == pytest.approx(0.4, abs=0.005)
    logmel = box(page, ".logmel .plot")
    bottom = logmel["y"] + logmel["height"]
    heights = {
        str(mark.text_content()): (bottom - centre(mark, vertical=True)) / logmel["height"]
        for mark in page.locator(".logmel .mark").all()
    }
    assert set(heights) == {"0.25", "0.5", "1", "2", "4 kHz"}
    mel = slaney_mel(np.array([60, 7800, 250, 500, 1000, 2000, 4000]))
    steps = (mel[2:] - mel[0]) / (mel[1] - mel[0]) * 65  # the centres of 64 bands: 65 steps
    for khz, step in zip(["0.25", "0.5", "1", "2", "4 kHz"], steps, strict=True):
        assert heights[khz] == pytest.approx((step - 0.5) / 64, abs=0.02)  # a pixel or two


@pytest.mark.parametrize("seconds", [0.01, 0.5, 3, 5, 30, 61, 600, 7200])
def test_sounds_of_any_length_have_a_few_marks(page: Page, url: str, seconds: float) -> None:
    marks = page.evaluate(
        f"async seconds => (await import('{url}page/axes.js')).timeMarks(seconds, 10)", seconds
    )
    assert 3 <= len(marks) <= 11
    assert len({mark["text"] for mark in marks}) == len(marks)
    assert all(0 <= mark["place"] <= 1 for mark in marks)


def slaney_mel(hz: np.ndarray) -> np.ndarray:
    """By tabulation rather than by formula: 3 mel each 200 Hz up to 1 kHz, then 27 for each factor of 6.4."""
    log_hz = 1000 * 6.4 ** (np.arange(0, 60) / 27)
    return np.interp(hz, np.r_[np.arange(0, 1000, 200 / 3), log_hz], np.arange(15 + 60))


def test_the_playhead_runs_through_all_lanes(page: Page) -> None:
    drop(page, DOG)
    first_tag(page)
    before = box(page, ".playhead")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(page.locator(f"{CARD} .clock")).not_to_have_text(re.compile(r"^0:00\."), timeout=PATIENCE_MS)
    page.get_by_role("button", name="Pause").click()
    after = box(page, ".playhead")
    assert after["x"] > before["x"] + 10
    for lane in (".waveform", ".logmel", ".timeline"):
        plot = box(page, f"{lane} .plot")
        assert after["y"] <= plot["y"]
        assert after["y"] + after["height"] >= plot["y"] + plot["height"]
    at = position_s(page)
    plot = box(page, ".time .plot")
    assert (after["x"] + 1 - plot["x"]) / plot["width"] == pytest.approx(at / 5, abs=0.01)


@pytest.mark.parametrize("lane", [".waveform", ".logmel", ".timeline .lane:last-child"])
def test_a_click_in_any_lane_seeks(page: Page, lane: str) -> None:
    drop(page, DOG)
    first_tag(page)
    plot = box(page, f"{lane} .plot")
    page.mouse.click(plot["x"] + 0.46 * plot["width"], plot["y"] + plot["height"] / 2)
    assert position_s(page) == pytest.approx(2.3, abs=0.02)
    expect(page.locator(f"{CARD} .clock")).to_have_text("0:02.3 / 0:05.0")
    expect(page.locator(".seek")).to_have_attribute("aria-valuetext", re.compile("2.3 of 5.0 seconds; .*Dog"))


def test_the_arrow_keys_seek_and_the_space_bar_plays(page: Page) -> None:
    drop(page, DOG)
    first_tag(page)
    page.locator(".seek").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert position_s(page) == pytest.approx(0.3, abs=0.001)
    page.keyboard.press("ArrowLeft")
    assert position_s(page) == pytest.approx(0.2, abs=0.001)
    page.keyboard.press("End")
    assert position_s(page) == pytest.approx(5.0, abs=0.01)
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_one_sound_plays_at_a_time(page: Page) -> None:
    drop(page, FIXTURES / "rain_44k1_mono.mp3", FIXTURES / "birds_30s_16k_mono.opus")
    compared(page, 2)
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_have_count(1)
    page.get_by_role("button", name="birds_30s_16k_mono.opus").first.click()
    assert page.evaluate("[...document.querySelectorAll('audio')].map(audio => audio.paused)") == [True, True]
    expect(page.locator(CARD)).to_have_attribute("aria-label", "birds_30s_16k_mono.opus")


def test_a_click_on_a_segment_plays_it(page: Page) -> None:
    drop(page, DOG)
    first_tag(page)
    (segment,) = page.locator(".segment").all()  # it barks once; the silence around it is no cricket
    expect(segment).to_have_text(re.compile(r"2\.0 – 3\.0 s\s*Dog\s*\d\d %"))
    segment.click()
    expect(segment).to_have_attribute("aria-current", "true")
    expect(page.get_by_role("button", name="Play")).to_be_visible(
        timeout=PATIENCE_MS
    )  # it has stopped by itself
    assert 2.9 < position_s(page) < 4


def test_the_pointer_reads_time_frequency_and_value(page: Page) -> None:
    drop(page, DOG)
    first_tag(page)
    readings = {}
    for lane in (".waveform", ".logmel", ".timeline"):
        plot = box(page, f"{lane} .plot")
        page.mouse.move(plot["x"] + 0.47 * plot["width"], plot["y"] + plot["height"] / 2)
        readings[lane] = str(page.locator(".readout").text_content())
    assert all(reading.startswith("2.3") for reading in readings.values())
    loudest = float(readings[".waveform"].split("amplitude ")[1])
    samples, _ = soundfile.read(DOG)
    assert 0.1 < loudest <= np.abs(samples).max() + 0.01
    assert re.search(r"· 1\.[5-9] kHz · log-mel −?\d+\.\d$", readings[".logmel"])
    assert re.search(r"· Dog \d\d %$", readings[".timeline"])


def position_s(page: Page) -> float:
    return float(page.locator(f"{CARD} audio").evaluate("audio => audio.currentTime"))


def centre(mark: Locator, *, vertical: bool = False) -> float:
    where = mark.bounding_box()
    assert where
    return float(where["y"] + where["height"] / 2 if vertical else where["x"] + where["width"] / 2)


# ── Ways to bring a sound ──


def test_files_are_dropped_on_the_page(page: Page) -> None:
    data = (FIXTURES / "keyword_yes_16k_mono_pcm16.wav").read_bytes()
    transfer = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "yes.wav", {type: "audio/wav"}));
            return transfer;
        }""",
        list(data),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    first_tag(page)
    expect(page.locator("article h2")).to_have_text("yes.wav")


def test_several_sounds_stand_in_one_table_with_their_similarities(page: Page) -> None:
    """By the cosines of the vectors that the page gives away, and those of the same sound are 1."""
    drop(page, DOG, FIXTURES / "rain_44k1_mono.mp3", DOG)
    cells = compared(page, 3).all_text_contents()
    by_hand = cosines(page, 3)
    expected = [f"{by_hand[i, j]:.2f}".replace("-", "−") for i in range(3) for j in range(3) if i != j]
    assert cells == expected
    assert cells[1] == "1.00" != cells[0]
    assert page.locator("tbody .best").all_text_contents() == ["Dog", "Rain", "Dog"]
    page.locator("tbody .name").nth(1).click()
    expect(page.locator(CARD)).to_have_attribute("aria-label", "rain_44k1_mono.mp3")
    expect(page.locator("tbody .name[aria-current]")).to_have_count(1)
    look(page, "compared")
    page.locator(CARD).get_by_role("button", name="Remove").click()
    compared(page, 2)
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator("#sounds article")).to_have_count(0)
    expect(page.locator("#overview")).to_be_hidden()


def test_silence_and_what_cannot_be_heard_are_like_nothing(page: Page) -> None:
    drop(page, FIXTURES / "silence_1s_16k_mono.wav", FIXTURES / "invalid" / "text.wav", DOG)
    expect(page.locator("tbody .best")).to_have_text(
        ["Silence", "Could not be heard", "Dog"], timeout=PATIENCE_MS
    )
    expect(page.locator("article[aria-busy]")).to_have_count(0, timeout=PATIENCE_MS)
    assert page.locator("td.similarity").all_text_contents() == [""] * 9
    expect(page.locator(".legend")).to_be_empty()
    expect(page.get_by_role("columnheader", name=f"Alike to {DOG.name}")).to_have_count(1)


def cosines(page: Page, count: int) -> np.ndarray:
    """(count, count), of the downloaded vectors."""
    vectors = []
    for row in range(count):
        page.locator("tbody .name").nth(row).click()
        vectors.append(np.load(download(page, "Vector")))
    unit = np.stack([vector / np.linalg.norm(vector) for vector in vectors])
    return unit @ unit.T


def download(page: Page, name: str) -> Path:
    with page.expect_download() as info:
        page.locator(CARD).get_by_role("button", name=name, exact=True).click()
    return Path(info.value.path())


def test_what_was_heard_can_be_taken_away(page: Page, url: str) -> None:
    """JSON, CSV and vector say what the server says to anybody."""
    drop(page, DOG)
    first_tag(page)
    parameters = {"top_k": 6, "segments": True, "window_s": 1, "embedding": "float"}
    answer = httpx.post(
        f"{url}classify",
        params=parameters,
        content=DOG.read_bytes(),
        headers={"Content-Type": "audio/ogg"},
        timeout=60,
    ).json()
    saved = json.loads(download(page, "JSON").read_text(encoding="utf-8"))
    assert saved["file"] == DOG.name
    assert saved["tags"] == answer["tags"]
    assert saved["timeline"] == answer["timeline"]
    rows = list(csv.DictReader(download(page, "CSV").read_text(encoding="utf-8").splitlines()))
    tags = [row for row in rows if row["kind"] == "tag"]
    assert [(row["label"], float(row["score"])) for row in tags] == [
        (tag["label"], tag["score"]) for tag in answer["tags"]
    ]
    assert len([row for row in rows if row["kind"] == "window"]) == 6 * len(answer["timeline"])
    (heard,) = [row for row in rows if row["kind"] == "segment"]
    assert (heard["file"], heard["label"], float(heard["start_s"])) == (DOG.name, "dog", 2.0)
    vector = np.load(download(page, "Vector"))
    assert vector.dtype == np.float32
    # JSON's numbers are rounded to their float32.
    np.testing.assert_array_equal(vector, np.asarray(saved["embedding"], np.float32))
    if "projection" not in httpx.get(f"{url}models").json()["models"][0]["card"]:
        np.testing.assert_allclose(vector, answer["embedding"], rtol=1e-5, atol=1e-6)


def test_a_strange_name_is_a_cell_of_its_own(page: Page, tmp_path: Path) -> None:
    name = 'it\'s "a", dog.ogg'
    shutil.copy(DOG, tmp_path / name)
    drop(page, tmp_path / name)
    first_tag(page)
    rows = list(csv.DictReader(download(page, "CSV").read_text(encoding="utf-8").splitlines()))
    assert {row["file"] for row in rows} == {name}


def test_the_examples_play(page: Page) -> None:
    for name in ("a dog", "rain", "birds"):
        page.get_by_role("button", name=name, exact=True).click()
    compared(page, 3)
    assert page.locator("#sounds article").count() == 3
    assert painted(page, ".example canvas") >= 2


def test_the_microphone_is_heard(page: Page, microphone: Path) -> None:
    drop(page, FIXTURES / "rain_44k1_mono.mp3", microphone)
    compared(page, 2)
    page.get_by_role("button", name="Record").click()
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_have_attribute("aria-pressed", "true", timeout=PATIENCE_MS)
    page.wait_for_timeout(3000)
    stop.click()
    compared(page, 3)
    heard = page.locator(CARD)
    seconds = float(str(heard.locator(".facts").text_content()).removesuffix(" s"))
    assert 2 < seconds < 20
    similarities = page.locator("tbody tr").nth(2).locator("td.similarity:not(:empty)").all_text_contents()
    to_rain, to_microphone = (float(each.replace("−", "-")) for each in similarities)
    assert to_microphone > to_rain
    # What browsers record tells no length, and can be searched all the same.
    heard.locator(".waveform .plot").scroll_into_view_if_needed()
    plot = heard.locator(".waveform .plot").bounding_box()
    page.mouse.click(plot["x"] + plot["width"] / 2, plot["y"] + 5)
    assert position_s(page) == pytest.approx(seconds / 2, abs=0.1)
    heard.get_by_role("button", name="Play").click()
    expect(heard.get_by_role("button", name="Pause")).to_be_visible()


def test_where_the_browser_keeps_the_microphone_the_page_says_what_is_needed(
    browser: Browser, url: str
) -> None:
    """`mediaDevices` is not there over plain HTTP, but at localhost."""
    with watched(browser, url) as page:
        page.add_init_script("Object.defineProperty(Navigator.prototype, 'mediaDevices', {value: undefined})")
        load(page, url)
        page.get_by_role("button", name="Record").click()
        expect(page.get_by_role("alert").first).to_contain_text("HTTPS or at localhost")
        expect(page.get_by_role("button", name="Record")).to_have_attribute("aria-pressed", "false")


def test_a_microphone_that_is_refused_is_told_in_words(browser: Browser, url: str) -> None:
    with watched(browser, url) as page:
        page.add_init_script(
            "navigator.mediaDevices.getUserMedia = async () => "
            "{ throw new DOMException('Permission denied', 'NotAllowedError'); }"
        )
        load(page, url)
        page.get_by_role("button", name="Record").click()
        expect(page.get_by_role("alert").first).to_contain_text("was not allowed")


def test_a_file_that_is_no_sound_gives_the_servers_sentence(page: Page) -> None:
    drop(page, FIXTURES / "invalid" / "text.wav")
    failure = page.locator("article .failure")
    expect(failure).to_be_visible(timeout=PATIENCE_MS)
    expect(failure).to_contain_text(re.compile("not .*audio|no .*audio|cannot", re.IGNORECASE))
    look(page, "error")


def test_an_empty_file_is_told_in_the_words_of_the_page(page: Page, tmp_path: Path) -> None:
    """The server's sentence is for those who write requests."""
    (tmp_path / "empty.wav").touch()
    drop(page, tmp_path / "empty.wav")
    expect(page.locator("article .failure")).to_have_text("The file is empty.", timeout=PATIENCE_MS)


def test_a_file_that_breaks_off_can_be_played_and_shows_no_empty_pictures(page: Page) -> None:
    drop(page, FIXTURES / "invalid" / "truncated.flac")
    expect(page.locator("article .failure")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator(f"{CARD} .waveform")).to_be_visible()
    expect(page.locator(f"{CARD} .lane.logmel")).to_be_hidden()


def test_another_head_gives_other_tags(page: Page, url: str) -> None:
    heads = httpx.get(f"{url}models/byola").json()["heads"]
    (labels,) = (head["labels"] for head in heads if head["name"] == "instruments")
    drop(page, FIXTURES / "violin_44k1_mono_pcm16.wav")
    first_tag(page)
    page.locator("#head").select_option("instruments")
    expect(page.locator("article .tags li .label").first).to_have_text(
        re.compile("|".join(re.escape(each.replace("_", " ")) for each in labels), re.IGNORECASE),
        timeout=PATIENCE_MS,
    )


# ── Labels in words ──


@pytest.fixture(scope="module")
def text_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server of two toys, whose scores mean nothing: `clap` has a text tower, `toy` has none."""
    folder = tmp_path_factory.mktemp("texts")
    write_toy(folder / "toy")
    with running(viola(write_text_toy(folder / "clap", name="clap"), "float32")) as server:
        yield f"http://127.0.0.1:{server.port}/"


def test_a_model_with_a_text_tower_is_asked_for_labels_in_words(browser: Browser, text_url: str) -> None:
    labels = ["dog barks", "rain on the roof", "doorbell"]
    answer = httpx.post(
        f"{text_url}classify", params={"labels": ",".join(labels)}, content=DOG.read_bytes(), timeout=60
    ).json()
    with watched(browser, text_url) as page:
        page.goto(text_url)
        expect(page.locator("#model")).to_have_value("clap", timeout=PATIENCE_MS)
        drop(page, DOG)
        first_tag(page)
        field = page.get_by_label("Your own labels")
        field.fill("dog barks, ")
        field.press("Enter")
        assert "at least two" in field.evaluate("field => field.validationMessage")
        expect(page.locator("#head")).to_have_value("pets")

        field.fill(f" {labels[0]},{labels[1]} , {labels[2]},, {labels[0]}")
        page.get_by_role("button", name="Ask for these").click()
        expect(page.locator(f"{CARD} .verdict")).to_contain_text("Of your labels", timeout=PATIENCE_MS)
        shown = [each.lower() for each in page.locator(f"{CARD} .tags .label").all_text_contents()]
        assert shown == [tag["label"] for tag in answer["tags"]]
        expect(page.locator("#head option:checked")).to_have_text("your own (3)")
        assert json.loads(download(page, "JSON").read_text(encoding="utf-8"))["tags"] == answer["tags"]
        ran = subprocess.run(
            [sys.executable, "-c", code(page, "Python").replace(f'"{DOG.name}"', f'"{DOG}"')],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert answer["tags"][0]["label"] in ran.stdout
        look(page, "own_labels")

        page.get_by_role("link", name="Listen").click()
        page.get_by_role("button", name="Start listening").click()
        expect(page.locator("#listen .complaint")).to_contain_text("Your own labels are for Ask")
        page.get_by_role("link", name="Ask").click()
        page.locator("#head").select_option("pets")  # back to a head
        expect(page.locator(f"{CARD} .verdict")).not_to_contain_text("Of your labels", timeout=PATIENCE_MS)
        page.locator("#model").select_option("toy")
        expect(field).to_be_hidden()


def test_a_model_without_a_text_tower_has_no_field_for_labels(page: Page) -> None:
    expect(page.get_by_label("Your own labels")).to_be_hidden()


# ── The same in code ──


def code(page: Page, language: str) -> str:
    """The lines that the card of the one sound shows."""
    if page.locator("details[open]").count() == 0:
        page.locator(f"{CARD} summary").click()
    page.get_by_role("button", name=language, exact=True).click()
    return str(page.locator(f"{CARD} code").text_content())


def test_the_lines_of_code_are_the_same_call(page: Page, tmp_path: Path) -> None:
    """All three are run: by a shell, by Python, and by the browser."""
    shutil.copy(DOG, tmp_path)
    drop(page, DOG)
    first_tag(page)
    for command in (["sh", "-c", code(page, "curl")], [sys.executable, "-c", code(page, "Python")]):
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        assert re.search("""['"]label['"]: ?['"]dog['"]""", ran.stdout)
    script = code(page, "JavaScript").replace("console.log(await answer.json())", "return answer.json()")
    answer = page.evaluate(
        f"async bytes => {{ const file = new Blob([new Uint8Array(bytes)]); {script} }}",
        list(DOG.read_bytes()),
    )
    assert answer["tags"][0]["label"] == "dog"
    assert not any("YOUR_KEY" in code(page, language) for language in ("curl", "Python", "JavaScript"))


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_the_curl_line_takes_any_file_name(page: Page, tmp_path: Path) -> None:
    name = 'it\'s; a "dog", type=x.ogg'
    shutil.copy(DOG, tmp_path / name)
    drop(page, tmp_path / name)
    first_tag(page)
    for command in (["sh", "-c", code(page, "curl")], [sys.executable, "-c", code(page, "Python")]):
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        assert re.search("""['"]label['"]: ?['"]dog['"]""", ran.stdout)


def test_copy_says_that_it_copied(page: Page, url: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    drop(page, DOG)
    first_tag(page)
    lines = code(page, "Python")
    page.get_by_role("button", name="Copy").click()
    expect(page.locator(f"{CARD} .copied")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == lines


@pytest.mark.parametrize("old_way", [True, False])
def test_copy_without_the_clipboard_selects_the_text_and_says_so(
    browser: Browser, url: str, old_way: bool
) -> None:
    """Over plain HTTP there is no `navigator.clipboard`, and `execCommand` may be gone one day."""
    with watched(browser, url) as page:
        page.add_init_script("Object.defineProperty(Navigator.prototype, 'clipboard', {value: undefined})")
        if not old_way:
            page.add_init_script("document.execCommand = () => false")
        load(page, url)
        drop(page, DOG)
        first_tag(page)
        lines = code(page, "curl")
        page.get_by_role("button", name="Copy").click()
        says = "Selected and copied." if old_way else re.compile(r"^Selected: press Ctrl\+C")
        expect(page.locator(f"{CARD} .copied")).to_have_text(says)
        assert page.evaluate("getSelection().toString()").strip() == lines


# ── API keys ──


@pytest.fixture(scope="module")
def locked_url(folder: Path) -> Iterator[str]:
    """Of a server that asks for a key."""
    server = viola(folder, "int8")
    with running(replace(server, environment=server.environment | {"VIOLA_API_KEYS": KEY})) as up:
        yield f"http://127.0.0.1:{up.port}/"


def test_the_page_asks_for_a_key_and_sends_it(browser: Browser, locked_url: str) -> None:
    with watched(browser, locked_url) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(locked_url)
        field = page.get_by_label("This server asks for an API key.")
        expect(field).to_be_focused(timeout=PATIENCE_MS)
        expect(page.locator("#error")).to_be_hidden()
        look(page, "key")
        drop(page, DOG)  # waits for the key
        field.fill("not the key")
        field.press("Enter")
        expect(page.get_by_role("alert").first).to_have_text("The server does not know this key.")
        field.fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        assert first_tag(page) == "Dog"
        expect(field).to_be_hidden()
        expect(page.locator("#error")).to_be_hidden()
        headers = {"curl": "-H 'X-API-Key: YOUR_KEY'", "Python": '"X-API-Key": "YOUR_KEY"'}
        headers["JavaScript"] = headers["Python"]
        for language, header in headers.items():
            assert header in code(page, language)
            assert KEY not in code(page, language)
        load(page, locked_url)  # again, in the same tab: the key is still there
        expect(field).to_be_hidden()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
        assert not any(KEY in each for each in asked)


def test_a_key_that_is_no_longer_valid_is_asked_for_again(browser: Browser, locked_url: str) -> None:
    with watched(browser, locked_url) as page:
        page.add_init_script("sessionStorage.setItem('viola-api-key', 'old')")
        page.goto(locked_url)
        expect(page.get_by_label("This server asks for an API key.")).to_be_visible(timeout=PATIENCE_MS)


# ── Listen ──


class Line:
    """A server of /stream that says what a test wants: what was asked, and how many bytes came, connection by
    connection."""

    def __init__(self, page: Page, *answers: dict[str, Any]) -> None:
        """answers: beside `ready`, one for each connection; the last one for all that follow."""
        self.asked: list[dict[str, str]] = []
        self.received: list[int] = []
        self._answers = list(answers)
        page.route_web_socket(re.compile("/stream"), self._connect)

    def _connect(self, route: WebSocketRoute) -> None:
        self.asked.append(dict(httpx.QueryParams(httpx.URL(route.url).query)))
        self.received.append(0)
        place = len(self.asked) - 1
        answer = self._answers[min(place, len(self._answers) - 1)]
        route.send(
            json.dumps({"type": "ready", "model": "byola", "head": "esc50", "window_s": 1, "hop_s": 0.5})
        )

        def take(message: str | bytes) -> None:
            if isinstance(message, str):
                route.send(json.dumps({"type": "end", "seconds": 1}))
                route.close(code=1000)
                return
            if self.received[place] == 0:
                for each in answer["messages"]:
                    route.send(json.dumps(each))
                if code := answer.get("close"):
                    route.close(code=code)
            self.received[place] += len(message)

        route.on_message(take)


DOG_EVENT = {"type": "event", "label": "dog", "start_s": 1.0, "end_s": 2.5, "score": 0.93}
DOG_TAGS = {"type": "tags", "start_s": 0.0, "end_s": 1.0, "tags": [{"label": "dog", "score": 0.93}]}


def listen(page: Page, url: str) -> None:
    load(page, f"{url}#listen")
    page.get_by_role("button", name="Start listening").click()


def seconds_of(line: Line, place: int) -> float:
    return line.received[place] / 2 / int(line.asked[place]["rate"])


def test_the_microphone_is_tagged_while_it_is_heard(page: Page, url: str) -> None:
    """A dog that barks again and again, by the real server."""
    listen(page, url)
    expect(page.locator("#listen .loudest .label")).to_have_text("Dog", timeout=PATIENCE_MS)
    assert painted(page, "#live .logmel canvas") > 20
    expect(page.locator("#live .timeline .gutter").first).to_have_text("Dog", timeout=PATIENCE_MS)
    expect(page.locator("#listen .meter")).not_to_have_attribute("aria-valuenow", "-60", timeout=PATIENCE_MS)
    look(page, "listen")
    page.get_by_role("button", name="Stop").click()
    events = page.locator(".log tbody tr")
    expect(events.first).to_contain_text("Dog", timeout=PATIENCE_MS)  # the end of the stream ends it
    with page.expect_download() as info:
        page.locator(".log").get_by_role("button", name="Download CSV").click()
    rows = list(csv.DictReader(Path(info.value.path()).read_text(encoding="utf-8").splitlines()))
    assert "dog" in {row["label"] for row in rows}
    for row in rows:
        assert 0 <= float(row["start_s"]) < float(row["end_s"]) < 600
        assert datetime.fromisoformat(row["time"]).tzinfo is not None


def test_a_line_that_is_lost_goes_on_with_the_time_kept(browser: Browser, url: str) -> None:
    """The second connection begins at 0 again, which is where the first one ended."""
    with watched(browser, url) as page:
        line = Line(page, {"messages": [], "close": 1001}, {"messages": [DOG_EVENT]})
        listen(page, url)
        event = page.locator(".log tbody tr")
        expect(event).to_have_count(1, timeout=PATIENCE_MS)
        assert len(line.asked) == 2
        minutes, seconds = str(event.locator("td").nth(1).text_content()).split(" – ")[0].split(":")
        # At least the second that it waits before it tries again is past, less what it kept for the server.
        assert 1.0 <= 60 * float(minutes) + float(seconds) < 60
        page.get_by_role("button", name="Stop").click()


def test_the_threshold_is_asked_for_anew_and_no_sound_is_lost(browser: Browser, url: str) -> None:
    with watched(browser, url) as page:
        line = Line(page, {"messages": [DOG_TAGS]})
        listen(page, url)
        expect(page.locator("#listen .loudest .label")).to_have_text("Dog", timeout=PATIENCE_MS)
        assert line.asked[0]["begin"] == "0.50"
        assert (line.asked[0]["head"], line.asked[0]["format"]) == ("esc50", "s16le")
        page.get_by_label("Count as heard from").fill("95")
        page.wait_for_timeout(2000)
        assert [each["begin"] for each in line.asked] == ["0.50", "0.95"]
        expect(page.locator("#listen .loudest .label")).to_have_text("…", timeout=PATIENCE_MS)
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Start listening")).to_be_visible()
        minutes, seconds = str(page.locator("#listen .clock").text_content()).split(":")
        taken = 60 * int(minutes) + int(seconds)
        assert taken <= seconds_of(line, 0) + seconds_of(line, 1) < taken + 2


def test_a_head_with_thresholds_is_listened_to_with_each_labels_own(
    browser: Browser, shipped_url: str
) -> None:
    """The default head counts a dog from 0.035 on, which one threshold for all labels would miss."""
    (head, *_) = httpx.get(f"{shipped_url}models").json()["models"][0]["heads"]
    own = dict(zip(head["labels"], head["thresholds"], strict=True))
    assert own["Dog"] < 0.1 < own["Speech"]
    quiet = [{"label": "Speech", "score": own["Speech"] - 0.05}, {"label": "Dog", "score": own["Dog"] + 0.02}]
    with watched(browser, shipped_url) as page:
        line = Line(page, {"messages": [DOG_TAGS | {"tags": quiet}]})
        listen(page, shipped_url)
        loudest, told = page.locator("#listen .loudest .label"), page.locator("#threshold-value")
        expect(loudest).to_have_text("Dog", timeout=PATIENCE_MS)
        gutters = page.locator("#live .timeline .gutter")  # what is heard has its row, however quiet
        assert {"Dog", "Speech"} <= set(gutters.all_text_contents())
        look(page, "listen_own")
        expect(page.locator("#listen .others .label").first).to_have_text("Speech")
        expect(told).to_contain_text("automatic")
        button = page.get_by_role("button", name="Automatic")
        expect(button).to_be_hidden()
        assert "begin" not in line.asked[0]

        page.get_by_label("Count as heard from").fill("25")  # from now on one for all
        expect(told).to_have_text("25 %")
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 360, "height": 800})
        look(page, "listen_narrow")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.set_viewport_size({"width": 1000, "height": 900})
        expect(loudest).to_have_text("Speech", timeout=PATIENCE_MS)
        button.click()
        expect(loudest).to_have_text("Dog", timeout=PATIENCE_MS)
        expect(told).to_contain_text("automatic")
        assert [each.get("begin") for each in line.asked] == [None, "0.25", None]
        page.locator("#head").select_option("esc50")  # has none of its own
        expect(told).to_have_text("50 %")
        expect(button).to_be_hidden()
        page.get_by_role("button", name="Stop").click()


def test_a_stream_that_is_refused_is_told_in_words(browser: Browser, url: str) -> None:
    refusal = {"type": "error", "error": "unknown_head", "detail": "there is no such head"}
    with watched(browser, url) as page:
        Line(page, {"messages": [refusal], "close": 1008})
        listen(page, url)
        expect(page.locator("#listen .complaint")).to_have_text("There is no such head.", timeout=PATIENCE_MS)
        expect(page.get_by_role("button", name="Start listening")).to_be_visible()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            "Object.defineProperty(Navigator.prototype, 'mediaDevices', {value: undefined})",
            "HTTPS or at localhost",
        ),
        (
            "navigator.mediaDevices.getUserMedia = async () => "
            "{ throw new DOMException('Requested device not found', 'NotFoundError'); }",
            "no microphone",
        ),
    ],
)
def test_what_listening_needs_is_said(browser: Browser, url: str, script: str, says: str) -> None:
    with watched(browser, url) as page:
        page.add_init_script(script)
        listen(page, url)
        expect(page.locator("#listen .complaint")).to_contain_text(says)
        expect(page.locator("#live")).to_be_hidden()


def test_silence_is_not_told_as_a_sound(browser: Browser, url: str) -> None:
    """A head of AudioSet has a label for it."""
    silence = {"label": "Silence", "score": 0.97}
    tags = DOG_TAGS | {"tags": [silence, *DOG_TAGS["tags"]]}
    with watched(browser, url) as page:
        Line(page, {"messages": [tags, DOG_EVENT | silence, DOG_EVENT]})
        listen(page, url)
        expect(page.locator("#listen .loudest .label")).to_have_text("Dog", timeout=PATIENCE_MS)
        expect(page.locator(".log tbody tr")).to_have_count(1)
        expect(page.locator("#live")).not_to_contain_text("Silence")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#listen .state")).to_have_text("Stopped.")
        expect(page.locator("#live .answer")).to_be_hidden()  # nothing is heard now


def test_a_microphone_that_gives_nothing_is_told(browser: Browser, url: str) -> None:
    with watched(browser, url) as page:
        page.add_init_script(
            "navigator.mediaDevices.getUserMedia = async () => "
            "new AudioContext().createMediaStreamDestination().stream"
        )
        Line(page, {"messages": []})
        listen(page, url)
        expect(page.locator("#listen .state")).to_contain_text("Is it muted", timeout=PATIENCE_MS)
        page.get_by_role("button", name="Stop").click()


def test_the_microphone_is_let_go_with_the_part(browser: Browser, url: str) -> None:
    with watched(browser, url) as page:
        Line(page, {"messages": [DOG_TAGS]})
        listen(page, url)
        expect(page.locator("#listen .loudest .label")).to_have_text("Dog", timeout=PATIENCE_MS)
        page.get_by_role("link", name="Ask").click()
        expect(page.locator("#ask")).to_be_visible()
        expect(page.locator("#listen-toggle")).to_have_text("Start listening")
        page.set_viewport_size({"width": 360, "height": 800})
        page.get_by_role("link", name="Listen").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_key_goes_with_the_stream_and_not_in_its_address(browser: Browser, locked_url: str) -> None:
    with watched(browser, locked_url) as page:
        addresses: list[str] = []
        page.on("websocket", lambda socket: addresses.append(socket.url))
        page.add_init_script(f"sessionStorage.setItem('viola-api-key', '{KEY}')")
        listen(page, locked_url)
        expect(page.locator("#live .others .label").first).to_be_visible(timeout=PATIENCE_MS)
        assert addresses
        assert not any(KEY in address for address in addresses)


# ── Teach ──


@pytest.fixture(scope="module")
def teaching_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that keeps what it is taught."""
    folder = tmp_path_factory.mktemp("taught")
    with running(viola(ROOT / "models" / "byola", "int8", data_dir=str(folder))) as server:
        yield f"http://127.0.0.1:{server.port}/"


def teach(page: Page, label: str, *paths: Path) -> Locator:
    page.get_by_label("A sound’s name").fill(label)
    page.get_by_role("button", name="Add a label").click()
    card = page.locator(f".label-card[aria-label='{label}']")
    card.locator("input[type=file]").set_input_files([str(path) for path in paths])
    expect(card.locator(".examples-of li")).not_to_have_count(0, timeout=PATIENCE_MS)
    expect(page.locator("#teach[aria-busy]")).to_have_count(0, timeout=PATIENCE_MS)
    return card


def test_labels_are_taught_tried_taken_away_and_forgotten(browser: Browser, teaching_url: str) -> None:
    with watched(browser, teaching_url) as page:
        load(page, f"{teaching_url}#teach")
        bark = teach(page, "bark", DOG)
        teach(page, "wet", FIXTURES / "rain_44k1_mono.mp3", FIXTURES / "invalid" / "text.wav")
        expect(page.locator("#teach .complaint")).to_contain_text("text.wav")
        expect(bark.locator(".count")).to_have_text("1 example")
        expect(page.locator(".report li").first).to_be_visible()
        heads = {
            head["name"]: head for head in httpx.get(f"{teaching_url}models").json()["models"][0]["heads"]
        }
        assert sorted(heads["my-sounds"]["labels"]) == ["bark", "wet"]
        look(page, "teach")
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 360, "height": 800})
        look(page, "teach_narrow")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.set_viewport_size({"width": 1000, "height": 900})

        page.get_by_role("button", name="Try it at the microphone").click()
        expect(page.locator(".trial .loudest .label")).to_have_text("Bark", timeout=PATIENCE_MS)
        page.get_by_role("button", name="Stop").click()

        with page.expect_download() as info:
            page.locator("#head-file").click()
        with safe_open(info.value.path(), "np") as head:
            assert sorted(json.loads(head.metadata()["labels"])) == ["bark", "wet"]

        bark.get_by_role("button", name=re.compile("^Play ")).click()  # to hear it is not to forget it
        expect(bark.locator(".count")).to_have_text("1 example")

        load(page, f"{teaching_url}#teach")  # again: the server has kept it
        expect(page.locator(".label-card[aria-label='wet'] .count")).to_have_text(
            "1 example", timeout=PATIENCE_MS
        )
        page.locator(".label-card[aria-label='wet'] .forget").click()
        expect(page.locator(".label-card[aria-label='wet'] .count")).to_have_text(
            "0 examples", timeout=PATIENCE_MS
        )
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Forget it").click()
        expect(page.locator("#head option[value='my-sounds']")).to_have_count(0, timeout=PATIENCE_MS)
        assert httpx.get(f"{teaching_url}models/byola/heads").json()["heads"] == []


def test_a_damaged_head_is_told_and_the_others_are_taught(browser: Browser, tmp_path: Path) -> None:
    server = viola(ROOT / "models" / "byola", "int8", data_dir=str(tmp_path))
    with running(server) as up, watched(browser, address := f"http://127.0.0.1:{up.port}/") as page:
        for head in ("broken", "whole"):
            httpx.put(f"{address}models/byola/heads/{head}", timeout=60).raise_for_status()
        (tmp_path / "byola" / "taught" / "broken" / "head.json").write_text("{")
        load(page, f"{address}#teach")
        expect(page.locator("#teach .complaint")).to_contain_text("The head `broken`", timeout=PATIENCE_MS)
        expect(page.locator("#head-names option")).to_have_count(1)
        teach(page, "bark", DOG)


def test_where_nothing_is_kept_the_page_says_how_to_keep_it(browser: Browser, url: str) -> None:
    with watched(browser, url) as page:
        load(page, f"{url}#teach")
        expect(page.locator("#teach .off")).to_contain_text("VIOLA_DATA_DIR=", timeout=PATIENCE_MS)
        expect(page.locator("#add-label")).to_be_hidden()
        page.set_viewport_size({"width": 320, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        off, hero = box(page, "#teach .off"), box(page, "#teach .hero")
        assert hero["x"] < off["x"]
        assert off["x"] + off["width"] < hero["x"] + hero["width"]


def test_every_part_keeps_its_headline_when_a_sound_is_there(page: Page) -> None:
    drop(page, DOG)
    first_tag(page)
    for part in ("Listen", "Teach"):
        page.get_by_role("link", name=part).click()
        expect(page.locator(f"#{part.lower()} .invitation")).to_be_visible()
        expect(page.locator(f"#{part.lower()} .lead")).to_be_visible()


@pytest.fixture(scope="module")
def samples_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server whose model takes samples, which `import --encoder onnx` has made, and has no head yet."""
    from model_export.__main__ import main  # torch, which the server's other tests do without
    from tests.model_export.own_graphs import WAVEFORM, waveform_graph, write_own

    folder = tmp_path_factory.mktemp("samples")
    graph, describe = write_own(folder, waveform_graph(shape=["n", "t"]), WAVEFORM)
    words = ["import", "--encoder", "onnx", "--graph", str(graph), "--describe", str(describe)]
    assert main([*words, "--out", str(folder / "models" / "own")]) == 0
    taught = folder / "taught"
    with running(viola(folder / "models" / "own", "float32", data_dir=str(taught))) as server:
        yield f"http://127.0.0.1:{server.port}/"


def test_a_model_that_takes_samples_has_no_log_mel_and_the_page_says_so(
    browser: Browser, samples_url: str
) -> None:
    """Ask, teach and listen, all the same."""
    with watched(browser, samples_url) as page:
        page.goto(samples_url)
        expect(page.locator("#model")).to_have_value("own", timeout=PATIENCE_MS)
        drop(page, DOG, FIXTURES / "rain_44k1_mono.mp3")
        expect(page.locator(f"{CARD} .no-logmel")).to_have_text(
            "This model hears the samples themselves: there is no spectrogram to see.", timeout=PATIENCE_MS
        )
        expect(page.locator(f"{CARD} .lane.logmel")).to_be_hidden()
        assert painted(page, f"{CARD} .waveform canvas") > 1
        compared(page, 2)

        page.get_by_role("link", name="Teach").click()
        teach(page, "bark", DOG)
        teach(page, "rain", FIXTURES / "rain_44k1_mono.mp3")
        page.get_by_role("link", name="Ask").click()
        page.locator("#head").select_option("my-sounds")
        expect(page.locator(f"{CARD} .tags li .label").first).to_be_visible(timeout=PATIENCE_MS)
        look(page, "samples")

        page.get_by_role("link", name="Listen").click()
        page.get_by_role("button", name="Start listening").click()
        expect(page.locator("#live .others .label").first).to_be_visible(timeout=PATIENCE_MS)
        expect(page.locator("#live .no-logmel")).to_contain_text("The picture is this browser’s")
        assert painted(page, "#live .logmel canvas") > 20
        page.get_by_role("button", name="Stop").click()


# ── Every screen, every prefix ──


def test_a_narrow_dark_screen_needs_no_scrolling_sideways(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 800})
    drop(page, DOG)
    first_tag(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    look(page, "narrow")


def test_the_keyboard_is_enough(page: Page) -> None:
    """Tab leads to everything, the chooser of files included, and each has a name."""
    page.locator("body").click(position={"x": 1, "y": 1})
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        )
    assert {"files", "record", "a dog", "model", "head"} <= set(reached)
    drop(page, DOG)
    first_tag(page)
    page.get_by_role("button", name="Play").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "seek"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "JSON"
    names = page.evaluate(
        """[...document.querySelectorAll("input, select, button, [role=slider], [role=img]")]
            .filter(e => e.offsetParent).map(
            e => e.ariaLabel || e.labels?.[0]?.textContent.trim() || e.textContent.trim())"""
    )
    assert all(names)


def test_who_has_no_mouse_stays_where_they_are(browser: Browser, teaching_url: str) -> None:
    """The focus is on what was pressed, or on what is next to it where that is gone."""
    with watched(browser, teaching_url) as page:
        load(page, f"{teaching_url}#listen")
        toggle = page.locator("#listen-toggle")
        toggle.press("Enter")
        expect(toggle).to_have_text("Stop", timeout=PATIENCE_MS)
        expect(toggle).to_be_focused()
        toggle.press("Enter")
        expect(toggle).to_have_text("Start listening")

        page.get_by_role("link", name="Teach").click()
        card = teach(page, "focus", DOG, FIXTURES / "rain_44k1_mono.mp3")
        count = card.locator(".examples-of li").count()
        choose = card.get_by_role("button", name="Choose files")
        choose.focus()
        card.locator("input[type=file]").set_input_files(str(FIXTURES / "trumpet_44k1_stereo.ogg"))
        expect(card.locator(".examples-of li")).not_to_have_count(count, timeout=PATIENCE_MS)
        expect(page.locator("#teach[aria-busy]")).to_have_count(0, timeout=PATIENCE_MS)
        expect(choose).to_be_focused()
        more = card.locator(".examples-of li").count()
        card.locator(".forget").first.press("Enter")
        expect(card.locator(".examples-of li")).to_have_count(more - 1, timeout=PATIENCE_MS)
        expect(card.locator(".forget").first).to_be_focused()
        trial = page.locator(".trial button")
        trial.press("Enter")
        expect(trial).to_have_text("Stop", timeout=PATIENCE_MS)
        expect(trial).to_be_focused()
        trial.press("Enter")
        card.get_by_role("button", name="Remove focus").press("Enter")
        expect(card).to_have_count(0, timeout=PATIENCE_MS)
        expect(page.get_by_label("A sound’s name")).to_be_focused()


def test_headings_go_down_one_step_at_a_time(browser: Browser, teaching_url: str) -> None:
    with watched(browser, teaching_url) as page:
        load(page, teaching_url)
        drop(page, DOG)
        first_tag(page)
        assert_headings(page)
        page.get_by_role("link", name="Listen").click()
        page.get_by_role("button", name="Start listening").click()
        expect(page.locator("#live")).to_be_visible()
        assert_headings(page)
        page.get_by_role("link", name="Teach").click()
        page.get_by_label("A sound’s name").fill("bark")
        page.get_by_role("button", name="Add a label").click()
        expect(page.locator(".label-card")).to_have_count(2)
        assert_headings(page)


def assert_headings(page: Page) -> None:
    levels = page.evaluate(
        """[...document.querySelectorAll("h1, h2, h3")].filter((each) => each.checkVisibility())
            .map((each) => Number(each.tagName.slice(1)))"""
    )
    assert levels[0] == 1
    assert len(levels) > 2
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_page_may_load_nothing_but_its_own(url: str) -> None:
    answer = httpx.get(url)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not re.findall(r"""<base|\bstyle=|\bon\w+=|(?:href|src)=["'](?:/|\w+:)""", answer.text)


@pytest.mark.parametrize("target", ["", "docs"])
def test_the_page_works_behind_a_prefix_that_the_server_is_not_told(
    browser: Browser, url: str, target: str
) -> None:
    """A proxy that cuts the prefix off and says nothing of it."""
    prefixed = f"{url}some/where/"
    with watched(browser, prefixed) as page:
        page.route(
            f"{prefixed}**",
            lambda route: route.fulfill(
                response=route.fetch(url=route.request.url.replace(prefixed, url), timeout=PATIENCE_MS)
            ),
        )
        if target == "docs":
            page.goto(f"{prefixed}docs")
            expect(page.locator("[data-path='/classify']").first).to_be_visible(timeout=PATIENCE_MS)
            return
        load(page, prefixed)
        page.get_by_role("button", name="a dog", exact=True).click()
        assert first_tag(page) == "Dog"
        assert f"{prefixed}classify?" in code(page, "curl")


def test_the_page_works_behind_a_prefix_that_the_server_is_told(browser: Browser, folder: Path) -> None:
    with running(_behind_a_prefix(folder)) as server:
        url = f"http://127.0.0.1:{server.port}/viola/"
        with watched(browser, url) as page:
            load(page, url)
            drop(page, DOG)
            assert first_tag(page) == "Dog"


def test_the_api_page_is_complete_without_another_host(browser: Browser, url: str) -> None:
    assert "unsafe" not in httpx.get(f"{url}docs").headers["Content-Security-Policy"]
    with watched(browser, url) as page:
        page.goto(f"{url}docs")
        look(page, "docs")
        assert call_classify(page) == "dog"


def test_the_api_page_works_behind_a_path_prefix(browser: Browser, folder: Path) -> None:
    with running(_behind_a_prefix(folder)) as server:
        url = f"http://127.0.0.1:{server.port}/viola/"
        with watched(browser, url) as page:
            page.goto(f"{url}docs")
            assert call_classify(page) == "dog"
            assert page.url.startswith(f"{url}docs#")


def call_classify(page: Page) -> str:
    """The first tag, by the form that /docs has for POST /classify."""
    route = page.locator(".opblock-post").filter(has=page.locator("[data-path='/classify']"))
    route.locator(".opblock-summary-control").click()
    route.get_by_role("button", name="Try it out").click()
    route.locator("input[type=file]").set_input_files(str(DOG))
    route.get_by_role("button", name="Execute").click()
    answer = route.locator(".live-responses-table .microlight").first
    expect(answer).to_contain_text('"tags"', timeout=PATIENCE_MS)
    return str(json.loads(str(answer.text_content()))["tags"][0]["label"])


def _behind_a_prefix(folder: Path) -> Server:
    server = viola(folder, "int8")
    prefix = {"VIOLA_ROOT_PATH": "/viola"}
    return replace(server, environment=server.environment | prefix, ready="/viola/health/ready")
