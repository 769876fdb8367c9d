"""What the service costs beside the model: CPU of a small post, time around the forward pass.

What is measured, on Ray and without, with one torch thread and no score cache:

- CPU of all processes of the service for a post of 4 KB with one conversation, under 16 and 64
  clients, without the CPU of the thread that runs the model, and without what the service takes
  when it is idle; with a model so small (`tiny_model.py`) that it is not the model that decides how
  many posts share a batch. That thread is found by its work: of the scorer's threads, the one that
  takes most more CPU for scoring a big post than for rendering it. What else it does (laying out a
  batch, reading the rewards) counts as the model's. Beside it the machine's own limits
  (`baseline.py`, on Ray `baseline_ray.py`), and our code without server and model
  (`in_process.py`).
- The share of a lone post of 256 conversations that is not forward pass.
- The time of a lone small post beyond its forward pass.

Seconds of forward passes are those that the service reports at `/metrics`; where it reports none,
the CPU time of the model's thread stands for them. The last line is one JSON object.

    python tests/stress/overhead.py [--only ray|local] [--seconds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from baseline import floor_of
from baseline_ray import floor_on_ray
from in_process import in_process
from load import JSON, Post, closed_loop, lone_latencies, unique_posts
from service import Service, parser_of, service_of, thread_cpu_s
from stress_result import finish, percentiles
from tiny_model import build_tiny

CPU_MS = 3.0
OUTSIDE = 0.10
BEYOND_MS = 10.0
CLIENTS = (16, 64)
_FORWARD = "skyreward_inference_seconds_sum"
_SMALL_BYTES = 3_900  # of text: the braces and names around it make 4 KB of it
_LONE_BYTES = 400
_MANY = 256
_SHORT_RUN = 100


@dataclass(frozen=True)
class Device:
    """The thread that runs the model."""

    process: int
    thread: int

    def cpu_s(self) -> float:
        """What it has taken so far."""
        return thread_cpu_s(self.process)[self.thread]


def device_of(service: Service, big: Post) -> Device:
    """The model's thread, by what it does for a post."""
    (scorer,) = service.scorers()
    taken = []
    for route in ("/v1/render", "/v1/score"):
        before = thread_cpu_s(scorer.pid)
        answer = httpx.post(
            service.url + route, content=big.content, headers=JSON, timeout=600, trust_env=False
        )
        answer.raise_for_status()
        after = thread_cpu_s(scorer.pid)
        taken.append({thread: s - before.get(thread, 0.0) for thread, s in after.items()})
    rendering, scoring = taken
    more = {thread: s - rendering.get(thread, 0.0) for thread, s in scoring.items()}
    thread = max(more, key=more.__getitem__)
    if more[thread] < 0.5 * sum(s for s in more.values() if s > 0):
        raise SystemExit("no thread stands out as the model's: is cpu_threads 1?")
    return Device(scorer.pid, thread)


