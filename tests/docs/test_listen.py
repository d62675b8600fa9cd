"""The guide to microphones, cameras and radios: each program with the real thing, where that is installed."""

import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from benchmarks.harness.servers import running, viola

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "listen.md"
DOG = ROOT / "tests" / "fixtures" / "dog_bark_44k1_mono.ogg"
BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
CHROMIUM = os.environ.get("VIOLA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_S = 120.0  # a shared machine

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(viola(ROOT / "models" / "byola", "int8", api_keys="open sesame")) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def open_url() -> Iterator[str]:
    with running(viola(ROOT / "models" / "byola", "int8")) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    for name, text in BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@needs_ffmpeg
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_a_camera_is_one_line(programs: Path, open_url: str) -> None:
    environment = os.environ | {"CAMERA": str(DOG), "VIOLA_URL": open_url}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "camera.sh"],
        cwd=programs,
        env=environment,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert messages[0]["type"] == "ready"
    assert messages[-1]["type"] == "end"
    assert "Dog" in {tag["label"] for each in messages if each["type"] == "tags" for tag in each["tags"]}
    assert [each for each in messages if each["type"] == "event"]


@pytest.fixture
def broker() -> Iterator[int]:
    """The port of an MQTT broker."""
    if not (shutil.which("mosquitto") and shutil.which("mosquitto_pub")):
        pytest.skip("mosquitto and mosquitto-clients are not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    with subprocess.Popen(["mosquitto", "-p", str(port)], stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + PATIENCE_S
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert time.monotonic() < end
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()


@needs_ffmpeg
def test_home_assistant_discovers_what_is_heard(programs: Path, open_url: str, broker: int) -> None:
    environment = os.environ | {
        "VIOLA_URL": open_url,
        "MQTT_HOST": "127.0.0.1",
        "MQTT_PORT": str(broker),
        "PYTHONPATH": str(ROOT / "clients" / "python"),
    }
    # Three messages of the first label: what it is, which is kept for who comes later; the event; its state.
    reader = ["mosquitto_sub", "-p", str(broker), "-t", "viola/#", "-v", "-C", "2"]
    with subprocess.Popen(reader, stdout=subprocess.PIPE, text=True) as subscriber:
        try:
            time.sleep(1)  # until it has subscribed
            done = subprocess.run(
                [sys.executable, "home_assistant.py", str(DOG)],
                cwd=programs,
                env=environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            said, _ = subscriber.communicate(timeout=PATIENCE_S)
        finally:
            subscriber.kill()
    (event_topic, event), (state_topic, state) = (line.split(" ", 1) for line in said.splitlines())
    assert event_topic == "viola/dog/event"
    assert json.loads(event).keys() == {"start_s", "end_s", "score"}
    assert (state_topic, state) == ("viola/dog/state", "ON")
    retained = ["mosquitto_sub", "-p", str(broker), "-t", "homeassistant/#", "-C", "1", "-W", "60"]
    config = json.loads(subprocess.run(retained, capture_output=True, check=True).stdout)
    # As Home Assistant's MQTT integration asks of a binary sensor.
    assert config["device_class"] == "sound"
    assert config["state_topic"] == state_topic
    assert config["unique_id"] == "viola_dog"


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_a_browser_hears_its_microphone(programs: Path, url: str) -> None:
    playwright_api = pytest.importorskip("playwright.sync_api")
    samples, rate = soundfile.read(DOG)
    bark = soxr.resample(samples[2 * rate : 3 * rate], rate, 48_000)
    soundfile.write(programs / "bark.wav", np.tile(bark, 10), 48_000, subtype="PCM_16")
    (programs / "index.html").write_text('<script src="listen.js"></script>')
    fake = [
        "--no-sandbox",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={programs / 'bark.wav'}",
    ]
    with served(programs) as page_url, playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=fake)
        try:
            page = browser.new_page()
            page.goto(page_url)
            page.evaluate(
                """async (url) => {
                  window.heard = [];
                  const options = { apiKey: "open sesame", head: "esc50", top_k: 1 };
                  window.stop = await listen(url, (message) => window.heard.push(message), options);
                }""",
                url,
            )
            patience = {"timeout": 1000 * PATIENCE_S}
            page.wait_for_function('heard.filter((each) => each.type === "tags").length >= 4', **patience)
            page.evaluate("stop()")
            page.wait_for_function('heard.some((each) => each.type === "closed")', **patience)
            heard = page.evaluate("heard")
        finally:
            browser.close()
    assert heard[0]["type"] == "ready"
    assert [each["type"] for each in heard[-2:]] == ["end", "closed"]
    assert heard[-1]["code"] == 1000
    labels = [each["tags"][0]["label"] for each in heard if each["type"] == "tags"]
    assert "dog" in labels


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Its files, at a URL of this machine, from which a page may have the microphone."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://localhost:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()
