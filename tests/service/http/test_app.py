"""The whole server over a socket: uvicorn in a thread, a toy model, real sounds, an HTTP client."""

import base64
import contextlib
import io
import json
import socket
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn

from service import app as app_module
from service import audio, errors, schema, windows
from service import embedder as embedder_module
from service import upload as upload_module
from service.app import create_app
from service.model import Model
from service.settings import Settings

RAW = {"Content-Type": "application/octet-stream"}
FIXTURES = Path(__file__).parents[1] / "fixtures"
VALID = sorted(path.name for path in FIXTURES.iterdir() if path.suffix not in (".md", ".csv", ""))
INVALID = {
    "empty.wav": "audio_missing",
    "nan_inf_float32.wav": "audio_unreadable",
    "no_frames.wav": "audio_too_short",
    "text.wav": "audio_unreadable",
    "truncated.flac": "audio_unreadable",
}


@contextlib.contextmanager
def serving(models_dir: Path, **settings: Any) -> Iterator[tuple[httpx.Client, Any]]:
    """A client of a server of its own, and the server's state."""
    settings = {"models_dir": models_dir, "model": "toy", "device": "cpu", "threads": 2} | settings
    app = create_app(Settings(**settings))
    config = uvicorn.Config(app, port=0, ws="none", log_config=None, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client, app.state.server
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(models_dir: Path) -> Iterator[httpx.Client]:
    with serving(models_dir) as (client, _):
        yield client


def wav(samples: np.ndarray, rate_hz: int = 16_000, subtype: str = "FLOAT") -> bytes:
    """samples: (n,) or (n, channels) in [-1, 1]"""
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format="WAV", subtype=subtype)
    return file.getvalue()


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """(n,) float32 at 16 kHz"""
    return np.random.default_rng(seed).normal(scale=0.1, size=round(16_000 * seconds)).astype(np.float32)


