"""Every pair of responses of which a benchmark knows the better one, and the model's margin."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from rm_core.benchmarks.base import Item, Preference, ScoredItem


class Pair(NamedTuple):
    """One pair.

    Attributes:
        one: the item, with its rewards.
        preference: which two of its responses.
        margin: reward of the better response less that of the worse.
        longer: characters of the better response less those of the worse.
        prompt: characters of the prompt's messages.
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
    """All pairs, in the order of the items."""
    return [pair for one in scored for pair in _iter_pairs(one)]


def get_content(message: dict[str, Any]) -> str:
    """The text of a message, whatever it is."""
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _iter_pairs(one: ScoredItem) -> Iterable[Pair]:
    prompt = _count_characters(one.item)
    for preference in one.item.preferences:
        better, worse = preference
        margin = one.rewards[better] - one.rewards[worse]
        longer = len(one.item.responses[better]) - len(one.item.responses[worse])
        yield Pair(one, preference, margin, longer, prompt)


def _count_characters(item: Item) -> int:
    return sum(len(get_content(message)) for message in item.prompt)
