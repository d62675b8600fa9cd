"""Audio files in, a table of embeddings out, without HTTP or from a running server.

    python -m service embed FILE|DIR ... --model NAME --out OUT.{npz,parquet}

The table holds, in input order, `embeddings` (n, D) float32, `paths` (n,) and `durations_s` (n,), and
`model`, which tells the model that made it (in parquet: `viola_model` in the schema's metadata).

Results are kept in OUT.partial/ a few hundred at a time, so that a run stopped in any way goes on where it
was when the same command is given again; files in a finished OUT are not embedded again either, unless they
have changed since. Results of another model are never mixed in: that is an error.

A bad file is reported, left out of the table and tried again next time. Exit code: 0 if the table holds at
least one embedding, 1 if none or if the command cannot run, 2 for wrong arguments, 130 after Ctrl-C.
"""

import argparse
import base64
import json
import os
import shutil
import sys
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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import ViolaError
from service.model import GRAPH_FILES, Model
from service.offline import FileResult, audio_files, embed_files

SHARD_FILES = 256  # results are kept after so many files
SHARD_S = 10.0  # or seconds, whichever comes first
REQUESTS_AT_ONCE = 8
TRIES = 8  # of a request that an overloaded server turns away

Embed = Callable[[list[Path]], Iterator[FileResult]]


class CannotRun(Exception):  # noqa: N818 - read as a sentence
    """The command cannot go on; its text says why and what to do."""


def main(argv: Sequence[str]) -> int:
    """`argv`: what follows `embed`. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except (CannotRun, ViolaError) as error:
        _say(f"error: {error}")
        return 1


def _run(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    _check_out(out)
    paths = audio_files(arguments.inputs)
    if not paths:
        raise CannotRun("no audio file found in " + ", ".join(map(str, arguments.inputs)))
    model_id, embed = _remote(arguments) if arguments.url else _local(arguments)
    results = Results(out, model_id)
    todo = results.missing(paths)
    if len(todo) < len(paths):
        _say(f"{len(paths) - len(todo)} of {len(paths)} files are embedded already")
    try:
        failed = _embed_all(embed, todo, results)
    except KeyboardInterrupt:
        _say(f"stopped: what is done is kept in {results.partial}; give the same command again to go on")
        return 130
    failed_paths = {result.path for result in failed}
    n_done = results.finish(path for path in paths if path not in failed_paths)
    _say(f"{n_done} of {len(paths)} files in {out}" if n_done else "no file could be embedded")
    if failed:
        _say(
            f"{len(failed)} could not be embedded:",
            *(f"  {result.path}: {result.error}" for result in failed),
        )
    return 0 if n_done else 1


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


@dataclass(frozen=True)
class Table:
    """embeddings: (n, D) float32; paths: (n,) str; durations_s: (n,) float64; model: who made them."""

    embeddings: NDArray[np.float32]
    paths: NDArray[np.str_]
    durations_s: NDArray[np.float64]
    model: str


class Results:
    """The results of `out`: those of a finished run and those kept in `partial` since."""

    def __init__(self, out: Path, model_id: str) -> None:
        self.partial = out.with_name(out.name + ".partial")
        self._out = out
        self._model_id = model_id
        self._pending: list[FileResult] = []
        self._kept_at = time.monotonic()

    def missing(self, paths: Iterable[Path]) -> list[Path]:
        """The paths without a result, and those whose file is newer than it. Raises CannotRun if the results
        are another model's."""
        done: dict[str, float] = {}
        for file in self._files():
            table = read_table(file)
            if table.model != self._model_id:
                where = self._out if file == self._out else self.partial
                raise CannotRun(
                    f"{where} holds embeddings of {table.model or 'an unknown model'}, not of "
                    f"{self._model_id}; delete it or choose another --out"
                )
            done |= dict.fromkeys(table.paths.tolist(), file.stat().st_mtime)
        return [path for path in paths if _modified_at(path) > done.get(str(path), -1.0)]

    def add(self, result: FileResult) -> None:
        self._pending.append(result)
        if len(self._pending) >= SHARD_FILES or time.monotonic() - self._kept_at > SHARD_S:
            self.keep()

    def keep(self) -> None:
        """Writes what was added since as the next file in `partial`."""
        if self._pending:
            self.partial.mkdir(parents=True, exist_ok=True)
            number = 1 + max((int(file.stem) for file in self.partial.glob("*.npz")), default=0)
            write_table(self.partial / f"{number:06d}.npz", _table(self._pending, self._model_id))
        self._pending = []
        self._kept_at = time.monotonic()

    def finish(self, paths: Iterable[Path]) -> int:
        """Writes `out`, the results of `paths` in their order, and clears `partial`; how many they are."""
        self.keep()
        rows: dict[str, tuple[NDArray[np.float32], float]] = {}
        for file in self._files():  # later ones replace earlier ones
            table = read_table(file)
            rows |= zip(
                table.paths.tolist(),
                zip(table.embeddings, table.durations_s.tolist(), strict=True),
                strict=True,
            )
        found = [FileResult(path, *rows[str(path)]) for path in paths if str(path) in rows]
        if found:
            write_table(self._out, _table(found, self._model_id))
        shutil.rmtree(self.partial, ignore_errors=True)
        return len(found)

    def _files(self) -> list[Path]:
        """Oldest first."""
        return [*([self._out] if self._out.exists() else []), *sorted(self.partial.glob("[0-9]*.npz"))]