def embed(client: httpx.Client, content: bytes, **parameters: Any) -> dict[str, Any]:
    response = client.post("/embed", content=content, headers=RAW, params=parameters)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def check_error(response: httpx.Response, status: int, code: str) -> str:
    """The one shape of every error; returns the sentence."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert sorted(answer) == ["detail", "error"]
    assert answer["error"] == code
    detail: str = answer["detail"]
    assert len(detail.split()) > 3
    assert "Traceback" not in detail
    return detail


# ── Sounds ──


@pytest.mark.parametrize("name", VALID)
def test_every_fixture_is_embedded(name: str, client: httpx.Client, toy_model: Model) -> None:
    waveform = audio.decode(FIXTURES / name, sample_rate=16_000)
    expected = windows.embed(toy_model.run, toy_model.card, [toy_model.logmel(waveform.samples)])
    answer = embed(client, (FIXTURES / name).read_bytes())
    assert answer["model"] == "toy"
    assert answer["duration_s"] == pytest.approx(waveform.duration_s)
    assert answer["embedding_size"] == len(answer["embedding"]) == 16
    np.testing.assert_allclose(answer["embedding"], expected.vector, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "code"), INVALID.items())
def test_every_invalid_fixture_has_its_own_clear_error(name: str, code: str, client: httpx.Client) -> None:
    content = (FIXTURES / "invalid" / name).read_bytes()
    as_form = client.post("/embed", files={"file": (name, content)})
    as_body = client.post("/classify", content=content, headers=RAW)
    assert check_error(as_form, 422, code)
    assert check_error(as_body, 422, code)


def test_the_sentences_of_invalid_files_differ(client: httpx.Client) -> None:
    contents = [(FIXTURES / "invalid" / name).read_bytes() for name in INVALID]
    sentences = {client.post("/embed", content=each, headers=RAW).json()["detail"] for each in contents}
    assert len(sentences) == len(INVALID)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_rate_and_number_of_channels_gives_nearly_the_same(
    rate_hz: int, channels: int, client: httpx.Client
) -> None:
    def tone(rate: int, channels: int) -> bytes:
        """A second of 1 kHz that fades in and out."""
        t = np.arange(rate) / rate
        one = 0.5 * np.sin(2 * np.pi * 1000 * t) * np.sin(np.pi * t)
        return wav(np.repeat(one[:, None], channels, axis=1), rate)

    reference = np.array(embed(client, tone(16_000, 1))["embedding"])
    answer = embed(client, tone(rate_hz, channels))
    assert answer["duration_s"] == pytest.approx(1.0)
    other = np.array(answer["embedding"])
    cosine = reference @ other / np.linalg.norm(reference) / np.linalg.norm(other)
    assert cosine > 0.99  # the filters above 4 kHz hear the resamplers' different noise floors


def test_a_click_of_10_ms_is_padded_with_silence(client: httpx.Client) -> None:
    click = noise(0.01)
    assert len(click) == 160
    padded = np.concatenate([click, np.zeros(640 - 160, dtype=np.float32)])  # the toy's shortest input
    short, long = embed(client, wav(click)), embed(client, wav(padded))
    assert short["duration_s"] == 0.01
    assert short["embedding"] == long["embedding"]


def test_silence_has_a_finite_embedding(client: httpx.Client) -> None:
    assert np.isfinite(embed(client, wav(np.zeros(16_000)))["embedding"]).all()


def test_nan_samples_are_refused(client: httpx.Client) -> None:
    samples = noise(1.0)
    samples[8000] = np.nan
    detail = check_error(client.post("/embed", content=wav(samples), headers=RAW), 422, "audio_unreadable")
    assert "NaN" in detail


# ── The two promises ──


def test_an_embedding_does_not_depend_on_who_else_is_there(models_dir: Path) -> None:
    clips = [wav(noise(0.2 + 0.13 * i, seed=i)) for i in range(12)]
    with serving(models_dir) as (client, state), ThreadPoolExecutor(36) as pool:
        alone = [embed(client, clip)["embedding"] for clip in clips]
        with held_worker(state):
            waiting = [pool.submit(embed, client, clip) for clip in clips * 3]
            until(lambda: state.embedder.batcher._admitted == len(waiting))
        together = [each.result()["embedding"] for each in waiting]
        page = client.get("/metrics").text
    np.testing.assert_allclose(together, alone * 3, rtol=1e-5, atol=1e-5)
    assert value(page, "viola_batch_size_sum") == 12 * 4
    assert value(page, "viola_batch_size_count") < 12 * 3


def value(page: str, metric: str) -> float:
    (line,) = (line for line in page.splitlines() if line.startswith(f"{metric} "))
    return float(line.split()[1])


def test_long_audio_agrees_with_one_pass(client: httpx.Client, toy_model: Model) -> None:
    samples = noise(61.0)  # 31 windows of the toy, 8 shares
    whole = np.array(toy_model._session.run(["sum", "max", "count"], one_pass(toy_model, samples))[:2])
    n_frames = toy_model.logmel(samples).shape[1] // 4
    expected = whole[0][0] / n_frames + whole[1][0]
    answer = embed(client, wav(samples), frames=True)
    np.testing.assert_allclose(answer["embedding"], expected, rtol=1e-4)
    assert len(answer["frames"]["embeddings"]) == len(answer["frames"]["times_s"]) == n_frames


def one_pass(model: Model, samples: np.ndarray) -> dict[str, np.ndarray]:
    logmel = model.logmel(np.clip(samples, -1, 1))
    return {"logmel": logmel[None], "n_frames": np.array([logmel.shape[1]])}


# ── Answers ──


def test_a_form_and_a_raw_body_give_the_same(client: httpx.Client) -> None:
    content = wav(noise(1.0))
    as_form = client.post("/embed", files={"file": ("a.wav", content, "audio/wav")}).json()
    assert as_form == embed(client, content)


def test_base64_and_npy_hold_the_same_numbers(client: httpx.Client) -> None:
    content = wav(noise(1.0))
    expected = np.array(embed(client, content)["embedding"], dtype=np.float32)
    text = embed(client, content, encoding="base64")["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(text), "<f4"), expected)
    half = embed(client, content, encoding="base64", dtype="float16")["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(half), "<f2"), expected.astype(np.float16))
    assert np.array_equal(as_npy(client, content), expected)


def as_npy(client: httpx.Client, content: bytes, **parameters: Any) -> np.ndarray:
    headers = RAW | {"Accept": "application/x-npy"}
    response = client.post("/embed", content=content, headers=headers, params=parameters)
    assert response.headers["content-type"] == "application/x-npy"
    array: np.ndarray = np.load(io.BytesIO(response.content), allow_pickle=False)
    return array


def test_npy_holds_what_was_asked_for(client: httpx.Client) -> None:
    content = wav(noise(1.0))
    full = embed(client, content, frames=True)
    frames = np.array(full["frames"]["embeddings"], dtype=np.float32)
    assert frames.shape == (25, 16)  # 101 log-mel frames, 4 to one
    assert np.array_equal(as_npy(client, content, frames=True), frames)
    assert full["frames"]["times_s"][:2] == [0.015, 0.055]
    assert as_npy(client, content, window_s=0.25).shape == (4, 16)
    assert as_npy(client, content, dtype="float16").dtype == np.float16
    both = client.post(
        "/embed?frames=1&window_s=1", content=content, headers=RAW | {"Accept": "application/x-npy"}
    )
    check_error(both, 422, "bad_request")


def test_windows_have_their_times(client: httpx.Client) -> None:
    answer = embed(client, wav(noise(1.0)), window_s=0.5, hop_s=0.25)["windows"]
    assert answer["start_s"] == [0.0, 0.25, 0.5]
    assert answer["end_s"] == [0.5, 0.75, 1.0]
    assert np.shape(answer["embeddings"]) == (3, 16)


def test_the_stages_are_timed(client: httpx.Client) -> None:
    response = client.post("/embed", content=wav(noise(1.0)), headers=RAW)
    stages = [part.split(";dur=") for part in response.headers["server-timing"].split(", ")]
    assert [name for name, _ in stages] == ["read", "decode", "logmel", "queue", "inference", "encode"]
    assert {name for name, ms in stages if float(ms) == 0} <= {"queue"}  # which nobody stands in here


def test_a_clip_is_classified_by_the_head_that_was_asked_for(client: httpx.Client) -> None:
    content = wav(noise(1.0))
    answer = client.post("/classify", content=content, headers=RAW).json()
    assert answer["head"] == "pets"  # the first one of the card
    assert {tag["label"] for tag in answer["tags"]} == {"cat", "dog", "fish"}
    assert sum(tag["score"] for tag in answer["tags"]) == pytest.approx(1, abs=1e-5)
    scores = [tag["score"] for tag in answer["tags"]]
    assert scores == sorted(scores, reverse=True)
    moods = client.post("/classify?head=moods&top_k=1&window_s=0.5", content=content, headers=RAW).json()
    assert [(span["start_s"], span["end_s"]) for span in moods["timeline"]] == [(0, 0.5), (0.5, 1)]
    assert all(len(span["tags"]) == 1 for span in moods["timeline"])


def test_a_large_answer_is_not_built_on_the_event_loop(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def note(content: Any) -> Any:
        threads.append(threading.current_thread().name)
        return json_answer(content)

    json_answer = app_module.json_answer
    monkeypatch.setattr(app_module, "json_answer", note)
    content = wav(noise(0.5))
    for path in ("/embed", "/embed?frames=1", "/embed?window_s=1", "/classify", "/classify?window_s=1"):
        assert client.post(path, content=content, headers=RAW).status_code == 200
    assert client.post("/embed/batch", files={"file": content}).status_code == 200
    is_decoder = [name.startswith("viola-decode") for name in threads]
    assert is_decoder == [False, True, True, False, True, True]


def test_a_batch_keeps_its_order_and_a_bad_file_fails_alone(client: httpx.Client) -> None:
    good, bad = wav(noise(0.5)), (FIXTURES / "invalid" / "text.wav").read_bytes()
    long = wav(noise(20.0))
    files = [
        ("file", (name, content)) for name, content in [("a", good), ("b", bad), ("c", long), ("d", b"")]
    ]
    response = client.post("/embed/batch", files=files)
    assert response.status_code == 200
    a, b, c, d = response.json()["results"]
    assert [each["file"] for each in (a, b, c, d)] == ["a", "b", "c", "d"]
    assert a["embedding"] == pytest.approx(embed(client, good)["embedding"], rel=1e-5)
    assert c["embedding"] == pytest.approx(embed(client, long)["embedding"], rel=1e-5)
    assert (b["error"], d["error"]) == ("audio_unreadable", "audio_missing")
    tags = client.post("/classify/batch?head=pets&top_k=1", files=files).json()["results"]
    assert [len(each.get("tags", [])) for each in tags] == [1, 0, 1, 0]


def test_the_models_are_told_with_cards_heads_and_labels(client: httpx.Client) -> None:
    models = client.get("/models").json()
    assert models["default"] == "toy"
    (toy,) = models["models"]
    assert toy == client.get("/models/toy").json()
    assert toy["card"]["sample_rate"] == 16_000
    assert toy["heads"][0]["labels"] == ["cat", "dog", "fish"]
    assert toy["loaded"] is toy["default"] is True


# ── Errors ──


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("top_k=0", "top_k"),
        ("top_k=many", "top_k"),
        ("threshold=1.5", "threshold"),
        ("threshold=nan", "threshold"),
        ("window_s=0", "window_s"),
        ("window_s=-1", "window_s"),
        ("window_s=inf", "window_s"),
        ("hop_s=1", "window_s"),
        ("window_s=1&hop_s=0", "hop_s"),
        ("topk=3", "topk"),
        ("frames=true", "frames"),
    ],
)
def test_a_parameter_out_of_range_is_named(query: str, says: str, client: httpx.Client) -> None:
    response = client.post(f"/classify?{query}", content=wav(noise(0.1)), headers=RAW)
    assert says in check_error(response, 422, "bad_request")


@pytest.mark.parametrize("query", ["encoding=hex", "dtype=int8", "frames=maybe", "encoding=", "top_k=3"])
def test_a_parameter_of_embed_out_of_range_is_named(query: str, client: httpx.Client) -> None:
    response = client.post(f"/embed?{query}", content=wav(noise(0.1)), headers=RAW)
    assert query.split("=")[0] in check_error(response, 422, "bad_request")


@pytest.mark.parametrize("route", ["/embed", "/classify", "/embed/batch", "/classify/batch"])
def test_a_wrong_model_name_is_told_with_those_there_are(route: str, client: httpx.Client) -> None:
    response = client.post(route, params={"model": "../toy"}, files={"file": wav(noise(0.1))})
    assert "`toy`" in check_error(response, 404, "unknown_model")


@pytest.mark.parametrize("route", ["/classify", "/classify/batch"])
def test_a_wrong_head_name_is_told_with_those_there_are(route: str, client: httpx.Client) -> None:
    response = client.post(route, params={"head": "esc50"}, files={"file": wav(noise(0.1))})
    assert "`pets`, `moods`" in check_error(response, 404, "unknown_head")


def test_what_the_framework_refuses_has_the_same_shape(client: httpx.Client) -> None:
    check_error(client.get("/nowhere"), 404, "not_found")
    check_error(client.get("/models/nope"), 404, "unknown_model")
    wrong_method = client.get("/embed")
    assert "POST" in check_error(wrong_method, 405, "method_not_allowed")
    assert wrong_method.headers["allow"] == "POST"
    check_error(
        client.post("/embed", content=b"x", headers={"Content-Type": "text/plain"}),
        415,
        "unsupported_media_type",
    )
    check_error(client.post("/embed", headers=RAW), 422, "audio_missing")


def test_head_is_answered_like_get_without_its_body(client: httpx.Client) -> None:
    for path in ("/models", "/models/toy", "/health/live", "/health/ready", "/metrics", "/docs"):
        response = client.head(path)
        assert (response.status_code, response.content) == (200, b"")
    assert client.head("/embed").status_code == 405
    assert client.get("/health/live").json() == {"status": "alive"}  # on the same connection


def test_a_repeated_parameter_is_refused(client: httpx.Client) -> None:
    response = client.post("/embed?frames=0&frames=1", content=wav(noise(0.1)), headers=RAW)
    assert "given 2 times" in check_error(response, 422, "bad_request")


def test_the_sentences_in_the_documents_are_those_of_the_server(client: httpx.Client) -> None:
    for error, response in (
        (errors.BadRequest, client.post("/classify?top_k=0", headers=RAW)),
        (errors.AudioMissing, client.post("/embed", headers=RAW)),
        (errors.AudioUnreadable, client.post("/embed", content=b"text", headers=RAW)),
        (errors.UnsupportedMediaType, client.post("/embed", headers={"Content-Type": "text/plain"})),
        (errors.UnknownModel, client.post("/embed?model=bayola", headers=RAW)),
    ):
        sentence = check_error(response, error.status, error.code)
        assert sentence == schema.ERROR_EXAMPLES[error].replace("`byola`", "`toy`")


def test_a_body_or_a_clip_over_the_limit_is_refused(models_dir: Path) -> None:
    with serving(models_dir, max_body_bytes=40_000, max_audio_s=0.5) as (client, _):
        fits = wav(noise(0.5))
        assert embed(client, fits)["duration_s"] == 0.5
        long = check_error(client.post("/embed", content=wav(noise(0.6)), headers=RAW), 413, "audio_too_long")
        assert "0.5 s" in long
        too_many = wav(noise(1.0))
        check_error(client.post("/embed", content=too_many, headers=RAW), 413, "body_too_large")
        check_error(client.post("/embed", files={"file": too_many}), 413, "body_too_large")
        in_chunks = (too_many[i : i + 1000] for i in range(0, len(too_many), 1000))  # no Content-Length
        check_error(client.post("/embed", content=in_chunks, headers=RAW), 413, "body_too_large")
        assert embed(client, fits)["duration_s"] == 0.5


def test_an_answer_that_would_be_too_large_is_refused(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.embedder.MAX_NUMBERS", 16 * 30)
    content = wav(noise(2))
    response = client.post("/embed?frames=1", content=content, headers=RAW)
    assert "leave out frames" in check_error(response, 422, "bad_request")
    response = client.post("/classify?window_s=1&hop_s=0.01", content=content, headers=RAW)
    assert check_error(response, 422, "bad_request").endswith("send less sound or take a longer hop_s")
    embed(client, wav(noise(1)), frames=1)


def test_keys_are_asked_for_where_the_settings_name_some(models_dir: Path) -> None:
    with serving(models_dir, api_keys=("first", "second")) as (client, _):
        content = wav(noise(0.1))
        refused = client.post("/embed", content=content, headers=RAW)
        check_error(refused, 401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        for headers in (
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic first"},
            {"X-API-Key": ""},
        ):
            check_error(client.post("/embed", content=content, headers=RAW | headers), 401, "unauthorized")
        for headers in ({"Authorization": "Bearer first"}, {"X-API-Key": "second"}):
            assert client.post("/embed", content=content, headers=RAW | headers).status_code == 200
        check_error(client.get("/models"), 401, "unauthorized")
        check_error(client.get("/nowhere"), 401, "unauthorized")
        for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert client.get("/openapi.json").json()["security"]


def test_other_origins_are_let_in_where_the_settings_say_so(models_dir: Path) -> None:
    with serving(models_dir, cors_origins=("https://a.example",), api_keys=("k",)) as (client, _):
        preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        assert client.options("/embed", headers=preflight).status_code == 200
        refused = client.post("/embed", headers=RAW | {"Origin": "https://a.example"})
        assert refused.headers["access-control-allow-origin"] == "https://a.example"  # errors included


# ── Load, deadlines, leaving, failing ──


@contextlib.contextmanager
def held_worker(state: Any) -> Iterator[None]:
    """Nobody runs a batch until the block ends."""
    with state.embedder.batcher._turn:
        yield


def until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_what_the_queue_cannot_hold_is_refused_at_once_with_retry_after(models_dir: Path) -> None:
    with serving(models_dir, max_queue_frames=300) as (client, state), ThreadPoolExecutor(2) as pool:
        content = wav(noise(1.0))  # 104 frames: two fit
        with held_worker(state):
            admitted = [pool.submit(embed, client, content) for _ in range(2)]
            until(lambda: state.embedder.batcher.admitted_cost == 208)
            refused = client.post("/embed", content=content, headers=RAW)
            check_error(refused, 503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            batch = client.post("/embed/batch", files=[("file", content), ("file", content)])
            check_error(batch, 503, "overloaded")
            assert "viola_queue_frames 208.0" in client.get("/metrics").text
        assert all(len(each.result()["embedding"]) == 16 for each in admitted)
        assert embed(client, content)
        until(lambda: state.embedder.batcher.admitted_cost == 0)


def test_a_request_past_its_deadline_is_answered_504_and_dropped(models_dir: Path) -> None:
    with serving(models_dir, deadline_s=0.6) as (client, state), ThreadPoolExecutor(1) as pool:
        with held_worker(state):
            running = pool.submit(client.post, "/embed", content=wav(noise(0.2)), headers=RAW)
            until(lambda: state.embedder.batcher.admitted_cost > 0)
            late = client.post("/embed", content=wav(noise(0.1)), headers=RAW)
            assert "0.6 s" in check_error(late, 504, "deadline_exceeded")
        check_error(running.result(), 504, "deadline_exceeded")
        embed(client, wav(noise(0.1)))
        assert "viola_dropped_total 1.0" in client.get("/metrics").text


def test_a_request_may_set_a_shorter_deadline_of_its_own(models_dir: Path) -> None:
    with serving(models_dir) as (client, state):
        content = wav(noise(0.1))
        with held_worker(state):
            for path in ("/embed", "/embed/batch"):
                files = {"file": content}
                late = client.post(path, files=files, headers={"X-Deadline-S": "0.05"})
                assert "0.05 s" in check_error(late, 504, "deadline_exceeded")
        for wrong in ("0", "soon", "61"):
            refused = client.post("/embed", content=content, headers=RAW | {"X-Deadline-S": wrong})
            assert f"X-Deadline-S is '{wrong}'" in check_error(refused, 422, "bad_request")
        assert client.post("/embed", content=content, headers=RAW | {"X-Deadline-S": "60"}).status_code == 200


def test_work_that_waits_to_be_decoded_is_dropped_past_its_deadline(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def wait_and_read(clip: Any) -> Any:
        gate.wait(10)
        return next_share(clip)

    next_share = embedder_module._Clip.next_share
    monkeypatch.setattr(embedder_module._Clip, "next_share", wait_and_read)
    content = wav(noise(0.1))
    with serving(models_dir) as (client, state), ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(embed, client, content) for _ in range(state.plan.decode)]
        until(lambda: state.embedder._opening == state.plan.decode)
        late = client.post("/embed", content=content, headers=RAW | {"X-Deadline-S": "0.05"})
        check_error(late, 504, "deadline_exceeded")
        gate.set()
        assert all(each.result() for each in reading)
        assert "viola_dropped_total 1.0" in client.get("/metrics").text


def test_long_uploads_leave_a_decode_thread_to_short_ones(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_module, "LONG_BYTES", 100_000)
    gate, reading = threading.Event(), threading.Semaphore(0)

    def wait_where_long(clip: Any) -> Any:
        if clip.is_long:
            reading.release()
            gate.wait(10)
        return next_share(clip)

    next_share = embedder_module._Clip.next_share
    monkeypatch.setattr(embedder_module._Clip, "next_share", wait_where_long)
    long, short = wav(noise(5)), wav(noise(0.1))
    with serving(models_dir) as (client, state), ThreadPoolExecutor(4) as pool:
        assert state.plan.decode == 2
        held = [pool.submit(embed, client, long) for _ in range(3)]
        assert reading.acquire(timeout=5)
        assert embed(client, short)
        assert not reading.acquire(blocking=False)  # one of the three has begun
        gate.set()
        assert all(each.result()["duration_s"] == 5 for each in held)


def test_a_client_that_leaves_is_no_longer_worked_for(models_dir: Path) -> None:
    with serving(models_dir) as (client, state), ThreadPoolExecutor(1) as pool:
        with held_worker(state):
            waiting = pool.submit(embed, client, wav(noise(0.2)))
            until(lambda: state.embedder.batcher.admitted_cost > 0)
            cost = state.embedder.batcher.admitted_cost
            body = wav(noise(0.1))
            head = "POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
                leaving.sendall(head.encode() + body)
                until(lambda: state.embedder.batcher.admitted_cost > cost)
            until(lambda: state.embedder.batcher.admitted_cost == cost)
        assert waiting.result()
        embed(client, wav(noise(0.1)))
        page = client.get("/metrics").text
        assert "viola_dropped_total 1.0" in page
        assert 'viola_requests_total{code="499",model="toy",route="/embed"} 1.0' in page


def test_a_model_that_is_loaded_too_slowly_is_answered_504_and_there_later(
    tmp_path: Path, make_toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, load = threading.Event(), app_module._load_model

    def load_slowly(folder: Path, **options: Any) -> Model:
        if folder.name != "toy":
            gate.wait(10)
        return load(folder, **options)

    monkeypatch.setattr(app_module, "_load_model", load_slowly)
    make_toy(tmp_path / "toy")
    make_toy(tmp_path / "late", name="late")
    content = wav(noise(0.1))
    soon = {"X-Deadline-S": "0.1"}
    sound = {"input": base64.b64encode(content).decode(), "model": "late"}
    with serving(tmp_path) as (client, _):
        for path in ("/embed", "/classify", "/embed/batch", "/classify/batch", "/logmel"):
            answer = client.post(path, params={"model": "late"}, files={"file": content}, headers=soon)
            check_error(answer, 504, "deadline_exceeded")
        assert client.post("/v1/embeddings", json=sound, headers=soon).status_code == 504
        gate.set()
        assert embed(client, content, model="late")["model"] == "late"
        unknown = client.post("/classify?model=late&head=esc50", content=content, headers=RAW)
        check_error(unknown, 404, "unknown_head")
        assert 'code="504",model="late",route="/embed"' in client.get("/metrics").text


def test_a_large_answer_that_waits_to_be_built_is_given_up_past_its_deadline(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, building = threading.Event(), threading.Event()

    def build_slowly(content: Any) -> Any:
        building.set()
        gate.wait(10)
        return json_answer(content)

    json_answer = app_module.json_answer
    content = wav(noise(0.5))
    with serving(models_dir) as (client, _), ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(app_module, "json_answer", build_slowly)
        first = pool.submit(embed, client, content, frames=True)
        assert building.wait(5)
        for path in ("/embed?frames=1", "/classify?window_s=1"):
            late = client.post(path, content=content, headers=RAW | {"X-Deadline-S": "0.3"})
            check_error(late, 504, "deadline_exceeded")
        files = {"file": content}
        late = client.post("/embed/batch", files=files, headers={"X-Deadline-S": "0.3"})
        check_error(late, 504, "deadline_exceeded")
        gate.set()
        assert first.result()["frames"]


def test_a_deadline_that_passes_while_a_spooled_upload_is_decoded_closes_it_afterwards(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(upload_module, "SPOOL_BYTES", 1000)
    closed_while_decoding: list[bool] = []

    def slow_decode(clip: Any) -> Any:
        time.sleep(0.1)  # the deadline passes
        closed_while_decoding.append(clip._stream._source.closed)
        return next_share(clip)

    next_share = embedder_module._Clip.next_share
    monkeypatch.setattr(embedder_module._Clip, "next_share", slow_decode)
    content = wav(noise(30))
    with serving(models_dir, deadline_s=0.05) as (client, _):
        check_error(client.post("/embed", content=content, headers=RAW), 504, "deadline_exceeded")
        files = [("file", content), ("file", content)]
        check_error(client.post("/embed/batch", files=files), 504, "deadline_exceeded")
    assert len(closed_while_decoding) >= 2
    assert not any(closed_while_decoding)
    assert "closed file" not in capfd.readouterr().err


def test_an_error_of_ours_is_logged_and_tells_the_client_nothing(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(models_dir) as (client, state):

        def fail(jobs: list[Any]) -> Any:
            raise RuntimeError("secret detail")

        run, state.embedder.batcher._run_batch = state.embedder.batcher._run_batch, fail
        detail = check_error(
            client.post("/embed", content=wav(noise(0.1)), headers=RAW), 500, "internal_error"
        )
        assert "secret" not in detail
        batch = client.post("/embed/batch", files={"file": wav(noise(0.1))}).json()
        assert batch["results"][0]["error"] == "internal_error"
        state.embedder.batcher._run_batch = run
        embed(client, wav(noise(0.1)))
    assert "secret detail" in caplog.text


def test_errors_and_requests_are_counted_by_code(models_dir: Path) -> None:
    with serving(models_dir) as (client, _):
        embed(client, wav(noise(0.5)))
        client.post("/embed", content=b"noise", headers=RAW)
        client.post("/embed/batch", files={"file": b"noise"})
        client.get("/nowhere/else")
        page = client.get("/metrics").text
    for line in (
        'viola_requests_total{code="200",model="toy",route="/embed"} 1.0',
        'viola_requests_total{code="422",model="toy",route="/embed"} 1.0',
        'viola_requests_total{code="404",model="",route="other"} 1.0',
        'viola_errors_total{error="audio_unreadable"} 2.0',
        'viola_request_duration_seconds_count{route="/embed"} 2.0',
        'viola_inference_duration_seconds_count{model="toy"} 1.0',
        "viola_audio_seconds_total 0.5",
        "viola_queue_frames 0.0",
        'viola_model_info{device="cpu",embedding_size="16",encoder="toy",model="toy",precision="float32",version="1"}',
    ):
        assert line in page


# ── Health, documents ──


def test_a_server_is_ready_until_it_drains(models_dir: Path) -> None:
    with serving(models_dir) as (client, state):
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").json() == {"status": "ready"}
        state.is_draining = True
        assert "shutting down" in check_error(client.get("/health/ready"), 503, "not_ready")
        assert client.get("/health/live").status_code == 200


def test_a_worker_that_is_stuck_in_a_batch_makes_the_server_unready_until_it_goes_on(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "STUCK_S", 0.05)
    with serving(models_dir) as (client, state), ThreadPoolExecutor(1) as pool:
        with held_worker(state):
            waiting = pool.submit(embed, client, wav(noise(0.1)))
            until(lambda: client.get("/health/ready").status_code == 503)
            assert "in one batch" in check_error(client.get("/health/ready"), 503, "not_ready")
            assert client.get("/health/live").status_code == 200
        assert waiting.result()
        assert client.get("/health/ready").status_code == 200


def test_a_probe_is_answered_at_once_however_long_mending_the_model_takes(
    tmp_path: Path, make_toy: Callable[..., Path]
) -> None:
    make_toy(tmp_path / "toy")
    with serving(tmp_path) as (client, state):
        with held_worker(state):
            state.models.loaded["toy"].failure = "failed and could not be opened again: tried in a test"
            for _ in range(5):
                answer = client.get("/health/ready", timeout=2)
                assert "tried in a test" in check_error(answer, 503, "not_ready")
            until(lambda: state.embedder.batcher.stuck_s > 0)
            assert state.embedder.batcher._admitted == 1  # one attempt at a time
        until(lambda: client.get("/health/ready").status_code == 200)


def test_a_server_without_its_default_model_is_alive_and_not_ready(tmp_path: Path) -> None:
    with serving(tmp_path, model="byola") as (client, _):
        assert client.get("/health/live").status_code == 200
        assert "no folder" in check_error(client.get("/health/ready"), 503, "not_ready")
        assert "no folder" in check_error(client.post("/embed", headers=RAW), 404, "unknown_model")


def test_what_was_accepted_is_answered_when_the_server_stops(models_dir: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with serving(models_dir) as (client, state):
            holding = contextlib.ExitStack()
            holding.enter_context(held_worker(state))
            url = client.base_url.join("/embed")
            accepted = pool.submit(httpx.post, url, content=wav(noise(0.2)), headers=RAW)
            until(lambda: state.embedder.batcher.admitted_cost > 0)
            threading.Timer(0.2, holding.close).start()
        assert state.is_draining  # the server has stopped
        assert accepted.result().status_code == 200


def test_the_log_mel_comes_as_a_picture(client: httpx.Client) -> None:
    sound = (FIXTURES / "birds_30s_16k_mono.opus").read_bytes()
    answer = client.post("/logmel?columns=100", content=sound).json()
    pixels = base64.b64decode(answer["pixels"])
    assert 50 <= answer["columns"] <= 100
    assert len(pixels) == answer["n_mels"] * answer["columns"]
    assert (min(pixels), max(pixels)) == (0, 255)
    assert answer["duration_s"] == pytest.approx(30.0)
    assert client.post("/logmel?columns=0", content=sound).json()["error"] == "bad_request"
    assert client.post("/logmel", content=b"no sound").json()["error"] == "audio_unreadable"


def test_the_page_asks_for_no_key_and_comes_with_its_policy(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("page.js", "page.css", "api.js", "sounds/dog.mp3"):
        assert client.get(f"/page/{name}").status_code == 200
    assert client.get("/page/../app.py").status_code == 404


def test_the_openapi_document_lists_routes_parameters_errors_and_examples(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    posts = {"/embed", "/classify", "/embed/batch", "/classify/batch"}
    others = {"/models", "/models/{name}", "/models/reload", "/health/live", "/health/ready", "/metrics"}
    others |= {"/v1/embeddings", "/v1/models", "/v1/models/{name}", "/logmel"}
    assert set(document["paths"]) == posts | others
    embed_route = document["paths"]["/embed"]["post"]
    assert {each["name"] for each in embed_route["parameters"]} == {
        "model", "frames", "window_s", "hop_s", "encoding", "dtype", "X-Deadline-S"
    }  # fmt: skip
    assert all(each["description"] for each in embed_route["parameters"])
    for path in posts:
        route = document["paths"][path]["post"]
        assert "multipart/form-data" in route["requestBody"]["content"]
        assert route["responses"]["200"]["content"]["application/json"]["example"]
        assert set(route["responses"]) == {
            "200", "401", "404", "408", "413", "415", "422", "500", "503", "504"
        }  # fmt: skip
    text = json.dumps(document)
    for code in [*(set(INVALID.values())), "audio_too_long", "body_too_large", "unsupported_media_type",
                 "unknown_model", "unknown_head", "unauthorized", "overloaded", "deadline_exceeded",
                 "internal_error", "bad_request", "not_ready"]:  # fmt: skip
        assert f'"{code}"' in text or f"`{code}`" in text
    assert "HTTPValidationError" not in text
    assert client.get("/docs").status_code == 200


def test_the_page_on_the_api_names_every_route_parameter_and_error(client: httpx.Client) -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            assert f"`{method.upper()} {path}`" in page
            for parameter in route.get("parameters", []):
                assert f"`{parameter['name']}`" in page
            for response in route["responses"].values():
                for code in response.get("content", {}).get("application/json", {}).get("examples", {}):
                    assert f"`{code}`" in page


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == app_module.VERSION
