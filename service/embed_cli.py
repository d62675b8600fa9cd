"""Audio files in, a table of embeddings out, without HTTP or from a running server.

    python -m service embed FILE|DIR ... --model NAME --out OUT.{npz,parquet}

The table holds, in input order, `embeddings` (n, D) float32, `paths` (n,), `durations_s` (n,) and
`modified_s` (n,), when each file was last modified before it was embedded (seconds since 1970); and `model`,
which tells the model that made it (in parquet: `viola_model` in the schema's metadata).

Results are kept in OUT.partial/ a few hundred at a time, so that a run stopped in any way goes on where it
was when the same command is given again; files in a finished OUT are not embedded again either, unless they
have changed since. Files may be added, but none is ever dropped: an OUT with files that this run does not
find is an error, as are results of another model. `--overwrite` starts anew.

A bad file is reported and tried again next time; if OUT holds it from an earlier run, that row stays. Exit
code: 0 if the table holds at least one embedding, 1 if none or if the command cannot run, 2 for wrong
arguments, 130 after Ctrl-C.
"""

import argparse
import base64
import http.client
import json
import math
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import ViolaError
from service.model import GRAPH_FILES, Model
from service.offline import FileResult, audio_files, embed_files
from service.threads import usable_cores

SHARD_FILES = 256  # results are kept after so many files
SHARD_S = 10.0  # or seconds, whichever comes first
REQUESTS_AT_ONCE = 8
TRIES = 8  # of a request that an overloaded server turns away
CARD_TIMEOUT_S = 30.0  # without a byte from the server
CLIP_TIMEOUT_S = 300.0  # the same: five times the server's own deadline, unless that was raised
BROKEN_OFF = (  # the connection is lost after it was there
    BrokenPipeError,
    ConnectionAbortedError,
    ConnectionResetError,
    TimeoutError,
    http.client.HTTPException,
)

Embed = Callable[[list[Path]], Iterator[FileResult]]


class CannotRun(Exception):  # noqa: N818 - read as a sentence
    """The command cannot go on; its text says why and what to do."""


class BrokenOff(CannotRun):
    """The server was there, but its answer did not come, or not as a whole."""


