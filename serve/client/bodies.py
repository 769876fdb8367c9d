"""Response bodies, read incrementally and within a size limit, compressed or not."""

from __future__ import annotations

import json
import time
import zlib
from typing import Any

import httpx

MAX_ANSWER_BYTES = 64 * 2**20
"""The results of 20,000 conversations take about 3 MiB, and 20 MiB with several warnings each."""
_MAX_CONTAINERS = 2_000_000
_EXCERPT_CHARS = 200


class UnreadableAnswerError(httpx.HTTPError):
    """A response is too large, takes too long or has an encoding that was not requested."""


class ResponseBody:
    """Collects the body of one response.

    Args:
        response: response whose headers have arrived and whose body is not read yet.
        max_bytes: maximum size of the body in bytes, uncompressed.
        timeout_s: seconds from now in which the whole body has to arrive.

    Raises:
        UnreadableAnswerError: the body has an encoding other than gzip.
    """

    def __init__(self, response: httpx.Response, max_bytes: int, timeout_s: float) -> None:
        self._response = response
        self._max_bytes = max_bytes
        self._deadline = time.monotonic() + timeout_s
        self._content = bytearray()
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", ""):
            raise UnreadableAnswerError(
                f"it is encoded as {encoding[:80]!r}, but gzip was requested"
            )
        self._decompressor = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding == "gzip" else None

    def feed(self, data: bytes) -> None:
        """Add the next bytes of the body, as received.

        Raises:
            UnreadableAnswerError: the body is too large, arrives too slowly or is not valid gzip.
        """
        num_remaining = self._max_bytes - len(self._content)
        if self._decompressor is not None:
            try:
                data = self._decompressor.decompress(data, num_remaining + 1)
            except zlib.error as error:
                raise UnreadableAnswerError(f"it cannot be decompressed ({error})") from error
        if len(data) > num_remaining:
            raise UnreadableAnswerError(
                f"it has more than {self._max_bytes:,} bytes; send fewer conversations in a "
                "request (max_items), or allow more bytes (max_answer_bytes)"
            )
        self._content += data
        if time.monotonic() > self._deadline:
            raise UnreadableAnswerError("it arrives too slowly; allow more time (timeout_s)")

    def build_response(self) -> httpx.Response:
        """Return the complete response.

        Raises:
            UnreadableAnswerError: the compressed body is incomplete.
        """
        if self._decompressor is not None and self._content and not self._decompressor.eof:
            raise UnreadableAnswerError("it cannot be decompressed (its end is missing)")
        kept = {"Content-Type", "Retry-After"} & {n.title() for n in self._response.headers}
        return httpx.Response(
            self._response.status_code,
            headers={name: self._response.headers[name] for name in kept},
            content=bytes(self._content),
        )


def parse_json_object(response: httpx.Response) -> dict[str, Any] | None:
    """Return the JSON object of a response; None for any other body or far too many containers."""
    content = response.content
    # Empty lists and objects take 30 times as much memory as their JSON has bytes.
    if content.count(b"[") + content.count(b"{") > _MAX_CONTAINERS:
        return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def excerpt(response: httpx.Response) -> str:
    """Return the beginning of a response body, for a message."""
    # Not `response.text`: the response names the codec, and could name one that decompresses.
    return response.content[: 4 * _EXCERPT_CHARS].decode(errors="replace")[:_EXCERPT_CHARS]
