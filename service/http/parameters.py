"""A route's query string and JSON body in, a checked frozen object out. The descriptions are those of /docs.

The routes call `read` themselves: the framework's way of filling a model from a query takes as long as
decoding a short clip.
"""

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection

from service.errors import MAX_ECHO, BadRequest, shortened
from service.inference.events import BEGIN, END_SHARE, GAP_S, SHORTEST_S
from service.inference.labels import (
    MAX_LABEL_BYTES,
    MAX_LABELS,
    MAX_TEMPLATE,
    check_in_place_of_a_head,
    labels_of,
    template_of,
)

MODEL = "Name of the model; the server's default one where it is left out."
WINDOW = "Length of a window in seconds."
HOP = "Seconds from the start of one window to the next; as long as the window where it is left out."
MAX_PARAMETERS = 100  # of a query, before it is refused unread
MAX_COMPLAINTS = 5  # in one answer
NORMALIZE = (
    "Vectors of unit length around the centre of real sounds in the model's folder, so that unrelated sounds "
    "have a cosine near 0. True where fewer `dimensions` are asked for, else false, by default."
)
DIMENSIONS = (
    "Only the first so many numbers, after turning the vectors to their principal axes, of unit length; as "
    "many as the model's embedding_size are all, unturned."
)
MOST_DIMENSIONS = 1_000_000
ENCODING = "Vectors as lists of numbers, or as one base64 string of little-endian bytes."
DTYPE = "Precision of the numbers in the answer; float16 halves base64 and npy answers."
PICTURE = "Also the picture of the log-mel, as /logmel gives it, in at most so many columns."
MinKnown = Annotated[
    float | None,
    Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="What is less known than this has no tags; the head's own, where it has one, by default.",
    ),
]
MAX_OVERLAP = 64  # windows of a stream that are open at a time
FIT = "`auto`: the head is fitted anew at once, and the answer tells how good it is."
NO_BODY: Mapping[str, Any] = {}

_echo = reprlib.Repr()  # of long strings, lists and objects a few parts
_echo.maxstring = _echo.maxother = MAX_ECHO


Labels = Annotated[
    Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MAX_LABEL_BYTES)], ...],
        Field(min_length=2, max_length=MAX_LABELS),
    ]
    | None,
    BeforeValidator(labels_of),
    Field(
        description=f"In place of a head: 2 to {MAX_LABELS} labels in words, with commas between, or a list "
        "in JSON; the model needs a text tower. Scores tell which of them fits best, and add up to 1.",
    ),
]

Template = Annotated[
    Annotated[str, Field(max_length=MAX_TEMPLATE)] | None,
    BeforeValidator(template_of),
    Field(
        description="What a label becomes before it is compared, with {} in its place, like `This is a sound "
        "of {}.`; the model's own where it is left out.",
    ),
]


class Labelled(BaseModel):
    """What may be given in place of a head, wherever there are heads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: Labels = None
    template: Template = None

    @model_validator(mode="after")
    def _labels_take_the_place_of_a_head(self) -> Self:
        of_a_head = {name: getattr(self, name, None) for name in ("head", "min_known")}
        check_in_place_of_a_head(self.labels, self.template, **of_a_head)
        return self


class _Parameters(BaseModel):
    """What every route takes. An unknown parameter is an error: a misspelt one must not be passed over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(default=None, description=MODEL)
    window_s: float | None = Field(default=None, ge=0.05, le=3600, allow_inf_nan=False, description=WINDOW)
    hop_s: float | None = Field(default=None, ge=0.01, le=3600, allow_inf_nan=False, description=HOP)
    logmel_columns: int | None = Field(default=None, ge=1, le=4000, description=PICTURE)
    normalize: bool | None = Field(default=None, description=NORMALIZE)
    dimensions: int | None = Field(default=None, ge=1, le=MOST_DIMENSIONS, description=DIMENSIONS)

    @model_validator(mode="after")
    def _hop_needs_a_window(self) -> Self:
        if self.hop_s is not None and self.window_s is None:
            raise ValueError("hop_s means nothing without window_s; give both or none")
        return self


class EmbedParameters(_Parameters):
    """/embed and /embed/batch."""

    frames: bool = Field(default=False, description="Also one vector per frame, with the time of its centre.")
    encoding: Literal["float", "base64"] = Field(default="float", description=ENCODING)
    dtype: Literal["float32", "float16"] = Field(default="float32", description=DTYPE)


