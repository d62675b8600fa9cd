"""POST /models/reload and a session that fails, over a socket: nobody who asks meanwhile may notice."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from service import model as model_module
from service.model import Model, load_card, write_card

from .test_app import RAW, check_error, embed, noise, serving, until, wav
from .test_main import free_port, run, wait_until_ready
from .test_model import FailingSession

MakeToy = Callable[..., Path]
NOTHING = {"loaded": [], "changed": [], "removed": [], "refused": {}, "processes": 1}


def new_version(folder: Path, version: str) -> None:
    write_card(folder, load_card(folder).model_copy(update={"version": version}))


def version_of(client: httpx.Client) -> str:
    version: str = client.get("/models/toy").json()["card"]["version"]
    return version


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


def test_a_reload_needs_a_key_where_there_are_keys(models_dir: Path) -> None:
    with serving(models_dir, api_keys=("secret",)) as (client, _):
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


def test_while_a_session_is_broken_the_server_is_not_ready(
    toy_folder: Path, toy_model: Model, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = FailingSession(toy_folder, RuntimeError("CUDA failure 700"))
    session.heals = False
    session.broken = lambda logmel: True
    body = wav(noise(1))
    with serving(models_dir) as (client, server):
        server.models.loaded["toy"] = Model(
            toy_folder, toy_model.card, toy_model._logmel, session, toy_model.heads, "float32"
        )
        answer = client.post("/embed", content=body, headers=RAW)
        assert "could not be opened again" in check_error(answer, 503, "overloaded")
        assert int(answer.headers["Retry-After"]) >= 1
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert "CUDA failure 700" in ready.json()["detail"]
        assert client.get("/health/live").status_code == 200

        session.heals = True
        monkeypatch.setattr(model_module, "REOPEN_EVERY_S", 0.0)  # some seconds later
        expected = toy_model.run([toy_model.logmel(noise(1))])[0]
        until(lambda: client.get("/health/ready").status_code == 200)  # no request was needed
        vector = client.post("/embed", content=body, headers=RAW).json()["embedding"]
        np.testing.assert_allclose(vector, expected.sum / expected.count + expected.max, rtol=1e-5)


def test_all_workers_reload_whichever_is_asked(tmp_path: Path, make_toy: MakeToy, fixtures_dir: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    url = f"http://127.0.0.1:{(port := free_port())}"
    process = run(
        VIOLA_HOST="127.0.0.1",
        VIOLA_PORT=str(port),
        VIOLA_MODELS_DIR=str(tmp_path),
        VIOLA_MODEL="toy",
        VIOLA_DEVICE="cpu",
        VIOLA_WORKERS="2",
        VIOLA_DRAIN_S="0",
    )
    try:
        wait_until_ready(url, process)
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
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Traceback" not in log
