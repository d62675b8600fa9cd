"""Files in, a folder of parts out, on the machines of a Ray cluster: for `--ray`.

    missing files ─► units of `part_rows` ─► Ray Data ─► actors, one model each ─► part-00007.parquet
                     numbered here                        │ fetch, embed or classify, write
                                                          └─► what failed, to be noted here

A unit's part has the unit's number. An actor that dies, or its machine, is started again by Ray, and its unit
is read again: it writes files of the same names, in one step each, so that every file is in the result
once. A unit whose actors die TRIES times holds a file that kills whoever decodes it: it is cut into smaller
units, down to the file alone, which is recorded as failed.

Vectors and tags never travel through Ray, and of the list of files only some units at a time.
"""

import json
import logging
import math
import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic
from urllib.parse import urlsplit

from service.bulk.errors import CommandError
from service.bulk.folder import Folder, InputFile, Part, Parts, chunked
from service.bulk.inputs import location_of
from service.bulk.kinds import Kind, R
from service.bulk.offline import FileResult, ModelWork
from service.inference.model import Model, Precision
from service.inference.session import Device

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.bulk.offline import Location

LOCAL = "local"
UNITS_PER_ACTOR = 16  # that are known to Ray at a time
TRIES = 2  # of a unit whose actor dies
STORE_BYTES = 256 << 20  # of the object store of a Ray started here: it holds lists of paths
CONNECT_S = 5.0  # until a cluster's address has answered
# RFC 9113 (3.4, 6.5): gRPC, which a Ray speaks, is HTTP/2, whose first frame on either side is SETTINGS.
HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HTTP_2_FRAME_BYTES, SETTINGS = 9, 4
CLIENT_PORT = 10001  # of ray://
DIED = f"whoever reads it dies, {TRIES} times so far"


@dataclass(frozen=True)
class Cluster:
    """Which Ray, and what of it. actors: None for as many as it has room for; threads: of each model, and
    workers that decode ahead for it; folder: against which paths are read."""

    address: str
    actors: int | None
    threads: int
    workers: int
    device: Device
    precision: Precision
    folder: str


@dataclass(frozen=True)
class Unit:
    """The files of one part."""

    number: int
    files: Sequence[InputFile]


def work_on_ray(
    parts: Parts[R],
    work: ModelWork,
    locations: "Iterable[Location]",
    cluster: Cluster,
    model_folder: Path,
    *,
    part_rows: int,
) -> Generator[FileResult, None, None]:
    """Makes what is missing into `parts`; gives what has become of each file, without its vector or tags.

    Raises CommandError where Ray is missing, does not answer, or stops.
    """
    fresh = (Unit(parts.new_number(), each) for each in chunked(parts.missing(locations), part_rows))
    again = deque(islice(fresh, 1))
    if not again:
        return
    ray = _started(cluster)
    try:
        run = _runner(ray, parts, work, cluster, model_folder)
        n_at_once = UNITS_PER_ACTOR * _n_actors(ray, cluster)
        while True:
            units = [again.popleft() for _ in range(min(len(again), n_at_once))]
            units += islice(fresh, n_at_once - len(units))
            if not units:
                break
            for unit, failures in run(units):
                if failures is not None:
                    done = {s.name: s.modified_s for s in unit.files if s.name not in failures}
                    parts.note(unit.number, done, failures)
                    yield from (FileResult(s.location, error=failures.get(s.name)) for s in unit.files)
                    continue
                parts.forget(unit.number)
                if len(unit.files) > 1:
                    again += (Unit(parts.new_number(), each) for each in smaller(unit.files))
                else:
                    killer = FileResult(unit.files[0].location, error=DIED)
                    parts.keep(Part(parts.kind, failures={unit.files[0].name: DIED}))
                    yield killer
    except ray.exceptions.RayError as error:
        raise CommandError(f"Ray stopped: {_last_line(error)}") from error
    finally:
        ray.shutdown()
    parts.tidy()


def smaller(files: Sequence[InputFile]) -> Iterator[Sequence[InputFile]]:
    """A chunk in pieces of the square root of its length: at most three rounds from 1024 files to one."""
    return chunked(files, math.isqrt(len(files)))


class PartWriter(Generic[R]):
    """An actor: a unit in, its part written, what failed out. It holds one model."""

    def __init__(
        self,
        model: Any,
        attempts: Any,
        cluster: Cluster,
        work: ModelWork,
        out: str,
        kind: Kind[R],
        made_by: str,
    ) -> None:
        """model: its folder on this machine, or a reference to the content of its files by name."""
        import ray

        with suppress(OSError):  # a machine without this folder reads what has a URL or a whole path
            os.chdir(cluster.folder)
        self._work = work
        self._begun = attempts.begin
        self._get = ray.get
        self._workers = cluster.workers
        self._out = Folder(out, kind.noun)
        self._kind = kind
        self._made_by = made_by
        folder = model if isinstance(model, Path) else self._unpacked(ray.get(model))
        self._model = Model.load(
            folder, device=cluster.device, precision=cluster.precision, threads=cluster.threads
        )

    def _unpacked(self, files: dict[str, bytes]) -> Path:
        self._models = tempfile.TemporaryDirectory(prefix="viola-model-")
        folder = Path(self._models.name)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """row: a unit as `_row_of` writes it -> `number`, and `failures` by path as JSON; null where it was
        not tried again."""
        number = int(row["number"])
        if self._get(self._begun.remote(number)) > TRIES:
            return {"number": number, "failures": "null"}
        files = [InputFile(location_of(text), modified_s) for text, modified_s in json.loads(row["files"])]
        part = Part(self._kind)
        results = self._work(self._model, (file.location for file in files), workers=self._workers)
        for file, result in zip(files, results, strict=True):
            part.add(file, result)
        part.write(self._out, number, self._made_by)
        return {"number": number, "failures": json.dumps(part.failures)}


