"""Labels in words at every door: scores against NumPy, long clips, timelines, streams, what is refused."""

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import strategies as st
from websockets.sync.client import connect

from service.inference.labels import MAX_LABEL_BYTES, MAX_LABELS
from tests.service.conftest import write_toy
from tests.service.http.live import RAW, check_error, noise, serving, wav
from tests.service.text_towers import TOWER, vector_of, write_text_toy

LABELS = ["doorbell", "dog barks", "rain"]
PCM = {"rate": 16_000}


def infer(sound: bytes, outputs: Sequence[str] = (), **parameters: Any) -> dict[str, Any]:
    """A request of the Open Inference Protocol with one sound."""
    audio = {"name": "audio", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(sound).decode()]}
    return {"inputs": [audio], "outputs": [{"name": name} for name in outputs], "parameters": parameters}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Any]]:
    """`clap` with a text tower, and `toy` without; and the server's state."""
    folder = tmp_path_factory.mktemp("models")
    write_toy(folder / "toy")
    write_text_toy(folder / "clap", name="clap")
    with serving(folder, model="clap") as (client, state):
        yield client, state


@pytest.fixture(scope="module")
def words(live: tuple[httpx.Client, Any]) -> httpx.Client:
    return live[0]


@pytest.fixture(scope="module")
def yes(fixtures_dir: Path) -> bytes:
    return (fixtures_dir / "keyword_yes_16k_mono_pcm16.wav").read_bytes()


def tags(answer: httpx.Response) -> dict[str, float]:
    assert answer.status_code == 200, answer.text
    return {tag["label"]: tag["score"] for tag in answer.json()["tags"]}


def expected(vector: Any, labels: list[str], template: str = TOWER.template) -> dict[str, float]:
    """softmax(logit_scale * cosine), in float64."""
    sound = np.asarray(vector, np.float64)
    texts = np.stack([vector_of(template.replace("{}", label)) for label in labels])
    cosines = texts @ sound / np.linalg.norm(texts, axis=1) / np.linalg.norm(sound)
    powers = np.exp(TOWER.logit_scale * cosines)
    return dict(zip(labels, powers / powers.sum(), strict=True))


def test_scores_are_a_softmax_over_cosines(words: httpx.Client, yes: bytes) -> None:
    answer = words.post("/classify", params={"labels": ",".join(LABELS), "embedding": "float"}, content=yes)
    found = tags(answer)
    assert found == pytest.approx(expected(answer.json()["embedding"], LABELS), abs=1e-5)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert answer.json()["head"] == "zero-shot"
    assert "known" not in answer.json()


def test_a_template_of_ones_own(words: httpx.Client, yes: bytes) -> None:
    params = {"labels": "dog, rain", "template": "the {}", "embedding": "float"}
    answer = words.post("/classify", params=params, content=yes)
    vector = answer.json()["embedding"]
    assert tags(answer) == pytest.approx(expected(vector, ["dog", "rain"], "the {}"), abs=1e-5)


def test_labels_come_in_the_query_or_in_json_with_commas_or_as_a_list(
    words: httpx.Client, yes: bytes
) -> None:
    sound = base64.b64encode(yes).decode()
    in_query = tags(words.post("/classify", params={"labels": " dog , cat "}, content=yes))
    as_list = tags(words.post("/classify", params={"labels": '["dog", "cat"]'}, content=yes))
    in_json = tags(words.post("/classify", json={"audio": sound, "labels": ["dog", "cat"]}))
    as_text = tags(words.post("/classify", json={"audio": sound, "labels": "dog,cat"}))
    assert in_query == as_list == in_json == as_text
    with_comma = tags(words.post("/classify", json={"audio": sound, "labels": ["rain, rain", "cat"]}))
    assert set(with_comma) == {"rain, rain", "cat"}


def test_top_k_and_threshold_are_those_of_heads(words: httpx.Client, yes: bytes) -> None:
    whole = tags(words.post("/classify", params={"labels": "dog,cat,rain"}, content=yes))
    best = next(iter(whole))
    assert list(
        tags(words.post("/classify", params={"labels": "dog,cat,rain", "top_k": 1}, content=yes))
    ) == [best]
    params = {"labels": "dog,cat,rain", "threshold": whole[best]}
    assert list(tags(words.post("/classify", params=params, content=yes))) == [best]


