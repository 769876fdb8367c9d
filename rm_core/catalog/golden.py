"""Rewards that others have printed for known conversations: what `skyreward verify` compares with.

Reads `seeds/golden_scores.json`. Start at `get_golden_rewards`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rm_core.catalog.entries import CatalogEntry, Status, find_entry, load_json, load_sources
from rm_core.strict_dataclass import read_with_sources


@dataclass(frozen=True, slots=True)
class GoldenMessage:
    """One turn of a golden conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Observation:
    """Another reward seen for the same conversation, and with which engine."""

    reward: float
    engine: str
    source: str


@dataclass(frozen=True, slots=True)
class GoldenScore:
    """The reward that was printed for a conversation.

    Attributes:
        model: id of the catalogue entry.
        conversation: key into `load_conversations()`.
        reward: as printed; may be rounded to four places.
        engine: what computed it.
        dtype: of the weights and activations.
        source: key into `rm_core.catalog.entries.load_sources()`.
        status: how sure it is.
        also_observed: other printed values, none of them more right than `reward`.
        stated_tolerance: absolute; what the source itself allows, None where it names nothing.
    """

    model: str
    conversation: str
    reward: float
    engine: str
    dtype: str
    source: str
    status: Status
    also_observed: tuple[Observation, ...] = ()
    stated_tolerance: float | None = None

    @property
    def messages(self) -> tuple[GoldenMessage, ...]:
        """The conversation itself, oldest turn first."""
        return load_conversations()[self.conversation]

    @property
    def bfloat16_step(self) -> float:
        """Distance of neighbouring bfloat16 numbers at this reward: the least one can ask for."""
        return math.ldexp(1.0, math.frexp(self.reward)[1] - 8)


@dataclass(frozen=True, slots=True)
class TokenLength:
    """How many tokens a conversation must have once it is rendered and tokenized."""

    model: str
    messages: tuple[GoldenMessage, ...]
    num_tokens: int
    source: str
    status: Status
    note: str = ""


@dataclass(frozen=True, slots=True)
class GoldenRewards:
    """All that is printed for one checkpoint; both parts may be empty."""

    scores: tuple[GoldenScore, ...]
    token_lengths: tuple[TokenLength, ...]


@dataclass(frozen=True, slots=True)
class _GoldenFile:
    conversations: Mapping[str, tuple[GoldenMessage, ...]]
    scores: tuple[GoldenScore, ...]
    token_lengths: tuple[TokenLength, ...]

    def __post_init__(self) -> None:
        for score in self.scores:
            if score.conversation not in self.conversations:
                raise ValueError(f"there is no conversation {score.conversation!r}")


@functools.cache
def _load() -> _GoldenFile:
    name = "golden_scores.json"
    return read_with_sources(_GoldenFile, load_json(name), load_sources(), name)


def load_conversations() -> Mapping[str, tuple[GoldenMessage, ...]]:
    """The golden conversations by their keys."""
    return _load().conversations


def get_golden_rewards(model: CatalogEntry | str) -> GoldenRewards:
    """What is printed for a checkpoint, in file order; nothing for one that is not known."""
    entry = find_entry(model) if isinstance(model, str) else model
    wanted = entry.id if entry else None
    return GoldenRewards(
        scores=tuple(score for score in _load().scores if score.model == wanted),
        token_lengths=tuple(item for item in _load().token_lengths if item.model == wanted),
    )
