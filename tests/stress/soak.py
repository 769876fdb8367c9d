"""Half of what the service can do, for a long time: does anything grow, does anything fail?

What is measured: posts arrive at half of the full rate, found beforehand; every 5 s the memory that
each process has for itself. After the first 5 minutes (a quarter of a shorter run) the median of
the last fifth may be 5% over that of the first fifth, in no process more, except for 4 MiB in those
so small that 5% are less. The score cache has 1 MiB, so that it fills early and turns over. The
last line is one JSON object.

    python tests/stress/soak.py [--seconds 1200] [--local]
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from typing import Any

from load import full_rate, open_loop, unique_posts
from monitor import MIB, MemoryWatch, median_private
from service import parser_of, service_of
from stress_result import finish, percentiles

GROWTH = 0.05
SLACK = 4 * MIB
_WARM_UP_S = 300.0
_CLIENTS = 8


def compared(
    watch: MemoryWatch, start: float, end: float, growth: float
) -> dict[str, dict[str, Any]]:
    """Memory of each process at the beginning and the end of a stretch, by its name and id."""
    fifth = (end - start) / 5
    first = median_private(watch.between(start, start + fifth))
    last = median_private(watch.between(end - fifth, end))
    return {
        f"{watch.names[pid]} {pid}": {
            "first_mib": round(first[pid] / MIB, 1),
            "last_mib": round(last[pid] / MIB, 1),
            "growth": round(last[pid] / first[pid] - 1, 4),
            "flat": last[pid] - first[pid] <= max(growth * first[pid], SLACK),
        }
        for pid in sorted(first.keys() & last.keys())
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--local", action="store_true", help="without Ray")
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--measure", type=float, default=20, help="seconds for the full rate")
    parser.add_argument("--size", type=int, default=8, help="conversations of a post")
    parser.add_argument("--bytes", type=int, default=400, help="of each of them")
    parser.add_argument("--growth", type=float, default=GROWTH, help="of memory, allowed")
    options = parser.parse_args()
    flags = ("--local",) if options.local else ()
    with service_of(options, *flags, model={"cache_bytes": MIB}) as service:
        posts = unique_posts(options.seed, 400, options.size, options.bytes)
        full = full_rate(service.url, posts, _CLIENTS, options.measure)
        rate = full / 2 / options.size
        # None comes twice: what is known would be no load.
        posts = unique_posts(
            options.seed + 1, int(rate * options.seconds) + 1, options.size, options.bytes
        )
        print(f"full rate {full:.1f} conversations/s; now {rate:.2f} posts/s", flush=True)
        every = min(5.0, options.seconds / 60)
        with MemoryWatch(service, every) as watch:
            started = time.perf_counter()
            outcomes = asyncio.run(open_loop(service.url, posts, rate, options.seconds))
        start = started + min(_WARM_UP_S, options.seconds / 4)
        memory = compared(watch, start, started + options.seconds, options.growth)
        pids = {process.pid for process in service.processes()}
        began = set(watch.samples[0].private)
    bad = [o for o in outcomes if o.status != 200 or any("error" in r for r in o.results)]
    checks = {
        "no error": not bad and bool(outcomes),
        "the processes are the same as at the start": began <= pids,
        f"memory of every process flat (within {options.growth:.0%})": bool(memory)
        and all(process["flat"] for process in memory.values()),
    }
    figures = {
        "posts": len(outcomes),
        "conversations_per_s": round(sum(o.post.size for o in outcomes) / options.seconds, 1),
        "full_conversations_per_s": round(full, 1),
        "latency_ms": percentiles(o.seconds for o in outcomes),
        "statuses": dict(Counter(o.status for o in outcomes)),
        "bad": [f"{o.status} {o.failure}{o.body[:120]!r}" for o in bad[:3]],
        "memory": memory,
    }
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
