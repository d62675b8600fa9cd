"""Every error in the one shape, whoever raises it."""

from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from starlette.types import Scope

from service.errors import Overloaded, ViolaError
from service.http.error_response import error_codes, error_response
from service.http.request_record import RECORD, RequestRecord
from service.process.metrics import Metrics
from tests.service.http.live import RAW, check_error, embed, noise, serving, wav


def noted() -> Scope:
    """The scope of a request that has come in."""
    scope: Scope = {"method": "POST"}
    scope[RECORD] = RequestRecord(scope, path="/embed", request_id=b"x", status=499)
    return scope


def all_errors(root: type[ViolaError] = ViolaError) -> list[type[ViolaError]]:
    return [each for kind in root.__subclasses__() for each in (kind, *all_errors(kind))]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_is_its_code_its_status_and_its_sentence(kind: type[ViolaError]) -> None:
    metrics = Metrics()
    scope = noted()
    answer = error_response(kind("what was wrong"), metrics, scope)
    assert (scope[RECORD].error, scope[RECORD].detail) == (kind.code, "what was wrong")
    assert kind.code in error_codes()
    assert answer.status_code == kind.status
    assert orjson.loads(answer.body) == {"error": kind.code, "detail": "what was wrong"}
    assert f'viola_errors_total{{error="{kind.code}"}} 1.0' in metrics.page().decode()


def test_overloaded_says_when_to_come_back() -> None:
    answer = error_response(Overloaded("full", retry_after_s=7), Metrics(), noted())
    assert answer.headers["retry-after"] == "7"


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
