"""Processes of a service are killed under load: is everything that was accepted answered, rightly?

What is measured: two scorer replicas and two gateways on Ray, clients that post 1 to 200
conversations each (shared prompts and duplicates among them), and every few seconds a SIGKILL for
one process, drawn at random. First for scorers, with clients that never send anything twice: what
the gateways accepted has to be scored by whoever lives. Then for gateways, which take their
connections with them: with the Python client, which tries again. Rewards are compared with those
that the same service gave before, undisturbed. The score cache is off. The last line is one JSON
object.

    python tests/stress/chaos.py [--kill scorer|gateway|both] [--seconds 120] [--clients 32]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from load import Outcome, Post, closed_loop
from service import Service, kill, parser_of, service_of
from stress_result import finish, percentiles
from workload_mix import Conversation, Writer, body_of, picks

from rm_core import Reward
from serve.client import ScoringClient, ServiceError

TOLERANCE = 1e-4


@dataclass
class Tally:
    """What came back, against what should have.

    Attributes:
        expected: the undisturbed reward of each conversation of the pool.
    """

    expected: list[float]
    posts: int = 0
    conversations: int = 0
    equal: int = 0
    off: int = 0
    largest_difference: float = 0.0
    retries: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def answered(self, places: tuple[int, ...], rewards: list[float | str]) -> None:
        """One post's rewards in the order of its conversations; a text is what came instead."""
        self.posts += 1
        if len(rewards) != len(places):
            self.wrong["results missing"] += 1
            return
        for place, reward in zip(places, rewards, strict=True):
            self.conversations += 1
            if isinstance(reward, str):
                self.wrong[reward] += 1
                continue
            difference = abs(reward - self.expected[place])
            self.equal += difference == 0
            self.off += not difference <= TOLERANCE  # a NaN is off too
            self.largest_difference = max(self.largest_difference, difference)

    def seen(self, outcome: Outcome) -> None:
        """The answer to a post of `load`."""
        self.seconds.append(outcome.seconds)
        if outcome.status != 200:
            self.posts += 1
            said = outcome.failure or outcome.body[:120].decode(errors="replace")
            self.wrong[f"{outcome.status} {said}"] += 1
            return
        results = outcome.results
        if [result["index"] for result in results] != list(range(len(results))):
            self.wrong["out of order"] += 1
        rewards = [r.get("reward", str(r.get("error", {}).get("code"))) for r in results]
        self.answered(outcome.post.picks, rewards)

    def figures(self) -> dict[str, Any]:
        """For the last line."""
        return {
            "posts": self.posts,
            "conversations": self.conversations,
            "bit_equal": round(self.equal / max(1, self.conversations), 4),
            "largest_difference": self.largest_difference,
            "client_retries": self.retries,
            "latency_ms": percentiles(self.seconds),
            "wrong": dict(self.wrong.most_common(5)),
        }


class Killer:
    """Kills one of some processes every few seconds, from a thread of its own.

    Not beyond the time of the load: clients wait for their last answers, and what is killed faster
    than it starts never gives them.
    """

    def __init__(self, service: Service, whom: str, options: argparse.Namespace) -> None:
        self.killed: list[int] = []
        self._find = service.scorers if whom == "scorer" else service.gateways
        self._whom = whom
        self._every_s = options.every
        self._end = time.monotonic() + options.seconds
        self._chance = random.Random(options.seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s) and time.monotonic() < self._end:
            alive = self._find()
            victim = self._chance.choice(alive) if alive else None
            if victim and kill(victim):
                self.killed.append(victim.pid)
                print(f"  killed {self._whom} {victim.pid}, {len(alive) - 1} left", flush=True)


def undisturbed(service: Service, pool: list[Conversation]) -> list[float]:
    """The reward of every conversation, before anything is killed."""
    with ScoringClient(service.url) as client:
        results = client.results(pool)
    if bad := [result for result in results if not isinstance(result, Reward)]:
        raise SystemExit(f"not scored even before: {bad[0]}")
    return [result.reward for result in results]  # type: ignore[union-attr]


