"""OpenAI's routes for sound: the JSON of its clients in, clips out; embeddings in, the JSON they expect out.

    {"model": "byola", "input": ["data:audio/wav;base64,...", ...], "encoding_format": "base64"}

Clients of OpenAI, and of servers that speak its language, work unchanged: `input` holds sounds in base64 or
as `data:` URIs where others have text. Below PREFIX errors have OpenAI's shape too, because its client shows
nothing but `error.message`:

    {"error": {"message": "<sentence>", "type": "<code>", "param": null, "code": "<code>"},
     "detail": "<sentence>"}
"""

import datetime
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.datastructures import QueryParams
from starlette.requests import Request

from service.answers import numbers
from service.embedder import Sound
from service.errors import AudioMissing, BadRequest, UnsupportedMediaType, ViolaError
from service.json_body import JSON, clips_of, is_json, listed, read_json
from service.model import Card
from service.parameters import MODEL, read
from service.upload import Intake, Upload

PREFIX = "/v1/"
INPUT = "input"
OWNER = "viola"


class EmbeddingsParameters(BaseModel):
    """What stands beside `input`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(default=None, description=MODEL)
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="Lists of numbers, or the bytes of little-endian float32 in base64."
    )
    dimensions: int | None = Field(
        default=None, ge=1, description="Nothing but the model's own embedding_size; vectors are not cut."
    )
    user: str | None = Field(default=None, description="Passed over.")
    modality: Literal["audio"] = Field(default="audio", description="As infinity's clients say.")


class OneEmbedding(BaseModel):
    object: Literal["embedding"]
    index: int = Field(description="Place of its sound in `input`.")
    embedding: list[float] | str


class Usage(BaseModel):
    """Log-mel frames, for there are no tokens: 100 per second with the default model."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """One embedding per sound, in order."""

    object: Literal["list"]
    data: list[OneEmbedding]
    model: str
    usage: Usage


class OneModel(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int = Field(description="Day of its card, in seconds since 1970.")
    owned_by: str


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"]
    data: list[OneModel]


EMBEDDINGS_EXAMPLE: dict[str, Any] = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.61, 1.93, 0.02, 0.4]}],
    "model": "byola",
    "usage": {"prompt_tokens": 100, "total_tokens": 100},
}
MODEL_EXAMPLE: dict[str, Any] = {
    "id": "byola",
    "object": "model",
    "created": 1763683200,
    "owned_by": OWNER,
}
MODELS_EXAMPLE = {"object": "list", "data": [MODEL_EXAMPLE]}


async def read_embeddings(request: Request, intake: Intake) -> tuple[EmbeddingsParameters, list[Upload]]:
    """Parameters and clips of a request. Raises as `json_body.read_request` does."""
    if not is_json(request):
        raise UnsupportedMediaType(f"the Content-Type of this route is {JSON}; /embed takes the sound itself")
    read(_NoParameters, request.query_params)
    content, body = await read_json(request, intake)
    try:
        if INPUT not in content:
            raise AudioMissing(f"the JSON has no `{INPUT}`; it is the sound in base64, or as a data: URI")
        sounds = listed(content.pop(INPUT), f"`{INPUT}`", many=True)
        parameters = read(EmbeddingsParameters, QueryParams(), content)
        return parameters, await clips_of(sounds, f"`{INPUT}`", body)
    except BaseException:
        body.close()
        raise


def check_dimensions(parameters: EmbeddingsParameters, card: Card) -> None:
    """Raises BadRequest where another length than the model's is asked for."""
    if parameters.dimensions not in (None, card.embedding_size):
        raise BadRequest(
            f"dimensions is {parameters.dimensions}, and the embeddings of `{card.name}` have "
            f"{card.embedding_size}; leave it out"
        )


def all_or_error(sounds: Sequence[Sound | ViolaError]) -> list[Sound]:
    """As OpenAI does it, one failure fails the request. Raises it, with the place in its sentence."""
    for index, sound in enumerate(sounds):
        if isinstance(sound, ViolaError):
            if len(sounds) > 1:
                sound.args = (f"`{INPUT}[{index}]`: {sound}",)
            raise sound
    return [sound for sound in sounds if isinstance(sound, Sound)]


def embeddings_content(
    card: Card, sounds: Sequence[Sound], encoding: Literal["float", "base64"]
) -> dict[str, Any]:
    """The answer, for `answers.json_answer`."""
    frames_per_s = card.sample_rate / card.frontend.hop_length
    n_frames = sum(round(sound.duration_s * frames_per_s) for sound in sounds)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": numbers(sound.embedding.vector, encoding=encoding, dtype="float32"),
            }
            for index, sound in enumerate(sounds)
        ],
        "model": card.name,
        "usage": {"prompt_tokens": n_frames, "total_tokens": n_frames},
    }


def error_content(path: str, code: str, sentence: str) -> dict[str, JsonValue]:
    """The body of an error: OpenAI's below PREFIX, this server's everywhere else."""
    if not path.startswith(PREFIX):
        return {"error": code, "detail": sentence}
    error: dict[str, JsonValue] = {"message": sentence, "type": code, "param": None, "code": code}
    return {"error": error, "detail": sentence}


def model_content(described: dict[str, Any]) -> dict[str, JsonValue]:
    """A model as `Registry.describe` tells of it, in OpenAI's words."""
    card = described["card"]
    return {"id": card["name"], "object": "model", "created": _day(card["created"]), "owned_by": OWNER}


class _NoParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _day(date: str) -> int:
    """`2026-11-20` in seconds since 1970; 0 where the card has no such date."""
    try:
        day = datetime.datetime.fromisoformat(date)
    except ValueError:
        return 0
    return int(day.replace(tzinfo=day.tzinfo or datetime.UTC).timestamp())
