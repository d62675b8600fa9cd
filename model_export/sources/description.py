"""A TOML file in, what it says of an ONNX graph out: how it is fed, what it gives, and under which terms.

    [input]      kind = "logmel" or "waveform", layout, sample_rate
    [frontend]   of a log-mel: parameters of encoders/frontend.py, or arrays of your own
    [window]     patch and hop, or longest: in log-mel frames, or in samples
    [outputs]    vector or frames
    [scores]     optional: the labels' scores

docs/bring_your_own.md tells each key. What does not fit is an ExportError whose sentence names the key.
"""

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from encoders.frontend import Frontend, Waveform, mel_filterbank, window_of
from model_export.errors import ExportError
from model_export.sources.audioset_head import names_of_table
from service.errors import ModelFolderError
from service.inference.card import NAME
from service.inference.tensors import checked_tensor, read_tensors

Axis = Literal["batch", "mels", "frames", "samples", 1]
OutputAxis = Literal["batch", "frames", "numbers", 1]

COLUMN_S = 0.01  # samples of a waveform are handed on in columns of about so long
MOST_FRAMES = 100_000  # in a window: a quarter of an hour


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(_Section):
    """name: of the graph's input, needed where it has several; layout: its axes, in order, `1` where one is
    always 1."""

    kind: Literal["logmel", "waveform"]
    layout: tuple[Axis, ...]
    sample_rate: PositiveInt
    name: str | None = None

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        named = [axis for axis in self.layout if axis != 1]
        needed = {"mels", "frames"} if self.kind == "logmel" else {"samples"}
        if len(set(named)) < len(named) or set(named) - {"batch"} != needed:
            raise ValueError(
                f"the layout of a {self.kind} names {' and '.join(sorted(needed))} once, `batch` at most "
                f"once, and 1 for axes that are always 1, not {list(self.layout)}"
            )
        if "batch" in named and self.layout[0] != "batch":
            raise ValueError("`batch` must be the first axis")
        return self


class Window(_Section):
    """In log-mel frames, or in samples of a waveform."""

    patch: PositiveInt | None = None
    hop: PositiveInt | None = None
    longest: PositiveInt | None = None
    shortest: PositiveInt | None = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if (self.patch is None) == (self.longest is None):
            raise ValueError(
                "give either `patch`, for a network that takes pieces of one length, or `longest`, for one "
                "that takes any length up to that"
            )
        if self.hop is not None and self.patch is None:
            raise ValueError(
                "`hop` is how far one patch lies behind the other: without `patch` there is none"
            )
        if self.patch is not None:
            hop = self.hop or self.patch
            if hop > self.patch:
                raise ValueError(f"a hop of {hop} leaves out sound between patches of {self.patch}")
            if self.shortest is not None and not self.patch - hop < self.shortest <= self.patch:
                raise ValueError(
                    f"`shortest` is how much of a patch of {self.patch} must be sound, more than the "
                    f"{self.patch - hop} that the patch before it has too, not {self.shortest}"
                )
        elif self.longest is not None and (self.shortest or 1) > self.longest:
            raise ValueError(f"`shortest`, {self.shortest}, is more than `longest`, {self.longest}")
        return self


class Outputs(_Section):
    """vector: one per patch, or per clip of any length; frames: several, of `layout`. Either names an output,
    or any value within the graph."""

    vector: str | None = None
    frames: str | None = None
    layout: tuple[OutputAxis, ...] = Field(default=("batch", "frames", "numbers"))
    pooling: Literal["mean", "mean+max"] = "mean"
    frame_period_ms: PositiveFloat | None = Field(default=None)
    first_frame_centre_ms: FiniteFloat | None = Field(default=None)

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.vector is None) == (self.frames is None):
            raise ValueError("name either `vector` or `frames`: what the embedding is made of")
        if self.frames is None and (
            self.frame_period_ms is not None or self.first_frame_centre_ms is not None
        ):
            raise ValueError("the time of a vector follows from [window]: leave the times of frames out")
        if set(self.layout) - {"batch", 1} != {"frames", "numbers"} or "batch" in self.layout[1:]:
            raise ValueError(
                f"`layout` names frames and numbers once, and `batch` first, not {list(self.layout)}"
            )
        return self


class Scores(_Section):
    """output: of logits or of what Sigmoid or Softmax makes of them; labels: names, or a table's file."""

    output: str
    labels: tuple[str, ...] | str
    task: Literal["multilabel", "multiclass"] | None = None
    name: str = Field(default="scores", pattern=NAME)


class Description(_Section):
    """What the file says. folder: where it lies; other files that it names lie beside it."""

    licence: str
    description: str = ""
    training_data: str = ""
    limitations: str = ""
    intended_use: str = ""
    input: Input
    frontend: dict[str, Any] = {}
    window: Window
    outputs: Outputs
    scores: Scores | None = None
    folder: Path = Field(exclude=True)

    @property
    def column(self) -> int:
        """Samples, for a waveform: the longest column that patch and hop are multiples of."""
        about = max(1, round(self.input.sample_rate * COLUMN_S))
        if self.window.patch is None:
            return about
        common = int(np.gcd(self.window.patch, self.window.hop or self.window.patch))
        return max(n for n in range(1, about + 1) if common % n == 0)


