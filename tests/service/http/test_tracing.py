"""Spans of requests, as the SDK keeps them and as they go over the wire."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.errors import Overloaded
from service.http.api_keys import Access, ApiKeys
from service.http.app import create_app
from service.http.error_response import error_response
from service.http.middleware import RequestMiddleware
from service.http.request_record import RECORD, STAGES, RequestRecord
from service.http.tracing import Tracer, stage_times
from service.inference.embedder import Timings
from service.process.metrics import Metrics
from service.settings import Settings

ROOT = Path(__file__).parents[3]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TIMINGS = Timings(read=0.001, decode=0.002, logmel=0.001, queue=0.003, inference=0.004, encode=0.001)


def request_through(tracer: Tracer, *, headers: dict[str, str] | None = None, fails: bool = False) -> None:
    """One request through a middleware with this tracer."""
    metrics = Metrics()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope[RECORD].model = "toy"
        scope[RECORD].timings, scope[RECORD].audio_s = TIMINGS, 1.0
        await asyncio.sleep(0.02)
        answer = error_response(Overloaded("full"), metrics, scope) if fails else Response("ok")
        await answer(scope, receive, send)

    middleware = RequestMiddleware(
        app, metrics=metrics, access=Access(ApiKeys(), ApiKeys()), routes={"/embed"}, tracer=tracer
    )

    async def ask() -> None:
        transport = httpx.ASGITransport(middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.post("/embed", headers=headers)

    asyncio.run(ask())


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Iterator[Tracer]:
    tracer = Tracer("1.2.3", SimpleSpanProcessor(spans))
    yield tracer
    tracer.close()


def root_of(spans: InMemorySpanExporter) -> ReadableSpan:
    (root,) = (span for span in spans.get_finished_spans() if span.name == "POST /embed")
    return root


def test_a_request_is_a_span_with_one_child_per_stage(tracer: Tracer, spans: InMemorySpanExporter) -> None:
    request_through(tracer)
    *children, root = spans.get_finished_spans()
    assert [child.name for child in children] == list(STAGES)
    assert {child.parent.span_id for child in children if child.parent} == {root.context.span_id}
    assert root.kind.name == "SERVER"
    assert root.attributes is not None
    assert root.attributes["http.route"] == "/embed"
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["viola.model"] == "toy"
    assert root.attributes["viola.audio_s"] == 1.0
    assert root.resource.attributes["service.name"] == "viola"
    assert root.resource.attributes["service.version"] == "1.2.3"
    for child in children:
        assert child.start_time is not None
        assert child.end_time is not None
        assert (child.end_time - child.start_time) / 1e9 == pytest.approx(getattr(TIMINGS, child.name))
        assert (root.start_time or 0) <= child.start_time <= child.end_time <= (root.end_time or 0)


def test_the_callers_trace_goes_on(tracer: Tracer, spans: InMemorySpanExporter) -> None:
    request_through(tracer, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    root = root_of(spans)
    assert f"{root.context.trace_id:032x}" == TRACE
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT


def test_a_caller_that_does_not_sample_is_not_traced(tracer: Tracer, spans: InMemorySpanExporter) -> None:
    request_through(tracer, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize("header", ["", "nonsense", "00-0-0-01", f"00-{'0' * 32}-{PARENT}-01"])
def test_a_broken_traceparent_begins_a_trace_of_its_own(
    header: str, tracer: Tracer, spans: InMemorySpanExporter
) -> None:
    request_through(tracer, headers={"traceparent": header})
    assert root_of(spans).parent is None


def test_an_error_of_the_server_is_marked(tracer: Tracer, spans: InMemorySpanExporter) -> None:
    request_through(tracer, fails=True)
    root = root_of(spans)
    assert not root.status.is_ok
    assert root.attributes is not None
    assert root.attributes["error.type"] == "overloaded"


def test_the_log_line_names_the_trace(tracer: Tracer) -> None:
    record = RequestRecord({"method": "POST"}, path="/embed", request_id=b"x", status=200)
    tracer.trace(record, 0.01, {b"traceparent": f"00-{TRACE}-{PARENT}-01".encode()})
    assert record.fields(0.01)["trace_id"] == TRACE


def test_stages_that_add_up_to_more_than_the_request_stay_within_it() -> None:
    record = RequestRecord({"method": "POST"}, path="/embed/batch", request_id=b"x", status=200)
    record.timings = Timings(decode=5.0, inference=7.0)
    times = stage_times(record, 1000, 2000)
    assert times == [("decode", 1000, 1000), ("inference", 1000, 2000)]


def test_spans_arrive_at_a_receiver_of_otlp(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[ExportTraceServiceRequest] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "sounds")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        tracer = Tracer("1.2.3")
        request_through(tracer)
        tracer.close()
        server.shutdown()
    (of_resource,) = received[0].resource_spans
    resource = {each.key: each.value.string_value for each in of_resource.resource.attributes}
    assert resource["service.name"] == "sounds"
    assert resource["deployment.environment"] == "test"
    names = [span.name for span in of_resource.scope_spans[0].spans]
    assert names == [*STAGES, "POST /embed"]


def test_nothing_of_the_sdk_is_imported_while_it_is_off() -> None:
    program = (
        "import sys, service.http.app; print('opentelemetry.sdk' in sys.modules, 'requests' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr


def test_the_framework_makes_no_spans_of_its_own(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    app = create_app(Settings(models_dir=models_dir, model="toy", device="cpu", threads=2))

    async def ask() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/health/live")).status_code

    assert asyncio.run(ask()) == 200
    assert spans.get_finished_spans() == ()
