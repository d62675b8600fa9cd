"""Hugging Face's inference API for sound: the bodies of its clients in, clips and parameters out.

    the encoded sound itself                                     where the client says nothing else
    {"inputs": "<base64>", "parameters": {"top_k": 3}}           audio-classification
    {"inputs": "<base64>", "normalize": true}                    feature-extraction

`huggingface_hub.InferenceClient` and huggingface.js post to whatever URL they are given as the model;
what a URL's query says (`?head=esc50`) is joined with what the JSON says.
"""

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.requests import Request

from service.errors import AudioMissing, BadRequest
from service.http.json_body import clips_of, is_json, listed, read_json
from service.http.parameters import DIMENSIONS, MOST_DIMENSIONS, NORMALIZE, query_of, read
from service.http.request_body import UploadBudget
from service.http.upload import Upload, read_clip
from service.inference.heads import Head

INPUTS = "inputs"
FUNCTIONS = {"multiclass": "softmax", "multilabel": "sigmoid"}
PASSED_OVER = "Passed over: it changes nothing about a sound's answer."


class AudioClassificationParameters(BaseModel):
    """Of the query, of the JSON or of its `parameters`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: str | None = Field(
        default=None, description="Name of the head; the first one of the model's card where it is left out."
    )
    top_k: int = Field(default=5, ge=1, le=1000, description="At most so many labels, best first.")
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        default=None,
        description="What makes scores of the head's logits: its own, `softmax` with one label a sound and "
        "`sigmoid` with several. Another one is refused.",
    )
    options: JsonValue = Field(default=None, description=PASSED_OVER)

    def check(self, head: Head) -> None:
        """Raises BadRequest where the head's scores are made by another function."""
        own = FUNCTIONS[head.task]
        if self.function_to_apply not in (None, own):
            raise BadRequest(
                f"function_to_apply is {self.function_to_apply}, and the head `{head.name}` makes its scores "
                f"by {own}; leave it out"
            )


class FeatureExtractionParameters(BaseModel):
    """Of the query, of the JSON or of its `parameters`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normalize: bool | None = Field(default=None, description=NORMALIZE)
    dimensions: int | None = Field(default=None, ge=1, le=MOST_DIMENSIONS, description=DIMENSIONS)
    encoding_format: Literal["float"] = Field(default="float", description="Lists of numbers.")
    truncate: JsonValue = Field(default=None, description=PASSED_OVER)
    truncation_direction: JsonValue = Field(default=None, description=PASSED_OVER)
    options: JsonValue = Field(default=None, description=PASSED_OVER)


class LabelScore(BaseModel):
    label: str
    score: float


CLASSIFICATION_EXAMPLE = [{"label": "dog", "score": 0.98}, {"label": "cat", "score": 0.01}]
FEATURES_EXAMPLE = [[0.61, 1.93, 0.02, 0.4]]

Kind = TypeVar("Kind", bound=BaseModel)


async def read_pipeline(
    kind: type[Kind], request: Request, budget: UploadBudget, *, many: bool
) -> tuple[Kind, list[Upload]]:
    """Parameters and clips of a request. many: whether `inputs` may be a list. Raises BadRequest,
    AudioMissing, and as `read_clip` does."""
    if not is_json(request):
        parameters = read(kind, query_of(request))
        return parameters, [await read_clip(request, budget)]
    content, body = await read_json(request, budget)
    try:
        if INPUTS not in content:
            raise AudioMissing(f"the JSON has no `{INPUTS}`; it is the sound in base64, or as a data: URI")
        sounds = listed(content.pop(INPUTS), f"`{INPUTS}`", many=many)
        inner = content.pop("parameters", {})
        if not isinstance(inner, dict):
            raise BadRequest("`parameters` is no object; it holds what /docs lists")
        if twice := content.keys() & inner:
            raise BadRequest(f"{len(twice)} parameters stand beside `parameters` and in it; give each once")
        parameters = read(kind, query_of(request), content | inner)
        return parameters, await clips_of(sounds, f"`{INPUTS}`", body)
    except BaseException:
        body.close()
        raise
