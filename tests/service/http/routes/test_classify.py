"""Clips to tags, over a socket."""

import base64
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from service.inference.events import Hysteresis, events_of
from service.inference.model import Model
from tests.service.conftest import Serve
from tests.service.http.live import RAW, check_error, noise, wav
from tests.service.inference.test_card import accept_changed_file


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


def test_one_request_gives_tags_timeline_embedding_and_picture(client: httpx.Client) -> None:
    """Each part is what the request for it alone gives."""
    content = wav(noise(3.0))

    def ask(target: str) -> dict[str, Any]:
        answer: dict[str, Any] = client.post(target, content=content, headers=RAW).json()
        return answer

    everything = ask("/classify?window_s=1&logmel_columns=90&embedding=base64")
    assert everything["tags"] == ask("/classify")["tags"]
    assert everything["timeline"] == ask("/classify?window_s=1")["timeline"]
    assert {"model": "toy", "duration_s": 3.0} | everything["logmel"] == ask("/logmel?columns=90")
    vector = np.frombuffer(base64.b64decode(everything["embedding"]), "<f4")
    np.testing.assert_allclose(vector, ask("/embed")["embedding"], rtol=1e-6)  # JSON's digits
    assert not {"timeline", "logmel", "embedding"} & set(ask("/classify"))
    assert ask("/embed?logmel_columns=90")["logmel"] == everything["logmel"]
    each = client.post("/classify/batch?logmel_columns=90", files=[("file", content)] * 2).json()["results"]
    assert [one["logmel"] for one in each] == [everything["logmel"]] * 2


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
        ("pooling=sum", "pooling"),
        ("min_known=2", "min_known"),
        ("window_s=1&hop_s=0", "hop_s"),
        ("topk=3", "topk"),
        ("frames=true", "frames"),
        ("logmel_columns=0", "logmel_columns"),
        ("logmel_columns=4001", "logmel_columns"),
        ("embedding=true", "embedding"),
    ],
)
def test_a_parameter_out_of_range_is_named(query: str, says: str, client: httpx.Client) -> None:
    response = client.post(f"/classify?{query}", content=wav(noise(0.1)), headers=RAW)
    assert says in check_error(response, 422, "bad_request")


@pytest.mark.parametrize("route", ["/classify", "/classify/batch"])
def test_a_wrong_head_name_is_told_with_those_there_are(route: str, client: httpx.Client) -> None:
    response = client.post(route, params={"head": "esc50"}, files={"file": wav(noise(0.1))})
    assert "`pets`, `moods`" in check_error(response, 404, "unknown_head")


@pytest.mark.parametrize("route", ["/classify", "/classify/batch"])
def test_a_long_clip_is_gathered_from_its_passages(route: str, client: httpx.Client) -> None:
    """They are those of a timeline of 5 s every 2.5 s, and the same whatever timeline is asked for."""
    file = {"file": wav(noise(12.0))}

    def ask(**query: object) -> dict[str, Any]:
        answer: dict[str, Any] = client.post(route, params={"head": "moods"} | query, files=file).json()
        return answer["results"][0] if "results" in answer else answer

    def scores_of(tags: list[dict[str, Any]]) -> dict[str, float]:
        return {tag["label"]: tag["score"] for tag in tags}

    asked = ask(window_s=5, hop_s=2.5)
    spans = [scores_of(span["tags"]) for span in asked["timeline"]]
    assert len(spans) == 4
    highest = {label: max(span[label] for span in spans) for label in ("calm", "wild")}
    assert scores_of(asked["tags"]) == highest
    for query in ({}, {"window_s": 0.5}):
        found = ask(**query)
        assert ("timeline" in found) == bool(query)
        assert scores_of(found["tags"]) == pytest.approx(highest, abs=2e-6)  # other batches
    mean = scores_of(ask(pooling="mean")["tags"])
    assert all(min(span[label] for span in spans) < mean[label] < highest[label] for label in mean)


