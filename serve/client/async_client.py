"""The asynchronous client of the native routes: the same as the other, awaited."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx

from rm_core import Reward, ScoreError, Truncation
from rm_core.types import Conversation
from serve.client.base import BaseClient, build_options
from serve.client.batching import COMPARE_ROUTE, RANK_ROUTE, SCORE_ROUTE, BatchCall, RequestShard
from serve.client.progress import show_progress
from serve.client.responses import Comparison, Ranking
from serve.client.sansio import Pause, Steps, encode_json

T = TypeVar("T")
R = TypeVar("R")


class AsyncScoringClient(BaseClient):
    """`ScoringClient` for event loops; an async context manager.

    May be used by any number of tasks at a time, and in one loop after another: each has its own
    connections. `close` lets go of those of the loop that it is called in.

    Args:
        url: address of the service, or several.
        model: which of its models; None if it serves one.
        options: the other fields of `ClientOptions`, by name.

    Raises:
        ServiceError: `url` is no address, or `api_key` no key.
    """

    def __init__(self, url: str | Sequence[str], model: str | None = None, **options: Any) -> None:
        super().__init__(build_options(url, model, **options))
        self._reset_pool()

    async def score(
        self,
        conversations: Sequence[Conversation],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        progress: bool = False,
    ) -> list[float]:
        """As `ScoringClient.score`."""
        work = self._build_call(SCORE_ROUTE, conversations, truncation, tools=tools)
        return [
            result.reward
            for result in (await self._execute(work, progress)).collect_results_or_raise()
        ]

    async def results(
        self,
        conversations: Sequence[Conversation | ScoreError],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        progress: bool = False,
    ) -> list[Reward | ScoreError]:
        """As `ScoringClient.results`."""
        work = self._build_call(SCORE_ROUTE, conversations, truncation, tools=tools)
        return (await self._execute(work, progress)).collect_results()

    async def compare(
        self,
        pairs: Sequence[Mapping[str, Any]],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        progress: bool = False,
    ) -> list[Comparison]:
        """As `ScoringClient.compare`."""
        return (
            await self._execute(
                self._build_call(COMPARE_ROUTE, pairs, truncation, tools=tools), progress
            )
        ).collect_results_or_raise()

    async def rank(
        self,
        prompt: str | Conversation | None,
        responses: Sequence[str | Conversation],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        progress: bool = False,
    ) -> Ranking:
        """As `ScoringClient.rank`."""
        work = self._build_call(RANK_ROUTE, responses, truncation, tools=tools, prompt=prompt)
        return Ranking.from_rewards(
            [r.reward for r in (await self._execute(work, progress)).collect_results_or_raise()]
        )

    async def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """As `ScoringClient.post`."""
        content = encode_json(self._add_model(body)).encode()
        return await self._run(self._sender.request("POST", route, content))

    async def get(self, route: str) -> dict[str, Any]:
        """As `ScoringClient.get`."""
        return await self._run(self._sender.request("GET", route))

    async def close(self) -> None:
        """Let go of the connections of this loop."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    def _reset_pool(self) -> None:
        self._pools: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    def _get_pool(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._lock:
            # Those of loops that have ended can be neither used nor closed any more.
            self._pools = {o: pool for o, pool in self._pools.items() if not o.is_closed()}
            if loop not in self._pools:
                self._pools[loop] = httpx.AsyncClient(
                    **self._build_httpx_kwargs(httpx.AsyncHTTPTransport)
                )
            return self._pools[loop]

    async def _execute(self, call: BatchCall[R], progress: bool) -> BatchCall[R]:
        num_items = len(call.results)
        parts = call.iter_shards(self._max_items_per_shard(num_items), self.options.max_bytes)
        with show_progress(num_items, progress) as show:

            async def take_parts(queue: Iterator[RequestShard]) -> None:
                for part in queue:
                    await self._run(call.send_shard(part, self._sender))
                    show(len(part.indices))

            first, second = next(parts, None), next(parts, None)
            queue = itertools.chain(filter(None, (first, second)), parts)
            number = 1 if second is None else self._total_concurrency()
            tasks = [asyncio.create_task(take_parts(queue)) for _ in range(number)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return self._check_fingerprints(call)

    async def _run(self, steps: Steps[T]) -> T:
        pool = self._get_pool()
        came: httpx.Response | httpx.HTTPError | None = None
        try:
            while True:
                step = steps.send(came)
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    came = None
                    continue
                try:
                    async with pool.stream(
                        step.method, step.url, content=step.content, headers=step.headers
                    ) as response:
                        body = self._build_response_body(response)
                        async for piece in response.aiter_raw():
                            body.feed(piece)
                    came = body.build_response()
                except httpx.HTTPError as error:
                    came = error
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

    async def __aenter__(self) -> AsyncScoringClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
