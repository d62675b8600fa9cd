"""What happened in, Prometheus text out: every metric of the server, with help texts for a person on call.

A process alone counts in its memory. Of several workers each counts in files of its slot (workers.py), and
whichever is scraped adds up all of them; what cannot be counted but only asked for, like the length of the
queue, each worker then writes down once a second.
"""

import asyncio
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service.process.counts_file import CountsFile
from service.process.workers import Slot

disable_created_metrics()  # a second series for each, which tells when it was first touched

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Steps of 2 from a millisecond: the customary default buckets begin at 5 ms and cannot tell a request of 1 ms
# from one of 5. The last ones cover an hour of sound.
_FROM_1_MS = tuple(0.001 * 2**n for n in range(10))  # to 0.512 s
REQUEST_BUCKETS = (*_FROM_1_MS, 1, 2, 4, 8, 16, 32, 64)
STAGE_BUCKETS = (0.0001, 0.00025, 0.0005, *_FROM_1_MS[:-1], 1, 4, 16)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LAG_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
FILL_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)

SAMPLE_S = 1.0  # how old a gauge of another worker may be; Prometheus itself asks every 15 s or so

PROCESS_HELP = {
    "process_virtual_memory_bytes": "Address space of all workers. Says little: much of it is never touched.",
    "process_resident_memory_bytes": "Memory held by all workers; what they share counts for each.",
    "process_start_time_seconds": "When the oldest worker started, in seconds since 1970.",
    "process_cpu_seconds": "CPU time of all workers, user and system.",
    "process_open_fds": "Open files and connections of all workers.",
    "process_max_fds": "Open files and connections that all workers may have.",
}


