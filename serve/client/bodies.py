"""The body of an answer, read piece by piece and never past a limit, compressed or not."""

from __future__ import annotations

import json
import time
import zlib
from typing import Any

import httpx

MAX_ANSWER_BYTES = 64 * 2**20
"""Results of 20,000 conversations take about 3 MiB, and 20 MiB with several warnings each."""
_MAX_CONTAINERS = 2_000_000
_EXCERPT_CHARS = 200


class UnreadableAnswerError(httpx.HTTPError):
    """An answer that is too large, takes too long or is not encoded as was asked."""


class ResponseBody:
    """Collects the body of one answer.

    Args:
        response: whose head is there; its body is not read yet.
        max_bytes: most bytes, unpacked.
        timeout_s: seconds from now in which the whole body has to arrive.

    Raises:
        UnreadableAnswerError: it is encoded otherwise than by gzip.
    """

    def __init__(self, response: httpx.Response, max_bytes: int, timeout_s: float) -> None:
        self._response = response
        self._max_bytes = max_bytes
        self._deadline = time.monotonic() + timeout_s
        self._content = bytearray()
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", ""):
            raise UnreadableAnswerError(f"it is encoded as {encoding[:80]!r}, and gzip was asked")
        self._decompressor = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding == "gzip" else None

    def feed(self, data: bytes) -> None:
        """The next bytes as they came.

        Raises:
            UnreadableAnswerError: it is too large, too slow, or no gzip.
        """
        room = self._max_bytes - len(self._content)
        if self._decompressor is not None:
            try:
                data = self._decompressor.decompress(data, room + 1)
            except zlib.error as error:
                raise UnreadableAnswerError(f"it cannot be unpacked ({error})") from error
        if len(data) > room:
            raise UnreadableAnswerError(
                f"it has more than {self._max_bytes:,} bytes; post fewer conversations at a time "
                "(max_items), or allow more (max_answer_bytes)"
            )
        self._content += data
        if time.monotonic() > self._deadline:
            raise UnreadableAnswerError("it comes too slowly; allow more time (timeout_s)")

    def build_response(self) -> httpx.Response:
        """The whole answer.

        Raises:
            UnreadableAnswerError: it was cut off.
        """
        if self._decompressor is not None and self._content and not self._decompressor.eof:
            raise UnreadableAnswerError("it cannot be unpacked (its end is missing)")
        kept = {"Content-Type", "Retry-After"} & {n.title() for n in self._response.headers}
        return httpx.Response(
            self._response.status_code,
            headers={name: self._response.headers[name] for name in kept},
            content=bytes(self._content),
        )


def parse_json_object(response: httpx.Response) -> dict[str, Any] | None:
    """The JSON object of an answer; None if it is none, or none that a service would write."""
    content = response.content
    # Empty lists and objects take 30 times as much memory as bytes.
    if content.count(b"[") + content.count(b"{") > _MAX_CONTAINERS:
        return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def excerpt(response: httpx.Response) -> str:
    """The beginning of an answer, for a message."""
    # Not `text`: the answer names the codec, and may name one that unpacks.
    return response.content[: 4 * _EXCERPT_CHARS].decode(errors="replace")[:_EXCERPT_CHARS]
