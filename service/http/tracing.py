"""A request that has ended in, its OpenTelemetry span with one child per stage out, sent over OTLP.

Nothing of OpenTelemetry's SDK is imported before a Tracer is made, and spans are made after the answer:
tracing costs nothing while it is off, and delays no answer while it is on. OpenTelemetry's own variables set
where the spans go, which of them are kept and what else they carry (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, ...).
"""

import importlib.util
import time
from typing import TYPE_CHECKING, Any

from service.http.request_record import STAGES, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class Tracer:
    """processor: takes the finished spans; without one they are sent over OTLP (HTTP) from a thread."""

    def __init__(self, version: str, processor: "SpanProcessor | None" = None) -> None:
        from opentelemetry import propagate, trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider

        ours = Resource({"service.name": "viola", "service.version": version})
        resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(processor or _otlp_processor())
        self._tracer = self._provider.get_tracer("viola", version)
        self._extract = propagate.extract
        self._in_context = trace.set_span_in_context
        self._kind = trace.SpanKind.SERVER
        self._failed = trace.Status(trace.StatusCode.ERROR)

    def trace(self, record: RequestRecord, seconds: float, headers: dict[bytes, bytes]) -> None:
        """The span of a request that has just ended after `seconds`, a child of the `traceparent` in its
        headers. Its trace_id is written into the record."""
        ended_ns = time.time_ns()
        started_ns = ended_ns - round(seconds * 1e9)
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        span = self._tracer.start_span(
            f"{record.method} {record.route}",
            context=self._extract(carrier),
            kind=self._kind,
            attributes=_attributes(record),
            start_time=started_ns,
        )
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        if record.status >= 500:
            span.set_status(self._failed)
        if span.is_recording():
            for stage, begin_ns, end_ns in stage_times(record, started_ns, ended_ns):
                child = self._tracer.start_span(stage, self._in_context(span), start_time=begin_ns)
                child.end(end_ns)
        span.end(ended_ns)

    def close(self) -> None:
        """Send the spans that wait. Takes seconds where no collector answers: not for the event loop."""
        self._provider.shutdown()


def is_installed() -> bool:
    """Whether the extra `otel` is there."""
    try:
        return all(importlib.util.find_spec(name) for name in NEEDED)
    except ModuleNotFoundError:
        return False


def stage_times(record: RequestRecord, started_ns: int, ended_ns: int) -> list[tuple[str, int, int]]:
    """(stage, begin, end) of each stage that took any time, on the clock of the request.

    Only durations are measured. Reading begins with the request; the other stages are put end to end before
    its end, so that the gap is where the clip waited for a thread:

        request    ├───────────────────────────────────────────┤
        stages     ├ read ┤   ├ decode ┼ logmel ┼ queue ┼ inference ┼ encode ┤

    The stages of a long clip overlap, and those of a batch add up: they are cut off at the request's start.
    """
    if record.timings is None:
        return []
    lengths = [(stage, round(1e9 * getattr(record.timings, stage))) for stage in STAGES]
    read_ns = lengths[0][1]
    stages = [("read", started_ns, min(started_ns + read_ns, ended_ns))] if read_ns else []
    laid: list[tuple[str, int, int]] = []
    end_ns = ended_ns
    for stage, length_ns in reversed(lengths[1:]):
        begin_ns = max(started_ns, end_ns - length_ns)
        if length_ns:
            laid.append((stage, begin_ns, end_ns))
        end_ns = begin_ns
    return stages + laid[::-1]


def _attributes(record: RequestRecord) -> dict[str, Any]:
    """By OpenTelemetry's names for HTTP, and ours behind `viola.`."""
    attributes: dict[str, Any] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "http.request.body.size": record.bytes_in,
        "client.address": record.peer,
        "viola.request_id": record.request_id.decode(),
    }
    if record.model:
        attributes["viola.model"] = record.model
    if record.timings is not None:
        attributes["viola.audio_s"] = record.audio_s
    if record.error:
        attributes["error.type"] = record.error
    return attributes


def _otlp_processor() -> "SpanProcessor":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter())
