"""Limits of what one request may ask for. Knows neither HTTP nor models."""

from __future__ import annotations

from rm_core import InvalidConversationError, ScoreError, get_messages
from serve.errors import BadRequestError


def check_num_conversations(number: int, limit: int, noun: str = "conversations") -> None:
    """Refuse a request with more conversations than one may have.

    Args:
        number: of conversations; a pair is two.
        limit: setting `max_conversations`.
        what: how the error calls them.

    Raises:
        BadRequestError: there are more.
    """
    if number > limit:
        raise BadRequestError(
            f"the request has {number:,} {noun} and the limit is {limit:,}; split it into "
            "several requests, or raise the service's setting `max_conversations`"
        )


def check_num_messages(conversation: object, limit: int) -> ScoreError | None:
    """The error that a conversation gets in its place for having too many messages, if it has.

    Args:
        conversation: as it was sent, of whatever shape, also with `tools`.
        limit: setting `max_messages`.
    """
    messages = get_messages(conversation)
    if not isinstance(messages, list | tuple) or len(messages) <= limit:
        return None
    return ScoreError.from_exception(
        InvalidConversationError(
            f"the conversation has {len(messages):,} messages and the limit is {limit:,}; "
            "drop the oldest ones, or raise the service's setting `max_messages`"
        )
    )