def test_a_long_clip_is_the_mean_of_its_passages(words: httpx.Client) -> None:
    sound = noise(12)
    sound[: 16_000 * 5] *= np.sin(np.arange(16_000 * 5) / 20)
    params: dict[str, Any] = {"labels": ",".join(LABELS)}
    mean = tags(words.post("/classify", params=params, content=wav(sound), headers=RAW))
    most = tags(words.post("/classify", params=params | {"pooling": "max"}, content=wav(sound), headers=RAW))
    starts = [0, 2.5, 5, 7.5]
    vectors = []
    for start in starts:
        part = wav(sound[int(start * 16_000) : int((start + 5) * 16_000)])
        vectors.append(
            words.post("/classify", params=params | {"top_k": 3}, content=part, headers=RAW).json()
        )
    lengths = [5, 5, 5, 4.5]
    scores = {
        label: [tag["score"] for each in vectors for tag in each["tags"] if tag["label"] == label]
        for label in LABELS
    }
    # Windows at an edge see what lies beyond it, so that a passage and a clip of its own differ a little.
    for label in LABELS:
        assert mean[label] == pytest.approx(np.average(scores[label], weights=lengths), abs=0.01)
        assert most[label] == pytest.approx(max(scores[label]), abs=0.02)


def test_timelines_segments_and_batches_are_those_of_heads(words: httpx.Client, yes: bytes) -> None:
    params: dict[str, Any] = {"labels": "dog,cat", "window_s": 0.5, "segments": True, "begin": 0.01}
    params |= {"shortest_s": 0}
    answer = words.post("/classify", params=params, content=yes).json()
    assert len(answer["timeline"]) == 2
    for span in answer["timeline"]:
        assert sum(tag["score"] for tag in span["tags"]) == pytest.approx(1, abs=1e-5)
    assert {each["label"] for each in answer["segments"]} == {"dog", "cat"}
    batch = words.post(
        "/classify/batch",
        params={"labels": "dog,cat"},
        files=[("file", ("a.wav", yes)), ("file", ("b.txt", b"no sound"))],
    ).json()["results"]
    assert batch[0]["head"] == "zero-shot"
    assert batch[0]["tags"] == answer["tags"]
    assert batch[1]["error"] == "audio_unreadable"


def test_a_stream_says_what_classify_says(words: httpx.Client) -> None:
    sound = wav(noise(3), subtype="PCM_16")
    params: dict[str, Any] = {"labels": ",".join(LABELS), "window_s": 1, "hop_s": 0.5, "begin": 0.3}
    params |= {"template": "the {}", "shortest_s": 0, "gap_s": 0}
    uploaded = words.post("/classify", params=params | {"segments": True}, content=sound, headers=RAW).json()
    samples = sound[44:]
    posted = words.post("/stream", params=params | PCM, content=samples)
    by_request = [json.loads(line) for line in posted.text.splitlines()]
    base = str(words.base_url.copy_with(scheme="ws", path="/stream"))
    with connect(f"{base}?{httpx.QueryParams(params | PCM)}") as line:
        for start in range(0, len(samples), 5_001):
            line.send(samples[start : start + 5_001])
        line.send('{"type": "end"}')
        by_socket = [json.loads(message) for message in line]
    for messages in (by_request, by_socket):
        assert messages[0]["head"] == "zero-shot"
        windows = [message for message in messages if message["type"] == "tags"]
        assert len(windows) == len(uploaded["timeline"]) == 5
        for window, span in zip(windows, uploaded["timeline"], strict=True):
            assert "known" not in window
            live = {tag["label"]: tag["score"] for tag in window["tags"]}
            assert live == pytest.approx({tag["label"]: tag["score"] for tag in span["tags"]}, abs=1e-4)
        events = {(each["label"], each["start_s"], each["end_s"]) for each in messages if "score" in each}
        assert events == {(each["label"], each["start_s"], each["end_s"]) for each in uploaded["segments"]}
        assert events


def test_a_socket_takes_as_many_labels_as_a_request(words: httpx.Client) -> None:
    labels = ",".join(f"{i} " + "dog" * 30 for i in range(MAX_LABELS))
    base = str(words.base_url.copy_with(scheme="ws", path="/stream"))
    with connect(f"{base}?{httpx.QueryParams({'labels': labels} | PCM)}") as line:
        assert json.loads(line.recv(timeout=20))["head"] == "zero-shot"


