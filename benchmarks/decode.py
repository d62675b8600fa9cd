"""What decoding costs, per format: CPU milliseconds per second of sound, beside the decoders by themselves.

`decode` makes 16 kHz mono of a file. libsndfile alone and PyAV alone make samples of it, at its own rate, and
trust its header. They take turns in short bursts, because a machine's speed drifts; so does the `decode` of
another checkout of this repository, in a process of its own, with `--against FOLDER`.

Out: results/decode.json.
"""

import argparse
import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from benchmarks.harness.results import Result, markdown, middle, say, span, write
from benchmarks.harness.servers import ROOT
from service.sound.audio import decode

SOURCES = ("trumpet_44k1_stereo.ogg", "robin_44k1_stereo.mp3", "finger_snap_44k1_stereo_float32.wav")
RATE_HZ = 44_100
OPUS_HZ = 48_000
SAMPLE_RATE = 16_000  # the default model's
# container and codec of FFmpeg, by the name in the table
FORMATS = {
    "WAV": ("wav", "pcm_s16le"),
    "FLAC": ("flac", "flac"),
    "MP3": ("mp3", "libmp3lame"),
    "Ogg Vorbis": ("ogg", "vorbis"),
    "Ogg Opus": ("ogg", "libopus"),
    "M4A": ("ipod", "aac"),
}
LENGTHS_S = (1, 10)
BIT_RATE = 128_000

# Speaks the name of a file and how long to decode it, hears the milliseconds that each time took.
OTHER = """
import sys, time
from pathlib import Path
try:
    from service.sound.audio import decode
except ModuleNotFoundError:
    from service.audio import decode
for line in sys.stdin:
    name, seconds = line.rsplit(maxsplit=1)
    content = Path(name).read_bytes()
    began, n = time.process_time(), 0
    while time.process_time() - began < float(seconds):
        decode(content, sample_rate=int(sys.argv[1]))
        n += 1
    print(1000 * (time.process_time() - began) / n, flush=True)
"""

Way = Callable[[Path, float], float]  # (a file, CPU seconds to spend) -> CPU milliseconds for each time


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each burst")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout of this repository")
    arguments = parser.parse_args()
    rows = []
    with other(arguments.against) as theirs:
        ways = {"decode": spent(ours), "libsndfile": spent(by_soundfile), "pyav": spent(by_pyav)}
        if theirs is not None:
            ways["against"] = theirs
        for name, length_s, path in files():
            rows.append(measure(name, length_s, path, ways, arguments.rounds, arguments.seconds))
    say(f"{write('decode', rows, rounds=arguments.rounds, seconds=arguments.seconds)} written")


def measure(
    name: str, length_s: int, path: Path, ways: dict[str, Way], rounds: int, seconds: float
) -> dict[str, Any]:
    """ms: CPU milliseconds per second of sound; ratio: of `decode` to the other checkout's, by rounds."""
    taken: dict[str, list[float]] = {each: [] for each in ways}
    for number in range(rounds + 1):
        for each, way in ways.items():
            if number:  # the first round warms up
                taken[each].append(way(path, seconds) / length_s)
            else:
                way(path, seconds / 2)
    row: dict[str, Any] = {
        "format": name,
        "length_s": length_s,
        "ms": {each: middle(ms) for each, ms in taken.items()},
    }
    if "against" in ways:
        pairs = zip(taken["decode"], taken["against"], strict=True)
        row["ratio"] = middle([own / theirs for own, theirs in pairs])
    say(f"{name}, {length_s} s: " + ", ".join(f"{each} {ms['median']:.3f}" for each, ms in row["ms"].items()))
    return row


def files() -> Iterator[tuple[str, int, Path]]:
    """The same sound in every format and length, made once."""
    folder = ROOT / "runs" / "bench" / "decode"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (container, codec) in FORMATS.items():
        for length_s in LENGTHS_S:
            path = folder / f"{codec}_{length_s}s.{container}"
            if not path.is_file():
                path.write_bytes(encoded(container, codec, sound(length_s)))
            yield name, length_s, path


def sound(length_s: int) -> np.ndarray:
    """(2, n) float32 at RATE_HZ: fixtures one after the other, louder on the left."""
    fixtures = ROOT / "tests" / "fixtures"
    clips = [decode(fixtures / name, sample_rate=RATE_HZ).samples for name in SOURCES]
    mono = np.resize(np.concatenate(clips), length_s * RATE_HZ)
    return np.stack([mono, 0.6 * mono]).astype(np.float32)


def encoded(container: str, codec: str, samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    if codec == "vorbis":  # PyAV numbers its pages wrongly
        soundfile.write(file, samples.T, RATE_HZ, format="OGG", subtype="VORBIS")
        return file.getvalue()
    rate_hz = OPUS_HZ if codec == "libopus" else RATE_HZ
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate_hz, layout="stereo")
        stream.bit_rate = BIT_RATE
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate = RATE_HZ
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(stream.format, "stereo", rate_hz, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


def spent(once: Callable[[bytes], Any]) -> Way:
    def way(path: Path, seconds: float) -> float:
        content, n = path.read_bytes(), 0
        began = time.process_time()
        while time.process_time() - began < seconds:
            once(content)
            n += 1
        return 1000 * (time.process_time() - began) / n

    return way


def ours(content: bytes) -> None:
    decode(content, sample_rate=SAMPLE_RATE)


def by_soundfile(content: bytes) -> None:
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            while len(file.read(1 << 16, dtype="float32", always_2d=True)):
                pass
    except soundfile.SoundFileError:  # it knows no M4A
        return


def by_pyav(content: bytes) -> None:
    with av.open(io.BytesIO(content), "r") as container:
        for frame in container.decode(audio=0):
            frame.to_ndarray()


@contextmanager
def other(checkout: Path | None) -> Iterator[Way | None]:
    """The `decode` of another checkout, with the packages of this environment."""
    if checkout is None:
        yield None
        return
    command = [sys.executable, "-c", OTHER, str(SAMPLE_RATE)]
    with subprocess.Popen(
        command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to, answers = process.stdin, process.stdout

        def way(path: Path, seconds: float) -> float:
            to.write(f"{path} {seconds}\n")
            to.flush()
            return float(answers.readline())

        yield way
        to.close()


def table(result: Result) -> str:
    """For README.md."""
    known = {"M4A": ("decode", "pyav")}
    rows = []
    for row in result["rows"]:
        ways = known.get(row["format"], ("decode", "libsndfile", "pyav"))
        cells = [span(row["ms"][way]) if way in ways else "–" for way in ("decode", "libsndfile", "pyav")]
        rows.append([row["format"], f"{row['length_s']} s", f"**{cells[0]}**", *cells[1:]])
    header = [
        "44.1 kHz stereo (Opus: 48)",
        "of",
        "`decode`, to 16 kHz mono",
        "libsndfile alone",
        "PyAV alone",
    ]
    return markdown(header, rows)


if __name__ == "__main__":
    main()
