"""The shapes of the answers, with an example of each, for the OpenAPI document alone.

Those of OpenAI's routes are in openai_api.py.
"""

from typing import Literal

from pydantic import BaseModel, Field, JsonValue

from service.inference.card import Card

VECTOR = "`embedding_size` numbers, or with encoding=base64 one string of their little-endian bytes."
VECTORS = "One list of numbers per row, or with encoding=base64 one string of all rows' bytes, row by row."


class Frames(BaseModel):
    """One vector per frame."""

    times_s: list[float] = Field(description="Centre of each frame in seconds.")
    embeddings: list[list[float]] | str = Field(description=VECTORS)


class WindowEmbeddings(BaseModel):
    """One vector per window."""

    start_s: list[float]
    end_s: list[float]
    embeddings: list[list[float]] | str = Field(description=VECTORS)


class LogmelPicture(BaseModel):
    """A log-mel as a picture."""

    n_mels: int
    columns: int
    frames_per_column: int = Field(description="Log-mel frames that a column is the mean of.")
    low: float = Field(description="The log-mel value of a pixel of 0.")
    high: float = Field(description="The log-mel value of a pixel of 255.")
    pixels: str = Field(description="One byte a pixel in base64, band after band from the lowest.")


class EmbedAnswer(BaseModel):
    """A clip's embedding."""

    model: str
    duration_s: float = Field(description="Length of the clip as sent.")
    embedding_size: int
    embedding: list[float] | str = Field(description=VECTOR)
    frames: Frames | None = Field(default=None, description="With frames=true, else left out.")
    windows: WindowEmbeddings | None = Field(default=None, description="With window_s, else left out.")
    logmel: LogmelPicture | None = Field(default=None, description="With logmel_columns, else left out.")


class LogmelAnswer(LogmelPicture):
    """A clip's log-mel as a picture."""

    model: str
    duration_s: float = Field(description="Length of the clip as sent.")


LOGMEL_EXAMPLE = {
    "model": "byola",
    "duration_s": 0.02,
    "n_mels": 2,
    "columns": 3,
    "frames_per_column": 1,
    "low": -15.9,
    "high": 2.1,
    "pixels": "AAECAwT/",
}


KNOWN = (
    "The share of the sounds of its classes that a head of one label finds as strange as this; else left out."
)


class Tag(BaseModel):
    label: str
    score: float = Field(ge=0, le=1)


class Span(BaseModel):
    """The tags of one window."""

    start_s: float
    end_s: float
    known: float | None = Field(default=None, ge=0, le=1, description=KNOWN)
    tags: list[Tag]


class HeardSegment(BaseModel):
    """A label, from when to when it is heard."""

    label: str
    start_s: float
    end_s: float
    score: float = Field(ge=0, le=1, description="The highest meanwhile.")


class ClassifyAnswer(BaseModel):
    """A clip's tags, best first."""

    model: str
    head: str = Field(description="`zero-shot` with labels.")
    duration_s: float
    known: float | None = Field(default=None, ge=0, le=1, description=KNOWN)
    tags: list[Tag]
    embedding: list[float] | str | None = Field(default=None, description="With embedding, else left out.")
    segments: list[HeardSegment] | None = Field(default=None, description="With segments, else left out.")
    timeline: list[Span] | None = Field(default=None, description="With window_s, else left out.")
    logmel: LogmelPicture | None = Field(default=None, description="With logmel_columns, else left out.")


class FileEmbedded(EmbedAnswer):
    """One file of a batch; one that failed has `error` and `detail` instead."""

    file: str = Field(description="File name as sent.")


class FileClassified(ClassifyAnswer):
    """One file of a batch; one that failed has `error` and `detail` instead."""

    file: str = Field(description="File name as sent.")


class FileFailed(BaseModel):
    """A file of a batch that failed; the others did not."""

    file: str
    error: str
    detail: str


class EmbedBatchAnswer(BaseModel):
    """One result per file, in order."""

    results: list[FileEmbedded | FileFailed]


class ClassifyBatchAnswer(BaseModel):
    """One result per file, in order."""

    results: list[FileClassified | FileFailed]


class TextEmbedded(BaseModel):
    """A text's embedding, in the space of the model's sounds."""

    model: str
    tokens: int = Field(description="Those of the tokenizer, its own marks included.")
    embedding_size: int
    embedding: list[float] | str = Field(description=VECTOR)


class EmbedTextAnswer(BaseModel):
    """One result per text, in order."""

    results: list[TextEmbedded]


EMBED_TEXT_EXAMPLE = {
    "results": [{"model": "clap", "tokens": 5, "embedding_size": 4, "embedding": [0.61, -0.93, 0.02, 0.4]}]
}


