"""Sound that has no end in, tags and events out while it comes: /stream, as a WebSocket or as a request.

Both are doors to the same room, stream_session.py. A WebSocket is accepted even where the stream is refused,
because a browser shows its page nothing of an answer that refuses one: what is wrong is the first message,
and the close code tells it in short.
"""

import asyncio
import contextlib

import orjson
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from service.errors import (
    AudioUnreadable,
    BadRequest,
    InternalError,
    ModelUnavailable,
    Overloaded,
    shortened,
)
from service.http.api_keys import SUBPROTOCOL
from service.http.openapi_document import stream_route
from service.http.parameters import StreamParameters, query_of, read
from service.http.protocol import UNREAD
from service.http.responses import json_bytes
from service.http.server import server_of
from service.http.stream_session import (
    Message,
    StreamSession,
    UnreadError,
    error_message,
    form_of,
    stream_head,
)
from service.http.upload import media_type_of
from service.http.websocket import GATHERING, StreamSocket

router = APIRouter()

NDJSON = "application/x-ndjson"
PROTOCOL = "viola"  # a subprotocol that a client may offer beside its key

NORMAL, GOING_AWAY, BAD_SOUND, POLICY, FAILED, TRY_AGAIN_LATER = 1000, 1001, 1007, 1008, 1011, 1013
CLOSE_CODES = {
    AudioUnreadable.code: BAD_SOUND,
    InternalError.code: FAILED,
    Overloaded.code: TRY_AGAIN_LATER,
    ModelUnavailable.code: TRY_AGAIN_LATER,
}  # all others: POLICY


@router.post("/stream", **stream_route())
async def stream(request: Request) -> Response:
    """The tags of each window and the events, a line of JSON each, while the body still comes. The body may
    have any length; with curl: `-T -`."""
    parameters = read(StreamParameters, query_of(request))
    form = form_of(parameters, *media_type_of(request))
    server = server_of(request)
    model = server.loaded_model(request, parameters.model) or await server.model(request, parameters.model)
    head = await stream_head(server, model, parameters)
    return _Lines(StreamSession(server, model, head, parameters, form, request.scope))


class _Lines(Response):
    """The answer, which reads the body itself."""

    def __init__(self, session: StreamSession) -> None:
        super().__init__(media_type=NDJSON)
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"  # nginx would gather the lines
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(scope, receive)
        has_begun = False

        async def send_line(message: Message) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                body.ask()  # a client that waits for "100 Continue" gets it before the answer
                await asyncio.sleep(0)
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            body.check()
            line = json_bytes(message) + b"\n"
            await send({"type": "http.response.body", "body": line, "more_body": True})

        try:
            if await self._session.run(body, send_line) not in ("client_left", "unread"):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            body.close()


class _Body:
    """The pieces of a request's body, of which one is asked for ahead: so that it is seen when the client
    leaves while there is something to do."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope = scope
        self._receive = receive
        self._asked: asyncio.Task[dict[str, object]] | None = None
        self._is_read = False

    def ask(self) -> None:
        if self._asked is None and not self._is_read:
            self._asked = asyncio.ensure_future(self._receive())  # type: ignore[arg-type]

    async def receive(self, n_wanted: int) -> bytes | None:
        """Raises ClientDisconnect and UnreadError."""
        if self._is_read:
            return None
        self.ask()
        assert self._asked is not None
        message = await asyncio.shield(self._asked)
        self._asked = None
        if message["type"] == "http.disconnect":
            raise self._loss()
        self._is_read = not message.get("more_body", False)
        self.ask()
        body = message.get("body", b"")
        assert isinstance(body, bytes)
        return body

    def release(self) -> float | None:
        return None

    def check(self) -> None:
        """Raises ClientDisconnect where the client is known to have left, UnreadError where it was cut."""
        asked = self._asked
        is_there = asked is not None and asked.done() and not asked.cancelled()
        if asked is not None and is_there and asked.result()["type"] == "http.disconnect":
            raise self._loss()

    def _loss(self) -> Exception:
        return UnreadError() if self._scope.get(UNREAD) else ClientDisconnect()

    def close(self) -> None:
        if self._asked is not None:
            self._asked.cancel()


@router.websocket("/stream")
async def stream_socket(websocket: WebSocket) -> None:
    await websocket.accept(subprotocol=_subprotocol(websocket.scope["subprotocols"]))
    server = websocket.app.state.server
    answer_s = server.settings.answer_timeout_s

    async def send(message: Message) -> None:
        try:
            async with asyncio.timeout(answer_s):
                await websocket.send_text(json_bytes(message).decode())
        except TimeoutError as error:
            raise UnreadError from error
        except (WebSocketDisconnect, RuntimeError) as error:
            raise ClientDisconnect from error

    last: Message = {}

    async def send_and_note(message: Message) -> None:
        nonlocal last
        last = message if message["type"] in ("error", "end") else last
        await send(message)

    reason = "client_left"
    with contextlib.suppress(ClientDisconnect, UnreadError, WebSocketDisconnect):
        try:
            server.access.check_client(websocket.headers.raw)
            parameters = read(StreamParameters, query_of(websocket))
            form = form_of(parameters)
            model = server.loaded_model(websocket, parameters.model)
            model = model or await server.model(websocket, parameters.model)
            head = await stream_head(server, model, parameters)
            session = StreamSession(server, model, head, parameters, form, websocket.scope)
            reason = await session.run(_Messages(websocket), send_and_note)
        except (ClientDisconnect, UnreadError, WebSocketDisconnect):
            raise
        except (
            Exception
        ) as error:  # what is refused before it begins; a failure after that, the session tells
            reason = "error"
            await send_and_note(error_message(error, server, websocket.scope))
    if reason not in ("client_left", "unread") and websocket.application_state is WebSocketState.CONNECTED:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await websocket.close(_close_code(reason, last), str(last.get("error", "")) or None)


class _Messages:
    """The binary messages of a WebSocket, gathered where its protocol can."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._socket: StreamSocket | None = websocket.scope.get(GATHERING)

    async def receive(self, n_wanted: int) -> bytes | None:
        """Raises ClientDisconnect, and BadRequest where text asks for something else than the end."""
        if self._socket is not None:
            self._socket.gather(n_wanted)
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise ClientDisconnect
        data: bytes | None = message.get("bytes")
        if data is None:
            _check_asks_for_end(message.get("text") or "")
        return data

    def release(self) -> float | None:
        return None if self._socket is None else self._socket.release()


def _close_code(reason: str, last: Message) -> int:
    if reason == "going_away":
        return GOING_AWAY
    return CLOSE_CODES.get(last["error"], POLICY) if last.get("type") == "error" else NORMAL


def _subprotocol(offered: list[str]) -> str | None:
    """A browser that has offered some ends the connection where none of them is chosen."""
    key = SUBPROTOCOL.decode()
    return next((each for each in offered if each == PROTOCOL), None) or next(
        (each for each in offered if each.startswith(key)), None
    )


def _check_asks_for_end(text: str) -> None:
    """Raises BadRequest where a text message says anything else."""
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            f"the text message {shortened(text)!r} is no JSON; sound is sent in binary messages"
        ) from error
    if not isinstance(message, dict) or message.get("type") != "end":
        raise BadRequest(
            f'the text message {shortened(text)!r} is not known; there is {{"type": "end"}}, and sound is '
            "sent in binary messages"
        )
