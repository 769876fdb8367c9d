"""HTTP responses written by hand, where no application is reached: by uvicorn or by HAProxy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

# Until a request's head is whole; the body's time is the gateway's business.
HEAD_TIMEOUT_S = 30
_RETRY_AFTER_S = 5


class RawErrorResponse(NamedTuple):
    """An error that is answered before, or instead of, an application."""

    status: int
    reason: str
    type: str
    code: str
    message: str

    def to_bytes(self) -> bytes:
        """The whole response, in the shape of all other errors; the connection ends with it."""
        error = {"message": self.message, "type": self.type, "param": None, "code": self.code}
        body = json.dumps({"error": error})
        head = [
            f"HTTP/1.1 {self.status} {self.reason}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *([f"Retry-After: {_RETRY_AFTER_S}"] if self.status == 503 else []),
            "Connection: close",
        ]
        return "\r\n".join([*head, "", body]).encode()


BAD_REQUEST = RawErrorResponse(
    400,
    "Bad Request",
    "invalid_request_error",
    "bad_request",
    "this is no HTTP request that can be read",
)
HEAD_TIMEOUT = RawErrorResponse(
    408,
    "Request Timeout",
    "invalid_request_error",
    "request_timeout",
    f"the request's head did not arrive within {HEAD_TIMEOUT_S} s",
)
_UNAVAILABLE = RawErrorResponse(
    503,
    "Service Unavailable",
    "overloaded_error",
    "gateway_unavailable",
    "no gateway could answer; send the request again",
)
# By what HAProxy would have answered: 502 is a gateway that died with the request, 503 none there.
_ERRORS = {
    400: BAD_REQUEST,
    408: HEAD_TIMEOUT,
    502: _UNAVAILABLE,
    503: _UNAVAILABLE,
    504: _UNAVAILABLE,
}


def write_error_pages(folder: Path) -> None:
    """Write what HAProxy answers by itself once it has read a request's head.

    Args:
        folder: made here; `STATUS.http` each.
    """
    folder.mkdir()
    for code, refusal in _ERRORS.items():
        (folder / f"{code}.http").write_bytes(refusal.to_bytes())
