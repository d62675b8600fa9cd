"""Log lines for people and for machines, and what a client can do to them: nothing."""

import io
import logging
import logging.config
import sys
from typing import Any

import orjson
import pytest

from service.process.logs import JsonLines, TextLines, configuration, log_request

FORGED = 'x\n2026-01-01 12:00:00,000 INFO viola.request: GET /all-is-well 200\r\x1b[2J\u2028"\\'


def record(message: str, *arguments: object, error: bool = False) -> logging.LogRecord:
    return logging.LogRecord(
        "service.x", logging.ERROR, "f", 1, message, arguments, sys.exc_info() if error else None
    )


def line_of(formatter: logging.Formatter, fields: dict[str, Any]) -> str:
    """What log_request writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger("viola.request")
    logger.addHandler(handler)
    try:
        log_request({"method": "POST", "route": "/embed", "status": 200} | fields)
    finally:
        logger.removeHandler(handler)
    return stream.getvalue()


def test_a_json_line_is_one_object_with_its_traceback() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        text = JsonLines().format(record("it is %d", 7, error=True))
    assert "\n" not in text
    line = orjson.loads(text)
    assert (line["level"], line["logger"], line["message"]) == ("error", "service.x", "it is 7")
    assert line["time"].endswith("+00:00")
    assert "ValueError: two\nlines" in line["traceback"]


def test_a_text_line_is_one_line_and_its_traceback_is_indented() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError:
        first, *others = TextLines().format(record("%s failed", FORGED, error=True)).split("\n")
    assert first.endswith(r"failed")
    assert r"x\n2026-01-01 12:00:00,000 INFO" in first
    assert others
    assert all(line.startswith("  ") for line in others)
    assert first.isprintable()
    assert all(line.isprintable() for line in others)


def test_both_formats_are_valid_configurations() -> None:
    for log_format in ("text", "json"):
        configured = configuration(log_format)
        assert logging.config.DictConfigurator(configured).configure_formatter(
            configured["formatters"][log_format]
        )


def test_a_request_is_one_line_for_people() -> None:
    line = line_of(TextLines(), {"duration_ms": 3.1, "client": "::1", "detail": "it is too long"})
    assert line.endswith(
        'viola.request: POST /embed 200 duration_ms=3.1 client=::1 detail="it is too long"\n'
    )
    assert "INFO" in line


def test_a_request_is_one_object_for_machines() -> None:
    line = orjson.loads(line_of(JsonLines(), {"duration_ms": 3.1, "status": 503}))
    assert line["message"] == "POST /embed 503"
    assert (line["status"], line["duration_ms"], line["level"]) == (503, 3.1, "warning")


@pytest.mark.parametrize(
    "value", [FORGED, "half \ud800", "a b=c", "", 'say "x" status=200', "\\", "nbsp\xa0"]
)
def test_no_value_can_forge_a_line_or_a_field(value: str) -> None:
    text = line_of(TextLines(), {"detail": value})
    assert text.count("\n") == 1
    assert text[:-1].isprintable()
    quoted = text[:-1].split(" detail=", 1)[1]
    assert quoted[0] == quoted[-1] == '"'
    inside = quoted[1:-1].replace("\\\\", "").replace('\\"', "")
    assert '"' not in inside
    json = line_of(JsonLines(), {"detail": value})
    assert json.count("\n") == 1
    assert orjson.loads(json)["detail"] == value.encode("utf-8", "backslashreplace").decode()
