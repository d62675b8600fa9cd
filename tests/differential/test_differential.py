"""Every sound is heard as ffmpeg hears it, whole, or refused for a reason that is true of it.

Compared are the duration, within 50 ms, and the embedding, whose cosine to that of ffmpeg's samples is at
least 0.999: it falls below where a tenth of a second is lost at either end, or one channel of eight.

By default each format is written at three rates and with as many numbers of channels; `make differential`
(`-m differential`) does it at all rates and with all numbers of channels, which takes an hour.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from service.errors import AudioUnreadable, ViolaError
from service.inference.model import Model
from service.inference.windows import embed
from service.sound.audio import decode
from tests.differential.family import FORMATS, Family, Format
from tests.differential.reference import SAMPLE_RATE, Heard, heard_by_ffmpeg, joined, needs_ffmpeg

pytestmark = needs_ffmpeg

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
DURATION_WITHIN_S = 0.05
COSINE_AT_LEAST = 0.999
FFMPEGS = 2  # processes side by side

ENDS_EARLY = "ends early|is damaged|lacks its index"
TAGS_BEFORE = {
    "ID3v2": b"ID3\3\0\0\0\0\1\110" + bytes(200),
    "a cover": b"ID3\4\0\0\0\2\70\100" + bytes(40_000),
}
TAGS_BEHIND = {
    "ID3v1": b"TAG".ljust(128, b"\0"),
    "APE": b"APETAGEX" + bytes(range(256)) * 80,
    "zeros": bytes(5000),
    "an error page": b"<html><body>503 Service Unavailable</body></html>" * 60,
}


@dataclass(frozen=True)
class Case:
    """A file, and what is to be heard in it. refused: what the error must say, where it must be one."""

    name: str
    content: bytes
    expected: Heard | None
    refused: str | None = None
    within_s: float = DURATION_WITHIN_S
    cosine: float = COSINE_AT_LEAST


def difference(case: Case) -> str | None:
    """None where all is well, else a sentence."""
    try:
        waveform = decode(case.content, sample_rate=SAMPLE_RATE, max_audio_s=600)
    except ViolaError as error:
        if case.refused is not None:
            is_true = isinstance(error, AudioUnreadable) and re.search(case.refused, str(error))
            return None if is_true else f"{case.name}: refused, but with {error}"
        if case.expected is None:
            return None
        return (
            f"{case.name}: ffmpeg hears {case.expected.duration_s:.3f} s of it, here it is refused: {error}"
        )
    heard = f"{case.name}: {waveform.duration_s:.3f} s are heard"
    if case.refused is not None:
        return f"{heard}, and it should be refused"
    if case.expected is None:
        return f"{heard}, and ffmpeg hears nothing"
    if abs(waveform.duration_s - case.expected.duration_s) > case.within_s:
        return f"{heard}, and {case.expected.duration_s:.3f} s by ffmpeg"
    n = min(len(waveform.samples), len(case.expected.samples))
    cosine = cosine_of(waveform.samples[:n], case.expected.samples[:n])
    return None if cosine >= case.cosine else f"{heard}, and the cosine to what ffmpeg hears is {cosine:.5f}"


@cache
def model() -> Model:
    return Model.load(ROOT / "models" / "byola", device="cpu", precision="float32")


def cosine_of(ours: np.ndarray, theirs: np.ndarray) -> float:
    if not ours.any() or not theirs.any():  # silence has no direction
        return float(not ours.any() and not theirs.any())
    one, other = embedding(ours.tobytes()), embedding(theirs.tobytes())
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@lru_cache(maxsize=16)  # behind a tag it is the same sound, once more
def embedding(samples: bytes) -> np.ndarray:
    waveform = np.frombuffer(samples, dtype=np.float32)
    return embed(model().run, model().card, [model().logmel(waveform)]).vector.astype(np.float64)


def differences(cases: Iterable[Case]) -> list[str]:
    return [sentence for sentence in map(difference, cases) if sentence]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tmp_path_factory.mktemp("family"))


def heard_in(paths: Iterable[Path]) -> list[Heard | None]:
    """By ffmpeg, FFMPEGS at a time."""
    with ThreadPoolExecutor(FFMPEGS) as pool:
        return list(pool.map(heard_by_ffmpeg, paths))


# What is refused here, though ffmpeg gives what it finds of it.
REFUSED = {
    "fixtures/invalid/truncated.flac": ENDS_EARLY,
    "fixtures/invalid/nan_inf_float32.wav": "NaN or infinite",
    "wild/mp3_truncated_info_promises_3s.mp3": ENDS_EARLY,
    "wild/mp4_fast_truncated.m4a": ENDS_EARLY,
    "wild/webm_truncated_header_says_3s.webm": ENDS_EARLY,
}
# Damaged in the middle: how a decoder passes over that differs from version to version.
DAMAGED = {"wild/mp4_midcorrupt.m4a": 0.99}
# What is right is held elsewhere, in fixtures.csv and tests/service/sound/test_wild.py. ffmpeg
FFMPEG_IS_WRONG = {
    "fixtures/footstep_44k1_mono_short.ogg": "loses the last 3 ms",
    "wild/flac_concatenated.flac": "loses the third of three",
    "wild/ogg_chained_vorbis.ogg": "hears the padding of each link",
    "wild/m_freeformat.mp3": "knows no free format",
    "wild/rf64_ds64_zero.wav": "hears nothing",
    "wild/wav_24in4_plain.wav": "takes 24 bits in 4 bytes for floats",
    "wild/wav_ext_24in32_leftjust.wav": "takes 24 bits in 4 bytes for floats",
    "wild/wav_concatenated.wav": "hears the first of two",
    "wild/webm_concatenated_with_durations.webm": "loses the third of three",
}


def test_every_fixture_is_heard_as_ffmpeg_hears_it() -> None:
    files = [path for folder in ("fixtures", "wild") for path in sorted((TESTS / folder).rglob("*.*"))]
    names = [path.relative_to(TESTS).as_posix() for path in files if path.suffix not in (".md", ".csv")]
    compared = [name for name in names if name not in FFMPEG_IS_WRONG]
    assert len(compared) > 100
    paths = [TESTS / name for name in compared]
    cases = (
        Case(name, path.read_bytes(), each, REFUSED.get(name), cosine=DAMAGED.get(name, COSINE_AT_LEAST))
        for name, path, each in zip(compared, paths, heard_in(paths), strict=True)
    )
    assert differences(cases) == []


@pytest.mark.parametrize("format_", FORMATS, ids=lambda format_: format_.name)
def test_a_format_is_heard_as_ffmpeg_hears_it(format_: Format, family: Family) -> None:
    rates, channels = format_.rates, format_.channels
    middle = (rates[len(rates) // 2], channels[-1])
    shapes = [(rates[0], channels[0]), middle, (rates[-1], channels[len(channels) // 2])]
    cases = [*plain(format_, family, shapes), *changed(format_, family, *middle)]
    assert len(cases) > 5
    assert differences(cases) == []


@pytest.mark.differential
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("format_", FORMATS, ids=lambda format_: format_.name)
def test_a_format_is_heard_as_ffmpeg_hears_it_in_all_its_shapes(format_: Format, family: Family) -> None:
    shapes = list(product(format_.rates, format_.channels))
    cases = plain(format_, family, shapes)
    assert differences(cases) == []
    for shape in shapes:
        assert differences(changed(format_, family, *shape)) == []


def bar(format_: Format, rate_hz: int) -> float:
    """What the cosine reaches at least."""
    if format_.name == "wav_gsm":
        # Two decoders differ by a few steps of their 13 bits, and 8 kHz leave half of the log-mel empty.
        return 0.998
    if "libmp3lame" in format_.arguments and rate_hz == 24_000:
        # FFmpeg 5 hears it otherwise than FFmpeg 8 and mpg123 do, who agree to 4e-7.
        return 0.98
    return COSINE_AT_LEAST


def plain(format_: Format, family: Family, shapes: Sequence[tuple[int, int]]) -> list[Case]:
    """As ffmpeg writes it, into a file."""
    paths = written(family, [(format_, *shape, False) for shape in shapes])
    found = [(path, bar(format_, shape[0])) for path, shape in zip(paths, shapes, strict=True) if path]
    heard = heard_in([path for path, _ in found])
    return [
        Case(path.name, path.read_bytes(), each, cosine=cosine)
        for (path, cosine), each in zip(found, heard, strict=True)
    ]


def changed(format_: Format, family: Family, rate_hz: int, channels: int) -> Iterator[Case]:
    """What becomes of files on their way: with tags, piped, broken off, joined. Nothing where ffmpeg does not
    write the format in this shape."""
    at_least = bar(format_, rate_hz)
    for case in changes(format_, family, rate_hz, channels):
        yield replace(case, cosine=min(case.cosine, at_least))


def changes(format_: Format, family: Family, rate_hz: int, channels: int) -> Iterator[Case]:
    shapes = [(format_, format_.rates[0], format_.channels[0]), (format_, rate_hz, channels)]
    other, stored = written(family, [(*shape, False) for shape in shapes])
    if not (other and stored):
        return
    heard_other, heard = heard_in([other, stored])
    tagged = {f"{stored.name} behind {name}": tag + stored.read_bytes() for name, tag in TAGS_BEFORE.items()}
    tagged |= {f"{stored.name} before {name}": stored.read_bytes() + tag for name, tag in TAGS_BEHIND.items()}
    for name, content in tagged.items():
        if (
            format_.is_row_of_frames
        ):  # FFmpeg takes the encoder's padding for sound where foreign bytes follow
            heard = heard_by_ffmpeg(family.kept(f"tagged_{stored.name}", content))
        yield Case(name, content, heard)
    yield broken_off(family, stored, rate_hz, is_refused=format_.tells_length)
    if format_.is_row_of_frames:
        yield from joined_rows(family, stored, other)
    else:
        both = other.read_bytes() + stored.read_bytes()
        yield Case(f"{other.name} and {stored.name}", both, joined([heard_other, heard]))
    if format_.tells_piped is None:
        return
    (piped,) = written(family, [(*shapes[1], True)])
    assert piped
    yield Case(piped.name, piped.read_bytes(), heard_by_ffmpeg(piped) if format_.is_read_piped else heard)
    if format_.is_read_piped:
        yield broken_off(family, piped, rate_hz, is_refused=format_.tells_piped)


def joined_rows(family: Family, one: Path, other: Path) -> Iterator[Case]:
    """One row of frames, with the padding of each encoder within it, as ffmpeg hears it. Where the rate
    changes it resamples to the first one, with a filter of its own, so that the cosine is lower."""
    for following, cosine in ((one, COSINE_AT_LEAST), (other, 0.9)):
        both = family.kept(f"joined_{one.name}", one.read_bytes() + following.read_bytes())
        name = f"{one.name} and {following.name}"
        yield Case(name, both.read_bytes(), heard_by_ffmpeg(both), cosine=cosine)


def broken_off(family: Family, whole: Path, rate_hz: int, *, is_refused: bool) -> Case:
    content = whole.read_bytes()
    cut = family.kept(f"cut_{whole.name}", content[: len(content) * 6 // 10])
    # A last frame that is not whole may be heard or not; a block of ADPCM is a long one.
    within_s = 0.3 if "adpcm" in whole.name else max(0.1, 1024 / rate_hz)
    refused = ENDS_EARLY if is_refused else None
    return Case(cut.name, cut.read_bytes(), heard_by_ffmpeg(cut), refused, within_s=within_s)


def written(family: Family, shapes: list[tuple[Format, int, int, bool]]) -> list[Path | None]:
    """None where ffmpeg does not write it."""
    with ThreadPoolExecutor(FFMPEGS) as pool:
        return list(pool.map(lambda shape: family.written(*shape), shapes))
