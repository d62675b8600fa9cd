"""Environment variables in, one frozen Settings object out. `python -m service.settings` writes its page.

The object is read once, by `__main__`, and passed to whoever needs it. Nothing imports a setting.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "VIOLA_"
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
DOCS = Path(__file__).parent.parent / "docs" / "settings.md"

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
CommaList = Annotated[tuple[str, ...], NoDecode]  # NoDecode: pydantic-settings would ask for JSON


class Settings(BaseSettings):
    """Every setting of the server. Each is an environment variable: `port` is VIOLA_PORT."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = Field(
        default="0.0.0.0",
        description="Address to listen on: `0.0.0.0` means all of IPv4, `::` all of IPv6 and IPv4. A name "
        "means its first address, of IPv4 if it has one.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Processes behind the port, which share the connections evenly. Each holds its own "
        "models and queue; `/metrics` tells of all together, whichever answers. One that dies or hangs is "
        "replaced.",
    )
    models_dir: Path = Field(default=Path("models"), description="Folder that holds one folder per model.")
    model: str = Field(
        default="byola",
        min_length=1,
        description="The default model: used where a request names none, loaded at start.",
    )
    preload: CommaList = Field(
        default=(),
        description="Further models to load at start, separated by commas; `*` means all. The others are "
        "loaded when first asked for.",
    )
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        default="auto",
        description="Where the network runs. `auto` takes CUDA when it is there. `tensorrt` needs, beside "
        "the extra `gpu`, the libraries of NVIDIA's TensorRT on the library path, which neither an extra nor "
        "the image brings; it was never tried.",
    )
    precision: Literal["auto", "float32", "float16", "int8"] = Field(
        default="auto",
        description="Which graph of the model folder is used. `auto` takes int8 on a CPU when the folder has "
        "it, else float32.",
    )
    tensorrt_cache: Path | None = Field(
        default=None,
        description="Folder for the engines that device `tensorrt` builds; without one they are built at "
        "every start, which takes minutes.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="CPU cores to plan for, all processes together; 0 counts those that the process may use "
        "(affinity and cgroup).",
    )
    max_body_bytes: int = Field(
        default=200_000_000,
        ge=1,
        description="Longest request body in bytes: an hour of MP3 at 320 kbit/s takes 144 million.",
    )
    max_held_bytes: int = Field(
        default=2_000_000_000,
        ge=1,
        description="Bytes of all request bodies that are being read or worked on, and of large answers that "
        "are being sent, together; a request beyond them gets 503. Of the bodies, what is over 128 million "
        "bytes, or over a million in one clip, lies in temporary files (`TMPDIR`).",
    )
    upload_timeout_s: Seconds = Field(
        default=20,
        description="A client that sends fewer than 500 bytes per second on average for so many seconds is "
        "answered 408 and disconnected.",
    )
    head_timeout_s: Seconds = Field(
        default=20,
        description="A connection is cut when the head of its first or next request takes longer to come.",
    )
    keep_alive_s: int = Field(
        default=130,
        ge=1,
        le=86_400,
        description="A connection is closed when so many seconds pass after an answer without a next "
        "request. To be longer than a proxy before the server keeps its idle connections: else it sends a "
        "request into one that is being closed, and a POST is lost. (nginx and AWS' load balancers keep them "
        "60, Traefik 90, Caddy 120, Google's load balancers 600 seconds.)",
    )
    answer_timeout_s: Seconds = Field(
        default=20,
        description="A client that reads fewer than 500 bytes per second of its answer, for so many seconds, "
        "is disconnected.",
    )
    max_audio_s: Seconds = Field(
        default=7200,
        description="Longest clip in seconds, by its header and as decoded.",
    )
    max_batch_frames: int = Field(
        default=4096,
        ge=1,
        description="Log-mel frames in one batch, padding included (100 frames are one second with the "
        "default model). One item that is longer goes alone. Worth raising on a GPU.",
    )
    max_batch_items: int = Field(
        default=32, ge=1, description="Clips or windows in one batch. Worth raising on a GPU."
    )
    max_wait_ms: float = Field(
        default=0,
        ge=0,
        le=1000,
        description="How long a free worker waits for a batch to fill. 0, the best for most: it takes at "
        "once what is there, and batches form while it is busy.",
    )
    hold_ms: float = Field(
        default=0,
        ge=0,
        le=1000,
        description="How long a free worker may hold a batch for clips that have arrived and are being "
        "decoded; a lone request waits for nobody. 0: it takes at once what is there, which was measured "
        "to be as fast on two cores.",
    )
    max_queue_frames: int = Field(
        default=200_000,
        ge=1,
        description="Log-mel frames that may wait or be worked on; a request beyond them gets 503 at once.",
    )
    max_queue_s: float = Field(
        default=1,
        gt=0,
        description="The same in seconds, at the throughput measured last: a request that would wait longer "
        "gets 503 at once, so that those who are admitted are answered in about this time.",
    )
    max_streams: int = Field(
        default=100,
        ge=0,
        le=10_000,
        description="Streams (`/stream`) that one process listens to at a time; a further one gets 503, and "
        "so does one that the throughput measured last leaves no room for. 0: none.",
    )
    stream_idle_s: Seconds = Field(
        default=30,
        description="A stream ends when less than 50 bytes a second come for so many seconds.",
    )
    deadline_s: Seconds = Field(
        default=60,
        description="Seconds from the end of the upload until a request is answered 504.",
    )
    api_keys: CommaList = Field(
        default=(),
        repr=False,
        description="Keys, separated by commas, one of which a request must show as `Authorization: Bearer "
        "KEY` or `X-API-Key: KEY`. Empty: no key is asked for. `/`, `/health/*`, `/metrics`, `/docs`, "
        "`/openapi.json` and `/asyncapi.json` never ask for one.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="A file of further keys, one per line; `#` begins a comment. It is read again when it "
        "changes, without a restart; while it is gone or broken the keys read last stay valid. A file "
        "without keys refuses every request that needs one.",
    )
    admin_keys: CommaList = Field(
        default=(),
        repr=False,
        description="Keys, separated by commas, of those who may also change what is served (`POST "
        "/models/reload`); all else that a client's key opens they open, too. Where there are clients' keys "
        "and no admin's, nobody may.",
    )
    admin_keys_file: Path | None = Field(
        default=None, description="A file of further admin keys, read as `VIOLA_API_KEYS_FILE` is."
    )
    data_dir: Path | None = Field(
        default=None,
        description="Folder in which heads that are taught over HTTP are kept, with their examples; a disk "
        "of this machine. Without one the routes that teach answer 501.",
    )
    max_taught_heads: int = Field(default=20, ge=1, le=1000, description="Heads that each model is taught.")
    max_taught_labels: int = Field(default=100, ge=1, le=1000, description="Labels of each of them.")
    max_taught_examples: int = Field(
        default=2000,
        ge=1,
        le=10_000,
        description="Examples of each of them; of a long sound each passage of 5 s is one. A fit of all of "
        "them takes some seconds of one core.",
    )
    max_data_bytes: int = Field(
        default=2_000_000_000,
        ge=1,
        description="Bytes of all that `VIOLA_DATA_DIR` holds: an example takes 13 kB with the default "
        "model, and with `keep_clips` its sound too.",
    )
    cors_origins: CommaList = Field(
        default=(),
        description="Origins, separated by commas, whose web pages may call the server; `*` means all.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log lines for people or for machines."
    )
    access_log: bool = Field(
        default=True,
        description="One log line per request. `/health/*` and `/metrics` get one only where they fail.",
    )
    otel: bool = Field(
        default=False,
        description="Traces by OpenTelemetry, over OTLP (HTTP); the `OTEL_*` variables tell where to. Needs "
        "the extra `otel`.",
    )
    drain_s: float = Field(
        default=1,
        ge=0,
        le=3600,
        description="Seconds from SIGTERM until the port is closed. Meanwhile the server is not ready, "
        "answers all requests and ends each connection with the answer, so that load balancers, and clients "
        "that keep connections open, turn elsewhere.",
    )
    root_path: str = Field(
        default="",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="The prefix under which a proxy serves viola, like `/viola`; the proxy may cut it off or "
        "leave it. Also `python -m service --root-path /viola`.",
    )

    @field_validator("cors_origins")
    @classmethod
    def _origins_as_browsers_send_them(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        """Another one matches no page, ever."""
        for origin in origins:
            if origin not in ("*", "null") and (reason := _why_no_origin(origin)):
                raise ValueError(
                    f"`{origin}` is the origin of no web page: {reason}; like https://example.org"
                )
        return origins

    @field_validator("preload", "api_keys", "admin_keys", "cors_origins", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        """`"a, b"` → `("a", "b")`."""
        if not isinstance(value, str):
            return value
        parts = tuple(part.strip() for part in value.split(",") if part.strip())
        if not parts:
            # `VIOLA_API_KEYS=" , "` must not open the server; empty, the variable counts as not set.
            raise ValueError("holds nothing but commas and blanks; leave it out or fill it")
        return parts


def _why_no_origin(text: str) -> str | None:
    """What keeps `text` from being an origin as browsers write it (RFC 6454, 6.2), if anything."""
    scheme, separator, host = text.partition("://")
    if not separator or not scheme or not host:
        return "scheme://host is missing"
    if set(host) & set("/?#"):
        return "an origin ends after host and port, without a slash or a path"
    if "*" in host:
        return "`*` stands for all origins, and for no part of one"
    if "@" in host or " " in text:
        return "it holds more than scheme, host and port"
    if text != text.lower():
        return "browsers write it in small letters"
    if host.endswith(DEFAULT_PORTS.get(scheme, " ")):
        return "browsers leave the usual port out"
    return None


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none: misspelt, most likely."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    return sorted(
        name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known
    )


def settings_page() -> str:
    """docs/settings.md, from the class above."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return "\n".join(
        [
            "# Settings",
            "",
            "viola reads its settings from environment variables, once, at start. "
            "This page is generated by `python -m service.settings`.",
            "",
            "| variable | default | allowed | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _row(name: str, field: FieldInfo) -> str:
    default = _shown(field.default)
    return f"| `{PREFIX}{name.upper()}` | {default} | {_allowed(name)} | {field.description} |"


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return f"`{default}`".lower()
    return f"`{default}`" if default not in ((), "", None) else "(empty)"


def _allowed(name: str) -> str:
    """Bounds in words, read from the JSON schema: `1 to 256`, `auto, cpu`, `a list`."""
    schema = Settings.model_json_schema()["properties"][name]
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return "a list"
    if schema.get("type") == "boolean":
        return "`true`, `false`"
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f"more than {schema['exclusiveMinimum']:g}"
    if low is None:
        return "text"
    return f"{low:g} or more" if high is None else f"{low:g} to {high:g}"


if __name__ == "__main__":
    DOCS.write_text(settings_page(), encoding="utf-8")
