"""Ten times the load that a service can take: does it go on working, and say no politely?

What is measured: first what the service can do (clients that wait for their answers), and how long
a lone small post takes; then posts arrive at ten times that rate, answered or not. What it lets in
has to be answered at 90% of the full rate at least, from the first post to the last answer; all
else has to be 429 or 503 with `Retry-After`; the memory of its processes must not grow; and within
5 s after the load a lone post has to be answered as fast as before. The score cache is off, and
what may wait is a few seconds of work. The load comes from this machine too: the model gets one
thread, as it has a device of its own elsewhere, so that the clients do not take it from the model;
with `--threads 0` it gets all cores. `reached` is the rate that was sent, over what the service can
do. The last line is one JSON object.

    python tests/stress/overload.py [--times 10] [--seconds 60] [--local]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from typing import Any

import httpx
from load import Outcome, Post, full_rate, lone_latencies, open_loop, send, unique_posts
from monitor import MIB, MemoryWatch, median_total
from service import Service, parser_of, service_of
from stress_result import finish, percentiles

KEEPS = 0.9
BACK_AFTER_S = 5.0
GROWTH = 1.1
_BUSY_CLIENTS = 6


async def recovery(service: Service, posts: list[Post], usual: float) -> tuple[float | None, float]:
    """Seconds after the load until a lone post was answered as usual, and how long it took."""
    ended = time.perf_counter()
    took = 0.0
    async with httpx.AsyncClient(base_url=service.url, timeout=60, trust_env=False) as http:
        for post in posts:
            outcome = await send(http, post)
            took = outcome.seconds
            if outcome.status == 200 and took <= usual:
                return time.perf_counter() - ended, took
            if time.perf_counter() - ended > 6 * BACK_AFTER_S:
                break
            await asyncio.sleep(0.05)
    return None, took


async def overloaded(
    service: Service, posts: list[Post], rate: float, options: argparse.Namespace, usual: float
) -> tuple[list[Outcome], tuple[float | None, float]]:
    """Outcomes of the load, and the recovery, which begins while the last answers still come."""
    small = unique_posts(options.seed + 2, 2000, 1, options.small_bytes)
    load = asyncio.create_task(open_loop(service.url, posts, rate, options.seconds))
    await asyncio.sleep(options.seconds)
    back = await recovery(service, small, usual)
    return await load, back


def judged(
    outcomes: list[Outcome], full: float, started: float, options: argparse.Namespace
) -> tuple[dict[str, bool], dict[str, Any]]:
    """Of what was sent in the time of the load."""
    end = started + options.seconds
    # Work that was let in at first takes a while to come out.
    start = started + options.seconds / 6
    accepted = [o for o in outcomes if o.status == 200]
    # Posts of one age end together: what counts is when all that was let in was done.
    done = sum(o.post.size for o in accepted)
    rate = done / (max((o.answered for o in accepted), default=end) - started)
    in_time = sum(o.post.size for o in accepted if start <= o.answered <= end) / (end - start)
    refused = [o for o in outcomes if o.refused_politely]
    others = [o for o in outcomes if o.status != 200 and not o.refused_politely]
    whole = all(len(o.results) == o.post.size and "reward" in o.results[0] for o in accepted)
    sent = sum(o.post.size for o in outcomes) / options.seconds
    checks = {
        f"accepted work keeps {KEEPS:.0%} of the full rate": rate >= KEEPS * full,
        "what is accepted is answered in full": whole and bool(accepted),
        "the rest is refused with 429 or 503 and Retry-After": not others and bool(refused),
    }
    waits = sorted(int(o.headers["retry-after"]) for o in refused)
    figures = {
        "full_conversations_per_s": round(full, 1),
        "reached": round(sent / full, 2),
        "accepted_of_full": round(rate / full, 3),
        "answered_during_the_load_of_full": round(in_time / full, 3),
        "statuses": dict(Counter(o.status for o in outcomes)),
        "retry_after_s": {"least": waits[0], "most": waits[-1]} if waits else None,
        "accepted_ms": percentiles(o.seconds for o in accepted),
        "refused_ms": percentiles(o.seconds for o in refused),
        "others": [f"{o.status} {o.failure}{o.body[:120]!r}" for o in others[:3]],
    }
    return checks, figures


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--local", action="store_true", help="without Ray")
    parser.add_argument("--times", type=float, default=10, help="what the service can do")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--measure", type=float, default=20, help="seconds for the full rate")
    parser.add_argument("--size", type=int, default=16, help="conversations of a post")
    parser.add_argument("--bytes", type=int, default=400, help="of each of them")
    parser.add_argument("--small-bytes", type=int, default=400, help="of the lone post's")
    parser.add_argument("--threads", type=int, default=1, help="of the model; 0: all cores")
    parser.add_argument("--queue", type=int, default=16_000, help="tokens that may wait")
    options = parser.parse_args()
    flags = ("--local",) if options.local else ()
    model = {"cache_bytes": 0} | ({"cpu_threads": options.threads} if options.threads else {})
    with service_of(options, *flags, model=model, max_queued_tokens=options.queue) as service:
        posts = unique_posts(options.seed, 300, options.size, options.bytes)
        lone_latencies(service.url, posts[:3])
        full = full_rate(service.url, posts, _BUSY_CLIENTS, options.measure)
        small = unique_posts(options.seed + 1, 30, 1, options.small_bytes)
        before = lone_latencies(service.url, small)
        # The slowest of thirty: a lone post's latency has a spread of its own.
        usual = max(before)
        rate = options.times * full / options.size
        print(f"full rate {full:.1f} conversations/s; now {rate:.1f} posts/s", flush=True)
        with MemoryWatch(service) as watch:
            started = time.perf_counter()
            outcomes, (back, took) = asyncio.run(overloaded(service, posts, rate, options, usual))
        checks, figures = judged(outcomes, full, started, options)
        third = options.seconds / 3
        first = median_total(watch.between(started + third / 2, started + third))
        last = median_total(watch.between(started + 2 * third, started + 3 * third))
        peak = max(sample.total for sample in watch.samples)
    checks |= {
        f"memory stays flat (within {GROWTH - 1:.0%})": 0 < last <= GROWTH * first,
        f"a lone post is as fast as before within {BACK_AFTER_S:g} s": (back or 99) <= BACK_AFTER_S,
    }
    figures |= {
        "memory_mib": {
            n: round(m / MIB) for n, m in (("first", first), ("last", last), ("peak", peak))
        },
        "lone_ms": {
            "before": round(1000 * statistics.median(before), 1),
            "slowest_before": round(1000 * usual, 1),
            "after": round(1000 * took, 1),
        },
        "back_after_s": None if back is None else round(back, 2),
    }
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