def main(argv: Sequence[str]) -> int:
    """`argv`: what follows `embed`. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except (CannotRun, ViolaError) as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say(_how_to_go_on(arguments))
        return 130


def _run(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    paths = audio_files(arguments.inputs)
    if not paths:
        raise CannotRun("no audio file found in " + ", ".join(map(str, arguments.inputs)))
    _check_out(out, paths)
    model_id, embed = _remote(arguments) if arguments.url else _local(arguments)
    results = Results(out, model_id)
    if arguments.overwrite:
        results.clear()
    todo = results.missing(paths)
    if len(todo) < len(paths):
        _say(f"{len(paths) - len(todo)} of {len(paths)} files are embedded already")
    failed = _embed_all(embed, todo, results) if todo else []
    n_done = results.finish(paths)
    _say(f"{n_done} of {len(paths)} files in {out}" if n_done else "no file could be embedded")
    if failed:
        _say(f"{len(failed)} could not be embedded:")
    for result in failed:
        _say(f"  {_failure(result)}{' (its earlier row stays)' if results.holds(result.path) else ''}")
    return 0 if n_done else 1


def _how_to_go_on(arguments: argparse.Namespace) -> str:
    partial = _partial(arguments.out)
    if not partial.exists():
        return "stopped: nothing new was embedded"
    without = " without --overwrite" if arguments.overwrite else ""
    return f"stopped: what is done is kept in {partial}; give the same command again{without} to go on"


def _embed_all(embed: Embed, paths: list[Path], results: "Results") -> list[FileResult]:
    """Embeds and keeps; returns the results of the files that failed."""
    failed: list[FileResult] = []
    stream = embed(paths)
    try:
        for result in _with_progress(stream, len(paths)):
            if result.error:
                failed.append(result)
            else:
                results.add(result)
    finally:  # also when stopped
        results.keep()
    return failed


class Row(NamedTuple):
    """embedding: (D,) float32; duration_s: of the clip; modified_s: of the file, when it was embedded."""

    embedding: NDArray[np.float32]
    duration_s: float
    modified_s: float


@dataclass(frozen=True)
class Table:
    """embeddings: (n, D) float32; paths: (n,) str; durations_s, modified_s: (n,) float64; model: who made
    them."""

    embeddings: NDArray[np.float32]
    paths: NDArray[np.str_]
    durations_s: NDArray[np.float64]
    modified_s: NDArray[np.float64]
    model: str

    @classmethod
    def of(cls, rows: dict[str, Row], model: str) -> "Table":
        """`rows`: at least one, by path."""
        embeddings, durations_s, modified_s = zip(*rows.values(), strict=True)
        return cls(
            embeddings=np.stack(embeddings).astype(np.float32, copy=False),
            paths=np.array(list(rows)),
            durations_s=np.array(durations_s, dtype=np.float64),
            modified_s=np.array(modified_s, dtype=np.float64),
            model=model,
        )

    def rows(self) -> dict[str, Row]:
        rows = map(Row, self.embeddings, self.durations_s.tolist(), self.modified_s.tolist())
        return dict(zip(self.paths.tolist(), rows, strict=True))


class Results:
    """The results of `out`: those of a finished run and those kept in `partial` since."""

    def __init__(self, out: Path, model_id: str) -> None:
        self.partial = _partial(out)
        self._out = out
        self._model_id = model_id
        self._modified_s: dict[str, float] = {}  # of the files of this run, before they are read
        self._earlier: dict[str, float] = {}  # the same of those embedded before this run
        self._pending: dict[str, Row] = {}
        self._kept_at = time.monotonic()

    def clear(self) -> None:
        """Forgets all earlier results."""
        self._out.unlink(missing_ok=True)
        shutil.rmtree(self.partial, ignore_errors=True)

    def missing(self, paths: Iterable[Path]) -> list[Path]:
        """The paths without a result, and those whose file has changed since. Raises CannotRun if the results
        are another model's, or if some are of other paths, which would be lost."""
        for file in self._files():
            table = read_table(file)
            self._check_model(table.model, file)
            self._earlier |= zip(table.paths.tolist(), table.modified_s.tolist(), strict=True)
        self._modified_s = {str(path): _modified_s(path) for path in paths}
        self._check_none_is_lost()
        return [path for path in paths if self._earlier.get(str(path)) != self._modified_s[str(path)]]

    def holds(self, path: Path) -> bool:
        """Whether `path` was embedded before this run."""
        return str(path) in self._earlier

    def add(self, result: FileResult) -> None:
        assert result.embedding is not None
        assert result.duration_s is not None
        path = str(result.path)
        self._pending[path] = Row(result.embedding, result.duration_s, self._modified_s[path])
        if len(self._pending) >= SHARD_FILES or time.monotonic() - self._kept_at > SHARD_S:
            self.keep()

    def keep(self) -> None:
        """Writes what was added since as the next file in `partial`."""
        if self._pending:
            number = 1 + max((int(file.stem) for file in self._shards()), default=0)
            write_table(self.partial / f"{number:06d}.npz", Table.of(self._pending, self._model_id))
        self._pending = {}
        self._kept_at = time.monotonic()

    def finish(self, paths: Iterable[Path]) -> int:
        """Writes `out`, the results of `paths` in their order, and clears `partial`; how many they are. If
        there are none, nothing is touched."""
        self.keep()
        rows: dict[str, Row] = {}
        for file in self._files():  # later ones replace earlier ones
            rows |= read_table(file).rows()
        found = {str(path): rows[str(path)] for path in paths if str(path) in rows}
        if found:
            write_table(self._out, Table.of(found, self._model_id))
            shutil.rmtree(self.partial, ignore_errors=True)
        return len(found)

    def _check_model(self, model: str, file: Path) -> None:
        if model != self._model_id:
            where = self._out if file == self._out else self.partial
            raise CannotRun(
                f"{where} holds embeddings of {model or 'an unknown model'}, not of {self._model_id}; choose "
                "another --out, or start anew with --overwrite"
            )

    def _check_none_is_lost(self) -> None:
        others = [path for path in self._earlier if path not in self._modified_s]
        if others:
            where = self._out if self._out.exists() else self.partial
            raise CannotRun(
                f"{where} holds {len(others)} file(s) that this run does not find, such as {others[0]}; name "
                "them too, choose another --out, or start anew with --overwrite"
            )

    def _files(self) -> list[Path]:
        """Oldest first."""
        return [*([self._out] if self._out.exists() else []), *self._shards()]

    def _shards(self) -> list[Path]:
        return sorted(self.partial.glob("[0-9]*.npz"))


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def read_table(path: Path) -> Table:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            model = str(arrays["model"]) if "model" in arrays else ""
            return Table(
                embeddings=arrays["embeddings"],
                paths=arrays["paths"],
                durations_s=arrays["durations_s"],
                modified_s=arrays["modified_s"],
                model=model,
            )
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _not_a_table(path) from error


