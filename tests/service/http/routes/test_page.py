"""The page at `/` in a real browser: files dropped, sounds recorded, errors in words.

Skipped where there is no Chromium (`apt-get install chromium`; or VIOLA_CHROMIUM names another).
VIOLA_SCREENSHOTS names a folder that screenshots are written to.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import soxr

from benchmarks.servers import running, viola

playwright_api = pytest.importorskip("playwright.sync_api")
Browser, Page, expect = playwright_api.Browser, playwright_api.Page, playwright_api.expect

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
CHROMIUM = os.environ.get("VIOLA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("VIOLA_SCREENSHOTS")
PATIENCE_MS = 60_000  # a shared machine

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(viola(ROOT / "models" / "byola", "int8")) as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dog that barks again and again, for Chromium's fake microphone: 16-bit WAV, 48 kHz."""
    samples, rate = soundfile.read(FIXTURES / "dog_bark_44k1_mono.ogg")
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
        page.goto(url)
        expect(page.locator("#model")).to_have_value("byola", timeout=PATIENCE_MS)
        yield page


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
    assert [each for each in said if "422" not in each] == []  # the browser's own line on a refused file
    context.close()


def first_tag(page: Page) -> str:
    label = page.locator("article .tags li .label").first
    expect(label).to_be_visible(timeout=PATIENCE_MS)
    return str(label.text_content())


def drop(page: Page, *paths: Path) -> None:
    page.locator("#files").set_input_files([str(path) for path in paths])


def look(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.wait_for_timeout(300)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)


def painted(page: Page, canvas: str) -> int:
    """How many colours a canvas shows."""
    script = """canvas => {
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    }"""
    return int(page.locator(canvas).first.evaluate(script))


def test_a_file_becomes_pictures_and_tags(page: Page) -> None:
    drop(page, FIXTURES / "dog_bark_44k1_mono.ogg")
    assert first_tag(page) == "dog"
    assert painted(page, ".waveform") >= 2
    assert painted(page, ".logmel") > 50
    expect(page.locator("article .facts")).to_have_text("5.00 s")
    bar = page.locator("article .tags .bar").first
    outer, filled = bar.bounding_box(), bar.locator("i").bounding_box()
    assert outer
    assert filled
    assert filled["y"] == outer["y"]
    assert 0.8 < filled["width"] / outer["width"] <= 1
    labels = page.locator(".timeline th").all_text_contents()
    assert "dog" in labels
    assert "crickets" not in labels  # what the head makes of silence
    assert (
        page.locator(".timeline tr").first.locator("td").first.get_attribute("title")
        == "0.0 to 1.0 s: silence"
    )
    look(page, "page")


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
    expect(page.locator("article h3")).to_have_text("yes.wav")


def test_the_nearest_of_the_sounds_come_with_their_cosine(page: Page) -> None:
    dog = FIXTURES / "dog_bark_44k1_mono.ogg"
    drop(page, dog, FIXTURES / "rain_44k1_mono.mp3", dog)
    expect(page.locator(".nearest li")).to_have_count(6, timeout=PATIENCE_MS)
    nearest = page.locator("article").first.locator(".nearest li")
    assert nearest.first.locator(".number").text_content() == "1.000"
    assert float(nearest.nth(1).locator(".number").text_content()) < 0.999


def test_the_examples_play(page: Page) -> None:
    for name in ("a dog", "rain", "birds"):
        page.get_by_role("button", name=name, exact=True).click()
    expect(page.locator("article .tags li").first).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("article[aria-busy]")).to_have_count(0, timeout=PATIENCE_MS)
    assert page.locator("article").count() == 3


def test_the_microphone_is_heard(page: Page, microphone: Path) -> None:
    drop(page, FIXTURES / "rain_44k1_mono.mp3", microphone)
    expect(page.locator(".nearest li")).to_have_count(2, timeout=PATIENCE_MS)
    button = page.get_by_role("button", name="Record")
    button.click()
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_have_attribute("aria-pressed", "true", timeout=PATIENCE_MS)
    page.wait_for_timeout(3000)
    stop.click()
    expect(page.locator(".nearest li")).to_have_count(6, timeout=PATIENCE_MS)
    heard = page.locator("article").first
    seconds = float(str(heard.locator(".facts").text_content()).removesuffix(" s"))
    assert 2 < seconds < 20
    assert heard.locator(".nearest .label").first.text_content() == microphone.name


