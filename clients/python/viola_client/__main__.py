"""`python -m viola_client listen [--device NAME | --url URL | -]`: a line in, its tags and events out;
`python -m viola_client mcp`: an assistant's questions in, what is heard in files out.

    -                 raw samples on standard input: arecord -f S16_LE -r 16000 -t raw | … listen -
    --device NAME     a microphone, by ffmpeg: on Linux ALSA's name, `default` for the usual one
    --url URL         rtsp://, http:// or a file, by ffmpeg

One line for each event, with --tags for each window; as text, CSV or JSON lines. What `mcp` does is told in
assistant.py.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TextIO

from viola_client.client import DEFAULT_URL, Client
from viola_client.errors import ViolaError
from viola_client.live import Heard
from viola_client.results import Event

RATE_HZ = 16_000
PIECE_BYTES = RATE_HZ // 5  # a tenth of a second
FAILED, NO_FFMPEG, NO_MCP = 1, 2, 2
DEVICE_FORMATS = {"linux": "alsa", "darwin": "avfoundation", "win32": "dshow"}

Write = Callable[[Heard], None]


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "mcp":
        return _answer_assistant(arguments)
    try:
        command = _ffmpeg(arguments)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return NO_FFMPEG
    if command is None:
        return _listen(arguments, sys.stdin.buffer)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as source:
        assert source.stdout is not None
        try:
            code = _listen(arguments, source.stdout)
        finally:
            source.terminate()
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "viola_client", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listen = commands.add_parser("listen", help="print what is heard")
    source = listen.add_mutually_exclusive_group()
    source.add_argument("stdin", nargs="?", choices=["-"], help="raw samples: 16 bits, mono, --rate a second")
    source.add_argument("--device", help="a microphone's name; needs ffmpeg")
    source.add_argument("--url", help="of a camera, a radio, or a file's path; needs ffmpeg")
    listen.add_argument("--rate", type=int, default=RATE_HZ, help="of the samples on standard input")
    listen.add_argument("--server", default=DEFAULT_URL)
    listen.add_argument("--api-key")
    listen.add_argument("--model")
    listen.add_argument("--head")
    listen.add_argument("--labels", help="words in place of a head, with commas between")
    listen.add_argument("--template", help="what a label becomes before it is compared, with {} in its place")
    listen.add_argument("--window-s", type=float)
    listen.add_argument("--hop-s", type=float)
    listen.add_argument("--top-k", type=int, default=1)
    listen.add_argument("--threshold", type=float, help="tags with at least this score")
    listen.add_argument("--begin", type=float, help="the score that begins an event")
    listen.add_argument("--tags", action="store_true", help="also the tags of each window")
    listen.add_argument("--format", choices=["text", "csv", "jsonl"], default="text")
    mcp = commands.add_parser("mcp", help="answer an assistant on standard input and output")
    mcp.add_argument("--server", default=DEFAULT_URL)
    mcp.add_argument("--api-key", default=os.environ.get("VIOLA_API_KEY"), help="or VIOLA_API_KEY")
    mcp.add_argument("--folder", type=Path, help="the only folder whose files may be read; else all")
    return parser


def _answer_assistant(arguments: argparse.Namespace) -> int:
    try:
        from viola_client.assistant import assistant_server
    except ModuleNotFoundError as error:
        print(f"{error}; install the extra: pip install 'viola-client[mcp]'", file=sys.stderr)
        return NO_MCP
    with Client(arguments.server, api_key=arguments.api_key) as viola:
        assistant_server(viola, folder=arguments.folder).run("stdio")
    return 0


def _ffmpeg(arguments: argparse.Namespace) -> list[str] | None:
    """What gives the samples; None for standard input. Raises FileNotFoundError."""
    if arguments.device is None and arguments.url is None:
        return None
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise FileNotFoundError(
            "ffmpeg is missing, which reads devices and URLs: install it (`apt install ffmpeg`), or give raw "
            "samples on standard input (`-`)"
        )
    if arguments.device is not None:
        source = ["-f", DEVICE_FORMATS.get(sys.platform, "alsa"), "-i", arguments.device]
    else:
        source = ["-i", arguments.url]
    form = ["-vn", "-ac", "1", "-ar", str(arguments.rate), "-f", "s16le", "-"]
    return [ffmpeg, "-loglevel", "error", "-nostdin", *source, *form]


def _listen(arguments: argparse.Namespace, source: IO[bytes]) -> int:
    write = _writer(arguments.format, sys.stdout)
    try:
        with Client(arguments.server, api_key=arguments.api_key) as viola:
            for heard in viola.stream(
                _pieces(source),
                rate=arguments.rate,
                model=arguments.model,
                head=arguments.head,
                labels=arguments.labels,
                template=arguments.template,
                window_s=arguments.window_s,
                hop_s=arguments.hop_s,
                top_k=arguments.top_k,
                threshold=arguments.threshold,
                begin=arguments.begin,
                on_lag=lambda seconds: print(f"the server is {seconds:.1f} s behind", file=sys.stderr),
            ):
                if arguments.tags or isinstance(heard, Event):
                    write(heard)
    except ViolaError as error:
        print(error, file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    return 0


def _pieces(source: IO[bytes]) -> Iterator[bytes]:
    """As they come."""
    read = getattr(source, "read1", source.read)
    while piece := read(PIECE_BYTES):
        yield piece


def _writer(form: str, out: TextIO) -> Write:
    if form == "csv":
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["type", "start_s", "end_s", "label", "score"])

    def write(heard: Heard) -> None:
        for kind, label, score in _lines(heard):
            if form == "csv":
                rows.writerow([kind, f"{heard.start_s:.3f}", f"{heard.end_s:.3f}", label, f"{score:.4f}"])
            elif form == "jsonl":
                line = {"type": kind, "start_s": heard.start_s, "end_s": heard.end_s}
                print(json.dumps(line | {"label": label, "score": score}, ensure_ascii=False), file=out)
            else:
                sign = "*" if kind == "event" else " "
                print(f"{sign} {heard.start_s:9.2f} – {heard.end_s:9.2f} s  {score:.2f}  {label}", file=out)
        out.flush()

    return write


def _lines(heard: Heard) -> list[tuple[str, str, float]]:
    """(type, label, score)"""
    if isinstance(heard, Event):
        return [("event", heard.label, heard.score)]
    return [("tags", tag.label, tag.score) for tag in heard.tags]


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread may still wait for standard input: the interpreter would abort over its lock on the way out.
    os._exit(code)
