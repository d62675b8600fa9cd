import base64
import json
from http.server import ThreadingHTTPServer

import pytest

from benchmarks.harness import uploads

from .conftest import CLIP, Echo, listening


def test_a_wrong_answer_is_seen_before_it_is_timed(echo: type[Echo]) -> None:
    with listening(ThreadingHTTPServer(("127.0.0.1", 0), echo)) as port:
        assert len(uploads.answer_to(port, uploads.multipart("/embed", CLIP))) == 300_000
        echo.status = 422
        with pytest.raises(RuntimeError, match="/embed answers 422"):
            uploads.answer_to(port, uploads.multipart("/embed", CLIP))
    assert echo.seen[0].startswith(b"--" + uploads.BOUNDARY.encode())
    assert CLIP in echo.seen[0]


def test_a_data_uri_holds_the_clip() -> None:
    head, _, body = uploads.data_uri("/embeddings", CLIP).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    (uri,) = json.loads(body)["input"]
    assert base64.b64decode(uri.removeprefix("data:audio/wav;base64,")) == CLIP