def test_the_open_inference_protocol_has_a_head_of_labels(words: httpx.Client, yes: bytes) -> None:
    """By Triton's own client, which sends a parameter as text."""
    asked = {"labels": ",".join(LABELS), "template": "the {}"}
    classified = tags(words.post("/classify", params=asked, content=yes))
    audio = triton.InferInput("audio", [2], "BYTES")
    audio.set_data_from_numpy(np.array([yes, yes], dtype=object))
    outputs = [
        triton.InferRequestedOutput("zero-shot.scores", class_count=1),
        triton.InferRequestedOutput("zero-shot.labels"),
        triton.InferRequestedOutput("pets.scores"),
    ]
    with triton.InferenceServerClient(words.base_url.netloc.decode()) as client:
        answer = client.infer("clap", [audio], outputs=outputs, parameters=asked)
        every = client.infer("clap", [audio], parameters=asked)
    assert [label.decode() for label in answer.as_numpy("zero-shot.labels")] == LABELS
    best = next(iter(classified))
    for row in answer.as_numpy("zero-shot.scores"):
        score, place, label = row[0].decode().split(":")
        assert (int(place), label) == (LABELS.index(best), best)
        assert float(score) == pytest.approx(classified[best], abs=1e-5)
    assert answer.as_numpy("pets.scores").shape == (2, 3)
    scores = dict(zip(LABELS, every.as_numpy("zero-shot.scores")[1].tolist(), strict=True))
    assert scores == pytest.approx(classified, abs=1e-5)
    assert {each["name"] for each in every.get_response()["outputs"]} >= {"embedding", "pets.scores"}


@pytest.mark.parametrize(
    ("outputs", "parameters", "sentence"),
    [
        (["zero-shot.scores"], {}, "the outputs of zero-shot need labels"),
        (["pets.scores"], {"labels": "dog,cat"}, "labels mean nothing without the output zero-shot.scores"),
        ([], {"labels": ["dog", 1]}, "as a list of strings"),
    ],
)
def test_outputs_and_labels_of_the_open_inference_protocol_go_together(
    outputs: list[str], parameters: dict[str, Any], sentence: str, words: httpx.Client, yes: bytes
) -> None:
    answer = words.post("/v2/models/clap/infer", json=infer(yes, outputs, **parameters))
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_request")
    assert sentence in answer.json()["error"]


def test_labels_are_embedded_once(live: tuple[httpx.Client, Any], yes: bytes) -> None:
    words, state = live
    encoder = state.models.loaded["clap"].text
    words.post("/classify", params={"labels": "roof,doorbell"}, content=yes)
    runs = []
    embed = encoder.embed
    encoder.embed = lambda texts: runs.append(len(texts)) or embed(texts)
    try:
        words.post("/classify", params={"labels": "doorbell,roof"}, content=yes)
        assert runs == []
        words.post("/classify", params={"labels": "doorbell,roof,the"}, content=yes)
        words.post("/classify", params={"labels": "doorbell,roof", "template": "a {}"}, content=yes)
        assert runs == [1, 2]
    finally:
        del encoder.embed


