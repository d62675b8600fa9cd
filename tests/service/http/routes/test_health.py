"""When a server is ready, and when it is only alive."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service.http import server as server_module
from service.inference import model as model_module
from service.inference.model import Model
from tests.service.http.live import RAW, check_error, embed, held_worker, noise, serving, wav
from tests.service.inference.test_model import FailingSession
from tests.service.servers import until


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
    monkeypatch.setattr(server_module, "STUCK_S", 0.05)
    with serving(models_dir) as (client, state), ThreadPoolExecutor(1) as pool:
        with held_worker(state):
            waiting = pool.submit(embed, client, wav(noise(0.1)))
            until(lambda: client.get("/health/ready").status_code == 503)
            assert "in one batch" in check_error(client.get("/health/ready"), 503, "not_ready")
            assert client.get("/health/live").status_code == 200
        assert waiting.result()
        assert client.get("/health/ready").status_code == 200


def test_a_probe_is_answered_at_once_however_long_recovering_the_model_takes(
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
        refused = client.post("/embed", headers=RAW)
        assert "no folder" in check_error(refused, 503, "model_unavailable")
        assert refused.headers["retry-after"] == "10", "clients come back: somebody will mend it"


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
