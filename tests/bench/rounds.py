"""Measuring side by side: the ways take turns, and only neighbours in time are compared.

A machine's speed wanders, by a factor of two on shared ones. So every round runs every way once,
each round begins with another one, the matrix rate is measured before and after each, ratios are
taken within a round, and what is told is the median of the rounds. A way begins when the last one
has come to rest.

Prompts outlive batches in the caches of services, so every way gets conversations in every round
that nobody has seen: the workload behind another salt. Rewards are compared in a warm-up, which
gives the same conversations to all ways, twice, so that the second time prompts are cached.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from machine import Need
from ways import ONE_BY_ONE, Way
from workloads import Conversations, draw_salt, with_salt

_WARM_UP = 8  # conversations
# Pause after each way. For a second after its last answer, vLLM's worker polls on a whole core.
_SETTLE_S = 1.5


@dataclass(frozen=True, slots=True)
class Measured:
    """One workload through all ways.

    Attributes:
        need: what the workload consists of.
        seconds: of each way, one number a round; fewer where a way sat out the last rounds.
        rates: the matrix rate around each of them, operations per second.
        computed: of each way, tokens that went through the model, one number a round; empty where
            a way does not tell.
        differences: of each way, the largest from the rewards of `reference`.
        reference: plain transformers one by one, or if that is left out the first way.
    """

    need: Need
    seconds: Mapping[str, Sequence[float]]
    rates: Mapping[str, Sequence[float]]
    computed: Mapping[str, Sequence[int]]
    differences: Mapping[str, float]
    reference: str

    def tokens_per_s(self, way: str) -> float:
        """Over all tokens of the conversations, shared or not."""
        return self.need.tokens / statistics.median(self.seconds[way])

    def ratios(self, way: str, other: str) -> list[float]:
        """How many times as fast as the other one, in each round that both took part in."""
        return [o / s for s, o in zip(self.seconds[way], self.seconds[other], strict=False)]

    def matrix_share(self, way: str) -> float:
        """The share of the matrix rate that the way reaches on the distinct tokens."""
        pairs = zip(self.seconds[way], self.rates[way], strict=True)
        return statistics.median(self.need.operations / s / rate for s, rate in pairs)

    def computed_tokens(self, way: str) -> int | None:
        """Tokens that went through the model in a round; None where the way does not tell."""
        computed = self.computed[way]
        return statistics.median_low(computed) if computed else None

    def record(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """As plain data, with the ratios of the pairs given."""
        need = self.need
        return {
            "conversations": need.conversations,
            "tokens": need.tokens,
            "distinct_tokens": need.distinct_tokens,
            "longest": need.longest,
            "ways": {
                way: {
                    "tokens_per_s": round(self.tokens_per_s(way), 1),
                    "seconds": [round(s, 3) for s in seconds],
                    "computed_tokens": self.computed_tokens(way),
                    "matrix_share": round(self.matrix_share(way), 4),
                    "largest_difference": self.differences[way],
                }
                for way, seconds in self.seconds.items()
            },
            "ratios": {
                f"{way} / {other}": round(statistics.median(self.ratios(way, other)), 3)
                for way, other in pairs
            },
        }


def measure(
    ways: Mapping[str, Way],
    conversations: Conversations,
    need: Need,
    rounds: Callable[[str], int],
    matrix_rate: Callable[[], float],
) -> Measured:
    """Run every way over the conversations, as many rounds as `rounds` says of it."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    computed: dict[str, list[int]] = {name: [] for name in ways}
    reference = ONE_BY_ONE if ONE_BY_ONE in ways else next(iter(ways))
    differences = compare(ways, with_salt(conversations[:_WARM_UP], draw_salt()), reference)
    for number in range(max(map(rounds, ways))):
        before = matrix_rate()
        for name in rotated([name for name in ways if number < rounds(name)], number):
            fresh = with_salt(conversations, draw_salt())
            started = time.perf_counter()
            scored = ways[name](fresh)
            seconds[name].append(time.perf_counter() - started)
            time.sleep(_SETTLE_S)
            if len(scored.rewards) != len(fresh):
                raise SystemExit(f"{name}: {len(scored.rewards)} rewards of {len(fresh)}")
            if scored.num_computed_tokens is not None:
                computed[name].append(scored.num_computed_tokens)
            after = matrix_rate()
            rates[name].append((before + after) / 2)
            before = after
    return Measured(need, seconds, rates, computed, differences, reference)


def compare(
    ways: Mapping[str, Way], conversations: Conversations, reference: str
) -> dict[str, float]:
    """The largest difference of each way from the reference, on equal rows given twice."""
    expected = ways[reference](conversations).rewards
    return {
        name: max(largest_difference(way(conversations).rewards, expected) for _ in range(2))
        for name, way in ways.items()
    }


def rotated(names: list[str], number: int) -> list[str]:
    """The names from another one on in each round, in their order."""
    start = number % len(names)
    return names[start:] + names[:start]


def largest_difference(rewards: Sequence[float], expected: Sequence[float]) -> float:
    """Over all conversations, of which none may be missing."""
    return max(abs(a - b) for a, b in zip(rewards, expected, strict=True))
