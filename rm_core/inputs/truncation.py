"""Truncate conversations on the left: drop whole turns, then cut the text of one turn.

The oldest turns are dropped first, then the start of the oldest remaining turn, unless it has
images. System prompts are dropped last, and the last turn is never changed. The caller renders the
result with the template again, so every marker of the template stays whole. Pure functions: the
caller provides a function that counts tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TypeAlias

from rm_core.inputs.conversations import Content, Messages

CountTokens: TypeAlias = Callable[[Messages], int | None]
"""Return the number of tokens of a rendered conversation; None if the template refuses it."""


def drop_oldest(messages: Messages, count_tokens: CountTokens, limit: int) -> Messages | None:
    """Drop as little as possible from the start of a conversation to fit the limit.

    The oldest remaining message may lack the start of its text. None if the last turn alone exceeds
    the limit.
    """
    order = [i for i, message in enumerate(messages[:-1]) if message["role"] != "system"]
    order += [i for i, message in enumerate(messages[:-1]) if message["role"] == "system"]

    def drop(num_dropped: int) -> Messages:
        return _cut(messages, order, num_dropped, "")

    def fits(num_dropped: int) -> bool:
        # If the template refuses a candidate, the next candidate that it renders decides. If there
        # is none, the candidate counts as fitting, which keeps the binary search monotonic.
        for num_removed in range(num_dropped, len(order) + 1):
            num_tokens = count_tokens(drop(num_removed))
            if num_tokens is not None:
                return num_tokens <= limit
        return True

    first = bisect_left(range(len(order) + 1), True, key=fits)
    for num_dropped in range(first, len(order) + 1):
        num_tokens = count_tokens(drop(num_dropped))
        if num_tokens is not None and num_tokens <= limit:
            return _refill(messages, order, num_dropped, (count_tokens, limit))
    return None


def _drop(messages: Messages, order: list[int], num_dropped: int) -> Messages:
    dropped = set(order[:num_dropped])
    return [message for index, message in enumerate(messages) if index not in dropped]


def _cut(messages: Messages, order: list[int], num_dropped: int, text: str) -> Messages:
    """Drop `order[:num_dropped]`, and replace the content of the next message by `text`."""
    if num_dropped == len(order):
        return _drop(messages, order, num_dropped)
    partial = messages[order[num_dropped]]
    kept = _drop(messages, order, num_dropped)
    return [{**m, "content": text} if m is partial else m for m in kept]


def _refill(
    messages: Messages, order: list[int], num_dropped: int, budget: tuple[CountTokens, int]
) -> Messages:
    """Keep as much of the end of the cut turn's text as fits. Avoids an empty turn if possible."""
    count_tokens, limit = budget
    if num_dropped == len(order):
        return _drop(messages, order, num_dropped)
    content: Content = messages[order[num_dropped]]["content"]

    def fits(candidate: Messages) -> bool:
        num_tokens = count_tokens(candidate)
        return num_tokens is not None and num_tokens <= limit

    if not isinstance(content, str):  # a turn with images is dropped whole
        without = _drop(messages, order, num_dropped + 1)
        return without if fits(without) else _cut(messages, order, num_dropped, "")

    start = bisect_left(
        range(len(content)),
        True,
        key=lambda start: fits(_cut(messages, order, num_dropped, content[start:])),
    )
    without = _drop(messages, order, num_dropped + 1)
    if content and start == len(content) and fits(without):
        return without
    return _cut(messages, order, num_dropped, content[start:])