class Attempts:
    """An actor that outlives the others: how often each unit was begun."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def begin(self, number: int) -> int:
        self._counts[number] = self._counts.get(number, 0) + 1
        return self._counts[number]


def _runner(
    ray: Any, parts: Parts[R], work: ModelWork, cluster: Cluster, model_folder: Path
) -> Callable[[list[Unit]], Iterator[tuple[Unit, dict[str, str] | None]]]:
    """What runs units and gives each with its failures, as they come; None where its actors died."""
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    model = model_folder.absolute() if cluster.address == LOCAL else ray.put(_content(model_folder))
    compute = ray.data.ActorPoolStrategy(size=_n_actors(ray, cluster), max_tasks_in_flight_per_actor=1)

    def run(units: list[Unit]) -> Iterator[tuple[Unit, dict[str, str] | None]]:
        by_number = {unit.number: unit for unit in units}
        rows = ray.data.from_items([_row_of(unit) for unit in units], override_num_blocks=len(units))
        done = rows.map(
            PartWriter,
            fn_constructor_args=(
                model,
                attempts,
                cluster,
                work,
                parts.folder.out,
                parts.kind,
                parts.made_by,
            ),
            compute=compute,
            num_cpus=cluster.threads,
            num_gpus=None if cluster.device == "cpu" else 1,
        )
        for row in done.iter_rows():
            yield by_number[int(row["number"])], json.loads(row["failures"])

    return run


def _row_of(unit: Unit) -> dict[str, Any]:
    # As JSON, which also holds the names that are no UTF-8.
    return {"number": unit.number, "files": json.dumps([(str(s.location), s.modified_s) for s in unit.files])}


def _content(folder: Path) -> dict[str, bytes]:
    """The card's files, so that a model travels to machines that have none."""
    card = json.loads((folder / "card.json").read_bytes())
    return {name: (folder / name).read_bytes() for name in ("card.json", *card["files"])}


def _started(cluster: Cluster) -> Any:
    """The module ray, connected. Raises CommandError."""
    is_local = cluster.address == LOCAL
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its own matters are told on stderr
    if is_local:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # Ray's word for a node that others may join; without it all its ports are on the loopback interface.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a change to come
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise CommandError("--ray needs Ray: pip install '.[ray]'") from error
    if not is_local:
        _check_answers(cluster.address)
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if is_local:
            # One more than the actors take, for what Ray itself has to do.
            n_cpus = 1 + cluster.threads * (cluster.actors or 1)
            ray.init(
                "local", include_dashboard=False, num_cpus=n_cpus, object_store_memory=STORE_BYTES, **quietly
            )
        else:
            package = str(Path(__file__).parents[1])
            ray.init(
                cluster.address, runtime_env={"py_modules": [package], "env_vars": _environment()}, **quietly
            )
    except (OSError, RuntimeError, ValueError) as error:  # a ConnectionError is an OSError
        raise CommandError(f"no Ray answers at {cluster.address}: {_last_line(error)}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the command shows its own
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _check_answers(address: str) -> None:
    """That what is there may be a Ray: else `ray.init` waits for minutes without a word. An address without
    host and port is left to Ray. Raises CommandError."""
    try:
        where = urlsplit(_found(address))
        host, port = where.hostname, where.port or (CLIENT_PORT if where.scheme == "ray" else None)
    except ValueError:
        return
    if not host or not port:
        return
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(HTTP_2)
            first = connection.recv(HTTP_2_FRAME_BYTES, socket.MSG_WAITALL)
    except OSError as error:
        raise CommandError(f"no Ray answers at {address}: {error.strerror or error}") from error
    if first[3:4] != bytes([SETTINGS]):
        raise CommandError(f"what answers at {address} is no Ray; is the port another server's?")


def _found(address: str) -> str:
    """A URL; of `auto` the address that Ray finds. Raises ValueError where it finds none."""
    if address == "auto":
        from ray._private.services import get_ray_address_from_environment

        try:
            address = get_ray_address_from_environment("auto", None)
        except ConnectionError as error:
            raise ValueError("Ray says so itself") from error
    return address if "://" in address else f"gcs://{address}"


def _environment() -> dict[str, str]:
    """What `service` sets before NumPy is there, for processes in which Ray has imported NumPy already."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ORT_DISABLE_TELEMETRY")
    return {name: os.environ[name] for name in names}


def _n_actors(ray: Any, cluster: Cluster) -> int:
    if cluster.actors:
        return cluster.actors
    resources: dict[str, float] = ray.cluster_resources()
    n = resources.get("CPU", 1) // cluster.threads if cluster.device == "cpu" else resources.get("GPU", 1)
    return max(1, int(n))


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