def test_a_file_that_is_no_sound_gives_the_servers_sentence(page: Page) -> None:
    drop(page, FIXTURES / "invalid" / "text.wav")
    failure = page.locator("article .failure")
    expect(failure).to_be_visible(timeout=PATIENCE_MS)
    expect(failure).to_contain_text(re.compile("not .*audio|no .*audio|cannot", re.IGNORECASE))
    look(page, "error")


def test_another_head_gives_other_tags(page: Page, url: str) -> None:
    heads = httpx.get(f"{url}models/byola").json()["heads"]
    (labels,) = (head["labels"] for head in heads if head["name"] == "instruments")
    drop(page, FIXTURES / "violin_44k1_mono_pcm16.wav")
    first_tag(page)
    page.locator("#head").select_option("instruments")
    expect(page.locator("article .tags li .label").first).to_have_text(
        re.compile("|".join(map(re.escape, labels))), timeout=PATIENCE_MS
    )


def test_the_curl_line_is_the_same_call(page: Page) -> None:
    drop(page, FIXTURES / "dog_bark_44k1_mono.ogg")
    first_tag(page)
    page.locator("summary").click()
    line = str(page.locator("code").text_content())
    (target,) = re.findall(r"'(http[^']+)'", line)
    assert "file=@dog_bark_44k1_mono.ogg" in line
    sound = (FIXTURES / "dog_bark_44k1_mono.ogg").read_bytes()
    answer = httpx.post(target, files={"file": sound}, timeout=60)
    assert answer.json()["tags"][0]["label"] == "dog"


def test_a_narrow_dark_screen_needs_no_scrolling_sideways(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 800})
    drop(page, FIXTURES / "dog_bark_44k1_mono.ogg")
    first_tag(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    look(page, "narrow")


def test_the_keyboard_is_enough(page: Page) -> None:
    """Tab leads to everything, the chooser of files included, and each has a name."""
    page.locator("body").click(position={"x": 1, "y": 1})
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        )
    assert {"files", "record", "a dog", "model", "head"} <= set(reached)
    names = page.evaluate(
        """[...document.querySelectorAll("input, select, button")].filter(e => e.offsetParent).map(
            e => e.ariaLabel || e.labels?.[0]?.textContent.trim() || e.textContent.trim())"""
    )
    assert all(names)


def test_the_page_works_behind_a_path_prefix_and_may_load_nothing_else(url: str) -> None:
    answer = httpx.get(url)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert '<base href="/">' in answer.text
    with running(_behind_a_prefix()) as server:
        answer = httpx.get(f"http://127.0.0.1:{server.port}/viola/")
        assert '<base href="/viola/">' in answer.text


def test_the_api_page_is_complete_without_another_host(browser: Browser, url: str) -> None:
    assert "unsafe" not in httpx.get(f"{url}docs").headers["Content-Security-Policy"]
    with watched(browser, url) as page:
        page.goto(f"{url}docs")
        look(page, "docs")
        assert call_classify(page) == "dog"


def test_the_api_page_works_behind_a_path_prefix(browser: Browser) -> None:
    with running(_behind_a_prefix()) as server:
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
    route.locator("input[type=file]").set_input_files(str(FIXTURES / "dog_bark_44k1_mono.ogg"))
    route.get_by_role("button", name="Execute").click()
    answer = route.locator(".live-responses-table .microlight").first
    expect(answer).to_contain_text('"tags"', timeout=PATIENCE_MS)
    return str(json.loads(str(answer.text_content()))["tags"][0]["label"])


def _behind_a_prefix():  # type: ignore[no-untyped-def]
    server = viola(ROOT / "models" / "byola", "int8")
    prefix = {"VIOLA_ROOT_PATH": "/viola"}
    return replace(server, environment=server.environment | prefix, ready="/viola/health/ready")
