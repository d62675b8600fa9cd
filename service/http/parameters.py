"""A route's query string and JSON body in, a checked frozen object out. The descriptions are those of /docs.

The routes call `read` themselves: the framework's way of filling a model from a query costs as much time as
the decoding of a short clip.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import QueryParams

from service.errors import BadRequest

MODEL = "Name of the model; the server's default one where it is left out."
WINDOW = "Length of a window in seconds."
HOP = "Seconds from the start of one window to the next; as long as the window where it is left out."
MAX_SHOWN = 80  # characters of what a client sent, in an answer
NO_BODY: Mapping[str, Any] = {}


class _Parameters(BaseModel):
    """What every route takes. An unknown parameter is an error: a misspelt one must not be passed over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(default=None, description=MODEL)
    window_s: float | None = Field(default=None, ge=0.05, le=3600, allow_inf_nan=False, description=WINDOW)
    hop_s: float | None = Field(default=None, ge=0.01, le=3600, allow_inf_nan=False, description=HOP)

    @model_validator(mode="after")
    def _hop_needs_a_window(self) -> Self:
        if self.hop_s is not None and self.window_s is None:
            raise ValueError("hop_s means nothing without window_s; give both or none")
        return self


class EmbedParameters(_Parameters):
    """/embed and /embed/batch."""

    frames: bool = Field(default=False, description="Also one vector per frame, with the time of its centre.")
    encoding: Literal["float", "base64"] = Field(
        default="float",
        description="Vectors as lists of numbers, or as one base64 string of little-endian bytes.",
    )
    dtype: Literal["float32", "float16"] = Field(
        default="float32",
        description="Precision of the numbers in the answer; float16 halves base64 and npy answers.",
    )


class ClassifyParameters(_Parameters):
    """/classify and /classify/batch; with window_s the answer has a timeline."""

    head: str | None = Field(
        default=None, description="Name of the head; the first one of the model's card where it is left out."
    )
    top_k: int = Field(default=5, ge=1, le=1000, description="At most so many tags, best first.")
    threshold: float = Field(
        default=0.0, ge=0, le=1, allow_inf_nan=False, description="Only tags with at least this score."
    )


# Read by attendance.py.
DEADLINE: dict[str, Any] = {
    "name": "X-Deadline-S",
    "in": "header",
    "required": False,
    "description": "Seconds from the end of the upload until the request is answered 504; at most the "
    "server's own deadline (`VIOLA_DEADLINE_S`), which holds without it.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


class LogmelParameters(BaseModel):
    """/logmel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(default=None, description=MODEL)
    columns: int = Field(default=800, ge=1, le=4000, description="At most so many columns, each a mean.")


Kind = TypeVar("Kind", bound=BaseModel)


def read(kind: type[Kind], query: QueryParams, body: Mapping[str, Any] = NO_BODY) -> Kind:
    """The query, and what a JSON body holds beside its sound, as `kind`. Raises BadRequest with a sentence on
    every parameter that does not fit."""
    pairs = [*query.multi_items(), *body.items()]
    given = dict(pairs)
    if len(given) < len(pairs):
        name, count = Counter(name for name, _ in pairs).most_common(1)[0]
        raise BadRequest(f"the parameter `{_short(name)}` is given {count} times; give it once")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise BadRequest(complaints(error.errors())) from error


def complaints(errors: Sequence[Any]) -> str:
    """pydantic's errors as sentences: `top_k: input should be greater than or equal to 1 (it is '0')`."""
    return "; ".join(_complaint(each) for each in errors)


def properties(kind: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """The JSON schema of each parameter, with its description."""
    found: dict[str, dict[str, Any]] = kind.model_json_schema()["properties"]
    return found


def openapi(kind: type[BaseModel]) -> dict[str, Any]:
    """`kind` as the `parameters` of a route in the OpenAPI document, with the header that goes with all."""
    return {
        "parameters": [
            *(
                {
                    "name": name,
                    "in": "query",
                    "required": False,
                    "description": schema.pop("description"),
                    "schema": _without_null(schema),
                }
                for name, schema in properties(kind).items()
            ),
            DEADLINE,
        ]
    }


def _complaint(each: Mapping[str, Any]) -> str:
    name = _short(str(each["loc"][0])) if each["loc"] else ""
    if each["type"] == "extra_forbidden":
        return f"the parameter `{name}` is not known; /docs lists those of this route"
    message = each["msg"].removeprefix("Value error, ")
    return (
        f"{name}: {message[0].lower()}{message[1:]} (it is {_short(repr(each['input']))})"
        if name
        else message
    )


def _short(text: str) -> str:
    """What a client sent, for a sentence."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is left out, never null."""
    if "anyOf" not in schema:
        return schema
    (kind,) = (option for option in schema["anyOf"] if option != {"type": "null"})
    return {"title": schema["title"]} | kind
