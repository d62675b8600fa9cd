"""Sounds of all lengths and formats in, good requests out, each with what tells whether its answer is right.

A right answer holds the embedding that was computed beforehand, in this process, with nothing beside it.
"""

import base64
import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.connection import Answer, post
from benchmarks.harness.sounds import BIRDS, SPEECH, encoded, fixtures
from benchmarks.soak.bad_clients import FORM_TYPE, form
from service.inference.model import Model
from service.inference.windows import embed
from service.sound.audio import AudioStream, decode

TOLERANCE = 1e-4  # of the largest number of an embedding: that of float32 sums in another order
MADE_CLIPS, LONGEST_MADE_S = 16, 20.0  # beside the fixtures
FORMATS = (("WAV", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", None))
WAYS = tuple(product(("raw", "form"), ("list", "base64", "npy")))  # how it is sent and answered

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddedClip:
    """name, file, and its embedding (D,)."""

    name: str
    content: bytes
    vector: Vector


@dataclass(frozen=True)
class GoodRequest:
    """complaint: what is wrong with an answer of 200, None if nothing is."""

    request: bytes
    complaint: Callable[[Answer], str | None]


@dataclass(frozen=True)
class GoodRequests:
    """many: short and long, in all ways; heavy: 5 s of speech; long: minutes; frames: a long answer, of
    which no number is looked at."""

    many: Sequence[GoodRequest]
    heavy: GoodRequest
    long: GoodRequest
    frames: GoodRequest


def good_requests(folder: Path, chance: random.Random, *, long_s: float) -> GoodRequests:
    """For the model in `folder`."""
    model = Model.load(folder, device="cpu", threads=1)
    sounds = [EmbeddedClip(name, content, embedding(model, content)) for name, content in clips(chance)]
    by_name = {sound.name: sound for sound in sounds}
    many = [_one(sound, *way) for sound in sounds for way in chance.sample(WAYS, 2)]
    short = [sound for sound in sounds if "30s" not in sound.name]
    many += [_batch(chance.sample(short, 3)) for _ in range(6)]
    minutes = tiled(by_name[SPEECH.name].content, long_s)
    return GoodRequests(
        many,
        heavy=_one(by_name[SPEECH.name], "raw", "base64"),
        long=_one(EmbeddedClip("a long one", minutes, embedding(model, minutes)), "raw", "base64"),
        frames=GoodRequest(
            post("/embed?frames=true", by_name[BIRDS.name].content, content_type="audio/ogg"),
            lambda answer: None if "frames" in answer.json else "there are no frames",
        ),
    )


def clips(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Names and files: every fixture, and cuts of birdsong, 0.1 to 20 s, in four formats."""
    yield from fixtures()
    rate_hz = 22_050
    birds = decode(BIRDS, sample_rate=rate_hz).samples
    for number in range(MADE_CLIPS):
        length = int(min(0.1 * 10 ** chance.uniform(0, 2.5), LONGEST_MADE_S) * rate_hz)
        start = chance.randrange(len(birds) - length)
        container, subtype = FORMATS[number % len(FORMATS)]
        content = encoded(birds[start : start + length], rate_hz, container, subtype)
        yield f"{length / rate_hz:.2f} s of birds, {container}", content


def embedding(model: Model, content: bytes) -> Vector:
    """(D,), computed with nothing beside it, window after window."""
    stream = AudioStream(content, sample_rate=model.card.sample_rate)
    return embed(model.run, model.card, model.logmel_blocks(stream)).vector


def tiled(content: bytes, seconds: float) -> bytes:
    """The sound again and again for so many seconds, as a WAV at 16 kHz."""
    samples = decode(content, sample_rate=16_000).samples
    return encoded(np.resize(samples, int(seconds * 16_000)), 16_000, "WAV", "PCM_16")


def _one(sound: EmbeddedClip, body: str, answer: str) -> GoodRequest:
    path = "/embed?encoding=base64" if answer == "base64" else "/embed"
    headers = {"accept": "application/x-npy"} if answer == "npy" else {}
    if body == "form":
        content = form([(sound.name, sound.content)])
        request = post(path, content, content_type=FORM_TYPE, **headers)
    else:
        request = post(path, sound.content, content_type="audio/x-something", **headers)
    return GoodRequest(request, partial(_complaint, sound, answer == "npy"))


def _complaint(sound: EmbeddedClip, is_npy: bool, answer: Answer) -> str | None:
    seen = np.load(io.BytesIO(answer.body)) if is_npy else _array(answer.json["embedding"])
    return _difference(sound, seen)


def _batch(sounds: Sequence[EmbeddedClip]) -> GoodRequest:
    """Three sounds and, among them, one that is none."""
    files = [(sound.name, sound.content) for sound in sounds]
    files.insert(1, ("text.wav", b"this is no sound"))

    def complaint(answer: Answer) -> str | None:
        results = answer.json["results"]
        bad = results.pop(1)
        if bad.get("error") != "audio_unreadable":
            return f"a batch's bad file is answered {bad}"
        differences = (
            _difference(sound, _array(result["embedding"]))
            for sound, result in zip(sounds, results, strict=True)
        )
        return next(filter(None, differences), None)

    return GoodRequest(post("/embed/batch?encoding=base64", form(files), content_type=FORM_TYPE), complaint)


def _array(numbers: str | list[float]) -> Vector:
    if isinstance(numbers, str):
        return np.frombuffer(base64.b64decode(numbers), "<f4")
    return np.array(numbers, dtype=np.float32)


def _difference(sound: EmbeddedClip, seen: Vector) -> str | None:
    if seen.shape != sound.vector.shape:
        return f"{sound.name}: {seen.shape} numbers instead of {sound.vector.shape}"
    error = float(np.abs(seen - sound.vector).max() / np.abs(sound.vector).max())
    if error <= TOLERANCE:
        return None
    return f"{sound.name}: its embedding is off by {error:.2g} of its largest number"