class ClassifyParameters(Labelled, _Parameters):
    """/classify and /classify/batch; with window_s the answer has a timeline, with segments its events."""

    head: str | None = Field(
        default=None, description="Name of the head; the first one of the model's card where it is left out."
    )
    top_k: int = Field(default=5, ge=1, le=1000, description="At most so many tags, best first.")
    threshold: float = Field(
        default=0.0, ge=0, le=1, allow_inf_nan=False, description="Only tags with at least this score."
    )
    embedding: Literal["float", "base64"] | None = Field(
        default=None,
        description="Also the clip's embedding, as a list of numbers or as base64 of little-endian float32.",
    )
    pooling: Literal["max", "mean"] | None = Field(
        default=None,
        description="How the passages of a long clip make its tags: the highest score of each label, or the "
        "mean; max for a head of several labels and mean for one of one label where it is left out.",
    )
    min_known: MinKnown = None
    segments: bool = Field(
        default=False, description="Also from when to when each label is heard, by a hysteresis."
    )
    begin: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Of segments: the score that begins one; the head's own threshold for the label where it "
        f"is left out, or {BEGIN} where the head has none.",
    )
    end: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description=f"Of segments: the score below which one ends; {END_SHARE} of `begin` by default.",
    )
    shortest_s: float | None = Field(
        default=None,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description=f"Of segments: shorter ones are left out, in seconds; {SHORTEST_S} where it is left out.",
    )
    gap_s: float | None = Field(
        default=None,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description=f"Of segments: those of one label with so short a gap between them are one, in seconds; "
        f"{GAP_S} where it is left out.",
    )

    @model_validator(mode="after")
    def _projection_needs_an_embedding(self) -> Self:
        for name in ("normalize", "dimensions"):
            if getattr(self, name) is not None and self.embedding is None:
                raise ValueError(f"{name} means nothing without embedding; give both or none")
        return self

    @model_validator(mode="after")
    def _hysteresis_fits(self) -> Self:
        for name in ("begin", "end", "shortest_s", "gap_s"):
            if getattr(self, name) is not None and not self.segments:
                raise ValueError(f"{name} means nothing without segments=true; give both or none")
        if self.begin is not None and self.end is not None and self.end > self.begin:
            raise ValueError("end must not be greater than begin: a segment ends with a lower score")
        return self


class TextParameters(BaseModel):
    """/embed/text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(default=None, description=MODEL)
    normalize: bool = Field(
        default=False, description="Vectors of unit length, so that a dot product is a cosine."
    )
    encoding: Literal["float", "base64"] = Field(default="float", description=ENCODING)
    dtype: Literal["float32", "float16"] = Field(default="float32", description=DTYPE)


class StreamParameters(Labelled):
    """/stream: how the sound comes, and what is wanted of it. Where a name is one of /classify, so is its
    meaning."""

    model: str | None = Field(default=None, description=MODEL)
    head: str | None = Field(
        default=None, description="Name of the head; the first one of the model's card where it is left out."
    )
    format: Literal["s16le", "s16be", "f32le", "webm", "ogg"] | None = Field(
        default=None,
        description="Raw samples of 16 bits, little-endian or big-endian, or of 32-bit floats; or the "
        "container that a browser records. Where it is left out the Content-Type tells, else it is s16le.",
    )
    rate: int | None = Field(
        default=None,
        ge=8_000,
        le=192_000,
        description="Of raw samples, which need it: so many a second, in Hz.",
    )
    channels: int | None = Field(
        default=None, ge=1, le=8, description="Of raw samples; 1 where it is left out."
    )
    window_s: float | None = Field(
        default=None,
        ge=0.05,
        le=60,
        allow_inf_nan=False,
        description=f"{WINDOW} Where it is left out, a second every half second, or one frame of the model "
        "where that is longer.",
    )
    hop_s: float | None = Field(default=None, ge=0.1, le=60, allow_inf_nan=False, description=HOP)
    top_k: int = Field(default=5, ge=1, le=1000, description="At most so many tags a window, best first.")
    threshold: float = Field(
        default=0.0, ge=0, le=1, allow_inf_nan=False, description="Only tags with at least this score."
    )
    embeddings: bool = Field(default=False, description="Also the embedding of each window.")
    min_known: MinKnown = None
    begin: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="The score that begins an event; the head's own threshold for the label where it is left "
        f"out, or {BEGIN} where the head has none.",
    )
    end: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description=f"The score below which an event ends; {END_SHARE} of `begin` by default.",
    )
    shortest_s: float = Field(
        default=SHORTEST_S,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Shorter events are left out, in seconds.",
    )
    gap_s: float = Field(
        default=GAP_S,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Events of one label with so short a gap between them are one, in seconds; an event is "
        "told so long after its end.",
    )

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.hop_s is not None and self.window_s is None:
            raise ValueError("hop_s means nothing without window_s; give both or none")
        if self.window_s is not None and self.window_s < 0.1 and self.hop_s is None:
            raise ValueError("a window of less than 0.1 s needs hop_s, which is 0.1 or more")
        if self.window_s is not None and self.window_s > MAX_OVERLAP * (self.hop_s or self.window_s):
            raise ValueError(f"window_s is at most {MAX_OVERLAP} times hop_s; take a longer hop_s")
        if self.begin is not None and self.end is not None and self.end > self.begin:
            raise ValueError("end must not be greater than begin: an event ends with a lower score")
        if self.format in ("webm", "ogg") and (self.rate is not None or self.channels is not None):
            raise ValueError(f"rate and channels are told by {self.format} itself; leave them out")
        return self


class HeadOptions(BaseModel):
    """PUT of a head that is taught; what is left out stays as it is, or as it is by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["multiclass", "multilabel"] | None = Field(
        default=None, description="One label a sound, or several; multiclass by default."
    )
    none_of_these: bool | None = Field(
        default=None,
        description="Whether it also learns what is none of its labels, from the model's background and from "
        "examples without a label; true by default.",
    )
    keep_clips: bool | None = Field(
        default=None,
        description="Whether the sounds are kept too, so that they can be heard, and embedded again by a new "
        "version of the model; false by default: embeddings alone.",
    )


