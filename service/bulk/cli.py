"""Files in, a table out, without HTTP or from a running server: what `embed` and `classify` have in common.

    python -m service embed|classify FILE|DIR|CSV|URL ... --model NAME --out OUT.{...} | OUT/

A CSV names files in its column `path` or `file_name`; URLs (s3://, gs://, ...) are read through fsspec.

OUT/ is a folder of parquet files, for any number of sounds: see service/bulk/folder.py, and for `--ray`
service/bulk/ray.py. Anything else is one table, whose rows stand in input order.

Results of one table are kept in OUT.partial/ a few hundred at a time, so that a run stopped in any way goes
on where it was when the same command is given again; files in a finished OUT are not read again either,
unless they have changed since. Files may be added, but none is ever dropped: an OUT with files that this
run does not find is an error, as are results of another model, or of one that was asked something else.
`--overwrite` starts anew.

A bad file is reported and tried again next time; if OUT holds it from an earlier run, that row stays. Exit
code: 0 if OUT holds at least one file's result, 1 if none or if the command cannot run, 2 for wrong
arguments, 130 after Ctrl-C.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, cast

from service.bulk.errors import CommandError
from service.bulk.folder import PART_ROWS, Parts, work_into
from service.bulk.inputs import locations
from service.bulk.kinds import Kind, R
from service.bulk.offline import FileResult, Location, ModelWork, Work
from service.bulk.resumable import ResumableTable, partial_folder_of
from service.bulk.server import Server, server_at
from service.bulk.table import as_utf_8, check_parquet
from service.errors import ViolaError
from service.inference.model import GRAPH_FILES, Model, Precision
from service.inference.session import Device
from service.inference.threads import usable_cores


@dataclass(frozen=True)
class Command(Generic[R]):
    """What `python -m service NAME` makes of files.

    add_arguments: its own, to the parser. here, there: for a model of this machine, and for one of a running
    server, who makes the results (the model, and with what it is asked), and what makes them. Both raise
    ViolaError where the model cannot.
    """

    name: str
    description: str
    kind: Kind[R]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    here: Callable[[argparse.Namespace, Model], tuple[str, ModelWork]]
    there: Callable[[argparse.Namespace, Server], tuple[str, Work]]

    def main(self, argv: Sequence[str]) -> int:
        """`argv`: what follows its name. Returns the exit code."""
        arguments = _parser(self).parse_args(argv)
        try:
            return (_into_folder if _is_folder(self.kind, arguments) else _into_table)(self, arguments)
        except (CommandError, ViolaError) as error:
            _say(f"error: {error}")
            return 1
        except KeyboardInterrupt:
            _say(_how_to_go_on(self.kind, arguments))
            return 130


def id_of(model: Model) -> str:
    graph = model.card.files[GRAPH_FILES[model.precision]]
    return f"{model.card.name} {model.card.version} ({model.precision}, {graph[:12]})"


def _into_table(command: Command[R], arguments: argparse.Namespace) -> int:
    out, done = Path(arguments.out), command.kind.done
    paths = list(dict.fromkeys(locations(arguments.inputs)))
    if not paths:
        raise _nothing_found(arguments)
    _check_out(out, command.kind, arguments.inputs)
    made_by, work = _work(command, arguments)
    results = ResumableTable(out, command.kind, made_by)
    if arguments.overwrite:
        results.clear()
    todo = results.missing(paths)
    if len(todo) < len(paths):
        _say(f"{len(paths) - len(todo)} of {len(paths)} files are {done} already")
    failed = _do_all(work, todo, results) if todo else []
    n_done = results.finish(paths)
    _say(f"{n_done} of {len(paths)} files in {out}" if n_done else f"no file could be {done}")
    if failed:
        _say(f"{len(failed)} could not be {done}:")
    for result in failed:
        _say(f"  {_failure(result)}{' (its earlier row stays)' if results.holds(result.path) else ''}")
    return 0 if n_done else 1


def _into_folder(command: Command[R], arguments: argparse.Namespace) -> int:
    """As `_into_table`, while no more than a part of the results is held."""
    out: str = arguments.out
    done = command.kind.done
    if out.endswith(command.kind.suffixes):
        raise CommandError(
            f"--out {out}: with --ray, or as a URL, it is a folder; write {out.rpartition('.')[0]}/"
        )
    parts, results = (_on_ray if arguments.ray else _here)(command, arguments)
    with closing(results):
        for _ in _with_progress(results):
            pass
    if parts.n_found == 0:
        raise _nothing_found(arguments)
    n_done, n_failed = parts.counts()
    if parts.n_done_already:
        _say(f"{parts.n_done_already} of {parts.n_found} files were {done} already")
    _say(f"{n_done} of {parts.n_found} files in {out}" if n_done else f"no file could be {done}")
    if n_failed:
        _say(f"{n_failed} could not be {done}: {parts.folder.out.rstrip('/')}/_failed-*.parquet says why")
    return 0 if n_done else 1


def _here(
    command: Command[R], arguments: argparse.Namespace
) -> tuple[Parts[R], Generator[FileResult, None, None]]:
    made_by, work = _work(command, arguments)
    parts = Parts(arguments.out, command.kind, made_by, overwrite=arguments.overwrite)
    return parts, work_into(parts, work, locations(arguments.inputs), part_rows=arguments.part_rows)


def _on_ray(
    command: Command[R], arguments: argparse.Namespace
) -> tuple[Parts[R], Generator[FileResult, None, None]]:
    from service.bulk.ray import LOCAL, Cluster, work_on_ray

    device: Device = "cpu" if arguments.device == "auto" else arguments.device
    precision: Precision = arguments.precision
    if precision == "auto" and device != "cpu":
        precision = "float32"
    threads = arguments.threads or 1
    is_local = arguments.ray == LOCAL
    # Loaded here to see that it is whole, on the CPU, because this machine may have no other.
    model_folder = _model_folder(arguments)
    model = Model.load(model_folder, device="cpu", precision=precision)
    made_by, work = command.here(arguments, model)
    cluster = Cluster(
        address=arguments.ray,
        actors=arguments.ray_actors or (max(1, usable_cores()[0] // threads) if is_local else None),
        threads=threads,
        workers=arguments.workers,
        device=device,
        precision=cast(Precision, model.precision),
        folder=str(Path.cwd()),
    )
    parts = Parts(arguments.out, command.kind, made_by, overwrite=arguments.overwrite)
    found = locations(arguments.inputs)
    return parts, work_on_ray(parts, work, found, cluster, model_folder, part_rows=arguments.part_rows)


def _nothing_found(arguments: argparse.Namespace) -> CommandError:
    return CommandError("no audio file found in " + ", ".join(arguments.inputs))


def _is_folder(kind: Kind[R], arguments: argparse.Namespace) -> bool:
    out: str = arguments.out
    is_table = out.endswith(kind.suffixes)
    return bool(arguments.ray) or out.endswith("/") or "://" in out or (not is_table and Path(out).is_dir())


def _how_to_go_on(kind: Kind[R], arguments: argparse.Namespace) -> str:
    without = " without --overwrite" if arguments.overwrite else ""
    if _is_folder(kind, arguments):
        return (
            f"stopped: what is done is kept in {arguments.out}; give the same command again{without} to go on"
        )
    partial = partial_folder_of(Path(arguments.out))
    if not partial.exists():
        return f"stopped: nothing new was {kind.done}"
    return f"stopped: what is done is kept in {partial}; give the same command again{without} to go on"


def _do_all(work: Work, paths: list[Location], results: ResumableTable[R]) -> list[FileResult]:
    """Works and keeps; returns the results of the files that failed."""
    failed: list[FileResult] = []
    try:
        for result in _with_progress(work(paths), len(paths)):
            if result.error:
                failed.append(result)
            else:
                results.add(result)
    finally:  # also when stopped
        results.save()
    return failed


def _check_out(out: Path, kind: Kind[R], inputs: Sequence[str]) -> None:
    """That the table can be written, and does not name the sounds, before anything is computed for it."""
    if out.suffix not in kind.suffixes:
        suffixes = _either(kind.suffixes)
        raise CommandError(f"--out {out}: the name must end in {suffixes}, or in / for a folder of parts")
    if out.exists() and any(Path(each).exists() and out.samefile(each) for each in inputs):
        raise CommandError(f"--out {out} is what names the sounds; choose another --out")
    if out.suffix == ".parquet":
        check_parquet()
    if out.is_dir():
        raise CommandError(f"--out {out} is a folder; name a file, or write {out}/ for a folder of parts")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise CommandError(f"--out {out} cannot be written: {error.strerror or error}") from error


def _work(command: Command[R], arguments: argparse.Namespace) -> tuple[str, Work]:
    """Who makes the results, and what makes them: a running server, or the model of a folder."""
    if arguments.url:
        server = server_at(arguments.url, model=arguments.model, api_key=arguments.api_key)
        return command.there(arguments, server)
    threads = arguments.threads or max(1, usable_cores()[0] - arguments.workers)
    folder = _model_folder(arguments)
    model = Model.load(folder, device=arguments.device, precision=arguments.precision, threads=threads)
    made_by, work = command.here(arguments, model)
    return made_by, lambda paths: work(model, paths, workers=arguments.workers)


def _model_folder(arguments: argparse.Namespace) -> Path:
    named = Path(arguments.model)
    folder: Path = named if (named / "card.json").is_file() else arguments.models_dir / arguments.model
    if not (folder / "card.json").is_file():
        raise CommandError(f"there is no model {arguments.model} in {arguments.models_dir}")
    return folder


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
    return as_utf_8(f"{result.path}: {result.error}")


def _say(*lines: str) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def _parser(command: Command[R]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m service {command.name}",
        description=f"{command.description} A second run continues where the first stopped.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        type=given_name,
        metavar="FILE|DIR|CSV|URL",
        help="folders are searched at any depth; a CSV has a column `path` or `file_name`",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=given_name,
        help=f"OUT{_either(command.kind.suffixes)}; OUT/ for a folder of parts, of any number of files",
    )
    command.add_arguments(parser)
    parser.add_argument(
        "--model",
        default=os.environ.get("VIOLA_MODEL", "byola"),
        type=given_name,
        help="name, or a model folder",
    )
    models_dir = Path(os.environ.get("VIOLA_MODELS_DIR", "models"))
    parser.add_argument("--models-dir", type=Path, default=models_dir, help="where models are (%(default)s)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"])
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "float16", "int8"])
    parser.add_argument("--workers", type=count, default=1, help="threads that decode ahead (%(default)s)")
    parser.add_argument("--threads", type=count, help="of the model; default: the cores left")
    parser.add_argument(
        "--part-rows", type=count, default=PART_ROWS, help="files in a part of OUT/ (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="forget what OUT holds and start anew")
    elsewhere = parser.add_mutually_exclusive_group()
    elsewhere.add_argument(
        "--url", type=_server, help="have the server do it that runs there, as http://localhost:8000"
    )
    elsewhere.add_argument(
        "--ray",
        type=given_name,
        metavar="ADDRESS",
        help="do it on a Ray cluster, into OUT/: `local` starts one here",
    )
    parser.add_argument(
        "--ray-actors", type=count, metavar="N", help="models on the cluster; default: as many as fit"
    )
    parser.add_argument("--api-key", default=os.environ.get("VIOLA_API_KEY"), help="for --url")
    return parser


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def given_name(text: str) -> str:
    """Of a file, folder, model or address. An empty one, as of a variable that is not set, is none: as a path
    it would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty; is a variable not set?")
    return text


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _server(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text} does not begin with http:// or https://")
    return text.rstrip("/")
