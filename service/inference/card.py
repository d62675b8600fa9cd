"""card.json in, a Card out: what a model is, how it is fed, and which files its folder holds.

    card.json ─► load_card ─► Card ─► check_files ─► every file that it names is there, with its SHA-256

A folder that does not fit its card is refused with a ModelFolderError whose sentence says what is wrong.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from service.errors import ModelFolderError
from service.inference.selftest import SelfTest
from service.sound.logmel import Frontend
from service.sound.waveform import Waveform

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a model or a head: a file's name everywhere
PROJECTION_FILE = "projection.safetensors"
LABEL_PLACE = "{}"  # in a template
TEXT_GRAPH, TEXT_TOKENIZER = "text/encoder.onnx", "text/tokenizer.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Encoder(_Part):
    """Which network, and what builds it in `encoders`."""

    name: str
    parameters: dict[str, JsonValue] = {}


class Normalization(_Part):
    """(log-mel - mean) / std happens inside the graph; here it informs."""

    mean: float
    std: float


class Windows(_Part):
    """How long audio is cut; see service/inference/windows.py. All in log-mel frames but `context`."""

    kind: Literal["exact", "independent"]
    stride: PositiveInt = 1  # log-mel frames per output frame
    reach: int = Field(default=0, ge=0)  # beyond its stride, what else a first output frame sees of the input
    context: int = Field(default=0, ge=0)  # output frames at an inner edge that differ from the whole clip's
    frames: PositiveInt  # longest window
    min_frames: PositiveInt = 1  # a shorter last window gives nothing and is dropped

    @property
    def shortest(self) -> int:
        """The fewest log-mel frames that are ever run."""
        return max(self.stride, self.min_frames)

    @model_validator(mode="after")
    def _advances(self) -> Self:
        if self.kind == "exact" and (self.frames - self.reach) // self.stride <= 2 * self.context:
            raise ValueError(
                f"a window of {self.frames} frames keeps none of its output frames; make it longer"
            )
        return self


class ProjectionFacts(_Part):
    """What projection.safetensors was measured on. components: rotated numbers that are kept; shrinkage: of
    the whitening, None where it only centres and rotates; median_cosine: of pairs of unrelated clips, before
    and after."""

    components: PositiveInt
    shrinkage: PositiveFloat | None = None
    data: str  # a sentence
    clips: PositiveInt
    hours: PositiveFloat
    precision: str  # of the graph that embedded them
    median_cosine: dict[str, float] = {}


class TextTower(_Part):
    """What embeds texts in the space of the sounds; its files are TEXT_GRAPH and TEXT_TOKENIZER. max_tokens:
    of a text, the tokenizer's own marks included; logit_scale: scores of labels are softmax(logit_scale *
    cosine); template: what a label becomes before it is embedded, with {} in its place."""

    max_tokens: PositiveInt
    logit_scale: float = Field(gt=0, allow_inf_nan=False)
    template: str

    @model_validator(mode="after")
    def _label_has_one_place(self) -> Self:
        if reason := why_no_template(self.template):
            raise ValueError(reason)
        return self


def why_no_template(template: str) -> str | None:
    """What is wrong with it; None where a label has its one place in it."""
    found = template.count(LABEL_PLACE)
    if found == 1:
        return None
    return (
        f"the template holds {LABEL_PLACE} {found} times; it must hold it once, where the label goes, like "
        f"`This is a sound of {LABEL_PLACE}.`"
    )


def _kind_of_frontend(value: Any) -> str:
    return (
        "waveform"
        if isinstance(value, Waveform) or (isinstance(value, dict) and "kind" in value)
        else "logmel"
    )


AnyFrontend = Annotated[
    Annotated[Frontend, Tag("logmel")] | Annotated[Waveform, Tag("waveform")],
    Discriminator(_kind_of_frontend),
]


class Card(_Part):
    """card.json. What the server must know comes first, what a person wants to know after it."""

    format: Literal[1] = 1
    name: str = Field(pattern=NAME)
    version: str
    description: str
    licence: str  # SPDX identifier or a sentence
    created: str  # ISO date
    commit: str = ""  # git hash of the code that exported it
    encoder: Encoder
    sample_rate: PositiveInt  # Hz
    frontend: AnyFrontend
    normalization: Normalization
    embedding_size: PositiveInt
    frame_period_ms: PositiveFloat
    first_frame_centre_ms: float
    pooling: Literal["mean+max", "mean"]
    min_samples: PositiveInt  # shorter clips are padded with zeros at their end
    windows: Windows
    # What a batch may hold: clips padded to one length, clips that are equally long, or a single one.
    batching: Literal["padded", "equal", "alone"] = "padded"
    files: dict[str, str]  # name within the folder -> SHA-256
    variants: dict[str, dict[str, JsonValue]] = {}
    projection: ProjectionFacts | None = None
    text: TextTower | None = None
    training: dict[str, JsonValue] = {}
    evaluation: list[dict[str, JsonValue]] = []
    intended_use: str = ""
    limitations: str = ""
    self_test: SelfTest | None = None

    @model_validator(mode="after")
    def _shortest_input_is_enough(self) -> Self:
        n_frames = self.frontend.n_frames(self.min_samples)
        if n_frames < self.windows.shortest:
            raise ValueError(
                f"min_samples = {self.min_samples} gives {n_frames} log-mel frames, fewer than the "
                f"{self.windows.shortest} that make an output frame"
            )
        return self


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_card(folder: Path) -> Card:
    """card.json, validated. Raises ModelFolderError."""
    try:
        return Card.model_validate_json((folder / "card.json").read_bytes())
    except OSError as error:
        raise ModelFolderError(f"{folder.name}: card.json cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ModelFolderError(f"{folder.name}: card.json does not fit: {_complaints(error)}") from error


def write_card(folder: Path, card: Card) -> None:
    """Writes card.json in one step: a reader sees the old card or the new one, never half of it."""
    text = card.model_dump_json(indent=2) + "\n"
    with tempfile.NamedTemporaryFile(
        "w", dir=folder, prefix=".card-", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary = Path(file.name)
    temporary.chmod(0o644)
    temporary.replace(folder / "card.json")


def check_files(folder: Path, card: Card) -> None:
    """Every file of the card is there and is the one the card was written for. Raises ModelFolderError."""
    check_names(folder, card)
    for name, expected in card.files.items():
        check_file(folder, name, expected)


def check_names(folder: Path, card: Card) -> None:
    """The card lists what every model needs, and nothing outside the folder. Raises ModelFolderError."""
    analysis = [] if isinstance(card.frontend, Waveform) else ["frontend.safetensors"]
    for required in (*analysis, "encoder.onnx"):
        if required not in card.files:
            raise ModelFolderError(f"{folder.name}: card.json lists no {required}, which every model needs")
    listed = [name for name in (TEXT_GRAPH, TEXT_TOKENIZER) if name in card.files]
    if len(listed) != (0 if card.text is None else 2):
        raise ModelFolderError(
            f"{folder.name}: a text tower is {TEXT_GRAPH}, {TEXT_TOKENIZER} and the field `text` of "
            f"card.json; here {' and '.join(listed) or 'neither file'} is listed, and `text` is "
            f"{'not ' if card.text is None else ''}there"
        )
    for name in card.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelFolderError(f"{folder.name}: card.json lists {name}, which is outside the folder")


def check_file(folder: Path, name: str, expected: str) -> None:
    """The file is there and has this SHA-256. Raises ModelFolderError."""
    path = folder / name
    try:
        found = sha256_of(path) if path.is_file() else None
    except OSError as error:
        raise ModelFolderError(f"{folder.name}: {name} cannot be read: {error.strerror}") from error
    if found is None:
        raise ModelFolderError(f"{folder.name}: {name} is missing")
    if found != expected:
        raise ModelFolderError(
            f"{folder.name}: {name} is not the file of the card: its SHA-256 is {found[:12]}…, not "
            f"{expected[:12]}…; restore the file or export the model again"
        )


def _complaints(error: ValidationError) -> str:
    places = (".".join(map(str, e["loc"])) + ": " + e["msg"] for e in error.errors()[:5])
    return "; ".join(place.removeprefix(": ") for place in places)
