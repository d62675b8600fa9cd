"""Log lines for machines."""

import logging
import logging.config
import sys

import orjson

from service.logs import JsonLines, configuration


def test_a_json_line_is_one_object_with_its_traceback() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("service.x", logging.ERROR, "f", 1, "it is %d", (7,), sys.exc_info())
    text = JsonLines().format(record)
    assert "\n" not in text
    line = orjson.loads(text)
    assert (line["level"], line["logger"], line["message"]) == ("error", "service.x", "it is 7")
    assert line["time"].endswith("+00:00")
    assert "ValueError: two\nlines" in line["traceback"]


def test_both_formats_are_valid_configurations() -> None:
    for log_format in ("text", "json"):
        configured = configuration(log_format)  # type: ignore[arg-type]
        assert logging.config.DictConfigurator(configured).configure_formatter(
            configured["formatters"][log_format]
        )
