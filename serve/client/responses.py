"""Response bodies, read within limits, and the results in them.

A body is read incrementally, compressed or not, so that a hostile service cannot fill the memory.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from rm_core import Reward, ScoreError

MAX_ANSWER_BYTES = 64 * 2**20
"""The results of 20,000 conversations take about 3 MiB, and 20 MiB with several warnings each."""
_MAX_CONTAINERS = 2_000_000
_EXCERPT_CHARS = 200
_MAX_TOKENS = 2**53


@dataclass(frozen=True, slots=True)
class ResultsWithUsage:
    """The results of one call, and their cost.

    Attributes:
        results: a reward or an error for each conversation, in order.
        num_computed_tokens: tokens that went through the model for this call; shared prefixes
            count once.
        num_cached_tokens: tokens of the conversations whose rewards the service had computed
            before.
    """

    results: list[Reward | ScoreError]
    num_computed_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rewards of one pair.

    Attributes:
        chosen_reward: raw logit of the chosen answer.
        rejected_reward: raw logit of the rejected answer.
        margin: `chosen_reward` minus `rejected_reward`.
        probability: sigmoid of the margin.
        truncated: whether either conversation was truncated.
        warnings: warnings about either conversation.
    """

    chosen_reward: float
    rejected_reward: float
    margin: float
    probability: float
    truncated: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rewards and ranks of the answers to one prompt, in the order of the answers.

    Attributes:
        rewards: raw logits.
        ranks: 1 is the best; equal rewards share a rank.
    """

    rewards: list[float]
    ranks: list[int]

    @property
    def best_index(self) -> int:
        """Index of the (first) best answer."""
        return self.ranks.index(1)

    @classmethod
    def from_rewards(cls, rewards: Sequence[float]) -> Ranking:
        """Return the ranking of rewards."""
        ranks: dict[float, int] = {}
        for rank, reward in enumerate(sorted(rewards, reverse=True), 1):
            ranks.setdefault(reward, rank)
        return cls(list(rewards), [ranks[reward] for reward in rewards])


def read_reward(item: Mapping[str, Any]) -> Reward | ScoreError:
    """Parse a result of `/v1/score` or `/v1/rank`."""
    return read_error(item) or Reward(
        reward=_read_number(item["reward"]),
        num_tokens=read_count(item["num_tokens"]),
        truncated=bool(item["truncated"]),
        warnings=_read_texts(item.get("warnings", [])),
    )


def read_num_tokens(item: Mapping[str, Any]) -> int | ScoreError:
    """Parse a result of `/v1/render`."""
    error = read_error(item)
    return read_count(item["num_tokens"]) if error is None else error


def read_comparison(item: Mapping[str, Any]) -> Comparison | ScoreError:
    """Parse a result of `/v1/compare`."""
    return read_error(item) or Comparison(
        chosen_reward=_read_number(item["chosen_reward"]),
        rejected_reward=_read_number(item["rejected_reward"]),
        margin=_read_number(item["margin"]),
        probability=_read_number(item["probability"]),
        truncated=bool(item["truncated"]),
        warnings=_read_texts(item.get("warnings", [])),
    )


def read_error(item: Mapping[str, Any]) -> ScoreError | None:
    """Return the error of a result, if it has one."""
    error = item.get("error")
    return ScoreError(*_read_texts([error["code"], error["message"]])) if error else None


def read_count(value: Any) -> int:
    """Return a number of tokens.

    Raises:
        ValueError: `value` is not an integer from 0 to 2**53.
    """
    if type(value) is not int or not 0 <= value <= _MAX_TOKENS:
        raise ValueError(f"{str(value)[:40]!r} is not a number of tokens")
    return value


def _read_texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("an error or a warning is not text")
    return tuple(values)


def _read_number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a reward")
    return float(value)


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
