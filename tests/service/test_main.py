"""`python -m service` as a process: it starts, says what it does, and ends well."""

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import pytest
from uvicorn.config import STARTUP_FAILURE

from tests.service.servers import ServerProcess, run, until


class Client(threading.Thread):
    """Sends one request after the other over a connection that it keeps open, until it is told to stop. When
    the server ends the connection with an answer it goes to `other_url`, as a load balancer does."""

    def __init__(self, url: str, sound: bytes, other_url: str | None = None) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.answered: list[str] = []
        self.failed: list[str] = []
        self._sound, self._other_url = sound, other_url
        self._is_told_to_stop = threading.Event()
        self.start()

    def run(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._is_told_to_stop.is_set():
                try:
                    answer = client.post(
                        f"{self.url}/embed", content=self._sound, headers={"Content-Type": "audio/wav"}
                    )
                    (self.answered if answer.status_code == 200 else self.failed).append(self.url)
                    if self._other_url and answer.headers.get("connection") == "close":
                        self.url = self._other_url
                except httpx.TransportError as error:
                    self.failed.append(repr(error))
                time.sleep(0.005)

    def wait_for_more(self, n: int) -> None:
        """Until n more requests are answered."""
        target = len(self.answered) + n
        until(lambda: len(self.answered) >= target, seconds=150)

    def stop(self) -> None:
        self._is_told_to_stop.set()
        self.join()


@pytest.mark.parametrize("workers", [1, 2])
def test_it_serves_and_a_sigterm_ends_it_with_0(
    workers: int, models_dir: Path, fixtures_dir: Path, tmp_path: Path
) -> None:
    settings = {"VIOLA_LOG_FORMAT": "json", "VIOLA_WORKERS": str(workers)}
    with ServerProcess(models_dir, tmp_path, **settings) as server:
        server.wait_until_ready()
        sound = {"file": (fixtures_dir / "keyword_yes_16k_mono_pcm16.wav").read_bytes()}
        assert httpx.post(f"{server.url}/embed", files=sound).json()["duration_s"] == 1
        server.process.send_signal(signal.SIGTERM)
        assert server.ends_with(0)
    lines = [orjson.loads(line) for line in server.log().splitlines()]
    assert any("thread(s) for the inference of" in line["message"] for line in lines)
    assert {line["level"] for line in lines} == {"info"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken_is_told_before_any_model_is_loaded(
    workers: int, models_dir: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with ServerProcess(models_dir, tmp_path, port=port, VIOLA_WORKERS=str(workers)) as server:
            assert server.ends_with(STARTUP_FAILURE)
    log = server.log()
    assert "address already in use; VIOLA_PORT takes another" in log
    assert "loaded toy" not in log


def test_a_silent_connection_is_cut_as_set_and_counted(models_dir: Path, tmp_path: Path) -> None:
    with ServerProcess(models_dir, tmp_path, VIOLA_HEAD_TIMEOUT_S="1") as server:
        server.wait_until_ready()
        page = httpx.get(f"{server.url}/metrics").text
        assert 'viola_connections_cut_total{reason="answer"} 0.0' in page
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as silent:
            assert not silent.recv(1)
        assert server.metric('viola_connections_cut_total{reason="head"}') >= 1


def test_from_sigterm_on_it_is_not_ready_and_answers_what_it_accepted(
    models_dir: Path, fixtures_dir: Path, tmp_path: Path
) -> None:
    settings = {"VIOLA_MAX_WAIT_MS": "1000", "VIOLA_PROT": "8000"}  # a lone request takes a second
    with ServerProcess(models_dir, tmp_path, **settings) as server:
        server.wait_until_ready()
        sound = (fixtures_dir / "keyword_yes_16k_mono_pcm16.wav").read_bytes()
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=server.url) as open_connection:
            accepted = pool.submit(httpx.post, f"{server.url}/embed", files={"file": sound})
            while "viola_queue_frames 0.0" in open_connection.get("/metrics").text:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            assert not_ready_or_closed(open_connection)
            assert refused_within_s(20, server.port)
            assert accepted.result().json()["duration_s"] == 1
        assert server.ends_with(0)
    assert "VIOLA_PROT is no setting" in server.log()


def not_ready_or_closed(client: httpx.Client) -> bool:
    """What an open connection sees from the signal on: 503, and a moment later its end."""
    time.sleep(0.02)  # for the signal to arrive
    try:
        return client.get("/health/ready").status_code == 503
    except httpx.TransportError:
        return True


def refused_within_s(seconds: float, port: int) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return True
        time.sleep(0.01)
    return False


def test_a_rolling_restart_loses_no_request(models_dir: Path, fixtures_dir: Path, tmp_path: Path) -> None:
    sound = (fixtures_dir / "keyword_yes_16k_mono_pcm16.wav").read_bytes()
    with ServerProcess(models_dir, tmp_path) as old, ServerProcess(models_dir, tmp_path) as new:
        old.wait_until_ready()
        new.wait_until_ready()
        clients = [Client(old.url, sound, other_url=new.url) for _ in range(3)]
        clients[0].wait_for_more(5)
        old.process.send_signal(signal.SIGTERM)
        assert old.ends_with(0)
        for client in clients:
            client.wait_for_more(2)
            client.stop()
        assert [client.failed for client in clients] == [[], [], []]
        assert all({old.url, new.url} == set(client.answered) for client in clients)
        assert new.metric("viola_requests_total") >= 6


def test_workers_are_replaced_counted_together_and_ended(
    models_dir: Path, fixtures_dir: Path, tmp_path: Path
) -> None:
    sound = (fixtures_dir / "keyword_yes_16k_mono_pcm16.wav").read_bytes()

    def pids() -> set[int]:
        """Of the workers that live; the slot of one that is gone is there until the next one takes it."""
        held = {int(path.read_text() or 0) for path in tmp_path.glob("viola-metrics-*/*.pid")}
        return {pid for pid in held if Path(f"/proc/{pid}").exists()}

    with ServerProcess(models_dir, tmp_path, VIOLA_WORKERS="2") as server:
        server.wait_until_ready()
        until(lambda: server.metric("viola_ready") == 2, seconds=150)
        clients = [Client(server.url, sound) for _ in range(3)]
        clients[0].wait_for_more(5)

        killed = min(pids())
        os.kill(killed, signal.SIGKILL)  # a crash: only requests that it was working on are lost
        clients[0].wait_for_more(5)
        until(
            lambda: len(pids()) == 2 and killed not in pids() and server.metric("viola_ready") == 2,
            seconds=150,
        )
        assert sum(len(client.failed) for client in clients) <= len(clients)
        for client in clients:
            client.failed.clear()

        before = pids()
        server.process.send_signal(signal.SIGHUP)  # a restart, one worker after the other: nothing is lost
        until(lambda: not before & pids() and server.metric("viola_ready") == 2, seconds=150)
        for client in clients:
            client.stop()
        assert [client.failed for client in clients] == [[], [], []]

        answered = sum(len(client.answered) for client in clients)
        counted = server.metric("viola_request_duration_seconds_count")
        assert counted >= answered  # of five workers, three of which are gone
        server.process.send_signal(signal.SIGTERM)
        assert server.ends_with(0)
        assert refused_within_s(1, server.port)
        assert not list(tmp_path.glob("viola-metrics-*"))


def test_workers_end_when_their_supervisor_is_killed(models_dir: Path, tmp_path: Path) -> None:
    with ServerProcess(models_dir, tmp_path, VIOLA_WORKERS="2") as server:
        server.wait_until_ready()
    assert refused_within_s(30, server.port)


def test_behind_a_prefix_the_documents_find_each_other(models_dir: Path, tmp_path: Path) -> None:
    with ServerProcess(models_dir, tmp_path, "--root-path", "/viola") as server:
        server.wait_until_ready()
        # A proxy may cut the prefix off or leave it.
        for base in (server.url, f"{server.url}/viola"):
            assert 'href="openapi.json"' in httpx.get(f"{base}/docs").text
            assert httpx.get(f"{base}/openapi.json").json()["servers"] == [{"url": "/viola"}]
            assert 'src="page/page.js"' in httpx.get(f"{base}/").text
            assert httpx.get(f"{base}/models").status_code == 200
        assert server.metric('viola_requests_total{code="200",model="",route="/models"}') == 2


def refusal(*arguments: str, **settings: str) -> str:
    """What a server that does not start says on stderr."""
    process = run(*arguments, **settings)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in errors
    return errors


def test_a_keys_file_that_cannot_be_read_is_told_at_start(tmp_path: Path) -> None:
    errors = refusal(VIOLA_API_KEYS_FILE=str(tmp_path / "nowhere"))
    assert "VIOLA_API_KEYS_FILE" in errors
    assert "No such file" in errors


@pytest.mark.parametrize("misspelt", ["VIOLA_API_KEY", "VIOLA_APIKEYS_FILE"])
def test_a_misspelt_name_of_the_keys_does_not_open_the_server(misspelt: str) -> None:
    errors = refusal(**{misspelt: "secret"})
    assert f"{misspelt} is no setting" in errors
    assert "secret" not in errors


def test_a_wrong_setting_is_named() -> None:
    errors = refusal(VIOLA_PORT="many")
    assert "VIOLA_PORT" in errors
    assert "many" in errors


def test_an_unknown_command_is_answered_with_those_there_are() -> None:
    assert "python -m service embed" in refusal("sevre")
