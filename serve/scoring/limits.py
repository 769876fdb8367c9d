"""Limits of one request, independent of HTTP and of models."""

from __future__ import annotations

from rm_core import InvalidConversationError, ScoreError, get_messages
from serve.errors import BadRequestError


def check_num_conversations(number: int, limit: int, noun: str = "conversations") -> None:
    """Refuse a request with too many conversations.

    Args:
        number: number of conversations; a pair is two.
        limit: setting `max_conversations`.
        noun: name of the items in the error message.

    Raises:
        BadRequestError: there are more conversations than the limit.
    """
    if number > limit:
        raise BadRequestError(
            f"the request has {number:,} {noun} and the limit is {limit:,}; split it into "
            "several requests, or raise the service's setting `max_conversations`"
        )


def check_num_messages(conversation: object, limit: int) -> ScoreError | None:
    """Return the error of a conversation that has too many messages, or None.

    Args:
        conversation: conversation as it was sent, of any shape, also with `tools`.
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