HEADS = {"head", "min_known"}
REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"labels": "dog"}, 422, "bad_request", "there are 2 to 256 labels, not 1"),
    ({"labels": "dog,,cat"}, 422, "bad_request", "is empty; take out the comma"),
    ({"labels": "dog,dog"}, 422, "bad_request", "`dog` is given more than once"),
    ({"labels": "dog,c\0at"}, 422, "bad_request", "holds a control character"),
    ({"labels": "[1,2]"}, 422, "bad_request", "as a list of strings"),
    ({"labels": "[dog"}, 422, "bad_request", "no list in JSON"),
    ({"labels": "dog," + "é" * (MAX_LABEL_BYTES // 2 + 1)}, 422, "bad_request", "more than 100 bytes"),
    ({"labels": ",".join(map(str, range(MAX_LABELS + 1)))}, 422, "bad_request", "not 257"),
    ({"labels": "dog," + "a " * 20}, 413, "text_too_long", "in its template has"),
    ({"labels": "dog,cat", "head": "pets"}, 422, "bad_request", "head is a head's, and labels stand"),
    ({"labels": "dog,cat", "min_known": 0.1}, 422, "bad_request", "min_known is a head's"),
    ({"labels": "dog,cat", "template": "x"}, 422, "bad_request", "holds {} 0 times"),
    ({"labels": "dog,cat", "template": "{}{}"}, 422, "bad_request", "holds {} 2 times"),
    ({"labels": "dog,cat", "template": "x" * 501 + "{}"}, 422, "bad_request", "at most 500"),
    ({"template": "a {}"}, 422, "bad_request", "template means nothing without labels"),
    (
        {"labels": "dog,cat", "model": "toy"},
        422,
        "no_text",
        "the model `toy` has no text tower, so that words are nowhere among its sounds; `clap` has one",
    ),
]


@pytest.mark.parametrize(("params", "status", "code", "sentence"), REFUSED)
def test_what_cannot_be_meant_is_refused(
    params: dict[str, Any], status: int, code: str, sentence: str, words: httpx.Client, yes: bytes
) -> None:
    raw: dict[str, Any] = {"content": yes, "headers": RAW}
    for route, content in (("/classify", raw), ("/classify/batch", {"files": {"file": yes}})):
        assert sentence in check_error(words.post(route, params=params, **content), status, code)


@pytest.mark.parametrize(("params", "status", "code", "sentence"), REFUSED)
def test_a_stream_refuses_the_same_with_the_same_words(
    params: dict[str, Any], status: int, code: str, sentence: str, words: httpx.Client
) -> None:
    refused = words.post("/stream", params=params | PCM, content=b"")
    assert sentence in check_error(refused, status, code)
    base = str(words.base_url.copy_with(scheme="ws", path="/stream"))
    with connect(f"{base}?{httpx.QueryParams(params | PCM)}") as line:
        message = json.loads(line.recv(timeout=20))
    assert (message["type"], message["error"]) == ("error", code)
    assert sentence in message["detail"]
    assert line.close_code == 1008


@pytest.mark.parametrize(
    ("params", "status", "code", "sentence"), [each for each in REFUSED if not HEADS & each[0].keys()]
)
def test_the_open_inference_protocol_refuses_the_same_with_the_same_words(
    params: dict[str, Any], status: int, code: str, sentence: str, words: httpx.Client, yes: bytes
) -> None:
    asked = dict(params)
    model = asked.pop("model", "clap")
    answer = words.post(f"/v2/models/{model}/infer", json=infer(yes, **asked))
    assert answer.status_code == status, answer.text
    assert answer.json()["code"] == code
    assert sentence in answer.json()["error"]


def test_an_answer_that_would_be_too_long_is_refused(words: httpx.Client) -> None:
    labels = json.dumps([f"{i:03} " + "dog" * 32 for i in range(200)])
    params: dict[str, Any] = {
        "labels": labels,
        "template": "{}",
        "window_s": 0.05,
        "hop_s": 0.01,
        "top_k": 200,
    }
    sound = wav(np.zeros(16_000 * 120, np.float32), subtype="PCM_16")
    answer = words.post("/classify", params=params, content=sound, headers=RAW)
    assert "the answer would hold more than" in check_error(answer, 422, "bad_request")


def test_heads_are_served_as_before(words: httpx.Client, yes: bytes) -> None:
    assert words.post("/classify", params={"head": "pets"}, content=yes).json()["head"] == "pets"


def test_labels_that_take_too_long_end_at_the_deadline_and_hold_nobody_up(
    live: tuple[httpx.Client, Any], yes: bytes
) -> None:
    words, state = live
    encoder = state.models.loaded["clap"].text
    embed, begun, go = encoder.embed, threading.Event(), threading.Event()

    def slow(texts: Any) -> Any:
        begun.set()
        assert go.wait(10)
        return embed(texts)

    encoder.embed = slow
    answers: list[httpx.Response] = []

    def ask() -> None:
        params = {"labels": ",".join(f"label {i}" for i in range(200))}
        headers = {"X-Deadline-S": "0.3"}
        answers.append(words.post("/classify", params=params, content=yes, headers=headers))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        assert begun.wait(10)
        assert words.get("/health/ready").status_code == 200
        assert words.post("/embed", content=yes, headers=RAW).status_code == 200
        threading.Event().wait(0.4)  # past the deadline; the run that has begun is waited for
    finally:
        go.set()
        asking.join()
        del encoder.embed
    check_error(answers[0], 504, "deadline_exceeded")
    assert tags(words.post("/classify", params={"labels": "dog,cat"}, content=yes))


odd_labels = st.text(max_size=40) | st.sampled_from(["{}", "[", '"', "a,b", "\0", "dog", "\u202e", "é" * 60])


@hypothesis.given(
    st.lists(odd_labels, max_size=4) | odd_labels, st.none() | st.text(max_size=20) | st.just("a {}")
)
@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
def test_any_labels_are_scored_or_refused_with_a_reason(
    words: httpx.Client, labels: Any, template: str | None
) -> None:
    sound = f"data:audio/L16;rate=16000;base64,{'AAEC' * 400}"
    body = {"audio": sound, "labels": labels} | ({} if template is None else {"template": template})
    answer = words.post("/classify", json=body)
    if answer.status_code == 200:
        assert sum(tags(answer).values()) == pytest.approx(1, abs=1e-4)
    else:
        code = answer.json()["error"]
        assert (answer.status_code, code) in {(422, "bad_request"), (413, "text_too_long")}
