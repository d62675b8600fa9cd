"""The names that dashboards and alerts rely on."""

from service.metrics import Metrics

# docs/design: the names are fixed; `_total` and `_info` are added by the client library.
NAMES = {
    "viola_requests_total": "counter",
    "viola_request_duration_seconds": "histogram",
    "viola_decode_duration_seconds": "histogram",
    "viola_logmel_duration_seconds": "histogram",
    "viola_queue_wait_seconds": "histogram",
    "viola_inference_duration_seconds": "histogram",
    "viola_batch_size": "histogram",
    "viola_batch_fill_ratio": "histogram",
    "viola_queue_frames": "gauge",
    "viola_audio_seconds_total": "counter",
    "viola_errors_total": "counter",
    "viola_dropped_total": "counter",
    "viola_model_info": "gauge",
}


def test_the_page_has_every_metric_by_its_name_with_a_help_text() -> None:
    page = Metrics().page().decode()
    types = dict(line.split()[2:4] for line in page.splitlines() if line.startswith("# TYPE"))
    assert types == NAMES
    helped = [line.split(maxsplit=3)[2] for line in page.splitlines() if line.startswith("# HELP")]
    assert sorted(helped) == sorted(NAMES)


def test_the_queue_is_asked_at_every_scrape() -> None:
    metrics, frames = Metrics(), [0.0]
    metrics.watch_queue(lambda: frames[0])
    frames[0] = 42.0
    assert "viola_queue_frames 42.0" in metrics.page().decode()


def test_two_apps_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.dropped.inc()
    assert "viola_dropped_total 1.0" in first.page().decode()
    assert "viola_dropped_total 0.0" in second.page().decode()
