"""HTTP responses that uvicorn or HAProxy send without reaching the application."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

# Seconds until a request's head has to be complete; the gateway limits the time of the body.
HEAD_TIMEOUT_S = 30
_RETRY_AFTER_S = 5


class RawErrorResponse(NamedTuple):
    """An error response that is sent before, or instead of, the application's response."""

    status: int
    reason: str
    type: str
    code: str
    message: str

    def to_bytes(self) -> bytes:
        """Return the whole HTTP response, in the native error format, with `Connection: close`."""
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
    "the request is not valid HTTP",
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
# By the status that HAProxy would send: 502 means that a gateway died during the request, 503 that
# no gateway is available.
_ERRORS = {
    400: BAD_REQUEST,
    408: HEAD_TIMEOUT,
    502: _UNAVAILABLE,
    503: _UNAVAILABLE,
    504: _UNAVAILABLE,
}


def write_error_pages(folder: Path) -> None:
    """Write the error responses that HAProxy sends itself once it has read a request's head.

    Args:
        folder: folder to create; each response is a file `STATUS.http`.
    """
    folder.mkdir()
    for status, response in _ERRORS.items():
        (folder / f"{status}.http").write_bytes(response.to_bytes())
