"""Files in, a folder of parts out, on the machines of a Ray cluster: for `python -m service embed --ray`.

    missing files ─► units of `part_rows` ─► Ray Data ─► actors, one model each ─► part-00007.parquet
                     numbered here                        │ fetch, embed, write
                                                          └─► what failed, to be noted here

A unit's part has the unit's number. An actor that dies, or its machine, is started again by Ray, and its unit
is embedded again: it writes files of the same names, in one step each, so that every sound is in the result
once. A unit whose actors die TRIES times holds a file that kills whoever decodes it: it is cut into smaller
units, down to the file alone, which is recorded as failed.

Vectors never travel through Ray, and of the list of files only some units at a time.
"""

import json
import logging
import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.bulk_folder import Folder, Part, Parts, Sound, stretches
from service.bulk_inputs import place_of
from service.bulk_table import CannotRun
from service.model import Model, Precision
from service.offline import FileResult, embed_files
from service.session import Device

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.offline import Place

LOCAL = "local"
UNITS_PER_ACTOR = 16  # that are known to Ray at a time
TRIES = 2  # of a unit whose actor dies
STORE_BYTES = 256 << 20  # of the object store of a Ray started here: it holds lists of paths
DIED = f"whoever embeds it dies, {TRIES} times so far"


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
    sounds: Sequence[Sound]


def embed_on_ray(
    parts: Parts, places: "Iterable[Place]", cluster: Cluster, model_folder: Path, *, part_rows: int
) -> Generator[FileResult, None, None]:
    """Embeds what is missing into `parts`; gives what has become of each file, without its vector.

    Raises CannotRun where Ray is missing, does not answer, or stops.
    """
    fresh = (Unit(parts.new_number(), each) for each in stretches(parts.missing(places), part_rows))
    again = deque(islice(fresh, 1))
    if not again:
        return
    ray = _started(cluster)
    try:
        run = _runner(ray, parts, cluster, model_folder)
        n_at_once = UNITS_PER_ACTOR * _n_actors(ray, cluster)
        while True:
            units = [again.popleft() for _ in range(min(len(again), n_at_once))]
            units += islice(fresh, n_at_once - len(units))
            if not units:
                break
            for unit, failures in run(units):
                if failures is not None:
                    embedded = {s.name: s.modified_s for s in unit.sounds if s.name not in failures}
                    parts.note(unit.number, embedded, failures)
                    yield from (FileResult(s.place, error=failures.get(s.name)) for s in unit.sounds)
                    continue
                parts.forget(unit.number)
                if len(unit.sounds) > 1:
                    again += (Unit(parts.new_number(), each) for each in smaller(unit.sounds))
                else:
                    killer = FileResult(unit.sounds[0].place, error=DIED)
                    parts.keep(Part(failures={unit.sounds[0].name: DIED}))
                    yield killer
    except ray.exceptions.RayError as error:
        raise CannotRun(f"Ray stopped: {_last_line(error)}") from error
    finally:
        ray.shutdown()
    parts.tidy()


def smaller(sounds: Sequence[Sound]) -> Iterator[Sequence[Sound]]:
    """A stretch in pieces of the square root of its length: at most three rounds from 1024 files to one."""
    return stretches(sounds, math.isqrt(len(sounds)))


class PartEmbedder:
    """An actor: a unit in, its part written, what failed out. It holds one model."""

    def __init__(self, model: Any, attempts: Any, cluster: Cluster, out: str, model_id: str) -> None:
        """model: its folder on this machine, or a reference to the content of its files by name."""
        import ray

        with suppress(OSError):  # a machine without this folder embeds what has a URL or a whole path
            os.chdir(cluster.folder)
        self._begun = attempts.begin
        self._get = ray.get
        self._workers = cluster.workers
        self._out = Folder(out)
        self._model_id = model_id
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
        sounds = [Sound(place_of(text), modified_s) for text, modified_s in json.loads(row["sounds"])]
        part = Part()
        results = embed_files(self._model, (sound.place for sound in sounds), workers=self._workers)
        for sound, result in zip(sounds, results, strict=True):
            part.add(sound, result)
        part.write(self._out, number, self._model_id)
        return {"number": number, "failures": json.dumps(part.failures)}


class Attempts:
    """An actor that outlives the others: how often each unit was begun."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def begin(self, number: int) -> int:
        self._counts[number] = self._counts.get(number, 0) + 1
        return self._counts[number]


def _runner(
    ray: Any, parts: Parts, cluster: Cluster, model_folder: Path
) -> Callable[[list[Unit]], Iterator[tuple[Unit, dict[str, str] | None]]]:
    """What runs units and gives each with its failures, as they come; None where its actors died."""
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    model = model_folder.absolute() if cluster.address == LOCAL else ray.put(_content(model_folder))
    compute = ray.data.ActorPoolStrategy(size=_n_actors(ray, cluster), max_tasks_in_flight_per_actor=1)

    def run(units: list[Unit]) -> Iterator[tuple[Unit, dict[str, str] | None]]:
        by_number = {unit.number: unit for unit in units}
        rows = ray.data.from_items([_row_of(unit) for unit in units], override_num_blocks=len(units))
        done = rows.map(
            PartEmbedder,
            fn_constructor_args=(model, attempts, cluster, parts.folder.out, parts.model_id),
            compute=compute,
            num_cpus=cluster.threads,
            num_gpus=None if cluster.device == "cpu" else 1,
        )
        for row in done.iter_rows():
            yield by_number[int(row["number"])], json.loads(row["failures"])

    return run


def _row_of(unit: Unit) -> dict[str, Any]:
    # As JSON, which also holds the names that are no UTF-8.
    return {"number": unit.number, "sounds": json.dumps([(str(s.place), s.modified_s) for s in unit.sounds])}


def _content(folder: Path) -> dict[str, bytes]:
    """The card's files, so that a model travels to machines that have none."""
    card = json.loads((folder / "card.json").read_bytes())
    return {name: (folder / name).read_bytes() for name in ("card.json", *card["files"])}


def _started(cluster: Cluster) -> Any:
    """The module ray, connected. Raises CannotRun."""
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
        raise CannotRun("--ray needs Ray: pip install '.[ray]'") from error
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if is_local:
            # One more than the actors take, for what Ray itself has to do.
            n_cpus = 1 + cluster.threads * (cluster.actors or 1)
            ray.init(
                "local", include_dashboard=False, num_cpus=n_cpus, object_store_memory=STORE_BYTES, **quietly
            )
        else:
            package = str(Path(__file__).parent)
            ray.init(
                cluster.address, runtime_env={"py_modules": [package], "env_vars": _environment()}, **quietly
            )
    except (OSError, RuntimeError, ValueError) as error:  # a ConnectionError is an OSError
        raise CannotRun(f"no Ray answers at {cluster.address}: {_last_line(error)}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the command shows its own
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


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
