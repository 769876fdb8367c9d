"""Log format and request ids. Nothing is configured at import; message text is never logged."""

from __future__ import annotations

import logging
import re
import uuid
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="-")

_ACCEPTABLE_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


def configure_logging(level: str) -> None:
    """Send the project's own loggers to standard error, one line a record. Idempotent."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")
    )
    handler.addFilter(_with_request_id)
    for name in ("serve", "rm_core"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def new_id(prefix: str) -> str:
    """A fresh identifier, such as `score-5f0c...`."""
    return f"{prefix}-{uuid.uuid4().hex}"


def accept_request_id(sent: str | None) -> str:
    """The caller's `X-Request-Id` if it is fit to be logged and echoed, else a fresh one."""
    return sent if sent and _ACCEPTABLE_ID.fullmatch(sent) else new_id("req")


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True
