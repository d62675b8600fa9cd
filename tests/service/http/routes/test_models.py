"""The models over a socket, and POST /models/reload: nobody who asks meanwhile may notice."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from service.inference.card import load_card, write_card
from tests.service.http.live import RAW, check_error, embed, noise, serving, wav
from tests.service.servers import ServerProcess

MakeToy = Callable[..., Path]


NOTHING = {"loaded": [], "changed": [], "removed": [], "refused": {}, "processes": 1}


def new_version(folder: Path, version: str) -> None:
    write_card(folder, load_card(folder).model_copy(update={"version": version}))


def version_of(client: httpx.Client) -> str:
    version: str = client.get("/models/toy").json()["card"]["version"]
    return version


def test_the_models_are_told_with_cards_heads_and_labels(client: httpx.Client) -> None:
    models = client.get("/models").json()
    assert models["default"] == "toy"
    (toy,) = models["models"]
    assert toy == client.get("/models/toy").json()
    assert toy["card"]["sample_rate"] == 16_000
    assert toy["heads"][0]["labels"] == ["cat", "dog", "fish"]
    assert toy["loaded"] is toy["default"] is True


def test_a_head_that_is_deleted_by_hand_is_served_on_and_the_reload_says_what_is_missing(
    tmp_path: Path, make_toy: MakeToy
) -> None:
    head, *_ = sorted((make_toy(tmp_path / "toy") / "heads").glob("*.safetensors"))
    with serving(tmp_path) as (client, _):
        before = client.post("/classify", content=wav(noise(1)), headers=RAW).json()
        head.unlink()
        refused = client.post("/models/reload").json()["refused"]
        assert f"heads/{head.name} is missing" in refused["toy"]
        assert client.post("/classify", content=wav(noise(1)), headers=RAW).json() == before


def test_a_changed_folder_is_served_after_a_reload(tmp_path: Path, make_toy: MakeToy) -> None:
    folder = make_toy(tmp_path / "toy")
    with serving(tmp_path) as (client, _):
        assert client.post("/models/reload").json() == NOTHING | {"kept": ["toy"]}
        new_version(folder, "2")
        assert version_of(client) == "1"
        assert client.post("/models/reload").json() == NOTHING | {"changed": ["toy"], "kept": []}
        assert version_of(client) == "2"
        lines = client.get("/metrics").text.splitlines()
        told = {line for line in lines if line.startswith("viola_model_info{")}
        assert any('version="2"' in line and line.endswith(" 1.0") for line in told)
        assert any('version="1"' in line and line.endswith(" 0.0") for line in told)

        (folder / "encoder.onnx").write_bytes(b"torn")
        refused = client.post("/models/reload").json()["refused"]
        assert "encoder.onnx is not the file of the card" in refused["toy"]
        assert version_of(client) == "2"
        assert embed(client, wav(noise(1)))["embedding_size"] == 16


def test_a_reload_needs_an_admins_key_where_there_are_keys(models_dir: Path) -> None:
    with serving(models_dir, api_keys=("shown",), admin_keys=("secret",)) as (client, _):
        check_error(client.post("/models/reload"), 401, "unauthorized")
        assert client.post("/models/reload", headers={"X-API-Key": "secret"}).status_code == 200


def test_requests_never_notice_a_reload(tmp_path: Path, make_toy: MakeToy) -> None:
    folder = make_toy(tmp_path / "toy")
    body = wav(noise(1))
    done = threading.Event()

    def ask(path: str) -> set[int]:
        statuses = set()
        while not done.is_set():
            statuses.add(client.post(path, content=body, headers=RAW).status_code)
        return statuses

    with serving(tmp_path) as (client, _), ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, path) for path in ("/embed", "/classify", "/embed", "/classify")]
        try:
            for version in range(2, 12):
                new_version(folder, str(version))
                assert client.post("/models/reload").json()["changed"] == ["toy"]
        finally:
            done.set()
        assert [each.result() for each in asked] == [{200}] * 4


def test_all_workers_reload_whichever_is_asked(tmp_path: Path, make_toy: MakeToy) -> None:
    folder = make_toy(tmp_path / "models" / "toy")
    settings = {"VIOLA_WORKERS": "2", "VIOLA_DRAIN_S": "0"}
    with ServerProcess(tmp_path / "models", tmp_path, **settings) as server:
        server.wait_until_ready()
        url = server.url
        for version in ("2", "3", "4"):
            new_version(folder, version)
            for _ in range(600):  # one worker may be up long before the other
                report = httpx.post(f"{url}/models/reload").json()
                if report["processes"] == 2:
                    break
                time.sleep(0.05)
            assert report["processes"] == 2
            # A new connection each: now one worker takes it, now the other.
            found = {httpx.get(f"{url}/models/toy").json()["card"]["version"] for _ in range(12)}
            assert found == {version}
        server.process.send_signal(signal.SIGTERM)
        assert server.ends_with(0)
        assert "Traceback" not in server.log()