def cpu_of_small_posts(
    service: Service, device: Device, posts: list[Post], clients: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Milliseconds a request."""
    idle = service.idle_cpu(options.seconds / 4)
    before, model_before, started = service.cpu_s(), device.cpu_s(), time.perf_counter()
    outcomes = asyncio.run(closed_loop(service.url, posts, clients, options.seconds))
    took = time.perf_counter() - started
    total, model = service.cpu_s() - before, device.cpu_s() - model_before
    if bad := [o for o in outcomes if o.status != 200]:
        raise SystemExit(f"{bad[0].status} {bad[0].failure}{bad[0].body[:300]!r}")
    number = len(outcomes)
    own = total - model
    return {
        "requests": number,
        "own_ms": round(1000 * (own - idle * took) / number, 3),
        "own_with_idle_ms": round(1000 * own / number, 3),
        "model_ms": round(1000 * model / number, 3),
        "idle_cpu": round(idle, 3),
        "body_bytes": len(posts[0].content),
    }


def forward_s(service: Service, device: Device) -> float:
    """Seconds of forward passes so far."""
    reported = service.metric(_FORWARD)
    return device.cpu_s() if reported is None else reported


def outside_forward(service: Service, device: Device, posts: list[Post]) -> dict[str, Any]:
    """Of lone posts: their time, the forward pass's, and what is left."""
    walls, forwards = [], []
    for post in posts:
        before = forward_s(service, device)
        walls += lone_latencies(service.url, [post])
        forwards.append(forward_s(service, device) - before)
    rests = [w - f for w, f in zip(walls, forwards, strict=True)]
    return {
        "latency_ms": percentiles(walls),
        "forward_p50_ms": round(1000 * statistics.median(forwards), 2),
        "beyond_p50_ms": round(1000 * statistics.median(rests), 2),
        "outside_share": round(sum(rests) / sum(walls), 4),
    }


def lone_small(service: Service, device: Device, posts: list[Post]) -> dict[str, Any]:
    """As `outside_forward`, over one connection and without looking in between."""
    lone_latencies(service.url, posts[:5])
    before = forward_s(service, device)
    walls = lone_latencies(service.url, posts[5:])
    forward = (forward_s(service, device) - before) / len(walls)
    return {
        "latency_ms": percentiles(walls),
        "forward_ms": round(1000 * forward, 2),
        "beyond_p50_ms": round(1000 * (statistics.median(walls) - forward), 2),
    }


Found = tuple[dict[str, bool], dict[str, Any]]


def small_posts(way: str, service: Service, options: argparse.Namespace) -> Found:
    """What the service costs; on the tiny model."""
    device = device_of(service, unique_posts(options.seed, 1, _MANY, 1_000)[0])
    checks, figures = {}, {}
    for clients in CLIENTS:
        posts = unique_posts(options.seed + clients, options.most, 1, _SMALL_BYTES)
        found = cpu_of_small_posts(service, device, posts, clients, options)
        checks[f"{way}: own CPU of a 4 KB post at most {CPU_MS:g} ms, {clients} clients"] = (
            found["own_ms"] <= CPU_MS
        )
        floor = floor_of(posts, clients, options.seconds / 4)
        found |= {"floor": floor, "times_the_floor": round(found["own_ms"] / floor["sum_ms"], 2)}
        figures[f"small_posts_{clients}_clients"] = found
    return checks, figures


def times(way: str, service: Service, options: argparse.Namespace) -> Found:
    """What is not forward pass; on a model of some weight."""
    device = device_of(service, unique_posts(options.seed, 1, _MANY, 1_000)[0])
    checks = {}
    big = outside_forward(
        service, device, unique_posts(options.seed + 1, options.big, _MANY, 1_000)
    )
    checks[f"{way}: outside of the forward under {OUTSIDE:.0%}, {_MANY} conversations"] = (
        big["outside_share"] < OUTSIDE
    )
    lone = lone_small(
        service, device, unique_posts(options.seed + 2, options.lone + 5, 1, _LONE_BYTES)
    )
    checks[f"{way}: p50 of a lone small post at most forward + {BEYOND_MS:g} ms"] = (
        lone["beyond_p50_ms"] <= BEYOND_MS
    )
    reported = service.metric(_FORWARD) is not None
    return checks, {"forward_reported": reported, "big_posts": big, "lone_posts": lone}


def floor_on_ray_of(options: argparse.Namespace) -> dict[str, Any]:
    """For posts as those of `small_posts` and `times`."""
    posts = unique_posts(options.seed, 500, 1, _SMALL_BYTES)
    lone = unique_posts(options.seed, options.lone, 1, _LONE_BYTES)
    return floor_on_ray(posts, lone, CLIENTS[0], options.seconds / 4)


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--only", choices=["ray", "local"])
    parser.add_argument("--seconds", type=float, default=20, help="for each number of clients")
    parser.add_argument("--most", type=int, default=5_000, help="small posts for each")
    parser.add_argument("--big", type=int, default=5, help="posts of 256")
    parser.add_argument("--lone", type=int, default=100, help="lone small posts")
    options = parser.parse_args()
    checks: dict[str, bool] = {}
    figures: dict[str, Any] = {}
    settings = {"cache_bytes": 0, "cpu_threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        tiny = {**settings, "name": str(build_tiny(Path(folder)))}
        for way in (options.only,) if options.only else ("ray", "local"):
            flags = ("--local",) if way == "local" else ()
            own_ray = way == "ray" and not options.url
            figures[way] = {"floor": floor_on_ray_of(options)} if own_ray else {}
            for model, measured in ((tiny, small_posts), (settings, times)):
                with service_of(options, *flags, model=model) as service:
                    found, told = measured(way, service, options)
                checks |= found
                figures[way] |= told
    posts = unique_posts(options.seed, _SHORT_RUN, 1, _SMALL_BYTES)
    figures["in_process"] = {str(clients): in_process(posts, clients) for clients in (1, *CLIENTS)}
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
