"""Load on `/v1/score`: clients that wait for their answers, and arrivals that do not.

A closed loop measures what a service can do: so many clients, each posting again as soon as it has
its answer. An open loop is how overload comes: posts arrive at a rate, answered or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx
from workload_mix import Writer, body_of

JSON = {"Content-Type": "application/json"}
_TIMEOUT = httpx.Timeout(300.0)
_AFTER_A_FAILURE_S = 0.1


@dataclass(frozen=True, slots=True)
class Post:
    """A body, and how many conversations it holds."""

    content: bytes
    size: int
    picks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a post.

    Attributes:
        post: which.
        sent: when, by `time.perf_counter`.
        seconds: until its answer was there.
        status: of the answer; 0 if the connection ended without one.
        body: of the answer.
        headers: of the answer.
        failure: why there is no answer.
    """

    post: Post
    sent: float
    seconds: float
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    failure: str = ""

    @property
    def answered(self) -> float:
        """When, by `time.perf_counter`."""
        return self.sent + self.seconds

    @property
    def results(self) -> list[dict[str, Any]]:
        """Of an answer of success."""
        found: list[dict[str, Any]] = json.loads(self.body)["results"]
        return found

    @property
    def refused_politely(self) -> bool:
        """Told to come again, and when."""
        return self.status in (429, 503) and self.headers.get("retry-after", "").isdecimal()


def unique_posts(seed: int, number: int, size: int, num_bytes: int) -> list[Post]:
    """Posts of which no conversation comes twice."""
    writer = Writer(seed)
    return [
        Post(body_of([writer.conversation(num_bytes) for _ in range(size)]), size)
        for _ in range(number)
    ]


def connections() -> httpx.Limits:
    """As many as are needed, each kept."""
    # Less than servers wait before they close an idle one: closing and posting at the same moment
    # looks like a lost post.
    return httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)


async def send(http: httpx.AsyncClient, post: Post, route: str = "/v1/score") -> Outcome:
    """Post once, whatever comes."""
    sent = time.perf_counter()
    try:
        answer = await http.post(route, content=post.content, headers=JSON)
    except httpx.HTTPError as error:
        seconds = time.perf_counter() - sent
        return Outcome(post, sent, seconds, 0, failure=f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - sent
    return Outcome(post, sent, seconds, answer.status_code, answer.content, dict(answer.headers))


async def closed_loop(
    url: str,
    posts: Iterable[Post],
    clients: int,
    seconds: float,
    seen: Callable[[Outcome], None] | None = None,
    route: str = "/v1/score",
) -> list[Outcome]:
    """Each client posts, waits, posts the next; those under way at the end are waited for."""
    outcomes: list[Outcome] = []
    waiting: Iterator[Post] = iter(posts)
    end = time.perf_counter() + seconds
    async with httpx.AsyncClient(
        base_url=url, limits=connections(), timeout=_TIMEOUT, trust_env=False
    ) as http:

        async def client() -> None:
            while time.perf_counter() < end and (post := next(waiting, None)):
                outcome = await send(http, post, route)
                outcomes.append(outcome)
                if seen:
                    seen(outcome)
                if outcome.status != httpx.codes.OK:  # no storm of what is refused at once
                    await asyncio.sleep(_AFTER_A_FAILURE_S)

        await asyncio.gather(*(client() for _ in range(clients)))
    return outcomes


async def open_loop(url: str, posts: Iterable[Post], rate: float, seconds: float) -> list[Outcome]:
    """Posts arrive at a steady rate, whatever became of those before."""
    started = time.perf_counter()
    arrivals = zip(itertools.count(), itertools.cycle(posts), strict=False)
    tasks: list[asyncio.Task[Outcome]] = []
    async with httpx.AsyncClient(
        base_url=url, limits=connections(), timeout=_TIMEOUT, trust_env=False
    ) as http:
        for number, post in arrivals:
            due = number / rate
            if due >= seconds:
                break
            # Late arrivals come at once: what the machine cannot send in time is not left out.
            await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
            if time.perf_counter() - started >= seconds:
                break
            tasks.append(asyncio.create_task(send(http, post)))
        await asyncio.sleep(max(0.0, started + seconds - time.perf_counter()))
        return list(await asyncio.gather(*tasks))


def full_rate(url: str, posts: list[Post], clients: int, seconds: float) -> float:
    """Conversations per second that a service answers when it is never idle."""
    outcomes = asyncio.run(closed_loop(url, itertools.cycle(posts), clients, seconds))
    if bad := [o for o in outcomes if o.status != httpx.codes.OK]:
        raise SystemExit(
            f"the service does not do what is asked: {bad[0].status} {bad[0].body[:300]!r}"
        )
    # Not the first answers, which nothing came before, nor those after the last post was sent.
    began = min(o.sent for o in outcomes)
    start, end = began + seconds / 3, began + seconds
    return sum(o.post.size for o in outcomes if start <= o.answered <= end) / (end - start)


def lone_posts(
    url: str, posts: Iterable[Post], route: str = "/v1/score"
) -> Iterator[tuple[float, bytes]]:
    """Seconds and answers of posts that come one after another over one connection."""
    # The client that costs least: its time is in what is measured.
    address = urlsplit(url)
    http = HTTPConnection(address.hostname or "", address.port, timeout=60)
    with contextlib.closing(http):
        for post in posts:
            started = time.perf_counter()
            http.request("POST", route, post.content, JSON)
            answer = http.getresponse()
            body = answer.read()
            seconds = time.perf_counter() - started
            if answer.status != HTTPStatus.OK:
                raise SystemExit(f"a lone post was answered {answer.status}: {body[:300]!r}")
            yield seconds, body


def lone_latencies(url: str, posts: Iterable[Post], route: str = "/v1/score") -> list[float]:
    """The seconds alone."""
    return [seconds for seconds, _ in lone_posts(url, posts, route)]
