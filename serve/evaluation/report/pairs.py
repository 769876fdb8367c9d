"""Pairs of responses with a known better one, and the model's margins."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from rm_core.benchmarks.base import Item, Preference, ScoredItem


class Pair(NamedTuple):
    """A pair of responses of an item.

    Attributes:
        scored_item: the item with its rewards.
        preference: indices of the better and the worse response.
        margin: reward of the better response minus reward of the worse response.
        length_difference: characters of the better response minus those of the worse response.
        prompt_length: characters of the prompt's messages.
    """

    scored_item: ScoredItem
    preference: Preference
    margin: float
    length_difference: int
    prompt_length: int

    @property
    def correct(self) -> float:
        """1 if the better response has the higher reward, else 0."""
        return float(self.margin > 0)


def build_pairs(scored: Iterable[ScoredItem]) -> list[Pair]:
    """Return all pairs, in the order of the items."""
    return [pair for one in scored for pair in _iter_pairs(one)]


def get_content(message: dict[str, Any]) -> str:
    """Return the content of a message as text; content other than text as JSON."""
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _iter_pairs(one: ScoredItem) -> Iterable[Pair]:
    prompt_length = _count_characters(one.item)
    for preference in one.item.preferences:
        better, worse = preference
        margin = one.rewards[better] - one.rewards[worse]
        length_difference = len(one.item.responses[better]) - len(one.item.responses[worse])
        yield Pair(one, preference, margin, length_difference, prompt_length)


def _count_characters(item: Item) -> int:
    return sum(len(get_content(message)) for message in item.prompt)
