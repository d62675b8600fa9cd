"""/models/{name}/heads: examples in, a head that is served at once out, against a live server."""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from service.inference.card import load_card, sha256_of, write_card

Serve = Callable[..., AbstractContextManager[str]]
RATE = 16_000


def tone(hz: float, *, seed: int = 0, seconds: float = 1.0) -> bytes:
    """A WAV file of a tone in a little noise."""
    t = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(scale=0.01, size=len(t))
    return wav(0.3 * np.sin(2 * np.pi * hz * t * (1 + seed / 200)) + noise)


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV")
    return file.getvalue()


def noise(seed: int) -> bytes:
    return wav(np.random.default_rng(seed).normal(scale=0.1, size=RATE))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, make_toy: Callable[..., Path]) -> Path:
    """The toy model, with a background of noises of all colours, as the toy hears them."""
    folder = tmp_path_factory.mktemp("models") / "toy"
    make_toy(folder)
    rng = np.random.default_rng(0)
    background = np.abs(rng.normal(size=(64, load_card(folder).embedding_size))).astype(np.float16)
    save_file({"embeddings": background}, folder / "background.safetensors")
    with_it = {"background.safetensors": sha256_of(folder / "background.safetensors")}
    card = load_card(folder)
    write_card(folder, card.model_copy(update={"files": card.files | with_it}))
    return folder.parent


@pytest.fixture
def url(serve: Serve, models: Path, tmp_path: Path) -> Iterator[str]:
    with serve(models_dir=models, data_dir=tmp_path / "data") as address:
        yield f"{address}/models/toy/heads"


def teach(url: str, label: str, sounds: list[bytes], head: str = "doors", **query: Any) -> httpx.Response:
    files = [("file", (f"{label[:20]}-{i}.wav", sound)) for i, sound in enumerate(sounds)]
    return httpx.post(f"{url}/{head}/examples", params={"label": label} | query, files=files, timeout=120)


def teach_two(url: str, head: str = "doors", **query: Any) -> dict[str, Any]:
    assert teach(url, "low", [tone(300, seed=i) for i in range(4)], head).status_code == 200
    answer = teach(url, "high", [tone(3000, seed=i) for i in range(4)], head, fit="auto", **query)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def classify(url: str, sound: bytes, head: str = "doors") -> dict[str, Any]:
    server = url.partition("/models/")[0]
    answer = httpx.post(f"{server}/classify", params={"head": head}, content=sound, timeout=60)
    content: dict[str, Any] = answer.json()
    return content


