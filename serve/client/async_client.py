"""The asynchronous client of the native routes, with the methods of the synchronous client."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

import httpx

from rm_core import Aggregation, Reward, ScoreError, Truncation
from rm_core.types import Conversation
from serve.client.base import BaseClient, build_options, refuse_options, show_progress
from serve.client.responses import (
    Comparison,
    ModelRewards,
    Ranking,
    ResultsWithUsage,
    StepRewards,
    TurnRewards,
    fill_models,
)
from serve.client.sansio import (
    COMPARE_ROUTE,
    JUDGE_ROUTE,
    RANK_ROUTE,
    RENDER_ROUTE,
    SCORE_ROUTE,
    STEPS_ROUTE,
    TURNS_ROUTE,
    BatchCall,
    Pause,
    RequestShard,
    Steps,
    encode_json,
)

T = TypeVar("T")
R = TypeVar("R")


class AsyncScoringClient(BaseClient):
    """`ScoringClient` for event loops; an async context manager.

    A client may be used by any number of tasks at a time, and in several event loops: each loop
    has its own connections. `close` closes the connections of the running loop.

    Args:
        url: address of the service, or several addresses.
        model: alias of the model; None if the service has one model.
        options: the other fields of `ClientOptions`, by name.

    Raises:
        ServiceError: `url` is not a valid address, or `api_key` is not a valid key.
    """

    def __init__(self, url: str | Sequence[str], model: str | None = None, **options: Any) -> None:
        super().__init__(build_options(url, model, **options))
        self._reset_pool()

    @overload
    async def score(
        self,
        conversations: Sequence[Conversation],
        truncation: Truncation = "error",
        *,
        models: None = None,
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> list[float]: ...

    @overload
    async def score(
        self,
        conversations: Sequence[Conversation],
        truncation: Truncation = "error",
        *,
        models: Sequence[str],
        combine: Mapping[str, float] | None = None,
        calibrated: bool = False,
        clip: tuple[float, float] | None = None,
        turns: Literal["last", "all"] = "last",
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> list[ModelRewards]: ...

    async def score(
        self,
        conversations: Sequence[Conversation],
        truncation: Truncation = "error",
        *,
        models: Sequence[str] | None = None,
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
        **options: Any,
    ) -> list[float] | list[ModelRewards]:
        """See `ScoringClient.score`."""
        if models is not None:
            return await self.score_models(
                conversations,
                models,
                truncation,
                tools=tools,
                aggregation=aggregation,
                progress=progress,
                **options,
            )
        refuse_options(options)
        call = self._build_call(
            SCORE_ROUTE, conversations, truncation, tools=tools, aggregation=aggregation
        )
        return [
            result.reward
            for result in (await self._execute(call, progress)).collect_results_or_raise()
        ]

    async def score_models(
        self,
        conversations: Sequence[Conversation | ScoreError],
        models: Sequence[str],
        truncation: Truncation = "error",
        *,
        combine: Mapping[str, float] | None = None,
        calibrated: bool = False,
        clip: tuple[float, float] | None = None,
        turns: Literal["last", "all"] = "last",
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> list[ModelRewards]:
        """See `ScoringClient.score_models`."""
        call = self._build_models_call(
            conversations,
            models,
            truncation,
            combine=combine,
            calibrated=calibrated,
            clip=clip,
            turns=turns,
            tools=tools,
            aggregation=aggregation,
        )
        results = (await self._execute(call, progress)).collect_results()
        return [fill_models(result, models) for result in results]

    async def results(
        self,
        conversations: Sequence[Conversation | ScoreError],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> list[Reward | ScoreError]:
        """See `ScoringClient.results`."""
        response = await self.score_with_usage(
            conversations, truncation, tools=tools, aggregation=aggregation, progress=progress
        )
        return response.results

    async def score_with_usage(
        self,
        conversations: Sequence[Conversation | ScoreError],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> ResultsWithUsage:
        """See `ScoringClient.score_with_usage`."""
        call = self._build_call(
            SCORE_ROUTE, conversations, truncation, tools=tools, aggregation=aggregation
        )
        await self._execute(call, progress)
        return ResultsWithUsage(
            call.collect_results(), call.num_computed_tokens, call.num_cached_tokens
        )

    async def steps(
        self,
        items: Sequence[Mapping[str, Any] | ScoreError],
        aggregation: Aggregation = "last",
        *,
        progress: bool = False,
    ) -> list[StepRewards | ScoreError]:
        """See `ScoringClient.steps`."""
        call = self._build_call(STEPS_ROUTE, items, "error", aggregation=aggregation)
        return (await self._execute(call, progress)).collect_results()

    async def judge(
        self,
        pairs: Sequence[Mapping[str, Any] | ScoreError],
        orders: Literal["both", "given"] = "both",
        truncation: Truncation = "error",
        *,
        progress: bool = False,
    ) -> list[Comparison | ScoreError]:
        """See `ScoringClient.judge`."""
        call = self._build_call(JUDGE_ROUTE, pairs, truncation, orders=orders)
        return (await self._execute(call, progress)).collect_results()

    async def score_turns(
        self,
        conversations: Sequence[Conversation | ScoreError],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        progress: bool = False,
    ) -> list[TurnRewards | ScoreError]:
        """See `ScoringClient.score_turns`."""
        call = self._build_call(TURNS_ROUTE, conversations, truncation, tools=tools, turns="all")
        return (await self._execute(call, progress)).collect_results()

    async def count_tokens(
        self, conversations: Sequence[Conversation], truncation: Truncation = "error"
    ) -> list[int | ScoreError]:
        """See `ScoringClient.count_tokens`."""
        call = self._build_call(RENDER_ROUTE, conversations, truncation)
        return (await self._execute(call, progress=False)).collect_results()

    async def compare(
        self,
        pairs: Sequence[Mapping[str, Any]],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> list[Comparison]:
        """See `ScoringClient.compare`."""
        call = self._build_call(
            COMPARE_ROUTE, pairs, truncation, tools=tools, aggregation=aggregation
        )
        return (await self._execute(call, progress)).collect_results_or_raise()

    async def rank(
        self,
        prompt: str | Conversation | None,
        responses: Sequence[str | Conversation | ScoreError],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> Ranking:
        """See `ScoringClient.rank`."""
        call = self._build_call(
            RANK_ROUTE, responses, truncation, tools=tools, aggregation=aggregation, prompt=prompt
        )
        return (await self._execute(call, progress)).build_ranking()

    async def sleep(self, level: Literal[1, 2] = 1) -> list[dict[str, Any]]:
        """See `ScoringClient.sleep`."""
        return await self._run(self._control("sleep", level=level))

    async def wake(self) -> list[dict[str, Any]]:
        """See `ScoringClient.wake`."""
        return await self._run(self._control("wake"))

    async def reload(self, source: str, version: str | None = None) -> list[dict[str, Any]]:
        """See `ScoringClient.reload`."""
        return await self._run(self._control("reload", source=source, version=version))

    async def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """See `ScoringClient.post`."""
        content = encode_json(self._add_model(body)).encode()
        return await self._run(self._sender.request("POST", route, content))

    async def get(self, route: str) -> dict[str, Any]:
        """See `ScoringClient.get`."""
        return await self._run(self._sender.request("GET", route))

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    def _reset_pool(self) -> None:
        self._pools: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    def _get_pool(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._lock:
            # The pools of closed loops can be neither used nor closed.
            self._pools = {key: pool for key, pool in self._pools.items() if not key.is_closed()}
            if loop not in self._pools:
                self._pools[loop] = httpx.AsyncClient(
                    **self._build_httpx_kwargs(httpx.AsyncHTTPTransport)
                )
            return self._pools[loop]

    async def _execute(self, call: BatchCall[R], progress: bool) -> BatchCall[R]:
        num_items, shards = len(call.results), self._iter_shards(call)
        with show_progress(num_items, progress) as advance:

            async def send_shards(queue: Iterator[RequestShard]) -> None:
                for shard in queue:
                    await self._run(call.send_shard(shard, self._sender))
                    advance(len(shard.indices))

            first, second = next(shards, None), next(shards, None)
            queue = itertools.chain(filter(None, (first, second)), shards)
            num_tasks = 1 if second is None else self._total_concurrency()
            tasks = [asyncio.create_task(send_shards(queue)) for _ in range(num_tasks)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        if self._check_fingerprints(call):
            return call
        return await self._execute(call.restart(), progress)

    async def _run(self, steps: Steps[T]) -> T:
        pool = self._get_pool()
        outcome: httpx.Response | httpx.HTTPError | None = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    outcome = None
                    continue
                try:
                    async with pool.stream(
                        step.method, step.url, content=step.content, headers=step.headers
                    ) as response:
                        body = self._build_response_body(response)
                        async for data in response.aiter_raw():
                            body.feed(data)
                    outcome = body.build_response()
                except httpx.HTTPError as error:
                    outcome = error
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
