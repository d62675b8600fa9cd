"""Clips to embeddings, over a socket: uvicorn in a thread, a toy model, real sounds, an HTTP client."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.inference import windows
from service.inference.model import Model
from service.sound import audio
from tests.service.http.live import (
    FIXTURES,
    INVALID,
    RAW,
    check_error,
    embed,
    held_worker,
    noise,
    serving,
    value,
    wav,
)
from tests.service.servers import until

VALID = sorted(path.name for path in FIXTURES.iterdir() if path.suffix not in (".md", ".csv", ""))


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
    picture = client.post(
        "/embed?logmel_columns=9", content=content, headers=RAW | {"Accept": "application/x-npy"}
    )
    assert "logmel_columns" in check_error(picture, 422, "bad_request")


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


@pytest.mark.parametrize("query", ["encoding=hex", "dtype=int8", "frames=maybe", "encoding=", "top_k=3"])
def test_a_parameter_of_embed_out_of_range_is_named(query: str, client: httpx.Client) -> None:
    response = client.post(f"/embed?{query}", content=wav(noise(0.1)), headers=RAW)
    assert query.split("=")[0] in check_error(response, 422, "bad_request")


def test_a_repeated_parameter_is_refused(client: httpx.Client) -> None:
    response = client.post("/embed?frames=0&frames=1", content=wav(noise(0.1)), headers=RAW)
    assert "given 2 times" in check_error(response, 422, "bad_request")


def test_an_answer_that_would_be_too_large_is_refused(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.inference.embedder.MAX_NUMBERS", 16 * 30)
    content = wav(noise(2))
    response = client.post("/embed?frames=1", content=content, headers=RAW)
    assert "leave out frames" in check_error(response, 422, "bad_request")
    response = client.post("/classify?window_s=1&hop_s=0.01", content=content, headers=RAW)
    assert check_error(response, 422, "bad_request").endswith("send less sound or take a longer hop_s")
    embed(client, wav(noise(1)), frames=1)
