"""The Open Inference Protocol (KServe's V2, Triton's HTTP): what a request may say in, what answers say out.

    inputs, one of                                       outputs, those that are asked for, else all
      audio    BYTES (n,)        encoded files             embedding      FP32  (n, embedding_size)
      samples  FP32 (n, samples) mono in [-1, 1]           <head>.scores  FP32  (n, labels of the head)
                                                           <head>.labels  BYTES (labels of the head,)

`parameters` of the request: sample_rate of the samples, in Hz, else the model's; normalize and dimensions of
the embedding; labels in words, and their template, which make one head more, `zero-shot`; binary_data_output.
Of a requested output: binary_data, and classification=k, for the k best as `score:index:label`. How tensors
are written is told in tensors.py.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from starlette.datastructures import QueryParams
from starlette.requests import Request

from service.errors import BadRequest, shortened
from service.http.parameters import (
    DIMENSIONS,
    MOST_DIMENSIONS,
    NORMALIZE,
    Labelled,
    NoParameters,
    properties,
    query_of,
    read,
)
from service.http.request_body import UploadBudget
from service.http.tensors import InputTensor, OutputTensor, TensorBody, read_body
from service.http.upload import Upload
from service.inference.card import Card
from service.inference.embedder import EmbeddedClip
from service.inference.heads import Head, best_tags
from service.inference.model import Model
from service.inference.tags import SeveralHeads, clip_scores
from service.inference.zero_shot import HEAD

EXTENSIONS = ("binary_tensor_data", "classification")
PLATFORM = "onnxruntime_onnx"
EMBEDDING, SCORES, LABELS = "embedding", ".scores", ".labels"
MOST_SAMPLES = 1 << 31

_STRICT = ConfigDict(frozen=True, extra="forbid")
PASSED_OVER = "Passed over: other servers take it, and it changes nothing here."


class TensorParameters(BaseModel):
    model_config = _STRICT

    binary_data_size: int | None = Field(default=None, ge=0)
    sample_rate: int | None = Field(default=None, ge=1, le=768_000)
    content_type: JsonValue = None


class InferInput(BaseModel):
    model_config = _STRICT

    name: Literal["audio", "samples"]
    shape: tuple[int, ...] = Field(min_length=1, max_length=3)
    datatype: Literal["BYTES", "FP32"]
    parameters: TensorParameters = TensorParameters()
    data: Any = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.datatype != (datatype := "BYTES" if self.name == "audio" else "FP32"):
            raise ValueError(f"`{self.name}` is of the datatype {datatype}")
        if not all(0 <= size <= MOST_SAMPLES for size in self.shape):
            raise ValueError("a size in a shape is 0 or more, and no more than 2^31")
        if (self.data is None) == (self.parameters.binary_data_size is None):
            raise ValueError("a tensor has data, or parameters.binary_data_size and bytes behind the JSON")
        return self


class OutputParameters(BaseModel):
    model_config = _STRICT

    binary_data: bool | None = None
    classification: int | None = Field(default=None, ge=1, le=1000)


class RequestedOutput(BaseModel):
    model_config = _STRICT

    name: str
    parameters: OutputParameters = OutputParameters()


class InferParameters(Labelled):
    sample_rate: int | None = Field(default=None, ge=1, le=768_000)
    binary_data_output: bool = False
    normalize: bool | None = None
    dimensions: int | None = Field(default=None, ge=1, le=MOST_DIMENSIONS)
    priority: JsonValue = None
    timeout: JsonValue = None


class InferRequest(BaseModel):
    """The JSON of a request."""

    model_config = _STRICT

    id: str = Field(default="", max_length=128)
    inputs: tuple[InferInput, ...] = Field(min_length=1, max_length=1)
    outputs: tuple[RequestedOutput, ...] = Field(default=(), max_length=256)
    parameters: InferParameters = InferParameters()

    @model_validator(mode="after")
    def _each_output_once(self) -> Self:
        if len({output.name for output in self.outputs}) < len(self.outputs):
            raise ValueError("an output is asked for twice; ask for each once")
        return self

    @model_validator(mode="after")
    def _labels_are_asked_for(self) -> Self:
        names = {output.name for output in self.outputs}
        if self.parameters.labels is not None and names and not names & {HEAD + SCORES, HEAD + LABELS}:
            raise ValueError(
                f"labels mean nothing without the output {HEAD}{SCORES} or {HEAD}{LABELS}; ask for it, or "
                "leave them out"
            )
        return self

    def heads_of(self, model: Model, of_labels: Head | None = None) -> SeveralHeads | None:
        """Those whose scores or labels are asked for; of a request that names no output, all. of_labels: the
        head of the request's labels. Raises BadRequest, UnknownHead or HeadOutdated."""
        there = model.heads if of_labels is None else {**model.heads, HEAD: of_labels}
        if not self.outputs:
            return SeveralHeads(tuple(there.values())) if there else None
        names = dict.fromkeys(head_of_output(output.name, model) for output in self.outputs)
        if HEAD in names and HEAD not in there:
            raise BadRequest(f"the outputs of {HEAD} need labels, a parameter of the request; give some")
        heads = tuple(there.get(name) or model.head(name) for name in names if name is not None)
        return SeveralHeads(heads) if heads else None


