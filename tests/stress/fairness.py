"""A post of one conversation beside a post of thousands: how long does it wait?

What is measured: while one post of 5,000 conversations runs, a lone small post every few seconds.
Each has to be answered within the time of two batches: the one that runs when it comes, and its
own. The time of a batch is the median of posts that fill exactly one, sent alone before, or the
mean of the batches of the big post, where the service reports it and it is longer. The rewards of
the big post are compared with the engine in this process. The last line is one JSON object.

    python tests/stress/fairness.py [--conversations 5000] [--every 2] [--local]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
from typing import Any

import httpx
from load import JSON, Outcome, Post, connections, lone_latencies, send, unique_posts
from service import Service, parser_of, service_of
from stress_result import finish, percentiles
from workload_mix import Conversation, Writer, body_of

from rm_core import ModelConfig, Reward, RewardScorer

TOLERANCE = 1e-4
BATCHES = 2
_SUM, _COUNT = "skyreward_inference_seconds_sum", "skyreward_inference_seconds_count"


def tokens_of(service: Service, conversations: list[Conversation]) -> int:
    """Of all of them."""
    answer = httpx.post(
        f"{service.url}/v1/render",
        content=body_of(conversations),
        headers=JSON,
        timeout=60,
        trust_env=False,
    )
    return sum(result["num_tokens"] for result in answer.json()["results"])


def batch_s(service: Service, options: argparse.Namespace) -> float:
    """Seconds of posts that nearly fill one batch each, alone."""
    writer = Writer(options.seed + 1)
    one = tokens_of(service, [writer.conversation(options.bytes) for _ in range(50)]) / 50
    size = max(1, int(0.97 * options.batch_tokens / one))
    posts = [
        Post(body_of([writer.conversation(options.bytes) for _ in range(size)]), size)
        for _ in range(6)
    ]
    return statistics.median(lone_latencies(service.url, posts)[1:])


def forward_totals(service: Service) -> tuple[float, float] | None:
    total, count = service.metric(_SUM), service.metric(_COUNT)
    return None if total is None or count is None else (total, count)


async def beside(
    service: Service, big: Post, small: list[Post], every_s: float
) -> tuple[Outcome, list[Outcome]]:
    """The big post, and the small ones that were sent while it ran."""
    found: list[Outcome] = []
    async with httpx.AsyncClient(
        base_url=service.url, limits=connections(), timeout=None, trust_env=False
    ) as http:
        running = asyncio.create_task(send(http, big))
        for post in small:
            done, _ = await asyncio.wait({running}, timeout=every_s)
            if done:
                break
            found.append(await send(http, post))
        return await running, found


def right_in(outcome: Outcome, pool: list[Conversation], options: argparse.Namespace) -> bool:
    """Whether a sample of the rewards is what the engine gives."""
    places = random.Random(options.seed).sample(range(len(pool)), min(options.check, len(pool)))
    scorer = RewardScorer.load(ModelConfig(options.model))
    expected = scorer.score([pool[place] for place in places])
    results = outcome.results
    for place, reward in zip(places, expected, strict=True):
        assert isinstance(reward, Reward), reward
        if not abs(results[place].get("reward", float("nan")) - reward.reward) <= TOLERANCE:
            return False
    return True


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--local", action="store_true", help="without Ray")
    parser.add_argument("--conversations", type=int, default=5_000, help="of the big post")
    parser.add_argument("--bytes", type=int, default=300, help="of each of them")
    parser.add_argument("--every", type=float, default=2, help="seconds between small posts")
    parser.add_argument("--batch-tokens", type=int, default=4_096, help="max_batch_tokens")
    parser.add_argument("--check", type=int, default=200, help="rewards to compare")
    options = parser.parse_args()
    writer = Writer(options.seed)
    pool = [writer.conversation(options.bytes) for _ in range(options.conversations)]
    big = Post(body_of(pool), len(pool))
    small = unique_posts(options.seed + 2, 5_000, 1, options.bytes)
    model = {"cache_bytes": 0, "max_batch_tokens": options.batch_tokens}
    flags = ("--local",) if options.local else ()
    with service_of(options, *flags, model=model) as service:
        alone = batch_s(service, options)
        before = forward_totals(service)
        outcome, found = asyncio.run(beside(service, big, small, options.every))
        after = forward_totals(service)
    mean = (after[0] - before[0]) / (after[1] - before[1]) if before and after else None
    batch = max(alone, mean or 0.0)
    slowest = max((o.seconds for o in found), default=0.0)
    whole = outcome.status == 200 and [r["index"] for r in outcome.results] == list(
        range(len(pool))
    )
    checks = {
        "small posts came while the big one ran": bool(found),
        "all of them were answered 200": all(o.status == 200 for o in found),
        f"each within the time of {BATCHES} batches": bool(found) and slowest <= BATCHES * batch,
        "the big post is answered whole and in order": whole,
        "its rewards are the engine's": whole and right_in(outcome, pool, options),
    }
    figures: dict[str, Any] = {
        "batch_s": {"alone": round(alone, 3), "mean_beside": mean and round(mean, 3)},
        "small_posts": len(found),
        "small_ms": percentiles(o.seconds for o in found),
        "slowest_in_batches": round(slowest / batch, 2),
        "big_post_s": round(outcome.seconds, 1),
        "big_post_status": outcome.status,
    }
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