def read_table(path: Path) -> Table:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            model = str(arrays["model"]) if "model" in arrays else ""
            return Table(arrays["embeddings"], arrays["paths"], arrays["durations_s"], model)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CannotRun(f"{path} is not a table of embeddings: delete it or choose another --out") from error


def write_table(path: Path, table: Table) -> None:
    """In one step: a reader sees no half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            (_write_parquet if path.suffix == ".parquet" else _write_npz)(file, table)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CannotRun(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_npz(file: Any, table: Table) -> None:
    np.savez(file, **vars(table))


def _write_parquet(file: Any, table: Table) -> None:
    import pyarrow
    import pyarrow.parquet

    n, D = table.embeddings.shape
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(table.embeddings.reshape(n * D)), D)
    columns = {"embeddings": vectors, "paths": table.paths.tolist(), "durations_s": table.durations_s}
    rows = pyarrow.table(columns).replace_schema_metadata({"viola_model": table.model})
    pyarrow.parquet.write_table(rows, file)


def _read_parquet(path: Path) -> Table:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path)
        vectors = rows["embeddings"].combine_chunks()
        embeddings = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
        model = (rows.schema.metadata or {}).get(b"viola_model", b"").decode()
        return Table(embeddings, np.array(rows["paths"].to_pylist()), rows["durations_s"].to_numpy(), model)
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise CannotRun(f"{path} is not a table of embeddings: delete it or choose another --out") from error


def _table(results: list[FileResult], model_id: str) -> Table:
    embeddings = [result.embedding for result in results if result.embedding is not None]
    return Table(
        embeddings=np.stack(embeddings).astype(np.float32, copy=False),
        paths=np.array([str(result.path) for result in results]),
        durations_s=np.array([result.duration_s for result in results], dtype=np.float64),
        model=model_id,
    )


def _check_out(out: Path) -> None:
    if out.suffix not in (".npz", ".parquet"):
        raise CannotRun(f"--out {out}: the name must end in .npz or .parquet")
    if out.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise CannotRun("parquet needs pyarrow: pip install '.[bulk]', or write .npz") from error


def _local(arguments: argparse.Namespace) -> tuple[str, Embed]:
    """The model of a folder, and what embeds with it."""
    named = Path(arguments.model)
    folder = named if (named / "card.json").is_file() else arguments.models_dir / arguments.model
    if not (folder / "card.json").is_file():
        raise CannotRun(f"there is no model {arguments.model} in {arguments.models_dir}")
    threads = arguments.threads or max(1, len(os.sched_getaffinity(0)) - arguments.workers)
    model = Model.load(folder, device=arguments.device, precision=arguments.precision, threads=threads)
    graph = model.card.files[GRAPH_FILES[model.precision]]
    model_id = f"{model.card.name} {model.card.version} ({model.precision}, {graph[:12]})"
    return model_id, lambda paths: embed_files(model, paths, workers=arguments.workers)


def _remote(arguments: argparse.Namespace) -> tuple[str, Embed]:
    """The model of a running server, and what embeds with it."""
    url = arguments.url.rstrip("/")
    headers = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
    name = urllib.parse.quote(arguments.model, safe="")
    try:
        card = _asked(urllib.request.Request(f"{url}/models/{name}", headers=headers))
    except urllib.error.HTTPError as error:
        raise CannotRun(_detail(error)) from error
    request = urllib.request.Request(
        f"{url}/embed?model={name}&encoding=base64",
        headers=headers | {"Content-Type": "application/octet-stream"},
        method="POST",
    )
    return f"{card['name']} {card['version']} ({url})", partial(_embed_remotely, request)


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
            answer = _asked(posted)
        except urllib.error.HTTPError as error:
            if error.code == 503 and tries_left:
                time.sleep(float(error.headers.get("Retry-After", 1)))
                continue
            return FileResult(path, error=_detail(error))
        vector = np.frombuffer(base64.b64decode(answer["embedding"]), dtype="<f4")
        return FileResult(path, vector.astype(np.float32), answer["duration_s"])
    raise AssertionError("the last try returns")


def _asked(request: urllib.request.Request) -> dict[str, Any]:
    """The JSON answer. Raises HTTPError for an error the server tells, CannotRun if there is no server."""
    try:
        with urllib.request.urlopen(request) as answer:
            body: dict[str, Any] = json.load(answer)
            return body
    except urllib.error.HTTPError:
        raise
    except (urllib.error.URLError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CannotRun(
            f"no viola server answers at {request.full_url} ({reason}); is it running?"
        ) from error


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
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


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")  # it is tried, and reported


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
    parser.add_argument("--workers", type=int, default=1, help="threads that decode ahead (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of the model; default: the cores left")
    parser.add_argument("--url", help="embed with the server that runs there, as http://localhost:8000")
    parser.add_argument("--api-key", default=os.environ.get("VIOLA_API_KEY"), help="for --url")
    return parser