@pytest.mark.parametrize("route", ["/classify", "/classify/batch"])
def test_segments_are_those_of_the_timeline(route: str, client: httpx.Client) -> None:
    """Whose windows are a second every half where none are asked for."""
    file = {"file": wav(np.concatenate([noise(3.0), noise(3.0) * 0.001, noise(6.0)]))}

    def ask(**query: object) -> dict[str, Any]:
        answer: dict[str, Any] = client.post(route, params={"head": "moods"} | query, files=file).json()
        return answer["results"][0] if "results" in answer else answer

    wanted = {"segments": True, "begin": 0.6, "end": 0.4, "shortest_s": 0, "gap_s": 0}
    found = ask(**wanted, window_s=1, hop_s=0.5)
    columns = [
        next(tag["score"] for tag in span["tags"] if tag["label"] == label)
        for label in ("calm", "wild")
        for span in found["timeline"]
    ]
    scores = np.array(columns, dtype=np.float32).reshape(2, -1).T
    times_s = np.array([(span["start_s"], span["end_s"]) for span in found["timeline"]])
    hysteresis = Hysteresis(np.full(2, 0.6, np.float32), np.full(2, 0.4, np.float32), 0, 0)
    expected = [asdict(event) for event in events_of(("calm", "wild"), times_s, scores, hysteresis)]
    assert expected
    for answer in (found, ask(**wanted)):
        assert len(answer["segments"]) == len(expected)
        for segment, event in zip(answer["segments"], expected, strict=True):
            assert segment["label"] == event["label"]
            times = [segment[key] for key in ("start_s", "end_s", "score")]
            assert times == pytest.approx([event[key] for key in ("start_s", "end_s", "score")], abs=1e-5)
    assert "timeline" not in ask(**wanted)
    assert "segments" not in ask()
    short = client.post("/classify?segments=1&begin=0.01", content=wav(noise(0.2)), headers=RAW).json()
    assert short["segments"] == []
    short = client.post(
        "/classify?segments=1&begin=0.01&shortest_s=0", content=wav(noise(0.2)), headers=RAW
    ).json()
    assert {(each["start_s"], each["end_s"]) for each in short["segments"]} == {(0.0, 0.2)}


def test_an_answer_says_how_known_a_sound_is(
    serve: Serve, make_toy: Callable[..., Path], tmp_path: Path
) -> None:
    """By a head that has learnt loud noise: what is much softer is none of its sounds."""
    loud, soft = noise(1.0), noise(1.0) * 0.01
    folder = make_toy(tmp_path / "models" / "toy")
    model = Model.load(folder, device="cpu")
    (output,) = model.run([model.logmel(loud)])
    path = folder / "heads" / "pets.safetensors"
    tensors = load_file(path)
    scaled = (output.sum / output.count + output.max - tensors["scaler_mean"]) / tensors["scaler_std"]
    known = {
        "known_projection": np.eye(16, dtype=np.float16),
        "known_means": np.tile(scaled, (3, 1)).astype(np.float16),
        "known_distances": np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32),
    }
    metadata = {"labels": '["cat", "dog", "fish"]', "task": "multiclass", "min_known": "0.5"}
    save_file(tensors | known, path, metadata)
    accept_changed_file(folder, "heads/pets.safetensors")
    with serve(models_dir=folder.parent) as url, httpx.Client(base_url=url) as client:
        heard = client.post("/classify", content=wav(loud), headers=RAW).json()
        assert heard["known"] == 1
        assert len(heard["tags"]) == 3
        strange = client.post("/classify?window_s=0.5&segments=1", content=wav(soft), headers=RAW).json()
        assert (strange["known"], strange["tags"], strange["segments"]) == (0, [], [])
        assert [(span["known"], span["tags"]) for span in strange["timeline"]] == [(0, [])] * 2
        all_the_same = client.post("/classify?min_known=0", content=wav(soft), headers=RAW).json()
        assert (all_the_same["known"], len(all_the_same["tags"])) == (0, 3)
        moods = client.post("/classify?head=moods&min_known=1", content=wav(soft), headers=RAW).json()
        assert "known" not in moods
        assert len(moods["tags"]) == 2
