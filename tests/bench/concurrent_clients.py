"""Requests per second of a running service under many clients that post one conversation each.

What is measured: each client posts a conversation to `/v1/score`, waits for the reward, posts the
next. Prompts are those of the sample pairs, after `--context` other samples as earlier turns;
`--group` answers of each prompt come one after another, as from an RLHF trainer's workers; no
conversation comes twice, so that no cache can answer. Clients share one event loop, whose own cost
is inside the figures. The last line is one JSON object.

    skyreward serve --local &
    python tests/bench/concurrent_clients.py [--clients 64] [--group 16] [--context 4]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import httpx

from rm_core.verification import sample_conversations


def conversations(group: int, context: int, salt: str) -> Iterator[list[dict[str, Any]]]:
    """Without end, all different; `group` with one prompt, then as many with the next."""
    samples = [messages for _, messages in sample_conversations()]
    for number, messages in enumerate(itertools.cycle(samples)):
        earlier = [m for i in range(context) for m in samples[(number + 2 * i + 1) % len(samples)]]
        *prompt, answer = [*earlier, *messages]
        # No two groups have the same prompt.
        prompt[0] = {**prompt[0], "content": f"{salt} {number}. {prompt[0]['content']}"}
        for variant in range(group):
            yield [*prompt, {**answer, "content": f"{answer['content']} ({variant})"}]


async def post_all(url: str, options: argparse.Namespace, salt: str) -> tuple[list[float], int]:
    """Seconds of each request, and tokens of all."""
    bodies = itertools.islice(conversations(options.group, options.context, salt), options.requests)
    seconds: list[float] = []
    num_tokens = 0
    limits = httpx.Limits(max_connections=options.clients)
    async with httpx.AsyncClient(
        base_url=url, limits=limits, timeout=600, trust_env=False
    ) as client:

        async def work() -> None:
            nonlocal num_tokens
            for messages in bodies:  # shared: each takes the next
                started = time.perf_counter()
                answer = await client.post("/v1/score", json={"conversations": [messages]})
                body = answer.raise_for_status().json()
                assert "reward" in body["results"][0], body
                assert body["usage"]["num_cached_tokens"] == 0
                seconds.append(time.perf_counter() - started)
                num_tokens += body["usage"]["num_tokens"]

        await asyncio.gather(*(work() for _ in range(options.clients)))
    return seconds, num_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1280)
    parser.add_argument("--group", type=int, default=1)
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rates, token_rates, latencies = [], [], []
    for number in range(options.rounds):
        started = time.perf_counter()
        salt = f"{time.time_ns():x}/{number}"
        seconds, num_tokens = asyncio.run(post_all(options.url, options, salt))
        rates.append(len(seconds) / (time.perf_counter() - started))
        token_rates.append(num_tokens / (time.perf_counter() - started))
        latencies += seconds
    latencies.sort()
    result = {
        "clients": options.clients,
        "group": options.group,
        "context": options.context,
        "requests_per_s": round(statistics.median(rates), 1),
        "tokens_per_s": round(statistics.median(token_rates)),
        "p50_s": round(latencies[len(latencies) // 2], 3),
        "p99_s": round(latencies[len(latencies) * 99 // 100], 3),
        "rounds": [round(rate, 1) for rate in rates],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
