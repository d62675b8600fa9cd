"""An encoder with its weights in, a verified model folder out; docs/model_folder.md says what lies in it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import JsonValue, ValidationError

from encoders.commit import commit_of
from encoders.contract import batching_of
from encoders.frontend import Frontend, Waveform, mel_filterbank, window_of
from model_export.errors import ExportError
from model_export.folder import new_folder
from model_export.graphs.text_export import check_text, write_text
from model_export.graphs.writer import Writer, writer_of
from model_export.sources.audioset_head import write_head
from model_export.sources.own_scores import OwnScores
from model_export.sources.trained import Trained
from model_export.verify import (
    BATCH_INDEPENDENT,
    check_as_trained,
    check_batch_independence,
    check_head,
    cosines,
    cut_to_lengths,
    distance_of_outputs,
)
from service.inference.card import Card, Encoder, Normalization, Windows, load_card, sha256_of, write_card
from service.inference.model import GRAPH_FILES, Model, Precision
from service.inference.selftest import Fingerprint, SelfTest, fingerprint
from service.sound import logmel as served_logmel
from service.sound import waveform as served_waveform

VERIFIED_CLIPS = 10
FEWEST_CALIBRATION_CLIPS = 6
LEAST_COSINE = 0.999

Samples = NDArray[np.float32]
Report = Callable[[str], None]


@dataclass(frozen=True)
class About:
    """What a person says of the model."""

    name: str
    version: str
    description: str
    licence: str
    intended_use: str
    limitations: str


def export(
    trained: Trained,
    out: Path,
    *,
    about: About,
    clips: Sequence[Samples],
    int8: bool = False,
    float16: bool = False,
    labels: Sequence[str] | None = None,
    force: bool = False,
    least_cosine: float = LEAST_COSINE,
    report: Report = lambda line: None,
) -> Card:
    """Write the model folder `out`. `clips`: (n,) float32 at the front-end's rate, real ones, to verify with
    and, for int8, to calibrate with. labels: of the published tags, which then become the head `audioset`.
    Raises ExportError, and then `out` is as it was before.
    """
    if int8 and len(clips) < FEWEST_CALIBRATION_CLIPS:
        raise ExportError(
            f"{len(clips)} clips are too few to calibrate int8 with: give hundreds, of your kind."
        )
    frontend = trained.encoder.frontend
    writer = writer_of(trained)
    verified = cut_to_lengths(clips, n=VERIFIED_CLIPS, sample_rate=frontend.sample_rate)
    with new_folder(out, force=force) as folder:
        if not isinstance(frontend, Waveform):
            arrays = trained.arrays or {
                "window": window_of(frontend),
                "filterbank": mel_filterbank(frontend),
            }
            (folder / "frontend.safetensors").write_bytes(safetensors.numpy.save({**arrays}))
        writer.float32(folder / GRAPH_FILES["float32"])
        if labels is not None:
            if trained.tags is None:
                raise ExportError(f"{trained.name} comes without published tags here: no head of them.")
            write_tags(folder, trained, labels, source=about.description)
        if trained.text is not None:
            write_text(trained.text, folder)
        card = with_hashes(folder, card_of(trained, frontend, about))
        model = Model.load(folder, device="cpu", precision="float32")
        worst = check_as_trained(model, trained, verified)
        alone = check_batch_independence(model, verified)
        report(
            f"verified on {len(verified)} clips: {writer.origin} and the served graph differ by {worst:.1e}, "
            f"a clip alone and in a padded batch by {alone:.1e}"
        )
        if labels is not None:
            apart = check_head(model, trained, verified)
            report(f"head {trained.head}: its tags and those of {writer.origin} differ by {apart:.1e}")
        if trained.text is not None:
            apart = check_text(trained.text, folder)
            report(f"text tower: {writer.origin} and its graph differ by {apart:.1e}")
        if float16:
            card = add_float16(folder, card, model, writer, verified, least_cosine, report)
        if int8:
            card = add_int8(folder, card, model, writer, clips, verified, least_cosine, report)
        del model  # hundreds of megabytes for a large network; the next step opens it again
        card = add_self_test(folder)
    return card


def add_self_test(folder: Path) -> Card:
    """Write into the card what each graph of the folder makes of the test signal, here and now."""
    card = load_card(folder).model_copy(update={"self_test": None})
    known: tuple[Precision, ...] = ("float32", "float16", "int8")
    there = [precision for precision in known if GRAPH_FILES[precision] in card.files]
    expected: dict[str, Fingerprint] = {}
    projected: dict[str, Fingerprint] = {}
    for each in there:
        model = Model.load(folder, device="cpu", precision=each)
        expected[each] = fingerprint(model.probe_vector())
        if of_projected := model.projected_fingerprint():
            projected[each] = of_projected
    card = card.model_copy(update={"self_test": SelfTest(expected=expected, projected=projected)})
    write_card(folder, card)
    return card


def add_float16(
    folder: Path,
    card: Card,
    model: Model,
    writer: Writer,
    verified: Sequence[Samples],
    least_cosine: float,
    report: Report,
) -> Card:
    """Write the float16 graph beside the float32 one of `model`. Raises ExportError where they lie too far
    apart, as where a network's numbers leave the range of 16 bits.
    """
    writer.float16(folder / GRAPH_FILES["float16"])
    card = with_hashes(folder, card)
    half = Model.load(folder, device="cpu", precision="float16")
    with np.errstate(invalid="ignore", over="ignore"):  # numbers that leave the range are refused below
        found = cosines(half, model, [model.logmel(clip) for clip in verified])
    mean, lowest = float(found.mean()), float(found.min())
    if not lowest >= least_cosine:
        raise ExportError(
            f"The float16 graph is too far from the float32 one: their cosine is {lowest:.5f} at least on "
            f"{len(found)} clips, less than {least_cosine}. Export without --float16."
        )
    check_in_fewer_bits(half, model, writer, verified)
    report(f"float16: cosine to float32 {mean:.6f} in the mean, {lowest:.6f} at least, of {len(found)} clips")
    variant: dict[str, JsonValue] = {
        "cosine_mean": round(mean, 7),
        "cosine_min": round(lowest, 7),
        "clips": len(found),
    }
    return with_hashes(folder, card.model_copy(update={"variants": card.variants | {"float16": variant}}))


def add_int8(
    folder: Path,
    card: Card,
    model: Model,
    writer: Writer,
    clips: Sequence[Samples],
    verified: Sequence[Samples],
    least_cosine: float,
    report: Report,
) -> Card:
    """Write the int8 graph beside the float one of `model`. Raises ExportError where they lie too far apart.

    Two thirds of the clips calibrate it, one third is held out to measure the distance.
    """
    logmels = [model.logmel(clip) for clip in clips]
    held_out = logmels[::3]
    calibration = [logmel for i, logmel in enumerate(logmels) if i % 3]
    writer.int8(
        folder / GRAPH_FILES["int8"], float32=folder / GRAPH_FILES["float32"], calibration=calibration
    )
    card = with_hashes(folder, card)
    quantised = Model.load(folder, device="cpu", precision="int8")
    found = cosines(quantised, model, held_out)
    mean, lowest = float(found.mean()), float(found.min())
    if not mean >= least_cosine:
        raise ExportError(
            f"The int8 graph is too far from the float one: on {len(found)} clips held out of the "
            f"calibration their cosine is {mean:.5f} in the mean, less than {least_cosine}. Calibrate with "
            "more clips of the kind that will be served, or export without --int8."
        )
    check_in_fewer_bits(quantised, model, writer, verified)
    report(f"int8: cosine to float32 {mean:.5f} in the mean, {lowest:.5f} at least, of {len(found)} clips")
    variant: dict[str, JsonValue] = {
        "cosine_mean": round(mean, 6),
        "cosine_min": round(lowest, 6),
        "clips": len(found),
        "calibration_clips": len(calibration),
    }
    return with_hashes(folder, card.model_copy(update={"variants": card.variants | {"int8": variant}}))


def check_in_fewer_bits(variant: Model, float32: Model, writer: Writer, clips: Sequence[Samples]) -> None:
    """A clip's neighbours in a batch change its numbers by no more than the rounding to fewer bits does.
    Raises ExportError."""
    by_rounding = 0.0 if writer.is_exact else distance_of_outputs(variant, float32, clips)
    check_batch_independence(variant, clips, at_most=max(BATCH_INDEPENDENT, by_rounding))


def with_hashes(folder: Path, card: Card) -> Card:
    """The card, written, that lists the folder's files as they are now."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "card.json"]
    files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}
    card = card.model_copy(update={"files": files})
    write_card(folder, card)
    return card