def posts_of(pool: list[Conversation], seed: int) -> Iterator[Post]:
    for places in picks(random.Random(seed), len(pool)):
        content = body_of([pool[place] for place in places])
        yield Post(content, len(places), tuple(places))


def without_retries(
    urls: Sequence[str], pool: list[Conversation], tally: Tally, options: argparse.Namespace
) -> None:
    """Clients of the first address that send nothing twice."""
    posts = posts_of(pool, options.seed)
    asyncio.run(closed_loop(urls[0], posts, options.clients, options.seconds, tally.seen))


def with_retries(
    urls: Sequence[str], pool: list[Conversation], tally: Tally, options: argparse.Namespace
) -> None:
    """The Python client, which knows all addresses."""
    end = time.perf_counter() + options.seconds
    lock = threading.Lock()

    def client(number: int) -> None:
        with ScoringClient(urls) as scoring:
            for places in picks(random.Random(options.seed * 1000 + number), len(pool)):
                started = time.perf_counter()
                if started >= end:
                    break
                failure, results = "", []
                try:
                    results = scoring.results([pool[place] for place in places])
                except ServiceError as error:
                    failure = error.detail.split("(tries:")[0][:160]
                with lock:
                    tally.seconds.append(time.perf_counter() - started)
                    if failure:
                        tally.posts += 1
                        tally.wrong[failure] += 1
                    else:
                        got = [r.reward if isinstance(r, Reward) else r.code for r in results]
                        tally.answered(tuple(places), got)
            with lock:
                tally.retries += scoring.num_retries

    threads = [threading.Thread(target=client, args=(n,)) for n in range(options.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def phase(
    whom: str, service: Service, pool: list[Conversation], options: argparse.Namespace
) -> tuple[dict[str, bool], dict[str, Any]]:
    """Load, and kills; its checks and figures."""
    if not service.settle(options.replicas, options.gateways):
        return {f"{whom}: all replicas are there before": False}, {}
    tally = Tally(undisturbed(service, pool))
    print(f"killing a {whom} every {options.every} s, {options.clients} clients", flush=True)
    run = without_retries if whom == "scorer" else with_retries
    started = time.perf_counter()
    with Killer(service, whom, options) as killer:
        run([service.url], pool, tally, options)
    took = time.perf_counter() - started
    came_back = service.settle(options.replicas, options.gateways)
    retries = None
    with contextlib.suppress(Exception):  # a figure, no more
        retries = service.metric("skyreward_retried_batches_total")
    checks = {
        f"{whom}: something was killed": bool(killer.killed),
        f"{whom}: every post answered 200, whole and in order": not tally.wrong and tally.posts > 0,
        f"{whom}: every reward equals the undisturbed one to {TOLERANCE:g}": tally.off == 0,
        f"{whom}: all replicas are back": came_back,
    }
    figures = {
        **tally.figures(),
        "kills": len(killer.killed),
        "seconds": round(took, 1),
        "service_retries": retries,
    }
    return checks, figures


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--kill", choices=["scorer", "gateway", "both"], default="both")
    parser.add_argument("--seconds", type=float, default=120, help="of each kind of kill")
    parser.add_argument("--every", type=float, default=10, help="seconds between kills")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--gateways", type=int, default=2)
    options = parser.parse_args()
    pool = Writer(options.seed).pool()
    checks: dict[str, bool] = {}
    figures: dict[str, Any] = {}
    model = {"cache_bytes": 0, "num_replicas": options.replicas}
    with service_of(options, model=model, num_gateways=options.gateways) as service:
        for whom in ("scorer", "gateway") if options.kill == "both" else (options.kill,):
            found, figures[whom] = phase(whom, service, pool, options)
            checks |= found
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
