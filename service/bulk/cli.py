"""Audio files in, embeddings out, without HTTP or from a running server.

    python -m service embed FILE|DIR|CSV|URL ... --model NAME --out OUT.{npz,parquet} | OUT/

A CSV names files in its column `path` or `file_name`; URLs (s3://, gs://, ...) are read through fsspec.

OUT/ is a folder of parquet files, for any number of sounds: see service/bulk_folder.py, and for `--ray`
service/ray_embed.py. OUT.npz or OUT.parquet is one table, which holds, in input order, `embeddings` (n, D)
float32, `paths` (n,), `durations_s` (n,) and `modified_s` (n,), when each file was last modified before it
was embedded (seconds since 1970); and `model`, which tells the model that made it (in parquet:
`viola_model` in the schema's metadata).

Results of one table are kept in OUT.partial/ a few hundred at a time, so that a run stopped in any way goes
on where it was when the same command is given again; files in a finished OUT are not embedded again either,
unless they have changed since. Files may be added, but none is ever dropped: an OUT with files that this
run does not find is an error, as are results of another model. `--overwrite` starts anew.

A bad file is reported and tried again next time; if OUT holds it from an earlier run, that row stays. Exit
code: 0 if OUT holds at least one embedding, 1 if none or if the command cannot run, 2 for wrong arguments,
130 after Ctrl-C.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

from service.bulk_folder import PART_ROWS, Parts, embed_into
from service.bulk_inputs import modified_s, places
from service.bulk_server import server_at
from service.bulk_table import CannotRun, Row, Table, check_parquet, read_table, write_table
from service.errors import ViolaError
from service.model import GRAPH_FILES, Model, Precision
from service.offline import Embed, FileResult, Place, embed_files
from service.session import Device
from service.threads import usable_cores

SHARD_FILES = 256  # results of one table are kept after so many files
SHARD_S = 10.0  # or seconds, whichever comes first


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
    if _is_folder(arguments):
        return _into_folder(arguments)
    return _into_table(arguments)


def _into_table(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out)
    paths = list(dict.fromkeys(places(arguments.inputs)))
    if not paths:
        raise _nothing_found(arguments)
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


def _into_folder(arguments: argparse.Namespace) -> int:
    """As `_into_table`, while no more than a part of the results is held."""
    out: str = arguments.out
    if out.endswith((".npz", ".parquet")):
        raise CannotRun(
            f"--out {out}: with --ray, or as a URL, it is a folder; write {out.rpartition('.')[0]}/"
        )
    parts, embedded = _on_ray(arguments) if arguments.ray else _here(arguments)
    with closing(embedded):
        for _ in _with_progress(embedded):
            pass
    if parts.n_found == 0:
        raise _nothing_found(arguments)
    n_done, n_failed = parts.counts()
    if parts.n_embedded_already:
        _say(f"{parts.n_embedded_already} of {parts.n_found} files were embedded already")
    _say(f"{n_done} of {parts.n_found} files in {out}" if n_done else "no file could be embedded")
    if n_failed:
        _say(f"{n_failed} could not be embedded: {parts.folder.out.rstrip('/')}/_failed-*.parquet says why")
    return 0 if n_done else 1


def _here(arguments: argparse.Namespace) -> tuple[Parts, Generator[FileResult, None, None]]:
    model_id, embed = _remote(arguments) if arguments.url else _local(arguments)
    parts = Parts(arguments.out, model_id, overwrite=arguments.overwrite)
    return parts, embed_into(parts, embed, places(arguments.inputs), part_rows=arguments.part_rows)


def _on_ray(arguments: argparse.Namespace) -> tuple[Parts, Generator[FileResult, None, None]]:
    from service.ray_embed import LOCAL, Cluster, embed_on_ray

    device: Device = "cpu" if arguments.device == "auto" else arguments.device
    precision: Precision = arguments.precision
    if precision == "auto" and device != "cpu":
        precision = "float32"
    threads = arguments.threads or 1
    is_local = arguments.ray == LOCAL
    # Loaded here to see that it is whole, on the CPU, because this machine may have no other.
    model_folder = _model_folder(arguments)
    model = Model.load(model_folder, device="cpu", precision=precision)
    cluster = Cluster(
        address=arguments.ray,
        actors=arguments.ray_actors or (max(1, usable_cores()[0] // threads) if is_local else None),
        threads=threads,
        workers=arguments.workers,
        device=device,
        precision=cast(Precision, model.precision),
        folder=str(Path.cwd()),
    )
    parts = Parts(arguments.out, _id_of(model), overwrite=arguments.overwrite)
    found = places(arguments.inputs)
    return parts, embed_on_ray(parts, found, cluster, model_folder, part_rows=arguments.part_rows)


def _nothing_found(arguments: argparse.Namespace) -> CannotRun:
    return CannotRun("no audio file found in " + ", ".join(arguments.inputs))


def _is_folder(arguments: argparse.Namespace) -> bool:
    out: str = arguments.out
    is_table = out.endswith((".npz", ".parquet"))
    return bool(arguments.ray) or out.endswith("/") or "://" in out or (not is_table and Path(out).is_dir())


def _how_to_go_on(arguments: argparse.Namespace) -> str:
    without = " without --overwrite" if arguments.overwrite else ""
    if _is_folder(arguments):
        return (
            f"stopped: what is done is kept in {arguments.out}; give the same command again{without} to go on"
        )
    partial = _partial(Path(arguments.out))
    if not partial.exists():
        return "stopped: nothing new was embedded"
    return f"stopped: what is done is kept in {partial}; give the same command again{without} to go on"


def _embed_all(embed: Embed, paths: list[Place], results: "Results") -> list[FileResult]:
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

    def missing(self, paths: Sequence[Place]) -> list[Place]:
        """The paths without a result, and those whose file has changed since. Raises CannotRun if the results
        are another model's, or if some are of other paths, which would be lost."""
        for file in self._files():
            table = read_table(file)
            self._check_model(table.model, file)
            self._earlier |= zip(table.paths.tolist(), table.modified_s.tolist(), strict=True)
        self._modified_s = {str(path): modified_s(path) for path in paths}
        self._check_none_is_lost()
        return [path for path in paths if self._earlier.get(str(path)) != self._modified_s[str(path)]]

    def holds(self, path: Place) -> bool:
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

    def finish(self, paths: Iterable[Place]) -> int:
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