class ExampleParameters(BaseModel):
    """POST of examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str | None = Field(
        default=None, description="What is heard; of a multilabel head several, with commas between."
    )
    none: bool = Field(default=False, description="In place of a label: examples of none of these.")
    fit: Literal["auto", "no"] = Field(default="no", description=FIT)

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.label is None) != self.none:
            raise ValueError("give a label, or none=true for sounds that are none of the labels")
        return self


class ForgetParameters(BaseModel):
    """DELETE of examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str | None = Field(default=None, description="All examples with this label are removed.")
    none: bool = Field(default=False, description="In place of a label: all examples of none of these.")
    fit: Literal["auto", "no"] = Field(default="no", description=FIT)

    _one_of_the_two = ExampleParameters._one_of_the_two


class FitParameters(BaseModel):
    """DELETE of one example."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fit: Literal["auto", "no"] = Field(default="no", description=FIT)


class NoParameters(BaseModel):
    """Of a route that takes none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LogmelParameters(BaseModel):
    """/logmel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(default=None, description=MODEL)
    columns: int = Field(default=800, ge=1, le=4000, description="At most so many columns, each a mean.")


Kind = TypeVar("Kind", bound=BaseModel)


def query_of(request: HTTPConnection) -> QueryParams:
    """The query. Raises BadRequest where it holds too much to be worth taking apart."""
    if request.scope["query_string"].count(b"&") >= MAX_PARAMETERS:
        raise BadRequest(
            f"the query holds more than {MAX_PARAMETERS} parameters; /docs lists those there are"
        )
    return request.query_params


def read(kind: type[Kind], query: QueryParams, body: Mapping[str, Any] = NO_BODY) -> Kind:
    """The query, and what a JSON body holds beside its sound, as `kind`. Raises BadRequest with a sentence on
    every parameter that does not fit."""
    pairs = [*query.multi_items(), *body.items()]
    given = dict(pairs)
    if len(given) < len(pairs):
        name, count = Counter(name for name, _ in pairs).most_common(1)[0]
        raise BadRequest(f"the parameter `{shortened(name)}` is given {count} times; give it once")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise BadRequest(complaints(error.errors(include_url=False))) from error


def complaints(errors: Sequence[Any]) -> str:
    """pydantic's errors as sentences: `top_k: input should be greater than or equal to 1 (it is '0')`."""
    shown = [_complaint(each) for each in errors[:MAX_COMPLAINTS]]
    if len(errors) > MAX_COMPLAINTS:
        shown.append(f"and {len(errors) - MAX_COMPLAINTS} more")
    return "; ".join(shown)


def properties(kind: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """The JSON schema of each parameter, with its description."""
    found: dict[str, dict[str, Any]] = kind.model_json_schema()["properties"]
    return found


def _complaint(each: Mapping[str, Any]) -> str:
    name = shortened(str(each["loc"][0])) if each["loc"] else ""
    if each["type"] == "extra_forbidden":
        return f"the parameter `{name}` is not known; /docs lists those of this route"
    value = shortened(_echo.repr(each["input"]), 2 * MAX_ECHO)
    message = each["msg"].removeprefix("Value error, ")
    return f"{name}: {message[0].lower()}{message[1:]} (it is {value})" if name else message
