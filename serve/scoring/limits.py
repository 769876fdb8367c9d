"""Options and limits of one request, independent of HTTP and of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_not

from rm_core import (
    InvalidConversationError,
    PrerenderedText,
    PrerenderedTokens,
    ScoreError,
    Truncation,
    get_messages,
)
from serve.errors import BadRequestError, RequestTooLargeError
from serve.telemetry.logging import ANONYMOUS

# Approximate number of characters that a template writes around a message.
_CHARACTERS_PER_MESSAGE = 16


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a request asks for, and its limits.

    Attributes:
        client: client whose fair share the request counts toward.
        priority: of the client's requests, those with a lower value go first.
        truncation: what to do with conversations that are too long.
        max_length: maximum number of tokens in a conversation, if less than the model's limit.
        max_messages: see the setting.
        max_queued_tokens: see the setting.
        max_request_characters: maximum of all conversations together; a prompt counts for each of
            its answers.
        max_request_tokens: maximum of all conversations together.
    """

    client: str = ANONYMOUS
    priority: int = 0
    truncation: Truncation = "error"
    max_length: int | None = None
    max_messages: int = 1_000
    max_queued_tokens: int = 2_000_000
    max_request_characters: int = 268_435_456
    max_request_tokens: int = 100_000_000


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


def check_num_tokens(num_tokens: int, limit: int, num_done: int, number: int) -> None:
    """Refuse a request with too many tokens.

    Args:
        num_tokens: number of tokens in the conversations that are tokenized.
        limit: maximum number of tokens.
        num_done: number of conversations that are tokenized.
        number: number of conversations of the request.

    Raises:
        RequestTooLargeError: there are more tokens than the limit.
    """
    if num_tokens > limit:
        raise RequestTooLargeError(
            f"the first {num_done:,} of the request's {number:,} conversations have "
            f"{num_tokens:,} tokens and the limit is {limit:,}; split it into several requests"
        )


def estimate_sizes(conversations: Sequence[object], limit: int) -> list[int]:
    """Estimate the characters (or token ids) of each conversation, shared ones counted each time.

    Args:
        conversations: conversations of a request.
        limit: maximum number of characters.

    Raises:
        RequestTooLargeError: the conversations have more characters together than the limit.
    """
    sizes: list[int] = []
    total = 0
    tools_sizes: dict[int, int] = {}
    previous: Sequence[object] = ()
    prompt_size = 0
    for conversation in conversations:
        if isinstance(conversation, PrerenderedText):
            size = len(conversation.text)
        elif isinstance(conversation, PrerenderedTokens):
            # A token id is checked and decoded as fast as a character.
            size = len(conversation.input_ids)
        else:
            messages = get_messages(conversation)
            messages = messages if isinstance(messages, list | tuple) else ()
            # Answers to one prompt: the prompt's messages are the same objects each time.
            if len(messages) != len(previous) or any(map(is_not, messages[:-1], previous[:-1])):
                prompt_size = _estimate_message_sizes(messages[:-1])
            previous = messages
            size = prompt_size + _estimate_message_sizes(messages[-1:])
            if isinstance(conversation, Mapping) and (tools := conversation.get("tools")):
                # Tools are rendered for each conversation, but all of a request may have one list.
                if id(tools) not in tools_sizes:
                    tools_sizes[id(tools)] = _count_characters(tools)
                size += tools_sizes[id(tools)]
        sizes.append(size)
        total += size
        if total > limit:
            raise RequestTooLargeError(
                f"the request's {len(conversations):,} conversations have more than {limit:,} "
                "characters together, a prompt counted for each of its answers; split it into "
                "several requests"
            )
    return sizes


def _estimate_message_sizes(messages: Sequence[object]) -> int:
    """Estimate the characters of messages; those of another shape are refused quickly."""
    size = _CHARACTERS_PER_MESSAGE * len(messages)
    for message in messages:
        if isinstance(message, dict):
            content = message.get("content")
            # Otherwise there are content parts, or keys that the template may render too.
            if isinstance(content, str) and len(message) <= 2:
                size += len(content)
            else:
                size += _count_characters(message)
    return size


def _count_characters(value: object) -> int:
    """Count the characters of all strings in a value, including keys."""
    size, stack = 0, [value]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            size += len(node)
        elif isinstance(node, Mapping):
            stack += [*node.keys(), *node.values()]
        elif isinstance(node, list | tuple):
            stack += node
    return size
