"""The container's health check against a server."""

import socket

import pytest

from service import healthcheck


def test_it_asks_the_server_itself_and_no_proxy(live_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv("VIOLA_PORT", live_url.rpartition(":")[2])
        for host in ("", "0.0.0.0", "::", "127.0.0.1", "localhost"):
            monkeypatch.setenv("VIOLA_HOST", host)
            assert healthcheck.main() == 0, host


def test_it_asks_the_address_that_the_server_listens_on(
    live_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test's server is on 127.0.0.1 alone."""
    monkeypatch.setenv("VIOLA_PORT", live_url.rpartition(":")[2])
    for host in ("127.0.0.2", "::1"):
        monkeypatch.setenv("VIOLA_HOST", host)
        assert healthcheck.main() == 1
    assert capsys.readouterr().err.count("not ready: ") == 2
