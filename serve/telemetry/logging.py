"""The record of a request, and log formats. Message text and API keys are never in either.

The outermost middleware creates a `RequestContext` and reports it to log, metrics and traces at the
end; the code in between fills it in through `current_request`.

Nothing is configured at import. A log call may carry fields as `extra={"fields": {...}}`: members
of the object in JSON, `name=value` after the message in text.
"""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from serve.escaping import escape_text

LogFormat = Literal["text", "json"]

ANONYMOUS = "anonymous"
"""Name of the client of all requests in a service without API keys."""

_ACCEPTABLE_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_BARE = re.compile(r"[\w.:/+@*-]+", re.ASCII)
_ids = random.Random()  # seeded by the system
# uvicorn reports failures of requests and of the server through its own loggers.
_LOGGERS = ("serve", "rm_core", "uvicorn")


@dataclass(slots=True)
class RequestContext:
    """The record of one request."""

    id: str  # request id, from `X-Request-Id` or generated
    method: str = ""  # HTTP method; `OTHER` for an unusual method
    route: str = ""  # template of the route, or `unmatched`
    # Time of arrival, in nanoseconds since the epoch.
    started_ns: int = field(default_factory=time.time_ns)
    # Client whose fair share the request counts toward: a name derived from its API key (never the
    # key itself), or `anonymous`.
    client: str = ANONYMOUS
    model: str | None = None  # alias of the requested model
    num_conversations: int = 0  # number of conversations to score
    num_errors: int = 0  # number of conversations that could not be scored
    num_tokens: int = 0  # tokens of the scored conversations
    num_computed_tokens: int = 0  # tokens that went through the model for this request
    num_cached_tokens: int = 0  # tokens of conversations answered from the cache
    tokenize_s: float = 0.0  # seconds of rendering and tokenizing
    # Seconds until the request's first conversation went to the model.
    queue_duration_s: float = 0.0
    # Seconds of the forward passes of the batches with the request's conversations.
    inference_s: float = 0.0
    code: str | None = None  # code of the error, where the request failed as a whole
    # Status of the response; 499 if the client disconnected before the end of the response, 500
    # after an unexpected exception.
    status: int = 0
    total_s: float = 0.0  # seconds from the arrival of the request to its end


CURRENT_REQUEST: ContextVar[RequestContext | None] = ContextVar("request", default=None)


def current_request() -> RequestContext:
    """Return the record of the current request; outside of a request, a record nobody reads."""
    return CURRENT_REQUEST.get() or RequestContext("-")


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
