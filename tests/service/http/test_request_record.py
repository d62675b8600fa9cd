"""What is noted about a request."""

import pytest

from service.http.request_record import STAGES, RequestRecord, id_source
from service.inference.embedder import Timings


def record() -> RequestRecord:
    scope = {"method": "POST", "client": ("10.0.0.1", 5000)}
    return RequestRecord(scope, path="/embed", request_id=b"id", status=200)


def test_the_stages_are_those_that_are_measured() -> None:
    assert all(hasattr(Timings(), stage) for stage in STAGES)
    assert [part.split(";")[0] for part in Timings().server_timing().split(", ")] == list(STAGES)


def test_what_is_not_known_is_left_out() -> None:
    assert {"model", "audio_s", "error", "detail", "trace_id", "path"}.isdisjoint(record().fields(0.1))


def test_a_path_that_is_no_route_is_told_and_cut() -> None:
    noted = record()
    noted.route, noted.path = "other", "/" + "x" * 1000
    assert noted.fields(0.1)["path"] == "/" + "x" * 199 + "..."


def test_a_client_on_a_unix_socket_has_no_address() -> None:
    assert RequestRecord({"method": "GET", "client": None}, path="/", request_id=b"", status=200).peer == ""


@pytest.mark.parametrize("sent", [b"abc", b"A" * 128, b"01ARZ3NDEKTSV4RRFFQ69G5FAV", b"a=b@c~d+e"])
def test_a_clients_id_is_kept(sent: bytes) -> None:
    assert id_source()(sent) == sent


@pytest.mark.parametrize("sent", [b"", b"A" * 129, b"a b", b"a\x00", b"\xff", b"a\r\nSet-Cookie: x"])
def test_an_id_that_could_forge_is_not(sent: bytes) -> None:
    source = id_source()
    assert source(sent) != sent
    assert source(sent) != source(sent)


def test_two_processes_give_different_ids() -> None:
    assert id_source()(b"") != id_source()(b"")
