import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import uvicorn

from benchmarks.harness.servers import running, viola
from service.bulk import embed as embed_command
from service.bulk import resumable
from service.bulk import server as bulk_server
from service.bulk.embed import EMBED
from service.bulk.offline import FileResult
from service.bulk.resumable import ResumableTable
from service.bulk.table import Row, Table, read_table, write_table
from service.http.app import create_app
from service.inference import windows
from service.inference.model import Model
from service.settings import Settings
from service.sound.audio import decode
from tests.service.servers import listening

NAMES = ["digit7_8k_mono_pcm16.wav", "keyword_yes_16k_mono_pcm16.wav", "silence_1s_16k_mono.wav"]


@pytest.fixture
def sounds(make_sounds: Callable[[Sequence[str]], Path]) -> Path:
    return make_sounds(NAMES)


@pytest.fixture
def embedded(note: Callable[[ModuleType, str], list[str]]) -> list[str]:
    """The names of the files that are given to the model."""
    return note(embed_command, "embed_files")


def change(path: Path, content: bytes | None = None) -> None:
    """As if it was written later than it was, however coarse the clock of the file system."""
    modified_s = path.stat().st_mtime
    path.write_bytes(path.read_bytes() if content is None else content)
    os.utime(path, (modified_s + 10, modified_s + 10))


def run(*arguments: str | Path, models_dir: Path) -> int:
    return EMBED.main(
        [*map(str, arguments), "--model", "toy", "--models-dir", str(models_dir), "--device", "cpu"]
    )


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
        assert {"embeddings", "paths", "durations_s", "modified_s"} <= set(arrays)


