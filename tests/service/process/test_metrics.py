"""The names that dashboards and alerts rely on, and what a scrape of a live server tells."""

import asyncio
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.http.app import create_app
from service.process.metrics import CONTENT_TYPE, Metrics
from service.settings import Settings

# Dashboards and alerts go by these names, so that they are fixed; `_total` is added by the client library.
NAMES = {
    "viola_requests_total": "counter",
    "viola_request_duration_seconds": "histogram",
    "viola_decode_duration_seconds": "histogram",
    "viola_logmel_duration_seconds": "histogram",
    "viola_queue_wait_seconds": "histogram",
    "viola_inference_duration_seconds": "histogram",
    "viola_text_duration_seconds": "histogram",
    "viola_batch_size": "histogram",
    "viola_batch_fill_ratio": "histogram",
    "viola_queue_frames": "gauge",
    "viola_queue_limit_frames": "gauge",
    "viola_requests_in_flight": "gauge",
    "viola_ready": "gauge",
    "viola_received_bytes_total": "counter",
    "viola_audio_seconds_total": "counter",
    "viola_errors_total": "counter",
    "viola_dropped_total": "counter",
    "viola_connections_cut_total": "counter",
    "viola_streams": "gauge",
    "viola_stream_seconds_total": "counter",
    "viola_stream_lag_seconds": "histogram",
    "viola_stream_messages_total": "counter",
    "viola_stream_ends_total": "counter",
    "viola_fit_duration_seconds": "histogram",
    "viola_taught_examples_total": "counter",
    "viola_heads_taught": "gauge",
    "viola_heads_refused": "gauge",
    "viola_model_info": "gauge",
    "viola_build_info": "gauge",
    "process_virtual_memory_bytes": "gauge",
    "process_resident_memory_bytes": "gauge",
    "process_start_time_seconds": "gauge",
    "process_cpu_seconds_total": "counter",
    "process_open_fds": "gauge",
    "process_max_fds": "gauge",
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


def test_a_reloaded_model_takes_the_place_of_the_old_one() -> None:
    metrics = Metrics()
    same = {"encoder": "toy", "device": "cpu", "embedding_size": 16}
    metrics.tell_model("toy", version="1", precision="int8", **same)  # type: ignore[arg-type]
    metrics.tell_model("toy", version="2", precision="int8", **same)  # type: ignore[arg-type]
    values = {
        line.split('version="')[1][0]: line.split()[-1]
        for line in metrics.page().decode().splitlines()
        if line.startswith("viola_model_info{")
    }
    assert values == {"1": "0.0", "2": "1.0"}


async def scrape(models_dir: Path, sound: bytes) -> httpx.Response:
    """/metrics of a live server after one good request, one bad file and one path that is none."""
    app = create_app(Settings(models_dir=models_dir, model="toy", device="cpu", threads=2, drain_s=0))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        audio = {"Content-Type": "audio/wav"}
        assert (await client.post("/embed", content=sound, headers=audio)).status_code == 200
        assert (await client.post("/embed", content=b"noise", headers=audio)).status_code == 422
        assert (await client.get("/nowhere")).status_code == 404
        return await client.get("/metrics")


@pytest.fixture(scope="module")
def page(models_dir: Path, fixtures_dir: Path) -> httpx.Response:
    sound = (fixtures_dir / "keyword_yes_16k_mono_pcm16.wav").read_bytes()
    return asyncio.run(scrape(models_dir, sound))


@pytest.fixture(scope="module")
def samples(page: httpx.Response) -> dict[str, float]:
    """`name{label="value",...}` → value, as Prometheus' own parser reads them."""
    return {
        sample.name
        + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def test_a_scrape_tells_what_happened(samples: dict[str, float], fixtures_dir: Path) -> None:
    size = len((fixtures_dir / "keyword_yes_16k_mono_pcm16.wav").read_bytes())
    assert samples["viola_requests_total,code=200,model=toy,route=/embed"] == 1
    assert samples["viola_requests_total,code=422,model=toy,route=/embed"] == 1
    assert samples["viola_requests_total,code=404,model=,route=other"] == 1
    assert samples["viola_request_duration_seconds_count,route=/embed"] == 2
    assert samples["viola_errors_total,error=audio_unreadable"] == 1
    assert samples["viola_errors_total,error=not_found"] == 1
    assert samples["viola_errors_total,error=overloaded"] == 0  # there before it happens
    assert samples["viola_audio_seconds_total"] == 1
    assert samples["viola_received_bytes_total"] == size + len(b"noise")
    assert samples["viola_inference_duration_seconds_count,model=toy"] == 1
    assert samples["viola_batch_size_sum"] == 1
    assert samples["viola_ready"] == 1
    assert samples["viola_requests_in_flight"] == 1  # the scrape itself
    assert samples["viola_queue_frames"] == 0
    assert samples["viola_queue_limit_frames"] == 200_000


def test_a_scrape_tells_what_runs(samples: dict[str, float], page: httpx.Response) -> None:
    assert page.headers["content-type"] == CONTENT_TYPE
    assert 20e6 < samples["process_resident_memory_bytes"] < 20e9
    assert samples["process_open_fds"] > 3
    assert samples["process_cpu_seconds_total"] > 0
    (model,) = (name for name in samples if name.startswith("viola_model_info"))
    assert (
        model
        == "viola_model_info,device=cpu,embedding_size=16,encoder=toy,model=toy,precision=float32,version=1"
    )
    (build,) = (name for name in samples if name.startswith("viola_build_info"))
    assert "python=3." in build
