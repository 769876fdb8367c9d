"""The load of a service: conversations per second, their lengths, conversations per prompt."""

from __future__ import annotations

from dataclasses import dataclass

from serve.errors import PlanError

# Bytes of JSON per token: requests of 4 KB had 1,230 tokens (`tests/stress/overhead.py`).
_BYTES_PER_TOKEN = 3.4


@dataclass(frozen=True, slots=True)
class Load:
    """A load of requests, each with one group: a prompt with several responses.

    Attributes:
        conversations_per_s: mean rate.
        prompt_tokens: tokens of the prompt, which the conversations of a group share.
        response_tokens: tokens of each response.
        group_size: conversations of a request.
        cached_share: share of the conversations that the score cache answers, from 0 to 1.

    Raises:
        PlanError: `cached_share` or `conversations_per_s` is out of range.
    """

    conversations_per_s: float
    prompt_tokens: int
    response_tokens: int
    group_size: int
    cached_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.cached_share < 1:
            raise PlanError(
                f"cached_share is {self.cached_share:g}; it must be at least 0 and less than 1"
            )
        if self.conversations_per_s <= 0:
            raise PlanError("a plan needs a load above 0 conversations/s")

    @property
    def group_tokens(self) -> int:
        """Distinct tokens of a request, with the prompt counted once."""
        return self.prompt_tokens + self.group_size * self.response_tokens

    @property
    def conversation_tokens(self) -> int:
        """Tokens of one conversation, including the shared prompt."""
        return self.prompt_tokens + self.response_tokens

    @property
    def requests_per_s(self) -> float:
        """Mean rate of requests."""
        return self.conversations_per_s / self.group_size

    @property
    def request_bytes(self) -> float:
        """Size of a request body that repeats the prompt in every conversation."""
        return self.group_size * self.conversation_tokens * _BYTES_PER_TOKEN
