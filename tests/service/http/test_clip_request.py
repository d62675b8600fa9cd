"""Load, deadlines, clients that leave and answers that take long: the way of a request with clips."""

import base64
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from service.http import clip_request, request_body
from service.http import server as server_module
from service.http.responses import json_response
from service.http.routes import classify as classify_route
from service.http.routes import embed as embed_route
from service.inference import embedder as embedder_module
from service.inference.model import Model
from tests.service.http.live import (
    RAW,
    check_error,
    embed,
    held_worker,
    noise,
    serving,
    wav,
)
from tests.service.servers import until


@pytest.mark.parametrize("route", ["/embed", "/classify", "/embed/batch", "/classify/batch"])
def test_a_wrong_model_name_is_told_with_those_there_are(route: str, client: httpx.Client) -> None:
    response = client.post(route, params={"model": "../toy"}, files={"file": wav(noise(0.1))})
    assert "`toy`" in check_error(response, 404, "unknown_model")


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
        return next_chunk(clip)

    next_chunk = embedder_module._Clip.next_chunk
    monkeypatch.setattr(embedder_module._Clip, "next_chunk", wait_and_read)
    content = wav(noise(0.1))
    with serving(models_dir) as (client, state), ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(embed, client, content) for _ in range(state.plan.decode)]
        until(lambda: state.embedder._n_opening == state.plan.decode)
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
        return next_chunk(clip)

    next_chunk = embedder_module._Clip.next_chunk
    monkeypatch.setattr(embedder_module._Clip, "next_chunk", wait_where_long)
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
    gate, load = threading.Event(), server_module.load_warm

    def load_slowly(folder: Path, **options: Any) -> Model:
        if folder.name != "toy":
            gate.wait(10)
        return load(folder, **options)

    monkeypatch.setattr(server_module, "load_warm", load_slowly)
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


def replace_json_response(monkeypatch: pytest.MonkeyPatch, function: Callable[[Any], Response]) -> None:
    """Where answers with embeddings or tags are built; those to errors are left alone."""
    for module in (embed_route, classify_route, clip_request):
        monkeypatch.setattr(module, "json_response", function)


def test_a_large_answer_is_not_built_on_the_event_loop(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def note(content: Any) -> Any:
        threads.append(threading.current_thread().name)
        return json_response(content)

    replace_json_response(monkeypatch, note)
    content = wav(noise(0.5))
    for path in ("/embed", "/embed?frames=1", "/embed?window_s=1", "/classify", "/classify?window_s=1"):
        assert client.post(path, content=content, headers=RAW).status_code == 200
    assert client.post("/embed/batch", files={"file": content}).status_code == 200
    is_decoder = [name.startswith("viola-decode") for name in threads]
    assert is_decoder == [False, True, True, False, True, True]


def test_a_large_answer_that_waits_to_be_built_is_given_up_past_its_deadline(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, building = threading.Event(), threading.Event()

    def build_slowly(content: Any) -> Any:
        building.set()
        gate.wait(10)
        return json_response(content)

    content = wav(noise(0.5))
    with serving(models_dir) as (client, _), ThreadPoolExecutor(1) as pool:
        replace_json_response(monkeypatch, build_slowly)
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
    monkeypatch.setattr(request_body, "SPOOL_BYTES", 1000)
    closed_while_decoding: list[bool] = []

    def slow_decode(clip: Any) -> Any:
        time.sleep(0.1)  # the deadline passes
        closed_while_decoding.append(clip._stream._source.closed)
        return next_chunk(clip)

    next_chunk = embedder_module._Clip.next_chunk
    monkeypatch.setattr(embedder_module._Clip, "next_chunk", slow_decode)
    content = wav(noise(30))
    with serving(models_dir, deadline_s=0.05) as (client, _):
        check_error(client.post("/embed", content=content, headers=RAW), 504, "deadline_exceeded")
        files = [("file", content), ("file", content)]
        check_error(client.post("/embed/batch", files=files), 504, "deadline_exceeded")
    assert len(closed_while_decoding) >= 2
    assert not any(closed_while_decoding)
    assert "closed file" not in capfd.readouterr().err
