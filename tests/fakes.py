"""A fake backend whose behavior a test sets, and the HTTP application around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastapi.testclient import TestClient

from rm_core import ScoredBatch, ScoreError
from rm_core.packing import TokenIds
from serve.api.app import create_app
from serve.config.settings import Settings
from serve.scoring.served_model import build_fingerprint
from serve.scoring.service import ScoringService
from serve.worker.backends import BatchResult

FINGERPRINT = {"revision": "r", "template_sha256": "t", "dtype": "float32", "attention": "eager"}
INFO = {**FINGERPRINT, "max_batch_tokens": 200}


class FakeBackend:
    """Returns the number of tokens as the reward, or raises the error that a test sets.

    Attributes:
        gate: event that every batch waits for; None for no wait.
    """

    def __init__(self) -> None:
        self.num_replicas = 1
        self.failure: Exception | None = None
        self.load_failure: Exception | None = None
        self.refresh_failure: Exception | None = None
        self.batches: list[Sequence[Any]] = []
        self.delay_s = 0.0
        self.gate: asyncio.Event | None = None
        self.info: dict[str, Any] = INFO
        self.reward: Callable[[Sequence[int]], float | ScoreError] = lambda ids: float(len(ids))

    async def run_batch(self, sequences: Sequence[TokenIds], backlog_tokens: int) -> BatchResult:
        self.batches.append(sequences)
        await asyncio.sleep(self.delay_s)
        if self.gate:
            await self.gate.wait()
        if self.failure:
            raise self.failure
        tokens = sum(len(ids) for ids in sequences)
        batch = ScoredBatch(tuple(self.reward(ids) for ids in sequences), tokens)
        return BatchResult(batch, self.delay_s, build_fingerprint(self.info))

    async def describe(self) -> dict[str, Any]:
        if self.load_failure:
            raise self.load_failure
        return self.info

    async def refresh(self) -> None:
        if self.refresh_failure:
            raise self.refresh_failure


@contextlib.contextmanager
def serving(backend: FakeBackend, **chosen: Any) -> Iterator[TestClient]:
    """Yield a client of an application with one model: the demo's tokenizer and the backend."""
    settings = Settings.load(models=[{"name": "demo", **chosen}])
    service = ScoringService([(settings.models[0], backend)], settings)
    app = create_app(service, settings)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def ready(client: TestClient) -> bool:
    return bool(client.get("/ready").status_code == 200)


def conversation(answer: str, question: str = "2+2?") -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
