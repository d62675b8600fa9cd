"""A clip's bytes in, the bytes of a whole HTTP request out: as raw body, multipart form or JSON."""

import base64
import http.client
import json
from collections.abc import Callable

from benchmarks.harness.clients import HOST

BOUNDARY = "viola-benchmark"

# (path, clip) -> request
Body = Callable[[str, bytes], bytes]


def raw(path: str, clip: bytes) -> bytes:
    return _post(path, "audio/wav", clip)


def multipart(path: str, clip: bytes) -> bytes:
    """As `curl -F file=@clip.wav` sends it."""
    head = (
        f"--{BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="file"; filename="clip.wav"\r\n'
        "Content-Type: audio/wav\r\n\r\n"
    )
    body = head.encode() + clip + f"\r\n--{BOUNDARY}--\r\n".encode()
    return _post(path, f"multipart/form-data; boundary={BOUNDARY}", body)


def data_uri(path: str, clip: bytes) -> bytes:
    """As infinity's own route takes sound, an extension of OpenAI's /v1/embeddings; base64 wanted back."""
    uri = "data:audio/wav;base64," + base64.b64encode(clip).decode()
    asked = {"model": "viola", "input": [uri], "modality": "audio", "encoding_format": "base64"}
    return _post(path, "application/json", json.dumps(asked).encode())


def _post(path: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nAccept: */*\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answer_to(port: int, request: bytes) -> bytes:
    """The body of the answer to one request, so that a wrong answer is seen before thousands are timed.

    Raises RuntimeError with what the server says unless it is 200.
    """
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split()
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        connection.request(method, path, body, dict(line.split(": ", 1) for line in lines))
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"{path} answers {response.status}: {content[:500].decode(errors='replace')}")
    return content
