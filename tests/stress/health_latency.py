"""Does `/health` answer at once while the model is busy with large batches?

What is measured: clients keep batches of 8,192 tokens running, and `/health` is asked 20 times a
second over a connection of its own, on Ray and without. Every answer has to come within 100 ms. The
last line is one JSON object.

    python tests/stress/health_latency.py [--only ray|local] [--seconds 30]
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
from typing import Any

import httpx
from load import Post, closed_loop, unique_posts
from service import Service, parser_of, service_of
from stress_result import finish, percentiles

WITHIN_S = 0.1
BATCH_TOKENS = 8_192
_CLIENTS = 3
_EVERY_S = 0.05


def ask(url: str, seconds: float, found: list[float]) -> None:
    """Latency of each `/health`; infinity if it was not answered 200."""
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
        end = time.perf_counter() + seconds
        while (started := time.perf_counter()) < end:
            try:
                good = http.get("/health").is_success
            except httpx.HTTPError:
                good = False
            took = time.perf_counter() - started
            found.append(took if good else float("inf"))
            time.sleep(max(0.0, _EVERY_S - took))


def asked_beside(
    service: Service, posts: list[Post], seconds: float
) -> tuple[list[float], dict[str, Any]]:
    """Latencies under load, and what the load was."""
    found: list[float] = []
    totals = [service.metric(f"skyreward_inference_seconds_{part}") for part in ("sum", "count")]
    asking = threading.Thread(target=ask, args=(service.url, seconds, found))
    loop = closed_loop(service.url, itertools.cycle(posts), _CLIENTS, seconds)
    asking.start()
    outcomes = asyncio.run(loop)
    asking.join()
    after = [service.metric(f"skyreward_inference_seconds_{part}") for part in ("sum", "count")]
    forward = None
    if None not in totals and None not in after:
        total, count = (b - a for a, b in zip(totals, after, strict=True))  # type: ignore[operator]
        forward = round(total / max(1.0, count), 3)
    wrong = [f"{o.status} {o.failure}{o.body[:120]!r}" for o in outcomes if o.status != 200]
    return found, {"posts": len(outcomes), "mean_forward_s": forward, "wrong": wrong[:3]}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--only", choices=["ray", "local"])
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    checks: dict[str, bool] = {}
    figures: dict[str, Any] = {}
    # 16 long conversations that share nothing: about 20,000 tokens, more than two batches.
    posts = unique_posts(options.seed, 24, 16, 4_000)
    model = {"cache_bytes": 0, "max_batch_tokens": BATCH_TOKENS}
    for way in (options.only,) if options.only else ("ray", "local"):
        flags = ("--local",) if way == "local" else ()
        with service_of(options, *flags, model=model) as service:
            idle: list[float] = []
            ask(service.url, 3, idle)
            found, load = asked_beside(service, posts, options.seconds)
        late = sum(not took <= WITHIN_S for took in found)
        checks[f"{way}: every /health within {1000 * WITHIN_S:g} ms"] = bool(found) and not late
        checks[f"{way}: batches were running"] = load["posts"] > 0 and not load["wrong"]
        answered = [took for took in found if took < float("inf")]
        figures[way] = {
            "asked": len(found),
            "late_or_lost": late,
            "health_ms": percentiles(answered),
            "idle_ms": percentiles(idle),
            **load,
        }
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