class HeadAnswer(BaseModel):
    """A linear head."""

    name: str
    task: Literal["multiclass", "multilabel"]
    labels: list[str]
    thresholds: list[float] | None = Field(
        default=None, description="Of each label, the score from which on it counts, where the head has them."
    )
    training_data: str
    results: JsonValue
    taught: bool = Field(default=False, description="To this server, rather than of the model's folder.")


class ModelAnswer(BaseModel):
    """A model: its card, and how it is served."""

    card: Card
    heads: list[HeadAnswer] = Field(description="The first one is used where a request names none.")
    default: bool
    loaded: bool
    text: bool = Field(description="Whether it embeds texts, too, and takes labels in words.")
    precision: str | None = Field(description="Which graph runs; null while the model is not loaded.")
    device: str | None = Field(description="Where it runs; null while the model is not loaded.")


class ModelsAnswer(BaseModel):
    """All models."""

    default: str
    models: list[ModelAnswer]
    refused: dict[str, str] = Field(description="Folders that cannot be served, with the reason.")


class ReloadAnswer(BaseModel):
    """What a reload did, by the names of the models."""

    loaded: list[str] = Field(description="Their folders appeared.")
    changed: list[str] = Field(description="Replaced by what their folders hold now.")
    removed: list[str] = Field(description="Their folders are gone.")
    kept: list[str] = Field(description="Nothing changed.")
    refused: dict[str, str] = Field(
        description="Cannot be served as they are now, with the reason; a model that was loaded is served on."
    )
    processes: int = Field(description="Server processes that did so; VIOLA_WORKERS, all being well.")


class TaughtLabel(BaseModel):
    label: str
    examples: int


class LabelReport(TaughtLabel):
    """How well a label is told in sounds that were left out of the fit."""

    clips: int
    accuracy: float | None = Field(description="Null where there is too little to leave any out.")


class Confusion(BaseModel):
    """Examples of a label that are taken for another, left out."""

    label: str
    taken_for: str
    times: int


class Doubt(BaseModel):
    """An example that sounds like another label, to a head that has not learnt from it."""

    example: str
    file: str
    labels: list[str]
    sounds_like: str
    score: float


class NoneOfThese(BaseModel):
    """How well sounds of the labels are told from all others, left out."""

    sounds: int = Field(description="That are none of the labels: the model's background, and examples.")
    examples_of_it: int
    taken_for_a_label: float
    missed: float
    min_known: float


class FitReport(BaseModel):
    """How good a head is on sounds that were left out of the fit."""

    task: Literal["multiclass", "multilabel"]
    labels: list[LabelReport]
    examples: int
    clips: int
    accuracy: float | None = Field(description="The mean of the labels'.")
    confused: list[Confusion]
    doubtful: list[Doubt]
    none_of_these: NoneOfThese | None
    strength: float = Field(description="Of the examples against the size of the weights: 10 to 1000.")
    words: list[str] = Field(description="The same in sentences, the most useful first.")
    outdated: int = Field(default=0, description="Examples of another version of the model, left out.")
    damaged: int = Field(default=0, description="Files that cannot be read, left out.")
    seconds: float = 0.0


class FitAnswer(FitReport):
    """A head that was fitted, and how good it is."""

    model: str
    head: str


class TaughtHead(BaseModel):
    """A head that is taught."""

    model: str
    head: str
    task: Literal["multiclass", "multilabel"]
    none_of_these: bool
    keep_clips: bool
    created: str
    imported: bool = Field(description="It came as a file, and has no examples here.")
    labels: list[TaughtLabel]
    examples: int
    examples_of_none: int = Field(description="Of none of the labels.")
    outdated: int = Field(description="Examples of another version of the model.")
    damaged: int = Field(description="Files that cannot be read.")
    served: bool
    not_served_because: str | None
    fitted: bool = Field(description="Whether it was fitted since examples and options last changed.")
    report: FitReport | None = Field(description="Of the last fit.")
    accuracy: float | None = Field(default=None, description="Of the last fit, in a list.")


class HeadDamaged(BaseModel):
    """A head of which nothing can be told."""

    head: str
    error: str
    detail: str = Field(description="What is wrong, and what to do.")


class HeadsAnswer(BaseModel):
    """The heads that a model was taught."""

    model: str
    heads: list[TaughtHead]
    damaged: list[HeadDamaged] = Field(description="Those whose file a disk has damaged; the others stand.")


class TaughtExample(BaseModel):
    """A clip, or a passage of a long one."""

    id: str
    labels: list[str] = Field(description="None of an example of none of these.")
    file: str = Field(description="As sent, or empty.")
    start_s: float
    end_s: float
    added: str
    clip: bool | None = Field(default=None, description="In a list: whether the sound was kept.")


class ExamplesAnswer(BaseModel):
    """A head's examples, from the oldest on."""

    model: str
    head: str
    examples: list[TaughtExample]


