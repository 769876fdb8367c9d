"""Results of conversations, pairs and groups, parsed from the service's JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_core import Reward, ScoreError

_MAX_TOKENS = 2**53


@dataclass(frozen=True, slots=True)
class ScoreResponse:
    """The results of one call, and their cost.

    Attributes:
        results: a reward or an error for each conversation, in order.
        num_computed_tokens: tokens that went through the model for this call; shared prefixes
            count once.
    """

    results: list[Reward | ScoreError]
    num_computed_tokens: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rewards of one pair.

    Attributes:
        chosen_reward: raw logit of the chosen answer.
        rejected_reward: raw logit of the rejected answer.
        margin: `chosen_reward` minus `rejected_reward`.
        probability: sigmoid of the margin.
        truncated: whether either conversation was truncated.
        warnings: warnings about either conversation.
    """

    chosen_reward: float
    rejected_reward: float
    margin: float
    probability: float
    truncated: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rewards and ranks of the answers to one prompt, in the order of the answers.

    Attributes:
        rewards: raw logits.
        ranks: 1 is the best; equal rewards share a rank.
    """

    rewards: list[float]
    ranks: list[int]

    @property
    def best_index(self) -> int:
        """Index of the (first) best answer."""
        return self.ranks.index(1)

    @classmethod
    def from_rewards(cls, rewards: Sequence[float]) -> Ranking:
        """Return the ranking of rewards."""
        ranks: dict[float, int] = {}
        for rank, reward in enumerate(sorted(rewards, reverse=True), 1):
            ranks.setdefault(reward, rank)
        return cls(list(rewards), [ranks[reward] for reward in rewards])


def read_reward(item: Mapping[str, Any]) -> Reward | ScoreError:
    """Parse a result of `/v1/score` or `/v1/rank`."""
    return read_error(item) or Reward(
        reward=_read_number(item["reward"]),
        num_tokens=read_count(item["num_tokens"]),
        truncated=bool(item["truncated"]),
        warnings=_read_texts(item.get("warnings", [])),
    )


def read_num_tokens(item: Mapping[str, Any]) -> int | ScoreError:
    """Parse a result of `/v1/render`."""
    error = read_error(item)
    return read_count(item["num_tokens"]) if error is None else error


def read_comparison(item: Mapping[str, Any]) -> Comparison | ScoreError:
    """Parse a result of `/v1/compare`."""
    return read_error(item) or Comparison(
        chosen_reward=_read_number(item["chosen_reward"]),
        rejected_reward=_read_number(item["rejected_reward"]),
        margin=_read_number(item["margin"]),
        probability=_read_number(item["probability"]),
        truncated=bool(item["truncated"]),
        warnings=_read_texts(item.get("warnings", [])),
    )


def read_error(item: Mapping[str, Any]) -> ScoreError | None:
    """Return the error of a result, if it has one."""
    error = item.get("error")
    return ScoreError(*_read_texts([error["code"], error["message"]])) if error else None


def read_count(value: Any) -> int:
    """Return a number of tokens.

    Raises:
        ValueError: `value` is not an integer from 0 to 2**53.
    """
    if type(value) is not int or not 0 <= value <= _MAX_TOKENS:
        raise ValueError(f"{str(value)[:40]!r} is not a number of tokens")
    return value


def _read_texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("an error or a warning is not text")
    return tuple(values)


def _read_number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a reward")
    return float(value)
