"""What is asked of a service: how many conversations, how long, how many to a prompt. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from serve.errors import PlanError

# Bytes of JSON of a token: posts of 4 KB had 1,230 tokens (`tests/stress/overhead.py`).
_BYTES_PER_TOKEN = 3.4


@dataclass(frozen=True, slots=True)
class Load:
    """A post is a group: a prompt with several responses, scored together.

    Attributes:
        conversations_per_s: on average.
        prompt_tokens: what the conversations of a group share at their start.
        response_tokens: what each of them has for itself.
        group_size: conversations of a post.
        cached_share: of the conversations, how many the score cache answers; 0 to 1.

    Raises:
        PlanError: for a value that makes no sense.
    """

    conversations_per_s: float
    prompt_tokens: int
    response_tokens: int
    group_size: int
    cached_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.cached_share < 1:
            raise PlanError(f"cached_share is {self.cached_share:g}; give 0 to less than 1")
        if self.conversations_per_s <= 0:
            raise PlanError("a plan needs a load above 0 conversations/s")

    @property
    def group_tokens(self) -> int:
        """Distinct tokens of a post: the prompt once."""
        return self.prompt_tokens + self.group_size * self.response_tokens

    @property
    def conversation_tokens(self) -> int:
        """Tokens of one conversation, what it shares too."""
        return self.prompt_tokens + self.response_tokens

    @property
    def requests_per_s(self) -> float:
        """On average."""
        return self.conversations_per_s / self.group_size

    @property
    def request_bytes(self) -> float:
        """Of the body of a post that has the prompt in every conversation."""
        return self.group_size * self.conversation_tokens * _BYTES_PER_TOKEN