def write_table(path: Path, table: Table) -> None:
    """In one step: a reader sees no half-written file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                (_write_parquet if path.suffix == ".parquet" else _write_npz)(file, table)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise CannotRun(f"{path} cannot be written: {error.strerror or error}") from error


def _write_npz(file: Any, table: Table) -> None:
    np.savez(file, **vars(table))


def _write_parquet(file: Any, table: Table) -> None:
    import pyarrow
    import pyarrow.parquet

    n, D = table.embeddings.shape
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(table.embeddings.reshape(n * D)), D)
    columns = {
        "embeddings": vectors,
        "paths": table.paths.tolist(),
        "durations_s": table.durations_s,
        "modified_s": table.modified_s,
    }
    rows = pyarrow.table(columns).replace_schema_metadata({"viola_model": table.model})
    pyarrow.parquet.write_table(rows, file)


def _read_parquet(path: Path) -> Table:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path)
        vectors = rows["embeddings"].combine_chunks()
        embeddings = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
        model = (rows.schema.metadata or {}).get(b"viola_model", b"").decode()
        return Table(
            embeddings=embeddings,
            paths=np.array(rows["paths"].to_pylist()),
            durations_s=rows["durations_s"].to_numpy(),
            modified_s=rows["modified_s"].to_numpy(),
            model=model,
        )
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise _not_a_table(path) from error


def _not_a_table(path: Path) -> CannotRun:
    return CannotRun(
        f"{path} is not a table of embeddings; choose another --out, or start anew with --overwrite"
    )


def _check_out(out: Path, paths: Iterable[Path]) -> None:
    """That the table of `paths` can be written, before anything is computed for it."""
    if out.suffix not in (".npz", ".parquet"):
        raise CannotRun(f"--out {out}: the name must end in .npz or .parquet")
    if out.suffix == ".parquet":
        _check_parquet(paths)
    if out.is_dir():
        raise CannotRun(f"--out {out} is a folder; name a file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise CannotRun(f"--out {out} cannot be written: {error.strerror or error}") from error


def _check_parquet(paths: Iterable[Path]) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise CannotRun("parquet needs pyarrow: pip install '.[bulk]', or write .npz") from error
    for path in map(str, paths):
        try:
            path.encode()
        except UnicodeEncodeError as error:
            shown = path.encode(errors="backslashreplace").decode()
            raise CannotRun(
                f"the name of {shown} is not UTF-8, and parquet holds no other; rename it or write .npz"
            ) from error


def _local(arguments: argparse.Namespace) -> tuple[str, Embed]:
    """The model of a folder, and what embeds with it."""
    named = Path(arguments.model)
    folder = named if (named / "card.json").is_file() else arguments.models_dir / arguments.model
    if not (folder / "card.json").is_file():
        raise CannotRun(f"there is no model {arguments.model} in {arguments.models_dir}")
    threads = arguments.threads or max(1, usable_cores()[0] - arguments.workers)
    model = Model.load(folder, device=arguments.device, precision=arguments.precision, threads=threads)
    graph = model.card.files[GRAPH_FILES[model.precision]]
    model_id = f"{model.card.name} {model.card.version} ({model.precision}, {graph[:12]})"
    return model_id, lambda paths: embed_files(model, paths, workers=arguments.workers)


def _remote(arguments: argparse.Namespace) -> tuple[str, Embed]:
    """The model of a running server, and what embeds with it."""
    url: str = arguments.url
    headers = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
    name = urllib.parse.quote(arguments.model, safe="")
    try:
        asked = urllib.request.Request(f"{url}/models/{name}", headers=headers)
        card = _asked(asked, timeout_s=CARD_TIMEOUT_S)["card"]
        model_id = f"{card['name']} {card['version']} ({url})"
    except urllib.error.HTTPError as error:
        raise CannotRun(_detail(error)) from error
    except (KeyError, TypeError) as error:
        raise CannotRun(f"what answers at {url} is not a viola server") from error
    request = urllib.request.Request(
        f"{url}/embed?model={name}&encoding=base64",
        headers=headers | {"Content-Type": "application/octet-stream"},
        method="POST",
    )
    return model_id, partial(_embed_remotely, request)


def _embed_remotely(request: urllib.request.Request, paths: list[Path]) -> Iterator[FileResult]:
    executor = ThreadPoolExecutor(REQUESTS_AT_ONCE)
    try:
        yield from executor.map(partial(_post, request), paths)
    finally:
        executor.shutdown(cancel_futures=True)


def _post(request: urllib.request.Request, path: Path) -> FileResult:
    """One file's bytes to /embed; tries again while the server is overloaded, after the time it asks for."""
    try:
        body = path.read_bytes()
    except OSError as error:
        return FileResult(path, error=f"the file cannot be opened: {error.strerror}")
    for tries_left in reversed(range(TRIES)):
        try:
            posted = urllib.request.Request(request.full_url, body, dict(request.header_items()))
            answer = _asked(posted, timeout_s=CLIP_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code == 503 and tries_left:
                seconds = error.headers.get("Retry-After", "")
                time.sleep(int(seconds) if seconds.isdecimal() else 1)
                continue
            return FileResult(path, error=_detail(error))
        except BrokenOff as error:  # a server that is gone for good refuses the next file's connection
            return FileResult(path, error=str(error))
        vector = np.frombuffer(base64.b64decode(answer["embedding"]), dtype="<f4")
        return FileResult(path, vector.astype(np.float32), answer["duration_s"])
    raise AssertionError("the last try returns")


def _asked(request: urllib.request.Request, *, timeout_s: float) -> dict[str, Any]:
    """The JSON answer. Raises HTTPError for an error the server tells, BrokenOff if it tells half of
    something or nothing, CannotRun if there is no server."""
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            body: dict[str, Any] = json.load(answer)
            return body
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        url = request.full_url
        if isinstance(reason, BROKEN_OFF):
            raise BrokenOff(f"no whole answer came from {url} ({reason})") from error
        raise CannotRun(f"no viola server answers at {url} ({reason}); is it running?") from error


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return f"the server answered {error.code} {error.reason}"


def _with_progress(results: Iterator[FileResult], total: int) -> Iterator[FileResult]:
    """The results, shown as they come: a bar if tqdm is there, else a line from time to time."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from _with_lines(results, total)
        return
    with tqdm(total=total, unit="file", file=sys.stderr) as bar:
        for result in results:
            if result.error:
                bar.write(_failure(result), file=sys.stderr)
            bar.update()
            yield result


def _with_lines(results: Iterator[FileResult], total: int) -> Iterator[FileResult]:
    said_at = time.monotonic()
    for n, result in enumerate(results, 1):
        if result.error:
            _say(_failure(result))
        if n == total or time.monotonic() - said_at > 5:
            _say(f"{n} of {total} files")
            said_at = time.monotonic()
        yield result


def _failure(result: FileResult) -> str:
    return f"{result.path}: {result.error}"


def _modified_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return math.nan  # differs from every time: it is tried, and reported


def _say(*lines: str) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service embed",
        description="Embed audio files without HTTP. A second run continues where the first stopped.",
    )
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="FILE|DIR", help="folders are searched at any depth"
    )
    parser.add_argument("--out", type=Path, required=True, help="OUT.npz or OUT.parquet")
    parser.add_argument(
        "--model", default=os.environ.get("VIOLA_MODEL", "byola"), help="name, or a model folder"
    )
    models_dir = Path(os.environ.get("VIOLA_MODELS_DIR", "models"))
    parser.add_argument("--models-dir", type=Path, default=models_dir, help="where models are (%(default)s)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"])
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "float16", "int8"])
    parser.add_argument("--workers", type=_count, default=1, help="threads that decode ahead (%(default)s)")
    parser.add_argument("--threads", type=_count, help="of the model; default: the cores left")
    parser.add_argument("--overwrite", action="store_true", help="forget what OUT holds and start anew")
    parser.add_argument(
        "--url", type=_server, help="embed with the server that runs there, as http://localhost:8000"
    )
    parser.add_argument("--api-key", default=os.environ.get("VIOLA_API_KEY"), help="for --url")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _server(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text} does not begin with http:// or https://")
    return text.rstrip("/")
