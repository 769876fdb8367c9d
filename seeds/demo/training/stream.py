"""What is trained on, in which order: the plan, the pools of conversations, the stream of batches.

Start at `group_stream`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seeds.demo.training.batches import Encoded, GroupMaker, batches_of
from seeds.demo.training.corpus import Example, read_permitted, split_of, synthetic
from seeds.demo.training.matching import MatchingMaker

logger = logging.getLogger(__name__)

Pools = list[tuple[float, list[Example]]]


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    `steps` batches of at most `batch_tokens` padded tokens; sequences of at most `max_tokens`;
    `lr` is the highest learning rate. A `document_share` of the groups is about documents of at
    most `document_tokens`.
    """

    steps: int = 3400
    batch_tokens: int = 4096
    max_tokens: int = 384
    lr: float = 4e-3
    muon_lr: float = 0.02
    matching_steps: int = 450
    seed: int = 0
    document_tokens: int = 3600
    document_share: float = 0.004
    held_out_sources: tuple[str, ...] = ("hhh",)


def build_pools(data: Path | None, plan: Plan) -> Pools:
    """Return the training conversations, synthetic and permitted, with their drawing weights."""
    made = synthetic(plan.seed, 12000)
    if data is None:
        logger.info("no --data: training on synthetic text alone")
        return [(1.0, made)]
    read = [
        example
        for example in read_permitted(data)
        if example.source not in plan.held_out_sources and split_of(example) == "train"
    ]
    shares = {"dpo-demo-en": 0.18, "dpo-demo-zh": 0.12, "hh-rlhf": 0.24, "llmbar": 0.13}
    shares |= {"processbench": 0.03, "hhh": 0.03}
    pools = [(0.3, made)]
    for source, share in shares.items():
        if pool := [example for example in read if example.source == source]:
            logger.info("%s: %d conversations", source, len(pool))
            pools.append((share, pool))
    return pools


def next_limit(rng: random.Random, share: float, longest: int) -> int:
    """Draw how many tokens the next group's sequences may have; `share` is training's progress."""
    if share < 0.4:
        return longest // 3
    if rng.random() < 0.015:
        return longest * 3
    return rng.choice((longest, longest // 2, longest // 3, longest // 3))


def group_stream(
    maker: GroupMaker,
    matching: MatchingMaker,
    pools: Pools,
    long_ones: list[Example],
    plan: Plan,
) -> Iterator[list[Encoded]]:
    """Yield batches without end, drawing each example from a pool by the pool's weight.

    The first `plan.matching_steps` batches, and a tenth of the later groups, are random words;
    `long_ones` are drawn from once training has gone some way, see `Plan`.
    """
    rng = random.Random(f"stream-{plan.seed}")
    left = plan.matching_steps
    while left > 0:
        groups = [matching.group(at) for at in range(640)]
        batches = list(batches_of(groups, plan.batch_tokens // 2, rng))[:left]
        left -= len(batches)
        yield from batches
    weights = [weight for weight, _ in pools]
    number = 0
    # Short conversations first: more of them fit into a step. 10 groups a step were measured.
    expected = (plan.steps - plan.matching_steps) * 10
    while True:
        groups = []
        for _ in range(384):
            number += 1
            if rng.random() < 0.1:
                groups.append(matching.group(number))
                continue
            if number / expected > 0.2 and rng.random() < plan.document_share:
                document = rng.choice(long_ones)
                groups.append(maker.group(document, number, plan.document_tokens))
                continue
            _, pool = rng.choices(pools, weights)[0]
            limit = next_limit(rng, number / expected, plan.max_tokens)
            groups.append(maker.group(rng.choice(pool), number, limit))
        yield from batches_of(groups, plan.batch_tokens, rng)