class OutputsOfModel(BaseModel):
    """A tensor that a model takes or gives; -1: any size."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives. Of the inputs a request has one."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[OutputsOfModel]
    outputs: list[OutputsOfModel]


class ServerMetadata(BaseModel):
    """The server and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """The process lives."""

    live: bool


class ServerReady(BaseModel):
    """Requests are answered."""

    ready: bool


class ModelReady(BaseModel):
    """The model's requests are answered; one that is not loaded yet is, by its first request."""

    name: str
    ready: bool


class InferOutput(BaseModel):
    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]
    data: list[float] | list[str] | None = Field(default=None, description="Row by row, where not binary.")
    parameters: dict[str, int] | None = Field(default=None, description="binary_data_size, where binary.")


class InferAnswer(BaseModel):
    """The outputs that were asked for, in that order. Where one is binary, bytes follow this JSON, and the
    header Inference-Header-Content-Length tells its length."""

    model_name: str
    model_version: str
    id: str | None = Field(default=None, description="As sent.")
    outputs: list[InferOutput]


METADATA_EXAMPLE: dict[str, Any] = {
    "name": "byola",
    "versions": ["2"],
    "platform": PLATFORM,
    "inputs": [
        {"name": "audio", "datatype": "BYTES", "shape": [-1]},
        {"name": "samples", "datatype": "FP32", "shape": [-1, -1]},
    ],
    "outputs": [
        {"name": "embedding", "datatype": "FP32", "shape": [-1, 3072]},
        {"name": "esc50.scores", "datatype": "FP32", "shape": [-1, 50]},
        {"name": "esc50.labels", "datatype": "BYTES", "shape": [50]},
    ],
}
INFER_EXAMPLE: dict[str, Any] = {
    "model_name": "byola",
    "model_version": "2",
    "outputs": [
        {"name": "esc50.scores", "datatype": "BYTES", "shape": [1, 2], "data": ["0.98:0:dog", "0.01:5:cat"]}
    ],
}
_PARAMETERS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "sample_rate": {"type": "integer", "description": "Of `samples`, in Hz; the model's by default."},
        "binary_data_output": {"type": "boolean", "description": "All outputs as bytes behind the JSON."},
        "normalize": {"type": "boolean", "description": NORMALIZE},
        "dimensions": {"type": "integer", "minimum": 1, "description": DIMENSIONS},
        **properties(Labelled),
        "priority": {"description": PASSED_OVER},
        "timeout": {"description": PASSED_OVER},
    },
}
INFER_BODY: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string", "maxLength": 128},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype", "data"],
                "properties": {
                    "name": {"type": "string", "enum": ["audio", "samples"]},
                    "shape": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
                    "datatype": {"type": "string", "enum": ["BYTES", "FP32"]},
                    "data": {"type": "array", "items": {}},
                },
            },
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "parameters": {
                        "type": "object",
                        "properties": {
                            "binary_data": {"type": "boolean"},
                            "classification": {"type": "integer"},
                        },
                    },
                },
            },
        },
        "parameters": _PARAMETERS,
    },
}


async def read_infer(request: Request, budget: UploadBudget, card: Card) -> tuple[InferRequest, list[Upload]]:
    """What is asked for, and the clips. Raises BadRequest, AudioMissing, and as `stream_body` does."""
    read(NoParameters, query_of(request))
    content, body = await read_body(request, budget)
    try:
        wanted = read(InferRequest, QueryParams(), content)
        clips = await _clips(wanted, body, card)
        try:
            body.check_end()
        except BadRequest:
            for clip in clips:
                clip.close()
            raise
        return wanted, clips
    finally:
        body.close()


