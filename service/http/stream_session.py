"""One stream's bytes in, its messages out: what both doors of /stream have in common.

door ─► bytes ─► LiveSound ─► windows ─► tags, events ─► send
        as many as the next window lacks; while it is computed nothing is received: who is too fast waits

{"type": "ready", "model", "head", "window_s", "hop_s"}                 first
{"type": "tags", "start_s", "end_s", "known"?, "tags", "embedding"?}    for each window
{"type": "event", "label", "start_s", "end_s", "score"}                 once a label is not heard any more
{"type": "lag", "seconds"}                                              where the server falls behind
{"type": "error", "error", "detail", "retry_after_s"?}                  last, instead of the end
{"type": "end", "seconds"}                                              last
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from service.errors import BadRequest, UnsupportedMediaType, UploadTimeout, ViolaError, shortened
from service.http.error_response import describe
from service.http.parameters import StreamParameters
from service.http.request_record import RECORD
from service.http.responses import TIME_DIGITS, tag_content
from service.http.server import Server
from service.http.streams import EndReason
from service.inference.events import Event, EventTracker, event_windows, hysteresis_of
from service.inference.heads import SCORE_DIGITS, Head, named_head
from service.inference.live import LiveSound, LiveWindow, live_cost_per_s
from service.inference.model import Model
from service.inference.tags import spans_of
from service.inference.windows import Segment
from service.sound.pcm import L16, Pcm, RawPcm
from service.sound.stream import BEGINNINGS, Container, SoundStream, pieces_of

log = logging.getLogger(__name__)

Message = dict[str, Any]
Form = RawPcm | Container

MIN_BYTES_PER_S = 50  # an eighth of what Opus makes of silence at its lowest
LAG_S = 1.0  # behind real time from which on a client is told, once a second at most
WAITED_S = 0.001  # what was there already comes sooner
MAX_GATHERED_BYTES = 8_000_000
STEP_S = 0.02  # of raw sound that is worth a thread's turn
CONTAINERS: dict[str, Container] = {
    "audio/webm": "webm",
    "video/webm": "webm",
    "audio/ogg": "ogg",
    "application/ogg": "ogg",
}
# What curl and others send where nobody told them what a body is.
UNTOLD = frozenset({"application/octet-stream", "application/x-www-form-urlencoded"})


class UnreadError(Exception):
    """The client reads nothing of what it is sent."""


def form_of(
    parameters: StreamParameters, media_type: str = "", options: Mapping[bytes, bytes] | None = None
) -> Form:
    """How the bytes of a stream are to be read. media_type: of a body. Raises BadRequest and
    UnsupportedMediaType."""
    told = (parameters.format, parameters.rate, parameters.channels)
    if media_type == L16:
        if told != (None, None, None):
            raise BadRequest(f"the Content-Type {L16} tells format, rate and channels; leave them out")
        return _checked(Pcm(options or {}).raw())
    name = parameters.format
    if name is None:
        name = CONTAINERS.get(media_type)
        if name is None and media_type and media_type not in UNTOLD:
            raise UnsupportedMediaType(
                f"the Content-Type is {shortened(media_type)}; send {L16}, audio/webm or audio/ogg, or name "
                "the format in the query"
            )
    if name in BEGINNINGS:
        if parameters.rate is not None or parameters.channels is not None:
            raise BadRequest(f"rate and channels are told by {name} itself; leave them out")
        return name
    if parameters.rate is None:
        raise BadRequest("rate is missing: how many samples a second come, like rate=16000")
    return RawPcm(name or "s16le", parameters.rate, parameters.channels or 1)  # type: ignore[arg-type]


def _checked(pcm: RawPcm) -> RawPcm:
    """Within the bounds of the query's parameters. Raises BadRequest."""
    if not 8_000 <= pcm.rate_hz <= 192_000 or pcm.channels > 8:
        raise BadRequest("rate is a number from 8000 to 192000, and channels one from 1 to 8")
    return pcm


async def stream_head(server: Server, model: Model, parameters: StreamParameters) -> Head | None:
    """What scores the windows: one of the model's heads, one of labels, which are embedded first, or None
    where embeddings alone are asked for. Raises UnknownHead, NoText, TextTooLong or Overloaded."""
    if zero_shot := server.zero_shot(parameters.labels, parameters.template):
        await zero_shot.prepare(model)
        return zero_shot(model)
    if model.heads or not parameters.embeddings or parameters.head is not None:
        return named_head(model.heads, parameters.head, model=model.card.name)
    return None


def error_message(error: Exception, server: Server, scope: Scope) -> Message:
    """The message of any exception, which is counted, and kept in the stream's record for its log line."""
    _, code, detail = describe(error)
    server.metrics.errors.labels(code).inc()
    scope[RECORD].error, scope[RECORD].detail = code, detail
    message = {"type": "error", "error": code, "detail": detail}
    retry_after_s = error.retry_after_s if isinstance(error, ViolaError) else None
    return message if retry_after_s is None else message | {"retry_after_s": retry_after_s}