class Metrics:
    """The metrics of one app, on a registry of their own, so that two apps in one process stay apart.

    slot: of this worker, where there are several; from here on the process counts in its files.
    """

    def __init__(self, slot: Slot | None = None) -> None:
        if slot is not None:
            number = slot.number
            values.MmapedDict = CountsFile  # type: ignore[assignment, misc]
            values.ValueClass = values.MultiProcessValue(lambda: number)
        self.registry = CollectorRegistry()
        self._slot = slot
        self._asked: list[tuple[Gauge, Callable[[], float]]] = []
        self._requests_by: dict[tuple[str, str, int], Counter] = {}
        self._seconds_by: dict[str, Histogram] = {}
        self._models: dict[str, Gauge] = {}
        self._exposed = self.registry
        if slot is not None:
            self._exposed = CollectorRegistry()
            MultiProcessCollector(self._exposed, path=str(slot.folder))
        self._exposed.register(_Processes(self._pids))

        self.requests = Counter(
            "viola_requests",
            "Requests answered, by route, model and HTTP status; 499 where the client left first.",
            ["route", "model", "code"],
            registry=self.registry,
        )
        self.request_duration = self._seconds(
            "viola_request_duration",
            "From the request's first byte to the answer's last, slow uploads included.",
            ["route"],
            buckets=REQUEST_BUCKETS,
        )
        self.decode_duration = self._seconds(
            "viola_decode_duration",
            "Decoding, mixing to mono and resampling one clip. High: long or compressed uploads.",
        )
        self.logmel_duration = self._seconds(
            "viola_logmel_duration",
            "Computing the log-mel of one clip.",
        )
        self.queue_wait = self._seconds(
            "viola_queue_wait",
            "Waiting for the model, of one clip or a few windows of a long one. High while inference is "
            "steady: more requests than can be served.",
        )
        self.inference_duration = self._seconds(
            "viola_inference_duration", "One batch through the network.", ["model"]
        )
        self.text_duration = self._seconds(
            "viola_text_duration",
            "Some texts through a text tower, in the one thread that all texts share. High: long texts.",
            ["model"],
        )
        self.batch_size = Histogram(
            "viola_batch_size",
            "Clips or windows in one batch.",
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        )
        self.batch_fill_ratio = Histogram(
            "viola_batch_fill_ratio",
            "Frames of sound in a batch over frames computed. Low: much is padding.",
            buckets=FILL_BUCKETS,
            registry=self.registry,
        )
        self.queue_frames = self._gauge(
            "viola_queue_frames",
            "Log-mel frames admitted and not yet answered. VIOLA_MAX_QUEUE_FRAMES is where 503 begins.",
        )
        self.queue_limit = self._gauge(
            "viola_queue_limit_frames",
            "What viola_queue_frames may reach, of all workers together: VIOLA_MAX_QUEUE_FRAMES, or what is "
            "done in VIOLA_MAX_QUEUE_S at the throughput measured last, if that is less.",
        )
        self.in_flight = self._gauge(
            "viola_requests_in_flight",
            "Requests being read, worked on or answered, slow uploads included.",
        )
        self.ready = self._gauge(
            "viola_ready",
            "Workers that are ready for requests; 1 or 0 with a single process. Below VIOLA_WORKERS: one is "
            "starting, ending or broken; /health/ready and the log tell why.",
        )
        self.received_bytes = Counter(
            "viola_received_bytes",
            "Bytes of request bodies, refused ones included.",
            registry=self.registry,
        )
        self.audio_seconds = Counter(
            "viola_audio_seconds", "Seconds of sound embedded or classified.", registry=self.registry
        )
        self.errors = Counter(
            "viola_errors",
            "Errors answered, by the code in the answer's body; the files of a batch count one by one.",
            ["error"],
            registry=self.registry,
        )
        self.connections_cut = Counter(
            "viola_connections_cut",
            "Connections cut, because of a request's head (too slow or too long), of the rest of a body that "
            "was refused, or of an answer that its client does not read.",
            ["reason"],
            registry=self.registry,
        )
        self.dropped = Counter(
            "viola_dropped",
            "Clips and windows thrown away before inference: their client had left or the deadline passed.",
            registry=self.registry,
        )
        self.streams = self._gauge("viola_streams", "Streams that are listened to, of all workers together.")
        self.stream_seconds = Counter(
            "viola_stream_seconds", "Seconds of sound that streams have brought.", registry=self.registry
        )
        self.stream_lag = self._seconds(
            "viola_stream_lag",
            "From the arrival of the last sample that a window needs to its message, and by how much its "
            "stream has fallen behind real time. High: more streams than can be kept up with.",
            buckets=LAG_BUCKETS,
        )
        self.stream_messages = Counter(
            "viola_stream_messages",
            "Messages sent to the clients of streams, by their type.",
            ["type"],
            registry=self.registry,
        )
        self.stream_ends = Counter(
            "viola_stream_ends",
            "Streams that have ended, by the reason: their client asked for the end or left, sent nothing "
            "(idle), read nothing (unread); the server was told to end (going_away), or there was an error.",
            ["reason"],
            registry=self.registry,
        )
        self.fit_duration = self._seconds(
            "viola_fit_duration",
            "Fitting one head that is taught, in a thread that stands back from requests.",
        )
        self.taught_examples = Counter(
            "viola_taught_examples",
            "Examples that heads were taught: clips, and passages of long ones.",
            registry=self.registry,
        )
        self.heads_taught = self._gauge(
            "viola_heads_taught",
            "Heads that a model was taught and that are served.",
            ["model"],
            mode="livemax",
        )
        self.heads_refused = self._gauge(
            "viola_heads_refused",
            "Heads that a model was taught and that are not served: damaged, of another version of the "
            "model, or of a name that its folder has, too. GET /models/{name}/heads and the log tell which.",
            ["model"],
            mode="livemax",
        )
        self.model_info = self._gauge(
            "viola_model_info",
            "The models and how they are run: 1 for what is loaded, 0 for what a reload has replaced.",
            ["model", "version", "encoder", "precision", "device", "embedding_size"],
            mode="livemax",
        )
        self.build_info = self._gauge(
            "viola_build_info", "Always 1; the labels tell what runs.", ["version", "python"], mode="livemax"
        )

    def _seconds(
        self,
        name: str,
        help_text: str,
        labels: list[str] | None = None,
        *,
        buckets: tuple[float, ...] = STAGE_BUCKETS,
    ) -> Histogram:
        return Histogram(f"{name}_seconds", help_text, labels or [], buckets=buckets, registry=self.registry)

    def _gauge(
        self,
        name: str,
        help_text: str,
        labels: Iterable[str] = (),
        *,
        mode: Literal["livesum", "livemax"] = "livesum",
    ) -> Gauge:
        """mode: how the values of several workers become one."""
        return Gauge(name, help_text, labels, registry=self.registry, multiprocess_mode=mode)

    def count_request(self, route: str, model: str, status: int, seconds: float | None) -> None:
        """One answer. Looks the labels up by itself: the library's own way takes longer than counting.

        seconds: None where they say nothing of the server, because a client decides how long it streams."""
        key = route, model, status
        if (requests := self._requests_by.get(key)) is None:
            requests = self._requests_by[key] = self.requests.labels(route, model, str(status))
        requests.inc()
        if seconds is None:
            return
        if (duration := self._seconds_by.get(route)) is None:
            duration = self._seconds_by[route] = self.request_duration.labels(route)
        duration.observe(seconds)

    def expect_errors(self, codes: Iterable[str]) -> None:
        """Show the errors that may come as 0: an alert on a rate sees the first of them only then."""
        for code in codes:
            self.errors.labels(code)

    def tell_build(self, version: str) -> None:
        self.build_info.labels(version, platform.python_version()).set(1)

    def tell_model(
        self, name: str, *, version: str, encoder: str, precision: str, device: str, embedding_size: int
    ) -> None:
        """A model is loaded, and what had its name before is not any more."""
        if name in self._models:
            self._models[name].set(0)
        self._models[name] = self.model_info.labels(
            name, version, encoder, precision, device, str(embedding_size)
        )
        self._models[name].set(1)

    def forget_model(self, name: str) -> None:
        """It is no longer served."""
        if name in self._models:
            self._models.pop(name).set(0)

    def watch(self, gauge: Gauge, ask: Callable[[], float]) -> None:
        """Ask at every scrape, rather than be told at every request."""
        self._asked.append((gauge, ask))

    def watch_queue(self, queued_frames: Callable[[], float]) -> None:
        self.watch(self.queue_frames, queued_frames)

    def page(self) -> bytes:
        """The body of /metrics: of all workers, whichever of them is asked."""
        self._sample()
        if self._slot is not None:
            self._slot.living()  # takes away the gauges of the dead
        return generate_latest(self._exposed)

    async def keep_sampled(self) -> None:
        """Until cancelled, write down for the other workers what only this one can be asked for."""
        while self._slot is not None:
            self._sample()
            await asyncio.sleep(SAMPLE_S)  # nobody can wake it: the scrape reaches another process

    def _sample(self) -> None:
        for gauge, ask in self._asked:
            gauge.set(ask())

    def _pids(self) -> list[int]:
        return [os.getpid()] if self._slot is None else self._slot.living()


class _Processes(Collector):
    """The customary process_ metrics, of all workers together."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids

    def collect(self) -> Iterator[Metric]:
        for name, found in self._by_name().items():
            add_up = min if name == "process_start_time_seconds" else sum
            total = Metric(name, PROCESS_HELP.get(name, found[0].documentation), found[0].type)
            sample = found[0].samples[0]
            total.add_sample(sample.name, {}, add_up(each.samples[0].value for each in found))
            yield total

    def _by_name(self) -> dict[str, list[Metric]]:
        by_name: dict[str, list[Metric]] = {}
        for pid in self._pids():
            of_one = ProcessCollector(pid=lambda pid=pid: pid, registry=None)  # type: ignore[misc]
            for metric in of_one.collect():
                by_name.setdefault(metric.name, []).append(metric)
        return by_name
