import base64
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from service import embed_cli, windows
from service.audio import decode
from service.embed_cli import main, read_table
from service.errors import ViolaError
from service.model import Model
from service.offline import FileResult, embed_files

NAMES = ["digit7_8k_mono_pcm16.wav", "keyword_yes_16k_mono_pcm16.wav", "silence_1s_16k_mono.wav"]


@pytest.fixture
def sounds(tmp_path: Path, fixtures_dir: Path) -> Path:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(fixtures_dir / name, folder)
    shutil.copy(fixtures_dir / "invalid" / "text.wav", folder)
    an_hour_ago = time.time() - 3600
    for path in folder.iterdir():
        os.utime(path, (an_hour_ago, an_hour_ago))
    return folder


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are given to the model."""
    names: list[str] = []

    def noted(model: Model, paths: list[Path], *, workers: int) -> Iterator[FileResult]:
        names.extend(path.name for path in paths)
        return embed_files(model, paths, workers=workers)

    monkeypatch.setattr(embed_cli, "embed_files", noted)
    return names


def run(*arguments: str | Path, models_dir: Path) -> int:
    return main([*map(str, arguments), "--model", "toy", "--models-dir", str(models_dir), "--device", "cpu"])


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_folder_becomes_a_table_in_order_and_a_bad_file_is_reported(
    suffix: str, sounds: Path, models_dir: Path, toy_model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sounds.parent / f"out{suffix}"
    assert run(sounds, "--out", out, models_dir=models_dir) == 0
    table = read_table(out)
    assert table.paths.tolist() == [str(sounds / name) for name in NAMES]
    assert table.embeddings.shape == (3, 16)
    assert table.embeddings.dtype == np.float32
    np.testing.assert_allclose(table.durations_s, [0.5376, 1, 1], atol=1e-4)
    samples = decode(sounds / NAMES[0], sample_rate=16_000).samples
    expected = windows.embed(toy_model.run, toy_model.card, [toy_model.logmel(samples)]).vector
    np.testing.assert_allclose(table.embeddings[0], expected, rtol=1e-5, atol=1e-6)
    said = capsys.readouterr().err
    assert f"{sounds / 'text.wav'}: the file is not audio" in said
    assert "3 of 4 files in" in said
    assert not out.with_name(out.name + ".partial").exists()


def test_the_npz_opens_with_numpy_alone(sounds: Path, models_dir: Path) -> None:
    run(sounds, "--out", sounds.parent / "out.npz", models_dir=models_dir)
    with np.load(sounds.parent / "out.npz", allow_pickle=False) as arrays:
        assert {"embeddings", "paths", "durations_s"} <= set(arrays)


def test_a_stopped_run_goes_on_where_it_was(
    sounds: Path,
    models_dir: Path,
    embedded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = sounds.parent / "out.npz"
    add = embed_cli.Results.add

    def stopped_after_one(results: embed_cli.Results, result: FileResult) -> None:
        add(results, result)
        raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(embed_cli.Results, "add", stopped_after_one)
        assert run(sounds, "--out", out, models_dir=models_dir) == 130
    assert "give the same command again" in capsys.readouterr().err
    assert not out.exists()
    embedded.clear()
    assert run(sounds, "--out", out, models_dir=models_dir) == 0
    assert embedded == [*NAMES[1:], "text.wav"]
    assert len(read_table(out).paths) == 3


def test_results_are_kept_on_the_way_so_that_even_a_kill_loses_few(
    sounds: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_cli, "SHARD_FILES", 2)
    monkeypatch.setattr(embed_cli.Results, "finish", lambda results, paths: 1)  # killed before the end
    run(sounds, "--out", sounds.parent / "out.npz", models_dir=models_dir)
    shards = sorted((sounds.parent / "out.npz.partial").iterdir())
    assert [len(read_table(shard).paths) for shard in shards] == [2, 1]


def test_a_second_run_embeds_only_new_changed_and_bad_files(
    sounds: Path, models_dir: Path, fixtures_dir: Path, embedded: list[str]
) -> None:
    out = sounds.parent / "out.npz"
    run(sounds, "--out", out, models_dir=models_dir)
    before = read_table(out)
    shutil.copy(fixtures_dir / "click_10ms_16k_mono.wav", sounds / "a_new_one.wav")
    later = time.time() + 10
    os.utime(sounds / NAMES[1], (later, later))
    embedded.clear()
    assert run(sounds, "--out", out, models_dir=models_dir) == 0
    assert embedded == ["a_new_one.wav", NAMES[1], "text.wav"]
    after = read_table(out)
    assert [Path(path).name for path in after.paths] == ["a_new_one.wav", *NAMES]
    np.testing.assert_allclose(after.embeddings[1:], before.embeddings, rtol=1e-5)


def test_results_of_another_model_are_not_mixed_in(
    sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sounds.parent / "out.npz"
    np.savez(
        out, embeddings=np.zeros((1, 16), dtype=np.float32), paths=["x"], durations_s=[1.0], model="other 1"
    )
    assert run(sounds, "--out", out, models_dir=models_dir) == 1
    assert "holds embeddings of other 1, not of toy 1" in capsys.readouterr().err


def test_no_good_file_is_exit_code_1(
    sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sounds.parent / "out.npz"
    assert run(sounds / "text.wav", "--out", out, models_dir=models_dir) == 1
    assert "no file could be embedded" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "out.csv"], "must end in .npz or .parquet"),
        (["--out", "out.npz", "--model", "nobody"], "there is no model nobody in"),
        (["--out", "out.npz", "--precision", "int8"], "toy has no encoder.int8.onnx"),
        (
            ["--out", "out.npz", "--url", "http://127.0.0.1:9"],
            "no viola server answers at http://127.0.0.1:9",
        ),
    ],
)
def test_what_cannot_run_says_why(
    arguments: list[str], sentence: str, sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(sounds), "--model", "toy", "--models-dir", str(models_dir), *arguments]) == 1
    assert sentence in capsys.readouterr().err


def test_a_folder_without_audio_is_said(
    tmp_path: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--out", tmp_path / "out.npz", models_dir=models_dir) == 1
    assert "no audio file found" in capsys.readouterr().err


def test_a_damaged_table_is_said(sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in (".npz", ".parquet"):
        out = sounds.parent / f"out{suffix}"
        out.write_bytes(b"PK\x03\x04 not a table")
        assert run(sounds, "--out", out, models_dir=models_dir) == 1
        assert "is not a table of embeddings" in capsys.readouterr().err


def test_without_tqdm_progress_is_plain_lines(
    sounds: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    run(sounds, "--out", sounds.parent / "out.npz", models_dir=models_dir)
    assert "4 of 4 files\n" in capsys.readouterr().err


@pytest.fixture
def server(toy_model: Model) -> Iterator[str]:
    """The routes that the command uses, over the toy; the first /embed is turned away as overloaded."""
    lock = threading.Lock()
    answers = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/models/")
            if name == "toy":
                self._answer(200, {"name": "toy", "version": "1"})
            else:
                self._answer(404, {"error": "unknown_model", "detail": f"there is no model {name}"})

        def do_POST(self) -> None:
            assert parse_qs(urlsplit(self.path).query) == {"model": ["toy"], "encoding": ["base64"]}
            assert self.headers["Authorization"] == "Bearer secret"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                answers[0] += 1
                if answers[0] == 1:
                    self._answer(503, {"error": "overloaded", "detail": "later"}, {"Retry-After": "0"})
                    return
                try:
                    waveform = decode(body, sample_rate=16_000)
                except ViolaError as error:
                    self._answer(422, {"error": error.code, "detail": str(error)})
                    return
                vector = windows.embed(
                    toy_model.run, toy_model.card, [toy_model.logmel(waveform.samples)]
                ).vector
                text = base64.b64encode(vector.astype("<f4").tobytes()).decode()
                self._answer(200, {"duration_s": waveform.duration_s, "embedding": text})

        def _answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_a_running_server_gives_the_same_table(
    server: str, sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = sounds.parent / "here.npz", sounds.parent / "there.npz"
    run(sounds, "--out", here, models_dir=models_dir)
    assert run(sounds, "--out", there, "--url", server, "--api-key", "secret", models_dir=models_dir) == 0
    assert "text.wav: the file is not audio" in capsys.readouterr().err
    assert read_table(there).paths.tolist() == read_table(here).paths.tolist()
    np.testing.assert_allclose(
        read_table(there).embeddings, read_table(here).embeddings, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(read_table(there).durations_s, read_table(here).durations_s)


def test_a_servers_answer_to_a_wrong_model_is_passed_on(
    server: str, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(sounds.parent / "out.npz")
    assert main([str(sounds), "--out", out, "--url", server, "--model", "nobody"]) == 1
    assert "there is no model nobody" in capsys.readouterr().err