class ClipTaught(BaseModel):
    """What a clip has become."""

    file: str
    duration_s: float
    silent: int = Field(description="Passages in which nothing can be heard, left out.")
    examples: list[TaughtExample]


class AddedAnswer(BaseModel):
    """One result per clip, in order."""

    model: str
    head: str
    results: list[ClipTaught | FileFailed]
    fit: FitReport | None = Field(description="With fit=auto.")
    not_fitted_because: str | None = Field(default=None, description="Where fit=auto could not be done.")


class ForgotAnswer(BaseModel):
    """The ids of the examples that were removed."""

    model: str
    head: str
    removed: list[str]
    fit: FitReport | None = Field(description="With fit=auto.")
    not_fitted_because: str | None = Field(default=None, description="Where fit=auto could not be done.")


REPORT_EXAMPLE = {
    "task": "multiclass",
    "labels": [
        {"label": "doorbell", "examples": 6, "clips": 6, "accuracy": 1.0},
        {"label": "knock", "examples": 5, "clips": 5, "accuracy": 0.8},
    ],
    "examples": 11,
    "clips": 11,
    "accuracy": 0.9,
    "confused": [{"label": "knock", "taken_for": "doorbell", "times": 1}],
    "doubtful": [],
    "none_of_these": {
        "sounds": 256,
        "examples_of_it": 0,
        "taken_for_a_label": 0.0156,
        "missed": 0.0909,
        "min_known": 0.125,
    },
    "strength": 100.0,
    "words": ["Of recordings that it has not learnt from 90 % are told right: doorbell 100 %, knock 80 %."],
    "outdated": 0,
    "damaged": 0,
    "seconds": 0.08,
}
FIT_EXAMPLE = {"model": "byola", "head": "doors", **REPORT_EXAMPLE}
TAUGHT_EXAMPLE = {
    "model": "byola",
    "head": "doors",
    "task": "multiclass",
    "none_of_these": True,
    "keep_clips": False,
    "created": "2026-01-01T12:00:00Z",
    "imported": False,
    "labels": [{"label": "doorbell", "examples": 6}, {"label": "knock", "examples": 5}],
    "examples": 11,
    "examples_of_none": 0,
    "outdated": 0,
    "damaged": 0,
    "served": True,
    "not_served_because": None,
    "fitted": True,
    "report": None,
}
ONE_EXAMPLE = {
    "id": "9f86d081884c7d65-000",
    "labels": ["doorbell"],
    "file": "ring.wav",
    "start_s": 0.0,
    "end_s": 2.0,
    "added": "2026-01-01T12:00:00Z",
}
EXAMPLES_EXAMPLE = {"model": "byola", "head": "doors", "examples": [{**ONE_EXAMPLE, "clip": False}]}
ADDED_EXAMPLE = {
    "model": "byola",
    "head": "doors",
    "results": [{"file": "ring.wav", "duration_s": 2.0, "silent": 0, "examples": [ONE_EXAMPLE]}],
    "fit": None,
}
FORGOT_EXAMPLE = {"model": "byola", "head": "doors", "removed": ["9f86d081884c7d65-000"], "fit": None}


EMBED_EXAMPLE = {
    "model": "byola",
    "duration_s": 1.0,
    "embedding_size": 4,
    "embedding": [0.61, 1.93, 0.02, 0.4],
}
TAGS_EXAMPLE = [{"label": "Dog", "score": 0.87}, {"label": "Bark", "score": 0.71}]
CLASSIFY_EXAMPLE = {"model": "byola", "head": "audioset", "duration_s": 5.0, "tags": TAGS_EXAMPLE}
MODEL_EXAMPLE = {
    "card": {"name": "byola", "sample_rate": 16000, "embedding_size": 3072, "…": "…"},
    "heads": [{"name": "esc10", "task": "multiclass", "labels": ["dog", "rain"], "…": "…"}],
    "default": True,
    "loaded": True,
    "text": False,
    "precision": "int8",
    "device": "cpu",
}
MODELS_EXAMPLE = {"default": "byola", "models": [MODEL_EXAMPLE], "refused": {}}
RELOAD_EXAMPLE = {
    "loaded": ["speech"],
    "changed": [],
    "removed": [],
    "kept": ["byola"],
    "refused": {"torn": "torn: encoder.onnx is missing"},
    "processes": 1,
}


# The messages of a stream, one of each type.
STREAM_EXAMPLE: list[dict[str, JsonValue]] = [
    {"type": "ready", "model": "byola", "head": "esc50", "window_s": 1.0, "hop_s": 0.5},
    {"type": "tags", "start_s": 0.0, "end_s": 1.0, "tags": [{"label": "dog", "score": 0.93}]},
    {"type": "event", "label": "dog", "start_s": 0.0, "end_s": 1.75, "score": 0.93},
    {"type": "lag", "seconds": 1.2},
    {"type": "end", "seconds": 4.0},
]
