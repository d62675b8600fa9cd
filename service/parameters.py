"""A route's query string in, a checked frozen object out. The descriptions are those of /docs.

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


Kind = TypeVar("Kind", bound=BaseModel)


def read(kind: type[Kind], query: QueryParams) -> Kind:
    """The query as `kind`. Raises BadRequest with a sentence on every parameter that does not fit."""
    for name, count in Counter(name for name, _ in query.multi_items()).items():
        if count > 1:
            raise BadRequest(f"the parameter `{name}` is given {count} times; give it once")
    try:
        return kind.model_validate(dict(query))
    except ValidationError as error:
        raise BadRequest(complaints(error.errors())) from error


def complaints(errors: Sequence[Any]) -> str:
    """pydantic's errors as sentences: `top_k: input should be greater than or equal to 1 (it is '0')`."""
    return "; ".join(_complaint(each) for each in errors)


def openapi(kind: type[BaseModel]) -> dict[str, Any]:
    """`kind` as the `parameters` of a route in the OpenAPI document."""
    properties = kind.model_json_schema()["properties"]
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": schema.pop("description"),
                "schema": _without_null(schema),
            }
            for name, schema in properties.items()
        ]
    }


def _complaint(each: Mapping[str, Any]) -> str:
    name = str(each["loc"][-1]) if each["loc"] else ""
    if each["type"] == "extra_forbidden":
        return f"the parameter `{name}` is not known; /docs lists those of this route"
    message = each["msg"].removeprefix("Value error, ")
    return f"{name}: {message[0].lower()}{message[1:]} (it is {each['input']!r})" if name else message


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is left out, never null."""
    if "anyOf" not in schema:
        return schema
    (kind,) = (option for option in schema["anyOf"] if option != {"type": "null"})
    return {"title": schema["title"]} | kind
