"""How cost grows: tokens/s against the length, the group size and the number of conversations.

Conversations here are random token ids, so that nothing is shared but what the curve is about;
ours and plain transformers one by one take turns at every point.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rounds import rotated
from ways import IN_PROCESS, ONE_BY_ONE, Plain

from rm_core import RewardScorer
from rm_core.packing import TokenIds

IdWay = Callable[[Sequence[TokenIds]], object]
# One by one, every conversation costs the same however many there are: no need to wait for 10,000.
_MOST_ONE_BY_ONE = 1_000


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve of every way.

    Attributes:
        name: of the file and in the JSON object.
        axis: what grows.
        title: what else is to be known.
        points: tokens/s of each way by size, tokens counted whether shared or not.
    """

    name: str
    axis: str
    title: str
    points: Mapping[str, Mapping[int, float]]

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return {
            way: {str(size): round(rate, 1) for size, rate in points.items()}
            for way, points in self.points.items()
        }


class Growth:
    """Measures the curves.

    Args:
        scorer: ours.
        plain: transformers on the same checkpoint.
        rounds: each point is the median of so many.
        quick: only the small sizes.
    """

    def __init__(self, scorer: RewardScorer, plain: Plain, rounds: int, quick: bool) -> None:
        self._ways: dict[str, IdWay] = {
            ONE_BY_ONE: lambda sequences: [plain.rewards([ids]) for ids in sequences],
            IN_PROCESS: scorer.score_ids,
        }
        config = plain.model.config
        self._longest = min(config.max_position_embeddings, scorer.encoder.max_length)
        special = {config.pad_token_id, config.eos_token_id, config.bos_token_id}
        self._vocabulary = [i for i in range(1, config.vocab_size) if i not in special]
        self._chance = random.Random(0)
        self._rounds = rounds
        self._quick = quick

    def by_length(self) -> Curve:
        """Conversations that share nothing, 4,096 tokens a point or a single conversation."""
        sizes = [2**n for n in range(7, 10 if self._quick else 14)]
        workloads = {
            size: [self._ids(size) for _ in range(max(1, 4_096 // size))]
            for size in sizes
            if size <= self._longest
        }
        return self._curve(
            "length", "tokens of a conversation", "Conversations that share nothing", workloads
        )

    def by_group(self) -> Curve:
        """Prompts of 512 tokens, each with so many responses of 64."""
        sizes = [2**n for n in range(3 if self._quick else 6)]
        workloads = {}
        for size in sizes:
            prompts = [self._ids(512) for _ in range(max(1, 8 // size))]
            workloads[size] = [prompt + self._ids(64) for prompt in prompts for _ in range(size)]
        return self._curve(
            "group", "responses to a prompt", "Prompts of 512 tokens, responses of 64", workloads
        )

    def by_number(self) -> Curve:
        """Pairs of short conversations: a prompt of 12 tokens, two responses of 4."""
        sizes = [10**n for n in range(1, 3 if self._quick else 5)]
        workloads = {}
        for size in sizes:
            prompts = [self._ids(12) for _ in range(size // 2)]
            workloads[size] = [prompt + self._ids(4) for prompt in prompts for _ in range(2)]
        return self._curve(
            "number", "conversations in a call", "Pairs: prompts of 12 tokens, responses of 4",
            workloads, most_one_by_one=_MOST_ONE_BY_ONE,
        )  # fmt: skip

    def _curve(
        self,
        name: str,
        axis: str,
        title: str,
        workloads: Mapping[int, Sequence[TokenIds]],
        *,
        most_one_by_one: int | None = None,
    ) -> Curve:
        seconds: dict[str, dict[int, list[float]]] = {way: {} for way in self._ways}
        for number in range(self._rounds):
            for size, sequences in workloads.items():
                for way in rotated(list(self._ways), number):
                    if way == ONE_BY_ONE and size > (most_one_by_one or size):
                        continue
                    started = time.perf_counter()
                    self._ways[way](sequences)
                    took = time.perf_counter() - started
                    seconds[way].setdefault(size, []).append(took)
        tokens = {size: sum(map(len, sequences)) for size, sequences in workloads.items()}
        points = {
            way: {size: tokens[size] / statistics.median(took) for size, took in by_size.items()}
            for way, by_size in seconds.items()
        }
        return Curve(name, axis, title, points)

    def _ids(self, count: int) -> TokenIds:
        return tuple(self._chance.choices(self._vocabulary, k=count))