def stopped(*arguments: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


Stop = Callable[..., str]


@pytest.fixture
def stop(
    sounds: Path,
    models_dir: Path,
    embedded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Stop:
    """stop(*flags, at=, by=): embeds `sounds`; Ctrl-C comes at this method of its table, and `by` takes its
    place. Returns what was said; `embedded` is empty then."""

    def stopping(*flags: str, at: str = "finish", by: Callable[..., Any] = stopped) -> str:
        with monkeypatch.context() as context:
            context.setattr(ResumableTable, at, by)
            assert run(sounds, "--out", sounds.parent / "out.npz", *flags, models_dir=models_dir) == 130
        embedded.clear()
        return capsys.readouterr().err

    return stopping


def test_a_stopped_run_goes_on_where_it_was(
    sounds: Path, models_dir: Path, embedded: list[str], stop: Stop
) -> None:
    out = sounds.parent / "out.npz"
    add = ResumableTable.add

    def stopped_after_one(results: ResumableTable, result: FileResult) -> None:
        add(results, result)
        raise KeyboardInterrupt

    assert "give the same command again" in stop(at="add", by=stopped_after_one)
    assert not out.exists()
    assert run(sounds, "--out", out, models_dir=models_dir) == 0
    assert embedded == [*NAMES[1:], "text.wav"]
    assert len(read_table(out).paths) == 3


def test_ctrl_c_before_the_first_file_ends_with_a_sentence_too(
    sounds: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Model, "load", stopped)
    assert run(sounds, "--out", sounds.parent / "out.npz", models_dir=models_dir) == 130
    assert capsys.readouterr().err == "stopped: nothing new was embedded\n"


def test_ctrl_c_after_the_last_file_loses_nothing(
    sounds: Path, models_dir: Path, embedded: list[str], stop: Stop
) -> None:
    out = sounds.parent / "out.npz"
    assert "give the same command again without --overwrite to go on" in stop("--overwrite")
    assert run(sounds, "--out", out, models_dir=models_dir) == 0
    assert embedded == ["text.wav"]
    assert len(read_table(out).paths) == 3


def test_results_are_kept_on_the_way_so_that_even_a_kill_loses_few(
    sounds: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable, "SHARD_FILES", 2)
    monkeypatch.setattr(ResumableTable, "finish", lambda results, paths: 1)  # killed before the end
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
    change(sounds / NAMES[1])
    embedded.clear()
    assert run(sounds, "--out", out, models_dir=models_dir) == 0
    assert embedded == ["a_new_one.wav", NAMES[1], "text.wav"]
    after = read_table(out)
    assert [Path(path).name for path in after.paths] == ["a_new_one.wav", *NAMES]
    np.testing.assert_allclose(after.embeddings[1:], before.embeddings, rtol=1e-5)


def test_a_run_with_nothing_to_do_shows_no_progress(
    sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sounds.parent / "out.npz"
    (sounds / "text.wav").unlink()
    run(sounds, "--out", out, models_dir=models_dir)
    capsys.readouterr()
    assert run(sounds, "--out", out, models_dir=models_dir) == 0
    assert capsys.readouterr().err == (f"3 of 3 files are embedded already\n3 of 3 files in {out}\n")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_table_of_other_files_is_not_thrown_away(
    suffix: str, sounds: Path, models_dir: Path, embedded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = sounds.parent / f"out{suffix}"
    run(sounds, "--out", out, models_dir=models_dir)
    embedded.clear()
    assert run(sounds / NAMES[0], "--out", out, models_dir=models_dir) == 1
    assert f"{out} holds 2 file(s) that this run does not find" in capsys.readouterr().err
    assert embedded == []
    assert len(read_table(out).paths) == 3
    assert run(sounds / NAMES[0], "--out", out, "--overwrite", models_dir=models_dir) == 0
    assert read_table(out).paths.tolist() == [str(sounds / NAMES[0])]


def test_what_a_stopped_run_has_kept_is_not_thrown_away_by_another(
    sounds: Path, models_dir: Path, stop: Stop, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sounds.parent / "out.npz"
    partial = sounds.parent / "out.npz.partial"
    stop()
    assert run(sounds / "text.wav", "--out", out, models_dir=models_dir) == 1
    assert f"{partial} holds 3 file(s) that this run does not find" in capsys.readouterr().err
    assert len(read_table(next(partial.iterdir())).paths) == 3


def test_a_file_that_has_become_bad_keeps_its_row_and_is_tried_again(
    sounds: Path, models_dir: Path, embedded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = sounds.parent / "out.npz"
    run(sounds, "--out", out, models_dir=models_dir)
    before = read_table(out)
    change(sounds / NAMES[1], b"not a sound")
    for _ in range(2):
        embedded.clear()
        assert run(sounds, "--out", out, models_dir=models_dir) == 0
        assert embedded == [NAMES[1], "text.wav"]
        said = capsys.readouterr().err
        assert f"{NAMES[1]}: the file is not audio" in said
        assert said.count("(its earlier row stays)") == 1
        np.testing.assert_array_equal(read_table(out).embeddings, before.embeddings)


def test_results_of_another_model_are_not_mixed_in(
    sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sounds.parent / "out.npz"
    row = Row(np.zeros(16, dtype=np.float32), duration_s=1.0, modified_s=0.0)
    write_table(out, Table.of({"x": row}, "other 1"))
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
        (["--out", "out.npz", "--ray", "local"], "it is a folder; write out/"),
        (["--out", "memory://out.parquet"], "it is a folder; write memory://out/"),
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
    assert EMBED.main([str(sounds), "--model", "toy", "--models-dir", str(models_dir), *arguments]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("out", ["a_file/out.npz", "a_folder.npz"])
def test_an_out_that_cannot_be_written_is_said_before_anything_is_computed(
    out: str, sounds: Path, models_dir: Path, embedded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (sounds.parent / "a_file").touch()
    (sounds.parent / "a_folder.npz").mkdir()
    assert run(sounds, "--out", sounds.parent / out, models_dir=models_dir) == 1
    assert f"error: --out {sounds.parent / out} " in capsys.readouterr().err
    assert embedded == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workers", "0"],
        ["--threads", "-1"],
        ["--workers", "two"],
        ["--url", "localhost:8000"],
        ["--out", ""],
        ["--out", " "],
        ["--ray", ""],
        ["--model", ""],
        [""],
        ["--ray", "local", "--url", "http://here"],
    ],
)
def test_wrong_arguments_are_exit_code_2(arguments: list[str], sounds: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        EMBED.main([str(sounds), "--out", "out.npz", *arguments])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("suffix", "shown"), [(".npz", os.fsdecode(b"caf\xe9.wav")), (".parquet", r"caf\xe9.wav")]
)
def test_a_file_name_that_is_not_utf_8_stops_nothing(
    suffix: str,
    shown: str,
    sounds: Path,
    models_dir: Path,
    embedded: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In NumPy's table it is the name that opens the file; parquet holds UTF-8, and shows the bytes."""
    latin_1 = sounds / os.fsdecode(b"caf\xe9.wav")
    bad = sounds / os.fsdecode(b"t\xebxt.wav")
    try:
        shutil.copy(sounds / NAMES[1], latin_1)
        (sounds / "text.wav").rename(bad)
    except OSError:
        pytest.skip("this file system knows only UTF-8")
    out = sounds.parent / f"out{suffix}"
    assert run(sounds, "--out", out, models_dir=models_dir) == 0
    assert r"t\xebxt.wav: the file is not audio" in capfd.readouterr().err
    assert [Path(path).name for path in read_table(out).paths] == [shown, *NAMES]
    embedded.clear()
    assert run(sounds, "--out", out, models_dir=models_dir) == 0
    assert "4 of 5 files are embedded already" in capfd.readouterr().err
    assert embedded == [bad.name]


def test_an_empty_out_is_said_and_writes_nothing(
    sounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sounds)
    before = sorted(sounds.iterdir())
    with pytest.raises(SystemExit):
        EMBED.main([str(sounds), "--out", ""])
    assert "argument --out: the name is empty; is a variable not set?" in capsys.readouterr().err
    assert sorted(sounds.iterdir()) == before


def test_a_list_with_an_open_quote_is_an_error(
    sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = sounds / "list.csv"
    table.write_text(f'path,label\n{NAMES[0]},"7 inch single\n{NAMES[1]},rain\n{NAMES[2]},dog\n')
    assert run(table, "--out", sounds.parent / "out.npz", models_dir=models_dir) == 1
    assert f"error: {table}, line 2: " in capsys.readouterr().err


def test_linked_folders_and_dangling_links_are_told_and_counted(
    sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sounds / "linked").symlink_to(sounds.parent)
    (sounds / "gone.wav").symlink_to(sounds / "removed.wav")
    assert run(sounds, "--out", sounds.parent / "out.npz", models_dir=models_dir) == 0
    said = capsys.readouterr().err
    assert "3 of 6 files in" in said
    assert "3 could not be embedded" in said
    assert f"{sounds}/linked: it is a link to a folder, which is not followed: name it, too" in said
    assert f"{sounds}/gone.wav: it is a link to {sounds}/removed.wav, which is not there" in said


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


class Unsteady:
    """The server's application, whose first answers to /embed are replaced by others."""

    def __init__(self, app: Any) -> None:
        self.answers: list[tuple[int, list[tuple[bytes, bytes]], bytes]] = []
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != "/embed" or not self.answers:
            await self._app(scope, receive, send)
            return
        status, headers, body = self.answers.pop(0)
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def unsteady(models_dir: Path) -> Unsteady:
    settings = Settings(models_dir=models_dir, model="toy", device="cpu", threads=2, api_keys=("secret",))
    return Unsteady(create_app(settings))


@pytest.fixture
def server(unsteady: Unsteady) -> Iterator[str]:
    """The URL of the real server, which asks for the key `secret`."""
    config = uvicorn.Config(unsteady, port=0, ws="none", log_config=None, timeout_graceful_shutdown=5)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, name="server")
    thread.start()
    while not running.started and thread.is_alive():
        time.sleep(0.005)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def remotely(url: str, sounds: Path, out: Path, *, model: str = "toy", key: str = "secret") -> int:
    return EMBED.main([str(sounds), "--out", str(out), "--url", url, "--api-key", key, "--model", model])


def test_a_running_server_gives_the_same_table(
    server: str, unsteady: Unsteady, sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = sounds.parent / "here.npz", sounds.parent / "there.npz"
    run(sounds, "--out", here, models_dir=models_dir)
    unsteady.answers = [(503, [(b"retry-after", b"0")], b"")]  # the first is turned away, and comes again
    assert remotely(f"{server}/", sounds, there) == 0
    assert "text.wav: the file is not audio" in capsys.readouterr().err
    assert unsteady.answers == []
    assert read_table(there).model == f"toy 1 ({server})"
    assert read_table(there).paths.tolist() == read_table(here).paths.tolist()
    np.testing.assert_allclose(
        read_table(there).embeddings, read_table(here).embeddings, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(read_table(there).durations_s, read_table(here).durations_s)


def test_what_a_server_refuses_is_passed_on(
    server: str, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert remotely(server, sounds, sounds.parent / "out.npz", model="nobody") == 1
    assert "there is no model `nobody`" in capsys.readouterr().err
    assert remotely(server, sounds, sounds.parent / "out.npz", key="wrong") == 1
    assert "key" in capsys.readouterr().err


def test_an_answer_that_breaks_off_fails_its_file_only(
    server: str, unsteady: Unsteady, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sounds / "text.wav").unlink()  # requests arrive in any order: whichever is cut off must be a sound
    unsteady.answers = [(200, [(b"content-length", b"100")], b"{")]
    assert remotely(server, sounds, sounds.parent / "out.npz") == 0
    said = capsys.readouterr().err
    assert "no whole answer came from" in said
    assert "1 could not be embedded" in said
    assert remotely(server, sounds, sounds.parent / "out.npz") == 0
    assert len(read_table(sounds.parent / "out.npz").paths) == 3


def test_a_file_that_is_too_large_has_the_servers_sentence(
    sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which answers and closes while most of the file is still to be sent."""
    os.truncate(sounds / "text.wav", 60_000_000)
    limited = viola(models_dir / "toy", "float32", device="cpu", max_body_bytes="1000000")
    with running(limited) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert remotely(url, sounds, sounds.parent / "out.npz") == 0
    assert "text.wav: the body is longer than the 1000000 bytes that are accepted" in capsys.readouterr().err
    assert len(read_table(sounds.parent / "out.npz").paths) == 3


@pytest.mark.parametrize(("bytes_then", "n_done"), [(50_000_000, 1), (0, 0)])
def test_a_file_that_is_written_to_while_it_is_sent_is_sent_as_it_was(
    bytes_then: int, n_done: int, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changing = sounds / "changing.wav"
    changing.touch()
    os.truncate(changing, 40_000_000)  # more than fits into the sockets' buffers
    lengths: list[int] = []

    class Meddling(BaseHTTPRequestHandler):
        """Changes the file once its first bytes are on their way, then reads on."""

        def do_GET(self) -> None:
            self._answer(b'{"card": {"name": "toy", "version": "1"}}')

        def do_POST(self) -> None:
            os.truncate(changing, bytes_then)
            lengths.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer(b'{"embedding": "AACAPwAAAEA=", "duration_s": 1.5}')

        def _answer(self, text: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            with contextlib.suppress(OSError):  # who gave up halfway is gone
                self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Meddling) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert remotely(url, changing, sounds.parent / "out.npz") == 1 - n_done
        server.shutdown()
    if n_done:
        assert lengths == [40_000_000]
        assert read_table(sounds.parent / "out.npz").embeddings.tolist() == [[1.0, 2.0]]
    else:
        assert "changing.wav: the file became shorter while it was sent" in capsys.readouterr().err


def test_what_is_no_file_is_told_and_not_waited_for(
    server: str, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(sounds / "pipe.wav")
    (sounds / "linked").symlink_to(sounds.parent)
    inputs = [str(sounds / "pipe.wav"), str(sounds)]
    options = ["--out", str(sounds.parent / "out.npz"), "--url", server, "--api-key", "secret"]
    assert EMBED.main([*inputs, *options, "--model", "toy"]) == 0
    said = capsys.readouterr().err
    assert "pipe.wav: it is a pipe, a device or a socket, and no file" in said
    assert "linked: it is a link to a folder, which is not followed: name it, too" in said
    assert "3 of 6 files in" in said


def test_a_proxy_is_not_asked_for_a_server_on_this_machine(
    server: str, sounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with listening(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        here = server.replace("127.0.0.1", "localhost")
        assert remotely(here, sounds, sounds.parent / "out.npz") == 0
        assert remotely("http://viola.invalid", sounds, sounds.parent / "out.npz") == 1
    assert "the server answered 403 Forbidden" in capsys.readouterr().err


def test_a_folder_of_parts_holds_what_embed_answers(
    server: str, sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sounds.parent / "list.csv").write_text(f"path\n{(sounds / NAMES[0]).as_uri()}\nsounds/text.wav\n")
    folders = [sounds.parent / "here", sounds.parent / "there"]
    for folder in folders:
        inputs = [str(sounds / NAMES[1]), str(sounds / NAMES[2]), str(sounds.parent / "list.csv")]
        options = ["--out", f"{folder}/", "--part-rows", "2", "--model", "toy"]
        at = ["--url", server, "--api-key", "secret"] if folder.name == "there" else ["--device", "cpu"]
        assert EMBED.main([*inputs, *options, "--models-dir", str(models_dir), *at]) == 0
        said = capsys.readouterr().err
        assert f"3 of 4 files in {folder}/" in said
        assert f"1 could not be embedded: {folder}/_failed-*.parquet says why" in said
    here, there = ([read_table(path) for path in sorted(folder.glob("part-*"))] for folder in folders)
    assert [len(table.paths) for table in here] == [2, 1]
    assert here[1].paths.tolist() == [(sounds / NAMES[0]).as_uri()]
    for mine, theirs in zip(here, there, strict=True):
        np.testing.assert_allclose(mine.embeddings, theirs.embeddings, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mine.durations_s, theirs.durations_s)


def test_a_folder_of_parts_goes_on_with_the_same_command(
    sounds: Path, models_dir: Path, embedded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = sounds.parent / "out"
    for _ in range(2):
        embedded.clear()
        assert run(sounds, "--out", f"{out}/", models_dir=models_dir) == 0
    assert embedded == ["text.wav"]
    assert "3 of 4 files were embedded already" in capsys.readouterr().err
    assert run(sounds, "--out", out, "--overwrite", models_dir=models_dir) == 0  # it is a folder by now
    assert embedded == ["text.wav", *NAMES, "text.wav"]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "no whole answer came from"),
        (b"", "no whole answer came from"),
        (None, "no whole answer came from"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "no viola server answers"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"name": "toy"}', "is not a viola server"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 100\r\n\r\n{", "the server answered 404 Not Found"),
    ],
)
def test_a_server_that_does_not_answer_as_it_should_is_said(
    answer: bytes | None,
    sentence: str,
    sounds: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bulk_server, "CARD_TIMEOUT_S", 0.2)
    with listening(answer) as address:
        assert remotely(f"http://{address}", sounds, sounds.parent / "out.npz") == 1
    assert sentence in capsys.readouterr().err