def read_description(path: Path) -> Description:
    """Raises ExportError."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ExportError(f"{path} is no TOML: {error}.") from error
    if "folder" in content:
        raise ExportError(f"{path}: {_unknown(('folder',))}.")
    try:
        return Description(**content, folder=path.parent)
    except ValidationError as error:
        raise ExportError(f"{path}: {'; '.join(_sentence(each) for each in error.errors()[:5])}.") from error


def frontend_of(description: Description) -> Frontend | Waveform:
    """Raises ExportError for a front-end that cannot be."""
    rate, given = description.input.sample_rate, dict(description.frontend)
    if description.input.kind == "waveform":
        if given:
            raise ExportError("[frontend] is of a log-mel: a network that takes a waveform has none.")
        return Waveform(rate, description.column)
    for name in ("mean", "std", "arrays"):
        given.pop(name, None)
    known = {field.name: field for field in fields(Frontend) if field.name != "sample_rate"}
    if wrong := [name for name in given if name not in known]:
        raise ExportError(
            f"[frontend] has no {', '.join(wrong)}; it has {', '.join([*known, 'mean', 'std', 'arrays'])}."
        )
    needed = ["n_fft", "win_length", "hop_length", "n_mels", "f_min_hz", "f_max_hz", "log_floor", "centred"]
    needed += ["power", "mel_scale", "mel_norm", "log"]
    if missing := [name for name in needed if name not in given]:
        raise ExportError(
            f"[frontend] lacks {', '.join(missing)}: what is not said would be guessed, and the network "
            "would hear something else than it was trained with."
        )
    frontend = Frontend(sample_rate=rate, **_checked_parameters(given))
    _check_frontend(frontend)
    return frontend


def arrays_of(description: Description, frontend: Frontend) -> dict[str, NDArray[np.float32]]:
    """The front-end's window and filterbank: the user's, or those of its parameters. Raises ExportError."""
    name = description.frontend.get("arrays")
    if name is None:
        return {"window": window_of(frontend), "filterbank": mel_filterbank(frontend)}
    path = description.folder / str(name)
    shapes = {"window": (frontend.win_length,), "filterbank": (frontend.n_fft // 2 + 1, frontend.n_mels)}
    try:
        tensors, _ = read_tensors(path)
        return {key: checked_tensor(path, tensors, key, shape) for key, shape in shapes.items()}
    except ModelFolderError as error:
        raise ExportError(f"[frontend] arrays: {error}.") from error


def statistics_of(description: Description) -> tuple[float, float]:
    """The mean and the deviation by which the log-mel is normalised; 0 and 1 where nothing is said."""
    mean, std = (description.frontend.get(key, default) for key, default in (("mean", 0.0), ("std", 1.0)))
    if not all(isinstance(x, int | float) and np.isfinite(x) for x in (mean, std)) or std <= 0:
        raise ExportError(
            f"[frontend] mean = {mean} and std = {std} normalise nothing; std must be positive."
        )
    return float(mean), float(std)


def labels_of(description: Description, *, beside: Path) -> tuple[str, ...]:
    """A table is looked for beside the description, then in the folder `beside`. Raises ExportError."""
    assert description.scores is not None
    labels = description.scores.labels
    if isinstance(labels, str):
        places = [folder / labels for folder in (description.folder, beside)]
        labels = tuple(names_of_table(next((path for path in places if path.is_file()), places[0])))
    if len(set(labels)) < len(labels) or not all(labels):
        raise ExportError("[scores] labels: each must be a name of its own.")
    return labels


def _checked_parameters(given: dict[str, Any]) -> dict[str, Any]:
    """With the type of the field's default; whole numbers are floats where those are meant."""
    known = {field.name: field.default for field in fields(Frontend)}
    values = {}
    for name, value in given.items():
        default = known[name]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise ExportError(f"[frontend] {name} = {value!r} is no {type(default).__name__}.")
        values[name] = value
    choices = {
        "window": ("periodic", "symmetric", "povey"),
        "preemphasis_of": ("frame", "waveform"),
        "power": (1, 2),
        "mel_scale": ("slaney", "htk"),
        "mel_norm": ("slaney", "none"),
        "log": ("ln_add", "ln_max", "db"),
    }
    for name, allowed in choices.items():
        if name in values and values[name] not in allowed:
            raise ExportError(
                f"[frontend] {name} = {values[name]!r} is none of {', '.join(map(repr, allowed))}."
            )
    return values


def _check_frontend(f: Frontend) -> None:
    if f.n_fft % 2 or not 0 < f.win_length <= f.n_fft or f.hop_length < 1 or f.n_mels < 1:
        raise ExportError(
            f"[frontend] n_fft = {f.n_fft} must be even and hold win_length = {f.win_length}; hop_length and "
            "n_mels must be positive."
        )
    if not 0 <= f.f_min_hz < f.f_max_hz <= f.sample_rate / 2 or f.log_floor <= 0:
        raise ExportError(
            f"[frontend] the bands must lie between 0 and {f.sample_rate / 2:g} Hz, half the sample rate, "
            f"not between {f.f_min_hz:g} and {f.f_max_hz:g}; log_floor must be positive."
        )


def _sentence(error: Any) -> str:
    place = tuple(part for part in error["loc"] if isinstance(part, str))
    if error["type"] == "extra_forbidden":
        return _unknown(place)
    if error["type"] == "missing":
        return f"{_key(place)} is missing"
    return f"{_key(place)}: {error['msg'].removeprefix('Value error, ')}" if place else str(error["msg"])


def _unknown(place: tuple[str, ...]) -> str:
    sections: dict[str, type[BaseModel]] = {
        "input": Input,
        "window": Window,
        "outputs": Outputs,
        "scores": Scores,
    }
    kind = sections.get(place[0], Description) if len(place) > 1 else Description
    known = [name for name in kind.model_fields if name != "folder"]
    return f"there is no {_key(place)}; known are {', '.join(known)}"


def _key(place: tuple[str, ...]) -> str:
    return place[0] if len(place) == 1 else f"[{place[0]}] {'.'.join(place[1:])}"