class Door(Protocol):
    """Where a stream's bytes come in."""

    async def receive(self, n_wanted: int) -> bytes | None:
        """Some bytes; None: the client asks for the end. n_wanted: how many are worth being told of, where
        the door can gather them. Raises ClientDisconnect where the client has left."""

    def release(self) -> float | None:
        """What the door has gathered is what the next `receive` gives. The seconds since the last of it came;
        None: there is nothing."""


class StreamSession:
    """A stream whose model is there, and what scores its windows (`stream_head`)."""

    def __init__(
        self,
        server: Server,
        model: Model,
        head: Head | None,
        parameters: StreamParameters,
        form: Form,
        scope: Scope,
    ) -> None:
        self._server = server
        self._metrics = server.metrics
        self._model = model
        self._parameters = parameters
        self._form = form
        self._scope = scope
        self._head = head
        if parameters.window_s is None:
            self._window_s, self._hop_s = event_windows(model.card)
        else:
            self._window_s, self._hop_s = parameters.window_s, parameters.hop_s or parameters.window_s
        self._clock = _Clock()
        self._is_going_away = False
        self._timer: asyncio.Timeout | None = None  # while bytes are waited for
        self._starved_s, self._bytes_in = 0.0, 0

    async def run(
        self,
        door: Door,
        send: Callable[[Message], Awaitable[None]],
    ) -> EndReason:
        """Until the client asks for the end or one of the limits ends it; the last message is sent, and the
        reason returned. Raises Overloaded, before anything is sent, where there is no room.

        send raises ClientDisconnect where the client has left, UnreadError where it does not read.
        """
        cost_per_s = live_cost_per_s(self._model, hop_s=self._hop_s)
        with self._server.streams.admitted(cost_per_s, self._end_soon):
            reason: EndReason = "client_left"
            try:
                reason = await self._listen(door, partial(self._send, send))
            except ClientDisconnect:
                pass
            except UnreadError:
                reason = "unread"
            finally:
                self._metrics.stream_ends.labels(reason).inc()
            return reason

    async def _listen(
        self,
        door: Door,
        send: Callable[[Message], Awaitable[None]],
    ) -> EndReason:
        card = self._model.card
        sound = SoundStream(pieces_of(self._form), sample_rate=card.sample_rate)
        live = LiveSound(
            self._server.embedder,
            self._model,
            sound,
            window_s=self._window_s,
            hop_s=self._hop_s,
            head=self._head,
        )
        teller = _Teller(self._head, self._parameters, window_s=self._window_s, hop_s=self._hop_s)

        async def deliver(window: LiveWindow) -> None:
            for message in teller.tell(window):
                await send(message)
            lag_s = self._clock.lag_s(live.duration_s)
            self._metrics.stream_lag.observe(self._clock.age_s() + lag_s)
            if lag_s > LAG_S and self._clock.is_time_to_tell():
                await send({"type": "lag", "seconds": round(lag_s, 3)})

        try:
            await send(self._ready())
            reason = await self._take_all(door, live, deliver)
            if reason != "going_away":  # then what is complete has been sent
                await live.close(deliver)
            for message in teller.close():
                await send(message)
            if reason == "idle":
                raise UploadTimeout(
                    f"fewer than {MIN_BYTES_PER_S} bytes a second came for "
                    f"{self._server.settings.stream_idle_s:g} s; begin a new stream"
                )
            await send({"type": "end", "seconds": round(live.duration_s, TIME_DIGITS)})
            return reason
        except ViolaError as error:
            await send(error_message(error, self._server, self._scope))
            return "idle" if isinstance(error, UploadTimeout) else "error"
        except (ClientDisconnect, UnreadError):
            raise
        except Exception as error:
            log.exception("a stream failed")
            await send(error_message(error, self._server, self._scope))
            return "error"
        finally:
            live.abandon()
            self._scope[RECORD].audio_s = live.duration_s
            self._count_seconds(live.duration_s)

    async def _take_all(
        self, door: Door, live: LiveSound, deliver: Callable[[LiveWindow], Awaitable[None]]
    ) -> EndReason:
        gathered = bytearray()
        n_wanted = self._bytes_wanted(live)
        while not self._is_going_away:
            try:
                data = await self._next(door, n_wanted - len(gathered))
            except TimeoutError:
                break
            if data is not None:
                gathered += data
                if len(gathered) < n_wanted:
                    continue
            await live.push(bytes(gathered), deliver)
            gathered.clear()
            n_wanted = self._bytes_wanted(live)
            self._count_seconds(live.duration_s)
            if data is None:
                return "end"
        await live.push(bytes(gathered), deliver)
        return "going_away" if self._is_going_away else "idle"

    def _bytes_wanted(self, live: LiveSound) -> int:
        """With fewer no piece can be complete, and no thread need look at them."""
        if not isinstance(self._form, RawPcm):
            return 1
        frames = max(STEP_S, live.missing_s) * self._form.rate_hz
        return min(int(frames) * self._form.bytes_per_frame, MAX_GATHERED_BYTES)

    async def _next(self, door: Door, n_wanted: int) -> bytes | None:
        """Raises TimeoutError when the line is silent for too long, or the server goes away."""
        idle_s = self._server.settings.stream_idle_s
        began = time.monotonic()
        silent_s: float | None = None
        try:
            async with asyncio.timeout(max(0.0, idle_s - self._starved_s)) as self._timer:
                data = await door.receive(n_wanted)
        except TimeoutError:
            silent_s = door.release()
            if silent_s is None:
                raise
            data = await door.receive(0)
        finally:
            self._timer = None
        now = time.monotonic()
        self._clock.received(now, waited_s=now - began)
        self._starved_s += now - began
        self._bytes_in += len(data or b"")
        if self._bytes_in >= MIN_BYTES_PER_S * self._starved_s:
            self._starved_s, self._bytes_in = silent_s or 0.0, 0
        return data

    def _end_soon(self) -> None:
        """The server goes away: what is complete is sent, and no more taken."""
        self._is_going_away = True
        if self._timer is not None and not self._timer.expired():
            self._timer.reschedule(asyncio.get_running_loop().time())

    async def _send(self, send: Callable[[Message], Awaitable[None]], message: Message) -> None:
        await send(message)
        self._metrics.stream_messages.labels(message["type"]).inc()

    def _count_seconds(self, duration_s: float) -> None:
        self._metrics.stream_seconds.inc(duration_s - self._clock.counted_s)
        self._metrics.audio_seconds.inc(duration_s - self._clock.counted_s)
        self._clock.counted_s = duration_s

    def _ready(self) -> Message:
        return {
            "type": "ready",
            "model": self._model.card.name,
            "head": None if self._head is None else self._head.name,
            "window_s": self._window_s,
            "hop_s": self._hop_s,
        }


