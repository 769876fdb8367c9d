"""What the service's own code takes for a post: no server in front of it, no model behind it.

The real application, tokenizer and queue in this process; bodies are handed over as ASGI messages,
and a backend answers every batch at once. CPU of the whole process, in short runs: the least tells
what the code costs, the median what this machine makes of it, whose speed changes by the second.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from load import Post

from rm_core import BatchResult, ModelInfo
from rm_core.packing import TokenIds
from serve.api.app import create_app
from serve.config.settings import Settings
from serve.scoring.service import ScoringService

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fakes import INFO

_RUNS = 20


class _AtOnce:
    """A backend whose model takes no time."""

    num_replicas = 1

    def __init__(self) -> None:
        self._info = replace(INFO, max_length=4_096, max_batch_tokens=4_096)
        self._fingerprint = self._info.fingerprint

    async def run_batch(self, sequences: Sequence[TokenIds], backlog_tokens: int) -> BatchResult:
        return BatchResult(
            (0.0,) * len(sequences), sum(map(len, sequences)), 0.0, self._fingerprint
        )

    async def run_one_by_one(
        self, sequences: Sequence[TokenIds], backlog_tokens: int
    ) -> AsyncIterator[BatchResult | None]:
        for sequence in sequences:
            yield await self.run_batch([sequence], backlog_tokens)

    async def describe(self) -> ModelInfo:
        return self._info

    async def refresh(self) -> None:
        pass


async def _post(app: Any, post: Post) -> None:
    length = str(len(post.content)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/score",
        "raw_path": b"/v1/score",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }
    parts = [{"type": "http.request", "body": post.content, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return parts.pop() if parts else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if sent[0]["status"] != 200:
        raise SystemExit(f"{sent[0]['status']}: {sent[-1].get('body')!r}")


async def _runs(posts: list[Post], clients: int) -> list[float]:
    """Milliseconds a post, of each run."""
    settings = Settings.model_validate({"models": [{"name": "demo", "cache_bytes": 0}]})
    service = ScoringService([(settings.models[0], _AtOnce())], settings)
    app = create_app(service, settings)
    watcher = asyncio.create_task(service.watch())
    while not service.is_ready:
        await asyncio.sleep(0.05)
    found = []
    for _ in range(_RUNS):
        waiting = iter(posts)

        async def client(waiting: Any = waiting) -> None:
            for post in waiting:
                await _post(app, post)

        started = time.process_time()
        await asyncio.gather(*(client() for _ in range(clients)))
        found.append(1000 * (time.process_time() - started) / len(posts))
    watcher.cancel()
    return found[1:]


def in_process(posts: list[Post], clients: int) -> dict[str, float]:
    """Milliseconds of CPU a post: the least and the median of short runs."""
    found = asyncio.run(_runs(posts, clients))
    return {"least_ms": round(min(found), 3), "median_ms": round(statistics.median(found), 3)}
