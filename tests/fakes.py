"""A fake backend whose behavior a test sets, and the HTTP application around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi.testclient import TestClient

from rm_core import BatchResult, ModelConfig, ModelInfo, ScoreError, load_encoder
from rm_core.packing import TokenIds
from serve.api.app import create_app
from serve.config.settings import Settings
from serve.scoring.service import ScoringService
from serve.worker.commands import ModelCommand

FINGERPRINT = {"revision": "r", "template_sha256": "t", "dtype": "float32", "attention": "eager"}
_DEMO_ENCODER = load_encoder(ModelConfig("demo"))
INFO = ModelInfo(
    **FINGERPRINT,
    kind="classifier",
    kind_reason="because",
    step_format=None,
    catalogue_id=None,
    family="qwen3",
    encoding_sha256=_DEMO_ENCODER.encoding_sha256,
    template_depends_on_date=False,
    template_date=None,
    version=None,
    head="score",
    head_dtype="float32",
    readout_layer="readout tokens only",
    device="cpu",
    attention_reason="because",
    max_length=2_048,
    max_batch_tokens=200,
    max_batch_tokens_reason="because",
    prefix_cache_tokens=0,
    prefix_cache_bytes=0,
    prefix_cache_reason="because",
    vision_cache_bytes=0,
    vision_cache_reason="",
    deterministic=False,
    compiled=False,
    compiled_reason="because",
    self_check=True,
    tokenizer=_DEMO_ENCODER.text_tokenizer.choice.name,
    tokenizer_reason=_DEMO_ENCODER.text_tokenizer.choice.reason,
)


class FakeBackend:
    """Returns the number of tokens as the reward, or raises the error that a test sets.

    Attributes:
        gate: event that every batch waits for; None for no wait.
    """

    def __init__(self) -> None:
        self.num_replicas = 1
        self.sleep_level = 0
        self.freed_bytes: int | None = None
        self.commands: list[ModelCommand] = []
        self.control_failure: Exception | None = None
        self.failure: Exception | None = None
        self.load_failure: Exception | None = None
        self.refresh_failure: Exception | None = None
        self.batches: list[Sequence[Any]] = []
        self.delay_s = 0.0
        self.gate: asyncio.Event | None = None
        self.info = INFO
        self.reward: Callable[[Sequence[int]], float | ScoreError] = lambda ids: float(len(ids))

    async def run_batch(self, sequences: Sequence[TokenIds], backlog_tokens: int) -> BatchResult:
        self.batches.append(sequences)
        await asyncio.sleep(self.delay_s)
        if self.gate:
            await self.gate.wait()
        if self.failure:
            raise self.failure
        tokens = sum(len(ids) for ids in sequences)
        rewards = tuple(self.reward(ids) for ids in sequences)
        return BatchResult(rewards, tokens, self.delay_s, self.info.fingerprint)

    async def control(self, command: ModelCommand) -> ModelInfo:
        self.commands.append(command)
        await asyncio.sleep(0)
        if self.control_failure and command.action != "discard":
            raise self.control_failure
        match command.action:
            case "sleep":
                self.sleep_level, self.freed_bytes = command.level, 1234
            case "wake":
                self.sleep_level = 0
            case "stage":
                self.staged = replace(self.info, revision="new", version=command.version)
            case "switch":
                self.info = self.staged
        return self.info

    async def describe(self) -> ModelInfo:
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
    encoder = service.models[settings.models[0].alias].encoder
    backend.info = replace(backend.info, encoding_sha256=encoder.encoding_sha256)
    app = create_app(service, settings)
    with TestClient(app, raise_server_exceptions=False, client=("127.0.0.1", 50_000)) as client:
        yield client


def ready(client: TestClient) -> bool:
    return bool(client.get("/ready").status_code == 200)


def conversation(answer: str, question: str = "2+2?") -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