def head_of_output(name: str, model: Model) -> str | None:
    """The head that an output is of; None: it is of the model itself. Raises BadRequest."""
    for ending in (SCORES, LABELS):
        if name.endswith(ending):
            return name.removesuffix(ending)
    if name == EMBEDDING:
        return None
    there = ", ".join(f"{head}{SCORES}, {head}{LABELS}" for head in model.heads)
    raise BadRequest(f"there is no output `{shortened(name)}`; there is {EMBEDDING}, {there}")


def outputs_of(
    wanted: InferRequest, heads: SeveralHeads | None, clips: Sequence[EmbeddedClip]
) -> list[OutputTensor]:
    """The tensors of an answer, in the order in which they are asked for. Raises BadRequest."""
    scores = _scores_of(heads, clips) if heads else {}
    requested = wanted.outputs or [RequestedOutput(name=name) for name in _all_names(heads)]
    by_default = wanted.parameters.binary_data_output
    found = []
    for output in requested:
        is_binary = output.parameters.binary_data
        is_binary = by_default if is_binary is None else is_binary
        k = output.parameters.classification
        if k is not None and not output.name.endswith(SCORES):
            raise BadRequest(
                f"classification means nothing for `{shortened(output.name)}`; ask for a head's scores"
            )
        if output.name == EMBEDDING:
            vectors = np.stack([clip.vector for clip in clips])
            found.append(OutputTensor(output.name, vectors.shape, vectors, is_binary))
        elif output.name.endswith(LABELS):
            head, _ = scores[output.name.removesuffix(LABELS)]
            found.append(OutputTensor(output.name, (len(head.labels),), head.labels, is_binary))
        else:
            head, rows = scores[output.name.removesuffix(SCORES)]
            found.append(
                OutputTensor(output.name, rows.shape, rows, is_binary)
                if k is None
                else _classified(output.name, head, rows, k, is_binary)
            )
    return found


def metadata_of(described: dict[str, Any]) -> dict[str, Any]:
    """A model as `Registry.describe` tells of it, in the protocol's words."""
    card = described["card"]
    outputs = [{"name": EMBEDDING, "datatype": "FP32", "shape": [-1, card["embedding_size"]]}]
    for head in described["heads"]:
        n_labels = len(head["labels"])
        outputs.append({"name": head["name"] + SCORES, "datatype": "FP32", "shape": [-1, n_labels]})
        outputs.append({"name": head["name"] + LABELS, "datatype": "BYTES", "shape": [n_labels]})
    return {
        "name": card["name"],
        "versions": [card["version"]],
        "platform": PLATFORM,
        "inputs": METADATA_EXAMPLE["inputs"],
        "outputs": outputs,
    }


async def _clips(wanted: InferRequest, body: TensorBody, card: Card) -> list[Upload]:
    (given,) = wanted.inputs
    tensor = InputTensor(given.name, list(given.shape), given.data, given.parameters.binary_data_size)
    if given.name == "audio":
        return await body.files(tensor)
    rate_hz = given.parameters.sample_rate or wanted.parameters.sample_rate or card.sample_rate
    return await body.samples(tensor, rate_hz)


def _scores_of(heads: SeveralHeads, clips: Sequence[EmbeddedClip]) -> dict[str, tuple[Head, np.ndarray]]:
    """By the head's name it, and its scores (n, C): those of /classify."""
    rows: dict[str, list[np.ndarray]] = {head.name: [] for head in heads.heads}
    for clip in clips:
        for head, embedding in heads.apart(clip.embedding):
            rows[head.name].append(clip_scores(head, embedding).scores)
    return {head.name: (head, np.stack(rows[head.name]).astype(np.float32)) for head in heads.heads}


def _all_names(heads: SeveralHeads | None) -> list[str]:
    of_heads = [head.name + ending for head in (heads.heads if heads else ()) for ending in (SCORES, LABELS)]
    return [EMBEDDING, *of_heads]


def _classified(name: str, head: Head, rows: np.ndarray, k: int, is_binary: bool) -> OutputTensor:
    """Triton's extension: the k best of each row as `score:index:label`."""
    k = min(k, len(head.labels))
    places = {label: i for i, label in enumerate(head.labels)}
    texts = [
        f"{tag.score:f}:{places[tag.label]}:{tag.label}"
        for row in rows
        for tag in best_tags(head, row, top_k=k, threshold=0)
    ]
    return OutputTensor(name, (len(rows), k), texts, is_binary)
