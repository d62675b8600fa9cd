"""Embeddings and the paths of their files: a table, written as .npz or .parquet in one step and read back."""

import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow

MODEL_KEY = "viola_model"  # in a parquet file's metadata


class CannotRun(Exception):  # noqa: N818 - read as a sentence
    """The command cannot go on; its text says why and what to do."""


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

    def to_arrow(self) -> "pyarrow.Table":
        import pyarrow

        n, D = self.embeddings.shape
        vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(self.embeddings.reshape(n * D)), D)
        columns = {
            "embeddings": vectors,
            "paths": self.paths.tolist(),
            "durations_s": self.durations_s,
            "modified_s": self.modified_s,
        }
        return pyarrow.table(columns).replace_schema_metadata({MODEL_KEY: self.model})


def read_table(path: Path) -> Table:
    """Raises CannotRun."""
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
        raise not_a_table(path) from error


def write_table(path: Path, table: Table) -> None:
    """As .npz or .parquet, by the path's suffix, in one step. Raises CannotRun."""
    if path.suffix != ".parquet":
        write_whole(path, lambda file: np.savez(file, **vars(table)))
        return
    import pyarrow.parquet

    write_whole(path, lambda file: pyarrow.parquet.write_table(table.to_arrow(), file))


def write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """What `write` puts into the file it is given, in one step: a reader sees no half-written file. Raises
    CannotRun."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise CannotRun(f"{path} cannot be written: {error.strerror or error}") from error


def check_parquet(paths: Iterable[str] = ()) -> None:
    """That parquet can be written, with these paths in it. Raises CannotRun."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise CannotRun("parquet needs pyarrow: pip install '.[bulk]', or write .npz") from error
    for path in paths:
        if (shown := as_utf_8(path)) != path:
            raise CannotRun(
                f"the name of {shown} is not UTF-8, and parquet holds no other; rename it or write .npz"
            )


def as_utf_8(path: str) -> str:
    """The path, with a backslash for each byte that is no UTF-8."""
    return path.encode(errors="backslashreplace").decode()


def model_of(rows: "pyarrow.Table") -> str:
    """Who made the embeddings of a parquet file; empty if it does not tell."""
    return str((rows.schema.metadata or {}).get(MODEL_KEY.encode(), b"").decode())


def not_a_table(path: Path | str) -> CannotRun:
    return CannotRun(
        f"{path} is not a table of embeddings; choose another --out, or start anew with --overwrite"
    )


def _read_parquet(path: Path) -> Table:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path)
        vectors = rows["embeddings"].combine_chunks()
        return Table(
            embeddings=vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1),
            paths=np.array(rows["paths"].to_pylist()),
            durations_s=rows["durations_s"].to_numpy(),
            modified_s=rows["modified_s"].to_numpy(),
            model=model_of(rows),
        )
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise not_a_table(path) from error
