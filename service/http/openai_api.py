"""OpenAI's routes: the JSON of its clients in, clips and texts out; embeddings in, the JSON they expect out.

    {"model": "byola", "input": ["data:audio/wav;base64,...", ...], "encoding_format": "base64"}

Clients of OpenAI, and of servers that speak its language, work unchanged. What an input is, nobody guesses
from its letters (`dogs` is good base64):

    modality       a model without a text tower        a model with one
    left out       all sounds, base64 or data: URIs    data: URIs are sounds, all else is text
    "audio"        the same                            all sounds, base64 or data: URIs
    "text"         an error                            all texts, whatever they begin with

Errors have OpenAI's shape too: error_shape.py.
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.datastructures import QueryParams
from starlette.requests import Request

from service.errors import AudioMissing, BadRequest, UnsupportedMediaType
from service.http.json_body import JSON, clips_of, is_json, listed, read_json
from service.http.parameters import DIMENSIONS, MODEL, MOST_DIMENSIONS, NORMALIZE, query_of, read
from service.http.request_body import SpooledBody, UploadBudget
from service.http.responses import Array, numbers
from service.http.text_request import check_text, names_of
from service.http.upload import Upload
from service.inference.card import Card

INPUT = "input"
OWNER = "viola"
PASSED_OVER = "Passed over: gateways add it, and it changes nothing about an embedding."
MODALITY = (
    "What the inputs are. Where it is left out, a model with a text tower takes `data:` URIs for sounds and "
    "all else for texts, and another one takes everything for sounds."
)


class EmbeddingsParameters(BaseModel):
    """What stands beside `input`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(default=None, description=MODEL)
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="Lists of numbers, or the bytes of little-endian float32 in base64."
    )
    dimensions: int | None = Field(default=None, ge=1, le=MOST_DIMENSIONS, description=DIMENSIONS)
    normalize: bool | None = Field(default=None, description=NORMALIZE)
    user: JsonValue = Field(default=None, description=PASSED_OVER)
    metadata: JsonValue = Field(default=None, description=PASSED_OVER)
    input_type: JsonValue = Field(default=None, description=PASSED_OVER)
    truncate: JsonValue = Field(default=None, description=PASSED_OVER)
    priority: JsonValue = Field(default=None, description=PASSED_OVER)
    modality: Literal["audio", "text"] | None = Field(default=None, description=MODALITY)


class OneEmbedding(BaseModel):
    object: Literal["embedding"]
    index: int = Field(description="Place of its sound or text in `input`.")
    embedding: list[float] | str


class Usage(BaseModel):
    """Of sounds log-mel frames, 100 per second with the default model; of texts tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """One embedding per sound or text, in order."""

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


@dataclass(frozen=True)
class Inputs:
    """What is to be embedded, by its place in `input`. sounds: at sound_places; texts: at text_places; body:
    what held them, to be closed at the end."""

    sounds: list[Upload]
    sound_places: list[int]
    texts: list[str]
    text_places: list[int]
    body: SpooledBody

    def __len__(self) -> int:
        return len(self.sounds) + len(self.texts)

    @property
    def text_names(self) -> list[str]:
        """For sentences."""
        return names_of(self.text_places, len(self))

    def close(self) -> None:
        for sound in self.sounds:
            sound.close()
        self.body.close()


async def read_embeddings(
    request: Request, budget: UploadBudget, *, has_text: Callable[[str | None], bool]
) -> tuple[EmbeddingsParameters, Inputs]:
    """Parameters and inputs of a request. has_text: whether the model of that name has a text tower. Raises
    as `json_body.read_request` and `text_request.check_text` do."""
    if not is_json(request):
        raise UnsupportedMediaType(f"the Content-Type of this route is {JSON}; /embed takes the sound itself")
    read(_NoParameters, query_of(request))
    content, body = await read_json(request, budget, with_texts=True)
    try:
        if INPUT not in content:
            raise AudioMissing(
                f"the JSON has no `{INPUT}`; it is the sound in base64, or as a data: URI, or a text where "
                "the model has a text tower"
            )
        inputs = listed(content.pop(INPUT), f"`{INPUT}`", many=True)
        parameters = read(EmbeddingsParameters, QueryParams(), content)
        is_text = _texts_among(inputs, parameters.modality, has_text=has_text(parameters.model))
        if any(is_text) and parameters.dimensions is not None:
            raise BadRequest("dimensions: texts have none but all of their numbers; leave it out")
        names = names_of(range(len(inputs)), len(inputs))
        for text, name, it_is in zip(inputs, names, is_text, strict=True):
            if it_is:
                check_text(text, name)
        places = range(len(inputs))
        text_places = [i for i in places if is_text[i]]
        sound_places = [i for i in places if not is_text[i]]
        texts = [inputs[i] for i in text_places]
        sounds: list[Upload] = []
        if sound_places:
            sounds = await clips_of(
                [inputs[i] for i in sound_places], "", body, names=[names[i] for i in sound_places]
            )
        return parameters, Inputs(sounds, sound_places, texts, text_places, body)
    except BaseException:
        body.close()
        raise


def _texts_among(inputs: Sequence[str], modality: str | None, *, has_text: bool) -> list[bool]:
    """Which inputs are texts, by the table above."""
    if modality == "text":
        return [True] * len(inputs)
    if modality == "audio" or not has_text:
        return [False] * len(inputs)
    return [each[:5].lower() != "data:" for each in inputs]


def embeddings_content(
    card: Card, vectors: Sequence[Array], encoding: Literal["float", "base64"], *, n_tokens: int
) -> dict[str, Any]:
    """The answer, for `responses.json_response`. vectors: in the order of the inputs; n_tokens: of all."""
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": numbers(vector, encoding=encoding, dtype="float32"),
            }
            for index, vector in enumerate(vectors)
        ],
        "model": card.name,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


def frames_of(card: Card, duration_s: float) -> int:
    """The log-mel frames of a sound, which are its tokens here."""
    return round(duration_s * card.sample_rate / card.frontend.hop_length)


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