def write_tags(folder: Path, trained: Trained, labels: Sequence[str], *, source: str) -> None:
    """The head of the published tags: linear as a rule, a graph of its own where somebody's is not."""
    tags = trained.tags
    assert tags is not None
    if isinstance(tags, OwnScores):
        tags.write(folder, labels, name=trained.head, source=source)
    else:
        write_head(folder, tags, labels, source=source, name=trained.head, task=trained.task)


def card_of(trained: Trained, frontend: Frontend | Waveform, about: About) -> Card:
    encoder = trained.encoder
    try:
        return Card(
            name=about.name,
            version=about.version,
            description=about.description,
            licence=about.licence,
            created=datetime.now(UTC).date().isoformat(),
            commit=commit_of(Path(__file__).parent),
            encoder=Encoder(name=trained.name, parameters={**trained.parameters}),
            sample_rate=frontend.sample_rate,
            frontend=served_frontend(frontend),
            normalization=Normalization(mean=trained.mean, std=trained.std),
            embedding_size=encoder.embedding_size,
            frame_period_ms=encoder.frame_period_ms,
            first_frame_centre_ms=encoder.first_frame_centre_ms,
            pooling=cast(Literal["mean+max", "mean"], encoder.pooling),
            min_samples=frontend.samples_for(max(encoder.windows.min_frames, encoder.windows.stride)),
            windows=Windows(**asdict(encoder.windows)),
            batching=batching_of(encoder),
            files={},
            text=None if trained.text is None else trained.text.card,
            training=trained.training,
            intended_use=about.intended_use,
            limitations=about.limitations,
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ExportError(f"The card does not fit: {place} {first['input']!r}: {first['msg']}.") from error


def served_frontend(frontend: Frontend | Waveform) -> served_logmel.Frontend | served_waveform.Waveform:
    if isinstance(frontend, Waveform):
        return served_waveform.Waveform(kind="waveform", hop_length=frontend.hop_length, rest=frontend.rest)
    return served_logmel.Frontend(
        **{name: getattr(frontend, name) for name in served_logmel.Frontend.model_fields}
    )
