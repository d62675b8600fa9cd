"""The setting log_format in, the configuration of all log lines out: plain or JSON.

Whatever a client sends stays in its one line: control characters are written as escapes, so that nobody can
forge a line. No line grows with what was sent: a message has at most MAX_MESSAGE characters, a traceback
MAX_TRACEBACK, its last ones; the fields of a request are short where they are made.
"""

import logging
import re
import time
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from service.errors import shortened

# What nobody prints need not be found out for every line: the thread and the process.
logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False

_is_plain = re.compile(r"[!#-<>-\[\]-~]+").fullmatch  # printable ASCII without space, quote, = and backslash
MAX_MESSAGE = 1400
MAX_TRACEBACK = 8000
MAX_TRACEBACK_LINE = 400  # its last line is the exception's sentence, which may hold what a client sent
IN_THE_MESSAGE = frozenset({"method", "route", "status"})
_REQUESTS = logging.getLogger("viola.request")


class TextLines(logging.Formatter):
    """`2026-01-01 12:00:00,000 INFO service.http.app: message`, the fields of a request as `name=value`
    behind it. A traceback follows, indented: a line that begins with a date is always one of ours."""

    def __init__(self) -> None:
        super().__init__()
        self._second = -1
        self._date = ""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        line = (
            f"{self._time(record)} {record.levelname} {record.name}: {shortened(record.message, MAX_MESSAGE)}"
        )
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        if fields is not None:
            line += "".join(
                f" {name}={_text(value)}" for name, value in fields.items() if name not in IN_THE_MESSAGE
            )
        return line if line.isprintable() else _escaped(line)

    def _time(self, record: logging.LogRecord) -> str:
        """Local time. Its seconds are formatted once a second: that takes as long as the rest of a line."""
        if (second := int(record.created)) != self._second:
            self._date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._second = second
        return f"{self._date},{int(record.msecs):03d}"

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "\n".join(f"  {_escaped(line)}" for line in _traceback(super().formatException(ei)))


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, the fields of a request, and the
    traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shortened(record.getMessage(), MAX_MESSAGE),
        }
        if fields := getattr(record, "fields", None):
            line |= fields
        if record.exc_info:
            line["traceback"] = "\n".join(_traceback(self.formatException(record.exc_info)))
        try:
            return orjson.dumps(line).decode()
        except TypeError:  # half a character, that UTF-8 cannot write
            return orjson.dumps({name: _whole(value) for name, value in line.items()}).decode()


def log_request(fields: dict[str, Any]) -> None:
    """One line for one request: what RequestRecord.fields gives. An answer of 500 and above is a warning."""
    level = logging.INFO if fields["status"] < 500 else logging.WARNING
    message = f"{fields['method']} {fields['route']} {fields['status']}"
    # Made here rather than by Logger.info, which looks through the stack for its caller.
    record = logging.LogRecord(_REQUESTS.name, level, "", 0, message, None, None)
    record.fields = fields
    _REQUESTS.handle(record)


def configuration(log_format: Literal["text", "json"]) -> dict[str, Any]:
    """For logging.config.dictConfig: everything to stderr, uvicorn's lines included."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "text": {"()": "service.process.logs.TextLines"},
            "json": {"()": "service.process.logs.JsonLines"},
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": log_format}},
        # It warns of every malformed form; the request's own line says so, too.
        "loggers": {"python_multipart": {"level": "ERROR"}},
        "root": {"handlers": ["stderr"], "level": "INFO"},
    }


def _traceback(text: str) -> list[str]:
    """Its lines, each shortened; of very many the last ones, where it says what happened."""
    short = "\n".join(shortened(line, MAX_TRACEBACK_LINE) for line in text.splitlines())
    return ("..." + short[-MAX_TRACEBACK:] if len(short) > MAX_TRACEBACK else short).splitlines()


def _text(value: object) -> str:
    """A number as it is, a text too where it is one plain word, else in quotes."""
    if not isinstance(value, str):
        return repr(value)
    if _is_plain(value):
        return value
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_escaped(quoted)}"'


def _escaped(text: str) -> str:
    """Control characters, line ends of all kinds and halves of characters as `\\n`, `\\x1b`, `\\u2028`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _whole(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
