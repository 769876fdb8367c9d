"""Truncation on the left, in whole turns and then in the text of one turn.

What is dropped is what a reader misses least: the oldest turns, then the start of the oldest turn
that stays; a system prompt goes last of all; the last turn is never touched. The caller renders
what is left by the template again, so every marker of the template stays whole. Pure: the size of
a candidate comes from a function.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TypeAlias

from rm_core.inputs.conversations import Messages

CountTokens: TypeAlias = Callable[[Messages], int | None]
"""Tokens of a conversation as the template renders it; None where the template refuses it."""


def drop_oldest(messages: Messages, count_tokens: CountTokens, limit: int) -> Messages | None:
    """The longest newest part of a conversation that fits.

    Args:
        messages: the whole conversation; it does not fit.
        size: see `CountTokens`.
        limit: most tokens that the result may have.

    Returns:
        What stays, its oldest turn possibly without the start of its text; None if not even the
        last turn alone fits.
    """
    order = [i for i, message in enumerate(messages[:-1]) if message["role"] != "system"]
    order += [i for i, message in enumerate(messages[:-1]) if message["role"] == "system"]

    def emptied(num_dropped: int) -> Messages:
        return _cut(messages, order, num_dropped, "")

    def fits(num_dropped: int) -> bool:
        # A state that the template refuses counts as the next one that it renders, and as one
        # that fits if there is none: else the last states would break the order of the search.
        for state in range(num_dropped, len(order) + 1):
            tokens = count_tokens(emptied(state))
            if tokens is not None:
                return tokens <= limit
        return True

    first = bisect_left(range(len(order) + 1), True, key=fits)
    for state in range(first, len(order) + 1):
        tokens = count_tokens(emptied(state))
        if tokens is not None and tokens <= limit:
            return _refill(messages, order, state, (count_tokens, limit))
    return None


def _drop(messages: Messages, order: list[int], num_dropped: int) -> Messages:
    gone = set(order[:num_dropped])
    return [message for index, message in enumerate(messages) if index not in gone]


def _cut(messages: Messages, order: list[int], num_dropped: int, text: str) -> Messages:
    """`order[:num_dropped]` dropped, and `text` in the place of the next one's content."""
    if num_dropped == len(order):
        return _drop(messages, order, num_dropped)
    partial = messages[order[num_dropped]]
    kept = _drop(messages, order, num_dropped)
    return [{**m, "content": text} if m is partial else m for m in kept]


def _refill(
    messages: Messages, order: list[int], state: int, budget: tuple[CountTokens, int]
) -> Messages:
    """As much of the end of the partial turn's text as still fits; no empty turn if avoidable."""
    size, limit = budget
    if state == len(order):
        return _drop(messages, order, state)
    content: str = messages[order[state]]["content"]

    def fits(candidate: Messages) -> bool:
        tokens = size(candidate)
        return tokens is not None and tokens <= limit

    start = bisect_left(
        range(len(content)),
        True,
        key=lambda start: fits(_cut(messages, order, state, content[start:])),
    )
    without = _drop(messages, order, state + 1)
    if content and start == len(content) and fits(without):
        return without
    return _cut(messages, order, state, content[start:])
