"""Posts without end for a service of which only the front is measured, and the least of clients.

Texts are cut out of published rows, or of the sample pairs where those are not at hand, at random,
so that no two posts are alike. Two texts of 1,000 characters make a conversation of about 460
tokens. The client writes and reads HTTP by hand: it has to outrun the service on one core.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from workloads import Conversations, judgebench_rows, talk

from rm_core.verification import sample_conversations

_CHARACTERS = 1_000
_HALF_OF_4_KB = 1_950  # beside the braces and names around it


class Texts:
    """Cuts texts out of rows.

    Args:
        data: folder of published benchmark files.
        seed: another one, other texts.
    """

    def __init__(self, data: Path, seed: int = 0) -> None:
        self._chance = random.Random(seed)
        if data.is_dir():
            rows = judgebench_rows(data)
            texts = [row[name] for row in rows for name in ("question", "response_A", "response_B")]
        else:
            samples = [m["content"] for _, messages in sample_conversations() for m in messages]
            texts = self._chance.choices(samples, k=2_000)
        self._text = "\n\n".join(texts)

    def draw(self, num_characters: int = _CHARACTERS) -> str:
        """Cut a text out, about so long, from one space to another."""
        start = self._text.index(" ", self._chance.randrange(len(self._text) - 10 * num_characters))
        stop = self._text.index(" ", start + num_characters)
        return self._text[start + 1 : stop]

    def draw_group(self, size: int) -> Conversations:
        """Answers to one prompt."""
        prompt = self.draw()
        return [talk(prompt, self.draw()) for _ in range(size)]

    def shuffle(self, conversations: Conversations) -> Conversations:
        """Return the same conversations in another order."""
        return self._chance.sample(conversations, len(conversations))


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of posts.

    Attributes:
        draw: draws the posts that come next, each the conversations of one.
        clients: how many post at a time, at most; None for as many as there are.
    """

    draw: Callable[[Texts], list[Conversations]]
    clients: int | None = None


def _draw_arriving(texts: Texts) -> list[Conversations]:
    groups = [texts.draw_group(16) for _ in range(12)]
    return [[one] for one in texts.shuffle(list(itertools.chain.from_iterable(groups)))]


def _draw_large(texts: Texts) -> list[Conversations]:
    return [list(itertools.chain.from_iterable(texts.draw_group(2) for _ in range(128)))]


KINDS = {
    "4 KB alone": Kind(
        lambda texts: [[talk(texts.draw(_HALF_OF_4_KB), texts.draw(_HALF_OF_4_KB))]], clients=1
    ),
    "pairs": Kind(lambda texts: [texts.draw_group(2)]),
    "groups of 16": Kind(lambda texts: [texts.draw_group(16)]),
    "arriving": Kind(_draw_arriving),
    "posts of 256": Kind(_draw_large, clients=4),
}


@dataclass(frozen=True, slots=True)
class Answered:
    """Posts that were answered.

    Attributes:
        posts: how many.
        conversations: of all posts.
        tokens: of all conversations, as the answers tell.
        seconds: from the first post to the last answer.
        cpu_s: CPU of the clients.
    """

    posts: int
    conversations: int
    tokens: int
    seconds: float
    cpu_s: float


def post_for(url: str, kind: Kind, texts: Texts, clients: int, seconds: float) -> Answered:
    """Post for so long, each client again as soon as it has its answer."""
    bodies = _draw_bodies(kind, texts)
    started, cpu_started = time.perf_counter(), time.process_time()
    counts = asyncio.run(
        _run_clients(url, bodies, min(clients, kind.clients or clients), started + seconds)
    )
    return Answered(
        *(sum(numbers) for numbers in zip(*counts, strict=True)),
        seconds=time.perf_counter() - started,
        cpu_s=time.process_time() - cpu_started,
    )


def _draw_bodies(kind: Kind, texts: Texts) -> Iterator[bytes]:
    while True:
        for conversations in kind.draw(texts):
            yield json.dumps({"conversations": conversations}).encode()


async def _run_clients(
    url: str, bodies: Iterator[bytes], clients: int, end: float
) -> list[tuple[int, int, int]]:
    """Posts, conversations and tokens of each client."""
    address = urlsplit(url)
    assert address.port is not None

    async def client() -> tuple[int, int, int]:
        posts = conversations = tokens = 0
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while time.perf_counter() < end:
            body = next(bodies)
            writer.write(
                b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            answer = await _read_answer(reader)
            posts += 1
            conversations += len(answer["results"])
            tokens += answer["usage"]["num_tokens"]
        writer.close()
        return posts, conversations, tokens

    return await asyncio.gather(*(client() for _ in range(clients)))


async def _read_answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    body = await reader.readexactly(int(length))
    if not head.startswith(b"HTTP/1.1 200 ") or b'"error"' in body:
        raise SystemExit(f"{head.partition(b' ')[2][:40]!r} {body[:300]!r}")
    answer: dict[str, Any] = json.loads(body)
    return answer
