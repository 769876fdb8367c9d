"""Golden rewards: published rewards of known conversations, the references of `skyreward verify`.

The data comes from `seeds/golden_scores.json`. Start at `get_golden_rewards`.
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
    """Another published reward of the same conversation, and the engine that computed it."""

    reward: float
    engine: str
    source: str


@dataclass(frozen=True, slots=True)
class GoldenScore:
    """The published reward of a conversation."""

    model: str  # id of the catalog entry
    conversation: str  # key in `load_conversations()`
    reward: float  # reward as published; may be rounded to four decimal places
    engine: str  # engine that computed the reward
    dtype: str  # dtype of weights and activations
    source: str  # key in `rm_core.catalog.entries.load_sources()`
    status: Status  # how the value is confirmed
    also_observed: tuple[Observation, ...] = ()  # other published values, each as valid as `reward`
    # Absolute tolerance that the source states; None if it states none.
    stated_tolerance: float | None = None

    @property
    def messages(self) -> tuple[GoldenMessage, ...]:
        """Messages of the conversation, oldest turn first."""
        return load_conversations()[self.conversation]

    @property
    def bfloat16_step(self) -> float:
        """Distance of adjacent bfloat16 numbers at this reward: the smallest useful tolerance."""
        return math.ldexp(1.0, math.frexp(self.reward)[1] - 8)


@dataclass(frozen=True, slots=True)
class TokenLength:
    """Number of tokens of a conversation after rendering and tokenizing."""

    model: str
    messages: tuple[GoldenMessage, ...]
    num_tokens: int
    source: str
    status: Status
    note: str = ""


@dataclass(frozen=True, slots=True)
class GoldenRewards:
    """All published references of one checkpoint. Both fields may be empty."""

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
                raise ValueError(f"unknown conversation {score.conversation!r}")


@functools.cache
def _load() -> _GoldenFile:
    name = "golden_scores.json"
    return read_with_sources(_GoldenFile, load_json(name), load_sources(), name)


def load_conversations() -> Mapping[str, tuple[GoldenMessage, ...]]:
    """Return the golden conversations by key."""
    return _load().conversations


def get_golden_rewards(model: CatalogEntry | str) -> GoldenRewards:
    """Return the references of a checkpoint, in file order; empty for an unknown checkpoint."""
    entry = find_entry(model) if isinstance(model, str) else model
    model_id = entry.id if entry else None
    return GoldenRewards(
        scores=tuple(score for score in _load().scores if score.model == model_id),
        token_lengths=tuple(item for item in _load().token_lengths if item.model == model_id),
    )
