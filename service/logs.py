"""The log: a line of JSON for each event, or plain lines for people."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

Style = Literal["json", "plain"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the current request; a thread that serves several requests passes `extra={"request_id": ...}` instead."""


def configure(style: Style) -> None:
    """Sends all log records to stdout in this form, also those of uvicorn and of the warnings module."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines() if style == "json" else PlainLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)


class JsonLines(logging.Formatter):
    """A JSON object per line: `time` (UTC), `level`, `logger`, `message`, `request_id`, the record's own `fields`, and
    `exception` with its traceback. JSON escapes what could break a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if name := getattr(record, "request_id", request_id.get()):
            entry["request_id"] = name
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class PlainLines(logging.Formatter):
    """`2026-01-31 12:00:00 INFO    message [request id]`, in local time; the lines of a traceback are indented."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).isoformat(" ", "seconds")
        name = getattr(record, "request_id", request_id.get())
        lines = [f"{time} {record.levelname:<8}{_printable(record.getMessage())}{f' [{name}]' if name else ''}"]
        if record.exc_info:
            lines += ["    " + _printable(line) for line in self.formatException(record.exc_info).splitlines()]
        return "\n".join(lines)


def _printable(text: str) -> str:
    """The text with control characters, such as line ends, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
