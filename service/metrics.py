"""What happened in, Prometheus text out: every metric of the server, with help texts for a person on call."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client import Info as _Info

disable_created_metrics()  # a second series for each, which tells when it was first touched

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Steps of 2 from a millisecond: the customary default buckets begin at 5 ms and cannot tell a request of 1 ms
# from one of 5. The last ones cover an hour of sound.
REQUEST_BUCKETS = (
    0.001,
    0.002,
    0.004,
    0.008,
    0.016,
    0.032,
    0.064,
    0.128,
    0.256,
    0.512,
    1,
    2,
    4,
    8,
    16,
    32,
    64,
)
STAGE_BUCKETS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.002,
    0.004,
    0.008,
    0.016,
    0.032,
    0.064,
    0.128,
    0.256,
    1,
    4,
    16,
)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FILL_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


class Metrics:
    """The metrics of one app, on a registry of their own, so that two apps in one process stay apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self.queue_frames = Gauge(
            "viola_queue_frames",
            "Log-mel frames admitted and not yet answered. VIOLA_MAX_QUEUE_FRAMES is where 503 begins.",
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
        self.dropped = Counter(
            "viola_dropped",
            "Clips and windows thrown away before inference: their client had left or the deadline passed.",
            registry=self.registry,
        )
        self.model_info = _Info(
            "viola_model",
            "The models that are loaded, and how they are run.",
            ["model"],
            registry=self.registry,
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

    def watch_queue(self, queued_frames: Callable[[], float]) -> None:
        """Ask `queued_frames` at every scrape, rather than be told at every request."""
        self.queue_frames.set_function(queued_frames)

    def page(self) -> bytes:
        """The body of /metrics."""
        return generate_latest(self.registry)