class _Clock:
    """How far a stream has fallen behind real time.

    A sender in real time is waited for, and once it is, the server has kept up: from then on what was
    listened to must not be less than the time that has passed. counted_s: what the metric knows of.
    """

    def __init__(self) -> None:
        self.counted_s = 0.0
        self._arrived = self._kept_up_at = time.monotonic()
        self._listened_to_s: float | None = None  # when it had kept up; None: at the next look
        self._told_at = 0.0

    def received(self, now: float, *, waited_s: float) -> None:
        self._arrived = now
        if waited_s > WAITED_S:
            self._kept_up_at, self._listened_to_s = now, None

    def lag_s(self, duration_s: float) -> float:
        if self._listened_to_s is None:
            self._listened_to_s = duration_s
        return max(0.0, time.monotonic() - self._kept_up_at - (duration_s - self._listened_to_s))

    def age_s(self) -> float:
        """Since the last bytes came."""
        return time.monotonic() - self._arrived

    def is_time_to_tell(self) -> bool:
        now = time.monotonic()
        if now - self._told_at < LAG_S:
            return False
        self._told_at = now
        return True


class _Teller:
    """Windows in, what the client is told of them out."""

    def __init__(
        self, head: Head | None, parameters: StreamParameters, *, window_s: float, hop_s: float
    ) -> None:
        self._head = head
        self._parameters = parameters
        self._half_overlap_s = max(0.0, window_s - hop_s) / 2
        self._n_windows = 0
        self._end_s: float | None = None
        self._min_known = 0.0
        self._events: EventTracker | None = None
        if head is not None:
            self._min_known = head.known.min_known if head.known else 0.0
            if parameters.min_known is not None:
                self._min_known = parameters.min_known
            hysteresis = hysteresis_of(
                head,
                begin=parameters.begin,
                end=parameters.end,
                shortest_s=parameters.shortest_s,
                gap_s=parameters.gap_s,
            )
            self._events = EventTracker(head.labels, hysteresis)

    def tell(self, window: LiveWindow) -> list[Message]:
        message: Message = {"type": "tags", "start_s": window.start_s, "end_s": window.end_s}
        events: list[Event] = []
        if self._head is None or self._events is None or window.scored is None:
            message["tags"] = []
        else:
            segment = Segment(window.start_s, window.end_s, window.scored)
            spans = spans_of([segment], self._min_known)
            if self._head.known is not None:
                message["known"] = round(float(spans.known[0]), SCORE_DIGITS)
            scores = spans.scores[0]
            tags = tag_content(self._head, scores, self._parameters) if spans.is_known[0] else []
            message["tags"] = tags
            start_s = window.start_s + (self._half_overlap_s if self._n_windows else 0.0)
            events = self._events.add(start_s, window.end_s - self._half_overlap_s, scores)
        if self._parameters.embeddings:
            message["embedding"] = np.ascontiguousarray(window.vector, dtype=np.float32)
        self._n_windows += 1
        self._end_s = window.end_s
        return [message, *map(_event_message, events)]

    def close(self) -> list[Message]:
        """What is heard when the stream ends, ends with it."""
        events = [] if self._events is None else self._events.close(self._end_s)
        return [*map(_event_message, events)]


def _event_message(event: Event) -> Message:
    return {
        "type": "event",
        "label": event.label,
        "start_s": round(event.start_s, TIME_DIGITS),
        "end_s": round(event.end_s, TIME_DIGITS),
        "score": round(event.score, SCORE_DIGITS),
    }