def code(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    error: str = answer.json()["error"]
    return error


def test_examples_make_a_head_that_is_served_at_once_and_everywhere(url: str) -> None:
    report = teach_two(url, none="false")["fit"]
    assert [one["label"] for one in report["labels"]] == ["low", "high"]
    assert report["accuracy"] == 1.0
    assert "told right" in report["words"][0]
    assert classify(url, tone(310, seed=9))["tags"][0]["label"] == "low"
    assert classify(url, tone(2900, seed=9))["tags"][0]["label"] == "high"
    (card,) = httpx.get(url.removesuffix("/toy/heads")).json()["models"]
    assert {head["name"]: head["taught"] for head in card["heads"]} == {
        "pets": False,
        "moods": False,
        "doors": True,
    }
    (listed,) = httpx.get(url).json()["heads"]
    assert listed["served"]
    assert listed["fitted"]
    assert listed["labels"] == [{"label": "low", "examples": 4}, {"label": "high", "examples": 4}]


def test_what_was_taught_is_there_after_a_restart(serve: Serve, models: Path, tmp_path: Path) -> None:
    with serve(models_dir=models, data_dir=tmp_path) as address:
        teach_two(f"{address}/models/toy/heads")
        before = classify(f"{address}/models/toy/heads", tone(310, seed=9))
    with serve(models_dir=models, data_dir=tmp_path) as address:
        assert classify(f"{address}/models/toy/heads", tone(310, seed=9)) == before


DAMAGED = {
    "torn": b'{"options": {"task": "multi',
    "empty": b"",
    "no object": b"[]",
    "of another kind": b'{"options": {"task": "both"}, "edits": 1, "created": ""}',
    "a number that is a text": b'{"options": {}, "edits": "1", "created": ""}',
    "no text": os.urandom(100),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_head_is_named_and_takes_no_other_with_it(
    serve: Serve, models: Path, tmp_path: Path, name: str
) -> None:
    with serve(models_dir=models, data_dir=tmp_path / "data") as address:
        url = f"{address}/models/toy/heads"
        teach_two(url)
        teach_two(url, "other")
    (tmp_path / "data" / "toy" / "taught" / "doors" / "head.json").write_bytes(DAMAGED[name])
    with serve(models_dir=models, data_dir=tmp_path / "data") as address:  # and after a start
        url = f"{address}/models/toy/heads"
        listed = httpx.get(url)
        assert listed.status_code == 200, listed.text
        assert [head["head"] for head in listed.json()["heads"]] == ["other"]
        (told,) = listed.json()["damaged"]
        assert (told["head"], told["error"]) == ("doors", "storage_failed")
        assert "PUT" in told["detail"]
        assert code(httpx.get(f"{url}/doors"), 507) == "storage_failed"
        assert code(httpx.get(f"{url}/doors/examples"), 507) == "storage_failed"
        for head in ("doors", "other"):  # what was fitted stays
            assert classify(url, tone(310, seed=9), head)["tags"][0]["label"] == "low"
        assert len(httpx.get(f"{url}/other/examples").json()["examples"]) == 8
        assert httpx.put(f"{url}/doors").status_code == 200
        assert len(httpx.get(url).json()["heads"]) == 2
        assert len(httpx.get(f"{url}/doors/examples").json()["examples"]) == 8
        assert httpx.post(f"{url}/doors/fit", timeout=60).status_code == 200


def test_files_of_heads_that_are_none_stop_nobody(serve: Serve, models: Path, tmp_path: Path) -> None:
    """A folder, a link to nothing and an empty file, where heads are read before each request."""
    heads = tmp_path / "data" / "toy" / "heads"
    with serve(models_dir=models, data_dir=tmp_path / "data") as address:
        url = f"{address}/models/toy/heads"
        teach_two(url)
        (heads / "folder.safetensors").mkdir()
        (heads / "link.safetensors").symlink_to(tmp_path / "nothing")
        (heads / "empty.safetensors").write_bytes(b"")
        (heads.parent / "generation").unlink()
        (heads.parent / "generation").write_bytes(b"")
        assert classify(url, tone(310, seed=9))["tags"][0]["label"] == "low"
        assert [head["head"] for head in httpx.get(url).json()["heads"]] == ["doors"]
    with serve(models_dir=models, data_dir=tmp_path / "data") as address:
        assert classify(f"{address}/models/toy/heads", tone(310, seed=9))["tags"][0]["label"] == "low"


def test_a_damaged_example_or_report_takes_nothing_else_with_it(url: str, tmp_path: Path) -> None:
    teach_two(url)
    folder = tmp_path / "data" / "toy" / "taught" / "doors"
    path = sorted((folder / "examples").iterdir())[0]
    content = path.read_bytes()
    assert b'\\"added\\": \\"' in content
    at = content.index(b'\\"added\\": \\"')
    end = content.index(b'\\",', at) + 2
    path.write_bytes(content[:at] + b'\\"added\\": 1'.ljust(end - at) + content[end:])  # a number, no text
    (folder / "report.json").write_bytes(b'{"edits": 1}')
    assert len(httpx.get(f"{url}/doors/examples").json()["examples"]) == 7
    (told,) = httpx.get(url).json()["heads"]
    assert (told["damaged"], told["accuracy"]) == (1, None)
    assert httpx.get(f"{url}/doors").status_code == 200
    assert httpx.post(f"{url}/doors/fit", timeout=60).json()["damaged"] == 1


def test_a_broken_and_a_silent_clip_are_refused_with_their_reasons_and_the_others_taken(url: str) -> None:
    answer = teach(url, "low", [tone(300), b"no sound", wav(np.zeros(RATE)), tone(320, seed=1)])
    good, broken, silent, other = answer.json()["results"]
    assert [len(one["examples"]) for one in (good, other)] == [1, 1]
    assert broken["error"] == "audio_unreadable"
    assert silent["error"] == "audio_silent"
    assert "nothing can be heard" in silent["detail"]
    assert len(httpx.get(f"{url}/doors/examples").json()["examples"]) == 2


def test_a_long_clip_gives_an_example_for_each_passage_that_can_be_heard(url: str) -> None:
    five_s = np.frombuffer(tone(300, seconds=5)[44:], np.int16) / 32768
    clip = wav(np.concatenate([five_s, np.zeros(5 * RATE), five_s, five_s[: 2 * RATE]]))
    (result,) = teach(url, "low", [clip]).json()["results"]
    assert [(one["start_s"], one["end_s"]) for one in result["examples"]] == [(0, 5), (10, 15)]
    assert result["silent"] == 1
    assert result["duration_s"] == 17


def test_a_clip_comes_in_every_way_that_clips_come_in(url: str) -> None:
    import base64

    raw = httpx.post(
        f"{url}/doors/examples?label=a", content=tone(300), headers={"Content-Type": "audio/wav"}
    )
    sound = base64.b64encode(tone(400)).decode()
    as_json = httpx.post(f"{url}/doors/examples", json={"audio": [sound], "label": "b"})
    assert raw.status_code == as_json.status_code == 200
    labels = [one["labels"] for one in httpx.get(f"{url}/doors/examples").json()["examples"]]
    assert sorted(labels) == [["a"], ["b"]]


def test_the_same_clip_is_one_example_and_moves_to_its_last_label(url: str) -> None:
    for label in ("low", "low", "high"):
        teach(url, label, [tone(300)])
    (example,) = httpx.get(f"{url}/doors/examples").json()["examples"]
    assert example["labels"] == ["high"]


def test_one_label_alone_is_told_from_the_background(url: str) -> None:
    report = teach(url, "low", [tone(300, seed=i) for i in range(3)], fit="auto").json()["fit"]
    assert report["none_of_these"]["sounds"] == 64
    found = classify(url, tone(305, seed=7))
    assert found["tags"][0]["label"] == "low"
    assert 0 <= found["known"] <= 1


def test_a_single_example_is_enough_and_without_background_a_second_label_is(url: str) -> None:
    assert teach(url, "low", [tone(300)], fit="auto").json()["fit"]["accuracy"] is None
    httpx.put(f"{url}/bare", params={"none_of_these": False})
    alone = teach(url, "low", [tone(300)], "bare", fit="auto").json()
    assert alone["fit"] is None
    assert "the only label" in alone["not_fitted_because"]
    assert teach(url, "high", [tone(3000)], "bare", fit="auto").json()["fit"]["labels"][1]["label"] == "high"


def test_a_multilabel_head_has_sounds_of_several_labels(url: str) -> None:
    assert httpx.put(f"{url}/several", params={"task": "multilabel"}).json()["task"] == "multilabel"
    mixed = wav(sum(np.frombuffer(tone(hz)[44:], np.int16) / 65536 for hz in (300, 3000)))
    teach(url, "low", [tone(300, seed=i) for i in range(3)], "several")
    teach(url, "high", [tone(3000, seed=i) for i in range(3)], "several")
    report = teach(url, "low, high", [mixed], "several", fit="auto").json()["fit"]
    assert {one["label"]: one["examples"] for one in report["labels"]} == {"low": 4, "high": 4}
    assert httpx.put(f"{url}/several", params={"task": "multiclass"}).json()["error"] == "head_conflict"


def test_examples_of_none_count_against_the_labels(url: str) -> None:
    files = [("file", (f"{i}.wav", noise(i))) for i in range(3)]
    assert httpx.post(f"{url}/doors/examples", params={"none": True}, files=files).status_code == 200
    report = teach(url, "low", [tone(300, seed=i) for i in range(3)], fit="auto").json()["fit"]
    assert report["none_of_these"]["examples_of_it"] == 3
    assert report["none_of_these"]["sounds"] == 67


def test_an_example_with_a_wrong_label_is_named_in_words(url: str) -> None:
    teach(url, "low", [tone(300, seed=i) for i in range(6)] + [tone(3000, seed=9)])
    report = teach(url, "high", [tone(3000, seed=i) for i in range(6)], fit="auto").json()["fit"]
    assert [one["file"] for one in report["doubtful"]] == ["low-6.wav"]
    assert report["confused"][0] == {"label": "low", "taken_for": "high", "times": 1}
    assert any("low-6.wav" in words and "sounds like high" in words for words in report["words"])


def test_forgetting_goes_by_id_and_by_label(url: str) -> None:
    teach_two(url)
    first = httpx.get(f"{url}/doors/examples").json()["examples"][0]["id"]
    assert httpx.delete(f"{url}/doors/examples/{first}").json()["removed"] == [first]
    assert code(httpx.delete(f"{url}/doors/examples/{first}"), 404) == "unknown_example"
    assert len(httpx.delete(f"{url}/doors/examples", params={"label": "high"}).json()["removed"]) == 4
    assert classify(url, tone(2900))["tags"][0]["label"] == "high"  # until the next fit
    assert httpx.get(f"{url}/doors").json()["fitted"] is False
    assert httpx.delete(f"{url}/doors").status_code == 200
    assert classify(url, tone(2900))["error"] == "unknown_head"
    assert code(httpx.get(f"{url}/doors"), 404) == "unknown_head"


def test_an_exported_head_is_that_of_a_model_folder_and_of_another_server(
    serve: Serve, models: Path, url: str, tmp_path: Path
) -> None:
    teach_two(url)
    here = classify(url, tone(310, seed=9))
    file = httpx.get(f"{url}/doors/file").content
    folder = tmp_path / "models" / "toy"
    shutil.copytree(models / "toy", folder)
    (folder / "heads" / "doors.safetensors").write_bytes(file)
    card = load_card(folder)
    in_card = {"heads/doors.safetensors": sha256_of(folder / "heads" / "doors.safetensors")}
    write_card(folder, card.model_copy(update={"files": card.files | in_card}))
    with serve(models_dir=folder.parent) as address:
        assert classify(f"{address}/models/toy/heads", tone(310, seed=9)) == here
    with serve(models_dir=models, data_dir=tmp_path / "other") as address:
        other = f"{address}/models/toy/heads"
        assert httpx.put(f"{other}/imported/file", content=file).json()["imported"]
        assert classify(other, tone(310, seed=9), "imported") == here | {"head": "imported"}
        assert code(teach(other, "x", [tone(300)], "imported"), 409) == "head_conflict"
    assert b"low-0.wav" not in file  # no name of a file goes out with it


def test_a_file_that_is_no_head_of_the_model_is_refused(url: str, tmp_path: Path) -> None:
    teach_two(url)
    tensors = load_file(_saved(tmp_path, httpx.get(f"{url}/doors/file").content))
    save_file({**tensors, "weight": tensors["weight"][:, :3]}, tmp_path / "cut.safetensors", {"labels": "[]"})
    for content in (b"", b"no head", (tmp_path / "cut.safetensors").read_bytes()):
        assert code(httpx.put(f"{url}/new/file", content=content), 409) == "head_conflict"
    assert code(httpx.get(f"{url}/new"), 404) == "unknown_head"


def _saved(folder: Path, content: bytes) -> Path:
    path = folder / "file.safetensors"
    path.write_bytes(content)
    return path


def test_kept_clips_are_given_back_and_embedded_again_by_a_new_version_of_the_model(
    serve: Serve, models: Path, tmp_path: Path
) -> None:
    data, folder = tmp_path / "data", tmp_path / "models" / "toy"
    shutil.copytree(models / "toy", folder)
    with serve(models_dir=folder.parent, data_dir=data) as address:
        url = f"{address}/models/toy/heads"
        httpx.put(f"{url}/doors", json={"keep_clips": True})
        teach_two(url)
        teach_two(url, "without")
        listed = httpx.get(f"{url}/doors/examples").json()["examples"]
        assert all(one["clip"] for one in listed)
        sound = next(one["id"] for one in listed if one["file"] == "low-0.wav")
        clip = httpx.get(f"{url}/doors/examples/{sound}/clip")
        assert clip.content == tone(300)
        assert clip.headers["x-content-type-options"] == "nosniff"
        card = load_card(folder)
        # Another pooling is another embedding, of the same graph.
        write_card(folder, card.model_copy(update={"pooling": "mean", "version": "2"}))
        httpx.post(f"{address}/models/reload")
        outdated = classify(url, tone(310))
        assert outdated["error"] == "head_outdated"
        assert "another version" in outdated["detail"]
        assert httpx.get(f"{url}/doors").json()["outdated"] == 8
        assert httpx.post(f"{url}/doors/fit", timeout=120).json()["accuracy"] == 1.0
        assert classify(url, tone(310, seed=9))["tags"][0]["label"] == "low"
        refused = httpx.post(f"{url}/without/fit", timeout=120)
        assert code(refused, 409) == "head_outdated"
        assert "send them again" in refused.json()["detail"]


def test_without_a_folder_the_routes_say_how_to_turn_it_on(live_url: str) -> None:
    url = f"{live_url}/models/toy/heads"
    for answer in (httpx.get(url), teach(url, "a", [tone(300)]), httpx.post(f"{url}/a/fit")):
        assert code(answer, 501) == "teaching_off"
        assert "VIOLA_DATA_DIR" in answer.json()["detail"]


def test_heads_of_the_models_folder_cannot_be_taught(url: str) -> None:
    assert code(teach(url, "a", [tone(300)], "pets"), 409) == "head_conflict"
    assert code(httpx.delete(f"{url}/pets"), 409) == "head_conflict"


def test_writing_takes_an_admins_key_and_reading_a_clients(
    serve: Serve, models: Path, tmp_path: Path
) -> None:
    keys = {"api_keys": ("client",), "admin_keys": ("admin",)}
    with serve(models_dir=models, data_dir=tmp_path, **keys) as address, httpx.Client() as http:
        url = f"{address}/models/toy/heads"
        http.headers["X-API-Key"] = "client"
        files = [("file", ("a.wav", tone(300)))]
        writes = [
            ("POST", "/d/examples?label=a", files),
            ("POST", "/d/fit", None),
            ("PUT", "/d", None),
            ("PUT", "/d/file", None),
            ("DELETE", "/d", None),
            ("DELETE", "/d/examples?label=a", None),
            ("DELETE", "/d/examples/1", None),
        ]
        for method, path, body in writes:
            assert code(http.request(method, url + path, files=body), 403) == "forbidden", path
        admin = {"X-API-Key": "admin"}
        assert http.post(f"{url}/d/examples?label=a", files=files, headers=admin).status_code == 200
        assert http.get(f"{url}/d/examples").status_code == 200
        assert code(httpx.get(url), 401) == "unauthorized"


def test_labels_examples_heads_and_bytes_are_limited(serve: Serve, models: Path, tmp_path: Path) -> None:
    limits = {"max_taught_labels": 2, "max_taught_examples": 3, "max_taught_heads": 1}
    with serve(models_dir=models, data_dir=tmp_path / "a", **limits) as address:
        url = f"{address}/models/toy/heads"
        for label in ("a", "b", "c"):
            (result,) = teach(url, label, [tone(300 + ord(label))]).json()["results"]
        assert result["error"] == "teaching_limit"
        assert "VIOLA_MAX_TAUGHT_LABELS" in result["detail"]
        results = teach(url, "a", [tone(500), tone(600)]).json()["results"]
        assert "VIOLA_MAX_TAUGHT_EXAMPLES" in results[1]["detail"]
        assert code(teach(url, "a", [tone(300)], "second"), 422) == "teaching_limit"
    with serve(models_dir=models, data_dir=tmp_path / "b", max_data_bytes=1000) as address:
        (result,) = teach(f"{address}/models/toy/heads", "a", [tone(300)]).json()["results"]
        assert "VIOLA_MAX_DATA_BYTES" in result["detail"]


def test_a_misspelt_parameter_is_no_option(url: str) -> None:
    assert "`tasks` is not known" in httpx.put(f"{url}/d", params={"tasks": "x"}).json()["detail"]
    assert code(httpx.post(f"{url}/d/examples", content=tone(300)), 422) == "bad_request"
    assert code(teach(url, "a", [tone(300)], none="true"), 422) == "bad_request"


def test_routes_of_heads_have_labels_of_their_own_in_the_metrics_and_names_have_none(url: str) -> None:
    teach(url, "a", [tone(300)], "one-of-many")
    httpx.get(f"{url}/another-one")
    page = httpx.get(f"{url.partition('/models/')[0]}/metrics").text
    assert 'route="/models/{name}/heads/{head}/examples"' in page
    assert 'route="/models/{name}/heads/{head}"' in page
    assert "one-of-many" not in page
    assert "another-one" not in page


@given(text=st.text(max_size=200) | st.sampled_from(["..", "../../x", "a/b", "/", "\0", "a" * 5000, " ", "﻿"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_label_is_it_is_kept_or_refused_and_reaches_no_path(
    url: str, tmp_path: Path, text: str
) -> None:
    text = text.encode("utf-8", "ignore").decode()
    answer = httpx.post(f"{url}/doors/examples", params={"label": text}, content=tone(300))
    assert answer.status_code in (200, 422)
    assert len(answer.content) < 8000
    if answer.status_code == 200:
        (label,) = answer.json()["results"][0]["examples"][0]["labels"]
        assert label in [one["label"] for one in httpx.get(f"{url}/doors").json()["labels"]]
        assert label.strip() == label != ""
        assert len(label) <= 80
    files = {path.relative_to(tmp_path / "data") for path in tmp_path.rglob("*") if path.is_file()}
    kinds = {path.parts[:2] for path in files if path.parts[0] == "toy"}
    assert kinds <= {("toy", "lock"), ("toy", "taught"), ("toy", "generation"), ("toy", "heads")}
    assert len(files) <= 5  # the same clip, whatever it is called


@pytest.mark.parametrize("name", ["..", ".hidden", "%2e%2e", "a%2fb", "a b", "é", "a" * 65, "-x", "a%00"])
def test_the_name_of_a_head_is_no_path(url: str, tmp_path: Path, name: str) -> None:
    answer = httpx.post(f"{url}/{name}/examples?label=a", content=tone(300))
    assert answer.status_code in (404, 405, 422)
    assert not list((tmp_path / "data").rglob("*.safetensors"))


def test_two_who_teach_at_once_lose_nothing(url: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def one(i: int) -> int:
        return teach(url, f"label {i % 3}", [tone(200 + 100 * i)], fit="auto").status_code

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(one, range(12))) == {200}
    assert len(httpx.get(f"{url}/doors/examples").json()["examples"]) == 12
    assert httpx.post(f"{url}/doors/fit", timeout=120).json()["examples"] == 12


def test_what_the_reports_say_is_json(url: str) -> None:
    assert json.loads(json.dumps(teach_two(url)))["fit"]["seconds"] > 0