def _check_out(out: Path, paths: Iterable[Place]) -> None:
    """That the table of `paths` can be written, before anything is computed for it."""
    if out.suffix not in (".npz", ".parquet"):
        raise CannotRun(f"--out {out}: the name must end in .npz or .parquet, or in / for a folder of parts")
    if out.suffix == ".parquet":
        check_parquet(map(str, paths))
    if out.is_dir():
        raise CannotRun(f"--out {out} is a folder; name a file, or write {out}/ for a folder of parts")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise CannotRun(f"--out {out} cannot be written: {error.strerror or error}") from error


def _local(arguments: argparse.Namespace) -> tuple[str, Embed]:
    """The model of a folder, and what embeds with it."""
    threads = arguments.threads or max(1, usable_cores()[0] - arguments.workers)
    folder = _model_folder(arguments)
    model = Model.load(folder, device=arguments.device, precision=arguments.precision, threads=threads)
    return _id_of(model), lambda paths: embed_files(model, paths, workers=arguments.workers)


def _model_folder(arguments: argparse.Namespace) -> Path:
    named = Path(arguments.model)
    folder: Path = named if (named / "card.json").is_file() else arguments.models_dir / arguments.model
    if not (folder / "card.json").is_file():
        raise CannotRun(f"there is no model {arguments.model} in {arguments.models_dir}")
    return folder


def _id_of(model: Model) -> str:
    graph = model.card.files[GRAPH_FILES[model.precision]]
    return f"{model.card.name} {model.card.version} ({model.precision}, {graph[:12]})"


def _remote(arguments: argparse.Namespace) -> tuple[str, Embed]:
    """The model of a running server, and what embeds with it."""
    return server_at(arguments.url, model=arguments.model, api_key=arguments.api_key)


def _with_progress(results: Iterator[FileResult], total: int | None = None) -> Iterator[FileResult]:
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


def _with_lines(results: Iterator[FileResult], total: int | None) -> Iterator[FileResult]:
    said_at = time.monotonic()
    for n, result in enumerate(results, 1):
        if result.error:
            _say(_failure(result))
        if n == total or time.monotonic() - said_at > 5:
            _say(f"{n} of {total} files" if total else f"{n} files")
            said_at = time.monotonic()
        yield result


def _failure(result: FileResult) -> str:
    return f"{result.path}: {result.error}"


def _say(*lines: str) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service embed",
        description="Embed audio files without HTTP. A second run continues where the first stopped.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE|DIR|CSV|URL",
        help="folders are searched at any depth; a CSV has a column `path` or `file_name`",
    )
    parser.add_argument(
        "--out",
        required=True,
        help="OUT.npz or OUT.parquet; OUT/ for a folder of parts, of any number of files",
    )
    parser.add_argument(
        "--model", default=os.environ.get("VIOLA_MODEL", "byola"), help="name, or a model folder"
    )
    models_dir = Path(os.environ.get("VIOLA_MODELS_DIR", "models"))
    parser.add_argument("--models-dir", type=Path, default=models_dir, help="where models are (%(default)s)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"])
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "float16", "int8"])
    parser.add_argument("--workers", type=_count, default=1, help="threads that decode ahead (%(default)s)")
    parser.add_argument("--threads", type=_count, help="of the model; default: the cores left")
    parser.add_argument(
        "--part-rows", type=_count, default=PART_ROWS, help="rows of a part of OUT/ (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="forget what OUT holds and start anew")
    elsewhere = parser.add_mutually_exclusive_group()
    elsewhere.add_argument(
        "--url", type=_server, help="embed with the server that runs there, as http://localhost:8000"
    )
    elsewhere.add_argument(
        "--ray", metavar="ADDRESS", help="embed on a Ray cluster, into OUT/: `local` starts one here"
    )
    parser.add_argument(
        "--ray-actors", type=_count, metavar="N", help="models on the cluster; default: as many as fit"
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
