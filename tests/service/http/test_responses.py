"""Arrays through the wire and back."""

import asyncio
import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import soundfile

from service.errors import Overloaded
from service.http.parameters import ClassifyParameters, EmbedParameters
from service.http.request_body import BUDGET, UploadBudget
from service.http.responses import (
    Dtype,
    classify_content,
    embed_content,
    json_response,
    npy_response,
    numbers,
    wants_npy,
)
from service.inference.embedder import EmbeddedClip
from service.inference.heads import Head
from service.inference.model import Model
from service.inference.windows import Embedding, Segment

VECTOR = np.random.default_rng(0).normal(size=3072).astype(np.float32)
ROWS = VECTOR.reshape(2, 1536)


@pytest.mark.parametrize("array", [VECTOR, ROWS, ROWS[:, ::2]], ids=["vector", "rows", "not contiguous"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_json_numbers_and_base64_bring_back_every_bit(array: np.ndarray, dtype: Dtype) -> None:
    expected = array.astype(dtype)
    answer = json_response({"x": numbers(array, encoding="float", dtype=dtype)})
    assert np.array_equal(np.array(orjson.loads(answer.body)["x"], dtype=dtype), expected)
    text = numbers(array, encoding="base64", dtype=dtype)
    decoded = np.frombuffer(base64.b64decode(text), dtype=np.dtype(dtype).newbyteorder("<"))
    assert np.array_equal(decoded.reshape(array.shape), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_npy_brings_back_every_bit(dtype: Dtype) -> None:
    answer = npy_response(ROWS, dtype=dtype)
    loaded = np.load(io.BytesIO(answer.body), allow_pickle=False)
    assert loaded.dtype == dtype
    assert np.array_equal(loaded, ROWS.astype(dtype))


@pytest.mark.parametrize(
    ("accept", "is_wanted"),
    [
        ("application/x-npy", True),
        ("Application/X-NPY; q=0.5, application/json", False),
        ("text/html, application/x-npy", True),
        ("application/x-npy;q=0, */*", False),
        ("application/x-npy; q=0.000", False),
        ("application/x-npyz", False),
        ("application/x-npy;q=0.5, application/json;q=0.9", False),
        ("application/json;q=0.5, application/x-npy;q=0.9", True),
        ("application/json, application/x-npy", True),
        ("application/x-npy;q=0.8, */*;q=0.1", True),
        ("application/x-npy;q=0.5, */*", False),
        ("application/x-npy;q=0.5, application/json;q=0.2, */*;q=0.9", True),
        ("application/*;q=0.9, application/x-npy;q=0.5", False),
        ("application/x-npy;q=nan, application/json;q=0.1", False),
        ("application/x-npy;q=1.000;v=b", True),
        ("*/*", False),
        ("", False),
    ],
)
def test_an_array_is_answered_only_to_those_who_name_it(accept: str, is_wanted: bool) -> None:
    assert wants_npy(accept) is is_wanted


def test_other_threads_have_their_turn_while_many_rows_are_written() -> None:
    rows = np.random.default_rng(0).normal(size=(1500, 3072)).astype(np.float32)
    longest = 0.0
    with ThreadPoolExecutor(1) as pool:
        started = before = time.perf_counter()
        writing = pool.submit(json_response, {"rows": rows})
        while not writing.done():
            time.sleep(0.001)
            now = time.perf_counter()
            longest, before = max(longest, now - before), now
    assert longest < (before - started) / 2


def test_float16_halves_the_bytes() -> None:
    full, half = (numbers(VECTOR, encoding="base64", dtype=dtype) for dtype in ("float32", "float16"))
    assert len(half) == len(full) // 2 == 3072 * 2 * 4 // 3


def test_an_embedding_tells_its_parts_only_when_there_are_some() -> None:
    plain = embed_content("toy", EmbeddedClip(Embedding(VECTOR), 1.5), EmbedParameters())
    assert list(plain) == ["model", "duration_s", "embedding_size", "embedding"]
    segments = [Segment(0.0, 1.0, VECTOR), Segment(1.0, 1.5, 2 * VECTOR)]
    full = embed_content(
        "toy", EmbeddedClip(Embedding(VECTOR, ROWS, np.array([0.5, 1.0]), segments), 1.5), EmbedParameters()
    )
    assert np.array_equal(full["frames"]["times_s"], [0.5, 1.0])
    assert full["windows"]["end_s"] == [1.0, 1.5]
    assert np.array_equal(full["windows"]["embeddings"][1], 2 * VECTOR)


def head(task: str) -> Head:
    """Scores follow the vector itself: logits are its first three numbers."""
    D = 4
    return Head(
        name="h",
        labels=("a", "b", "c"),
        task=task,  # type: ignore[arg-type]
        scaler_mean=np.zeros(D, dtype=np.float32),
        scaler_std=np.ones(D, dtype=np.float32),
        weight=np.eye(3, D, dtype=np.float32),
        bias=np.zeros(3, dtype=np.float32),
    )


def tags(toy_model: Model, task: str, **parameters: float) -> list[dict[str, object]]:
    vector = np.array([0.0, np.log(2.0), np.log(5.0), 9.0], dtype=np.float32)  # odds 1 : 2 : 5
    sound = EmbeddedClip(Embedding(vector), 1.0)
    content = classify_content(toy_model, head(task), sound, ClassifyParameters.model_validate(parameters))
    result: list[dict[str, object]] = content["tags"]
    return result


def test_tags_are_the_best_ones_first(toy_model: Model) -> None:
    assert tags(toy_model, "multiclass") == [
        {"label": "c", "score": 0.625},
        {"label": "b", "score": 0.25},
        {"label": "a", "score": 0.125},
    ]
    assert tags(toy_model, "multilabel", top_k=1) == [{"label": "c", "score": pytest.approx(5 / 6, abs=1e-6)}]


def test_a_threshold_leaves_tags_out_and_may_leave_none(toy_model: Model) -> None:
    assert [tag["label"] for tag in tags(toy_model, "multiclass", threshold=0.2)] == ["c", "b"]
    assert tags(toy_model, "multiclass", threshold=0.9) == []


# ── Sending ──


def sent(body: str, budget: UploadBudget | None) -> tuple[list[dict[str, Any]], list[int]]:
    """The messages of an answer, and what the budget held at each."""
    messages: list[dict[str, Any]] = []
    held: list[int] = []

    async def send(message: Any) -> None:
        messages.append(message)
        held.append(budget.held_bytes if budget else 0)

    async def receive() -> Any:
        raise AssertionError("the body was read before")

    scope = {"type": "http"} | ({BUDGET: budget} if budget else {})
    asyncio.run(json_response(body)(scope, receive, send))
    return messages, held


def test_a_large_answer_takes_room_until_it_is_sent_in_pieces() -> None:
    budget = UploadBudget(10, timeout_s=1, max_held_bytes=4_000_000)
    text = "".join(map(str, range(400_000)))
    (start, *pieces), held = sent(text, budget)
    n = len(text) + 2
    assert held == [n] * (1 + len(pieces))
    assert budget.held_bytes == 0
    assert dict(start["headers"])[b"content-length"] == str(n).encode()
    assert b"".join(piece["body"] for piece in pieces) == f'"{text}"'.encode()
    assert max(len(piece["body"]) for piece in pieces) < 300_000
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]


def test_a_large_answer_for_which_there_is_no_room_is_refused_before_it_begins() -> None:
    budget = UploadBudget(10, timeout_s=1, max_held_bytes=4_000_000, held_bytes=3_000_000)
    with pytest.raises(Overloaded, match="no room for more answers of this length"):
        sent("x" * 1_500_000, budget)
    assert budget.held_bytes == 3_000_000


def test_a_small_answer_takes_no_room_and_goes_out_at_once() -> None:
    budget = UploadBudget(10, timeout_s=1, max_held_bytes=1)
    messages, held = sent("x" * 1000, budget)
    assert len(messages) == 2
    assert held == [0, 0]


@pytest.mark.parametrize("path", ["/embed", "/embed/batch"])
def test_a_server_without_room_for_a_large_answer_says_so(serve: Any, path: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(600 * 16_000, dtype=np.int16), 16_000, format="FLAC")
    with serve(max_held_bytes=900_000) as url:
        answer = httpx.post(
            f"{url}{path}", params={"frames": True}, files={"file": file.getvalue()}, timeout=60
        )
        assert (answer.status_code, answer.json()["error"]) == (503, "overloaded")
        assert "no room for more answers" in answer.json()["detail"]
        assert httpx.post(f"{url}{path}", files={"file": file.getvalue()}, timeout=60).status_code == 200
