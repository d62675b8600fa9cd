"""Embeddings and the paths of their files: a table, written as .npz or .parquet in one step and read back."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.bulk.errors import CommandError
from service.process.files import whole_file

if TYPE_CHECKING:
    import pyarrow

MODEL_KEY = "viola_model"  # in a parquet file's metadata


class Row(NamedTuple):
    """embedding: (D,) float32; duration_s: of the clip; modified_s: of the file, when it was embedded."""

    embedding: NDArray[np.float32]
    duration_s: float
    modified_s: float


@dataclass(frozen=True)
class Table:
    """embeddings: (n, D) float32; paths: (n,) str, in parquet `as_utf_8`; durations_s, modified_s: (n,)
    float64; model: who made them."""

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
    """Raises CommandError where it cannot be read."""
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
        raise not_a_table(path, "embeddings") from error


def write_table(path: Path, table: Table) -> None:
    """As .npz or .parquet, by the path's suffix, in one step. Raises CommandError."""
    if path.suffix != ".parquet":
        write_whole(path, lambda file: np.savez(file, **vars(table)))
        return
    import pyarrow.parquet

    write_whole(path, lambda file: pyarrow.parquet.write_table(table.to_arrow(), file))


def write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """What `write` puts into the file it is given, in one step: a reader sees no half-written file. Raises
    CommandError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            write(file)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror or error}") from error


def check_parquet() -> None:
    """That parquet can be written. Raises CommandError."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise CommandError(
            "parquet needs pyarrow: pip install '.[bulk]', or choose another suffix for --out"
        ) from error


def as_utf_8(path: str) -> str:
    r"""The path as parquet can hold it and a terminal can show it: each byte that is no UTF-8 as `\xe9`, as a
    shell's printf and Python's bytes write it, too."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def model_of(rows: "pyarrow.Table") -> str:
    """Who made the rows of a parquet file; empty if it does not tell."""
    return str((rows.schema.metadata or {}).get(MODEL_KEY.encode(), b"").decode())


def not_a_table(path: Path | str, of: str) -> CommandError:
    return CommandError(
        f"{path} is not a table of {of}; choose another --out, or start anew with --overwrite"
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
        raise not_a_table(path, "embeddings") from error
