"""Log formats and request ids. Nothing is configured at import; message text is never logged.

A log call may carry fields as `extra={"fields": {...}}`: members of the object in JSON,
`name=value` after the message in text.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from serve.escaping import escape_text
from serve.telemetry.context import current_request

LogFormat = Literal["text", "json"]

_ACCEPTABLE_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_BARE = re.compile(r"[\w.:/+@*-]+", re.ASCII)
_ids = random.Random()  # seeded by the system
# uvicorn reports failures of requests and of the server through its own loggers.
_LOGGERS = ("serve", "rm_core", "uvicorn")


def configure_logging(level: str, log_format: LogFormat = "text") -> None:
    """Send the loggers of the project and of uvicorn to standard error, one line a record.

    May be called again.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(_add_request_id)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        # uvicorn's access log would log every request a second time, with its raw path.
        logger.setLevel(logging.WARNING if name == "uvicorn" else level)
        logger.propagate = False


def generate_id(prefix: str) -> str:
    """Return a new unique identifier, such as `score-5f0c...`."""
    # Identifiers are not secret: a generator in the process saves a system call per request.
    return f"{prefix}-{_ids.getrandbits(128):032x}"


def accept_request_id(header: str | None) -> str:
    """Return the client's `X-Request-Id` if it is safe to log and echo, else a new id."""
    return header if header and _ACCEPTABLE_ID.fullmatch(header) else generate_id("req")


class TextFormatter(logging.Formatter):
    """`time LEVEL logger [request id] message name=value ...`."""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s",
            defaults={"request_id": "-"},
        )

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line without the traceback."""
        record.request_id = getattr(record, "request_id", "-")
        fields = (f" {name}={_format_value(value)}" for name, value in _fields(record).items())
        return super().formatMessage(record) + "".join(fields)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line and its traceback, with terminal control characters escaped."""
        return escape_text(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with any traceback in the member `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the whole line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": getattr(record, "request_id", "-"),
        }
        line |= {name: value for name, value in _fields(record).items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _format_value(value: object) -> str:
    """Format a value for a line of text, quoted where it would be ambiguous."""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = current_request().id
    return True
